"""Damage of every kind to a checkpoint's files: a clear error, or exactly what was saved.

Each mutation is drawn from a generator seeded with its number, so that a failure can be repeated by itself.
"""

import contextlib
import json
import random
import resource
import shutil
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import expected_shapes
from twingpt.weights.checkpoint import Checkpoint, Progress, _digest, read_checkpoint, write_checkpoint
from twingpt.weights.format import content_digest, read_safetensors, write_safetensors

SPEC = GPTSpec(vocab_size=11, block_size=4, n_layer=2, n_head=1, n_embd=8)
PROGRESS = Progress(step=7, samples=28, tokens=900, val_loss=2.5, fingerprint={"data": "abc", "tokenizer": "def"})
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")
TENSOR_FILES = FILES[:2]
MEMORY_LIMIT = 256 << 20
TIME_LIMIT_S = 5.0
SHARDS = 10

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, float("nan"), float("inf"),
    "", "x", "7", "F32", "\ud800", "한글", [], [7], {}, {"a": 1}, [[[]]], "[" * 3000,
)  # fmt: skip
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", "f32", "", "F33")


def saved_state() -> State:
    generator = np.random.default_rng(0)
    state: State = {
        key: generator.standard_normal(shape).astype(np.float32)
        for key, shape in expected_shapes(SPEC, optimizer="adamw").items()
    }
    state["adamw.count"] = np.array(7, dtype=np.int64)
    return state


STATE = saved_state()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pristine = tmp_path / "pristine"
    pristine.mkdir()
    write_checkpoint(pristine, SPEC, STATE, PROGRESS)
    return pristine


class HangError(Exception):
    """A read that took longer than any read of a small file may."""


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Small files must neither take long nor much memory: what asks for more raises, and is no TwinGPTError."""

    def hang(_: int, __: FrameType | None) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, hang)
    bounds = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY_LIMIT, bounds[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, bounds)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def outcome(folder: Path, label: object, *, forged: bool = False) -> str:
    """Whether it gave an "error" or "loaded"; fails on anything else.

    forged: the mutation wrote fitting checksums, so that a possible spec or progress is believed; the tensors that come
    back are the saved ones all the same.
    """
    signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT_S)
    try:
        loaded = read_checkpoint(folder)
    except TwinGPTError as error:
        assert str(folder) in str(error) and "\n" not in str(error), (label, error)
        return "error"
    except BaseException as error:
        pytest.fail(f"mutation {label}: {type(error).__name__}: {error}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert_as_saved(loaded, label, forged=forged)
    return "loaded"


def assert_as_saved(loaded: Checkpoint, label: object, *, forged: bool) -> None:
    if not forged:
        assert loaded.spec == SPEC, label
        assert loaded.progress == PROGRESS, label
        assert loaded.state.keys() == STATE.keys(), label
    assert isinstance(loaded.progress.step, int), label
    for key, array in loaded.state.items():
        assert array.dtype == STATE[key].dtype and array.shape == STATE[key].shape, (label, key)
        assert array.tobytes() == STATE[key].tobytes(), (label, key)


# Mutations of bytes: (content, generator) -> content


def flip(content: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 16))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, 7, 8, 9, len(content) - 1, rng.randrange(len(content))))]


def insert(content: bytes, rng: random.Random) -> bytes:
    at = rng.choice((0, 8, len(content), rng.randrange(len(content))))
    return content[:at] + rng.randbytes(rng.choice((1, 2, 8, 100))) + content[at:]


def overwrite(content: bytes, rng: random.Random) -> bytes:
    at, size = rng.randrange(len(content)), rng.choice((1, 4, 64))
    filling = rng.choice((bytes(size), b"\xff" * size, rng.randbytes(size), b"9" * size, b'"' * size))
    return content[:at] + filling + content[at + size :]


def swap(content: bytes, rng: random.Random) -> bytes:
    size = rng.choice((1, 4, 32, 128))
    first, second = sorted(rng.randrange(max(1, len(content) - size)) for _ in range(2))
    second = max(second, first + size)
    blocks = content[first : first + size], content[second : second + size]
    return content[:first] + blocks[1] + content[first + size : second] + blocks[0] + content[second + size :]


def drop(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + content[at + rng.choice((1, 4, 64)) :]


BYTES = (flip, flip, truncate, insert, overwrite, swap, drop)


# Mutations of a safetensors header


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_header(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def header_length(content: bytes, rng: random.Random) -> bytes:
    real = struct.unpack("<Q", content[:8])[0]
    lengths = (0, 1, real - 1, real + 1, real * 2, len(content), 10**8 - 1, 10**8, 2**31, 2**63, 2**64 - 1)
    return struct.pack("<Q", rng.choice((*lengths, rng.randrange(2**64)))) + content[8:]


def header_field(content: bytes, rng: random.Random) -> bytes:
    """One field of one tensor, or the whole entry, in a header that stays JSON."""
    header, body = split_header(content)
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    kind = rng.randrange(7)
    if kind == 0:
        entry["dtype"] = rng.choice(DTYPES)
    elif kind == 1:
        entry["shape"] = rng.choice(([], [0], [1], [2**40], [2**62, 4], [0, 2**62], entry["shape"][::-1], [8] * 70))
    elif kind == 2:
        begin, end = entry["data_offsets"]
        offsets = ([begin, end + 4], [begin + 4, end], [end, begin], [0, 2**42], [0, 0], [begin, 2**64])
        entry["data_offsets"] = rng.choice(offsets)
    elif kind == 3:
        entry[rng.choice(("dtype", "shape", "data_offsets", "more"))] = rng.choice(VALUES)
    elif kind == 4:
        header[rng.choice(("more", name + "x", "", "__metadata__"))] = header.pop(name)
    elif kind == 5:
        other = rng.choice([key for key in header if key != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    else:
        del header[name]
    return join_header(header, body)


def header_metadata(content: bytes, rng: random.Random) -> bytes:
    header, body = split_header(content)
    metadata = header["__metadata__"]
    key = rng.choice((*metadata, "more"))
    if rng.random() < 0.3:
        metadata.pop(key, None)
    else:
        metadata[key] = rng.choice((*VALUES, "0" * 64, "2", metadata.get("spec", "").replace("8", "9")))
    return join_header(header, body)


def header_spec(content: bytes, rng: random.Random) -> bytes:
    """A value of the spec, with the checksum left as it was."""
    header, body = split_header(content)
    spec = json.loads(header["__metadata__"]["spec"])
    spec[rng.choice((*spec, "more"))] = rng.choice(VALUES)
    header["__metadata__"]["spec"] = json.dumps(spec)
    return join_header(header, body)


def header_text(content: bytes, rng: random.Random) -> bytes:
    """Duplicate keys, nesting, white space, or another top level."""
    header, body = split_header(content)
    text = json.dumps(header)
    twice = rng.choice(list(header))
    texts = (
        "{" + json.dumps(twice) + ": " + json.dumps(header[rng.choice(list(header))]) + ", " + text[1:],
        text[:-1] + ", " + json.dumps(twice) + ": " + json.dumps(header[rng.choice(list(header))]) + "}",
        "[" * 20_000,
        '{"a":' * 20_000,
        "[" + text + "]",
        "null",
        text + " " * rng.randrange(100),
        " " + text,
        text.replace(", ", ",\n", rng.randrange(5)),
        json.dumps(header, sort_keys=True),
    )
    return join_header(rng.choice(texts).encode(), body)


HEADER = (header_length, header_field, header_field, header_metadata, header_spec, header_text)


# Mutations of state.json


def edited(value: Any, rng: random.Random) -> Any:
    """A value of the tree replaced, removed, added or renamed."""
    if not isinstance(value, dict) or not value or rng.random() < 0.1:
        return rng.choice(VALUES)
    copy = dict(value)
    key, kind = rng.choice(list(copy)), rng.random()
    if kind < 0.7:
        copy[key] = edited(copy[key], rng)
    elif kind < 0.8:
        del copy[key]
    elif kind < 0.9:
        copy["more"] = rng.choice(VALUES)
    else:
        copy[key + "x"] = copy.pop(key)
    return copy


def state_tree(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(edited(json.loads(content), rng)).encode()


def state_text(content: bytes, rng: random.Random) -> bytes:
    text = content.decode()
    texts = (
        "[" * 100_000,
        '{"a":' * 100_000,
        text.replace('"step": 7', '"step": ' + "9" * 5000),
        text.replace('"step": 7', '"step": 7, "step": 8'),
        text.replace('"step": 7', '"step": 8, "step": 7'),
        text.replace('"format_version": 1', '"format_version": 2, "format_version": 1'),
        text.replace("2.5", "2.50"),
        text.replace("2.5", "1e999"),
        text.replace("\n", ""),
        text + "{}",
        "\ufeff" + text,
        json.dumps(json.loads(text), sort_keys=True),
    )
    return rng.choice(texts).encode()


def mutate(folder: Path, number: int) -> str:
    """Damage one file, or the folder; returns what was done."""
    rng = random.Random(number)
    if rng.random() < 0.03:
        return mutate_folder(folder, rng)
    file = rng.choice(FILES)
    path = folder / file
    kinds: list[Callable[[bytes, random.Random], bytes]] = [*BYTES]
    kinds += HEADER * 2 if file in TENSOR_FILES else [state_tree, state_tree, state_text] * 3
    kind = rng.choice(kinds)
    path.write_bytes(kind(path.read_bytes(), rng))
    return f"{kind.__name__} of {file}"


def mutate_folder(folder: Path, rng: random.Random) -> str:
    path = folder / rng.choice(FILES)
    kind = rng.randrange(4)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.unlink()
        path.mkdir()
    elif kind == 2:
        path.write_bytes((folder / rng.choice(FILES)).read_bytes())
    else:
        path.write_bytes(b"")
    return f"folder {kind} of {path.name}"


def forge(folder: Path, number: int) -> str:
    """Damage that fits its checksums: only types and sizes can give it away."""
    rng = random.Random(number)
    if rng.random() < 0.5:
        path = folder / "state.json"
        content = json.loads(path.read_bytes())
        content.pop("sha256")
        content = edited(content, rng)
        if isinstance(content, dict):
            content["sha256"] = _digest(content)
        path.write_text(json.dumps(content))
        return "forged state.json"
    path = folder / "model.safetensors"
    tensors, metadata = read_safetensors(path)
    spec = edited(json.loads(metadata["spec"]), rng)
    texts = (json.dumps(spec), "[" * 50_000, '{"n_layer":' * 50_000, "NaN", '{"n_layer": 1000000000, "vocab_size": 11}')
    metadata["spec"] = texts[0] if rng.random() < 0.8 else rng.choice(texts)
    with contextlib.suppress(UnicodeEncodeError):
        metadata["sha256"] = content_digest(tensors, metadata["spec"])
        write_safetensors(path, tensors, metadata)
        state = json.loads((folder / "state.json").read_bytes())
        state["files"]["model.safetensors"] = metadata["sha256"]
        state.pop("sha256")
        (folder / "state.json").write_text(json.dumps({**state, "sha256": _digest(state)}))
    return "forged spec"


def bombard(pristine: Path, numbers: range, damage: Callable[[Path, int], str], *, forged: bool) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    target = pristine.with_name("damaged")
    with limits():
        for number in numbers:
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(pristine, target)
            label = f"{number} ({damage(target, number)})"
            outcomes[outcome(target, label, forged=forged)] += 1
    return outcomes


def test_mutated_files_give_an_error_or_what_was_saved(folder: Path) -> None:
    outcomes = bombard(folder, range(450), mutate, forged=False)
    # Most damage counts; some (white space, the order of keys) does not. Both must have come up.
    assert outcomes["error"] > 350
    assert outcomes["loaded"] > 5
    assert bombard(folder, range(50), forge, forged=True)["error"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_5000_mutated_files_give_an_error_or_what_was_saved(folder: Path, shard: int) -> None:
    outcomes = bombard(folder, range(shard * 450, (shard + 1) * 450), mutate, forged=False)
    outcomes += bombard(folder, range(shard * 50, (shard + 1) * 50), forge, forged=True)
    assert sum(outcomes.values()) == 5000 // SHARDS


@pytest.mark.parametrize("file", TENSOR_FILES)
@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([1 << 40], [0, 1 << 42]),
        ([1 << 62, 4], [0, 0]),
        ([1 << 62, 4], [0, 1 << 63]),
        ([0, 1 << 62], [0, 0]),
        ([1 << 20, 1 << 20], [0, 4]),
        ([1] * 100_000, [0, 4]),
    ],
)
def test_a_header_that_claims_a_huge_tensor_takes_no_memory(
    folder: Path, file: str, shape: list[int], offsets: list[int]
) -> None:
    header, body = split_header((folder / file).read_bytes())
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    (folder / file).write_bytes(join_header({"__metadata__": header["__metadata__"], "tok_emb.weight": tensor}, body))
    with limits():
        assert outcome(folder, shape) == "error"


def test_a_spec_of_a_billion_layers_is_refused_before_they_are_listed(folder: Path) -> None:
    tensors, metadata = read_safetensors(folder / "model.safetensors")
    metadata["spec"] = json.dumps({**SPEC.to_dict(), "n_layer": 10**9})
    metadata["sha256"] = content_digest(tensors, metadata["spec"])
    write_safetensors(folder / "model.safetensors", tensors, metadata)
    state = json.loads((folder / "state.json").read_bytes())
    state.pop("sha256")
    state["files"]["model.safetensors"] = metadata["sha256"]
    (folder / "state.json").write_text(json.dumps({**state, "sha256": _digest(state)}))
    with limits():
        assert outcome(folder, "n_layer") == "error"
