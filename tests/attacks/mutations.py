"""Files of every format that is read, damaged: refused in one line, or read as if nothing had been done to them.

Each mutation is drawn from its number, so that a failure can be repeated by itself. The readers run in a process of
their own, since a crash of a native one would end whoever called it.
"""

import json
import multiprocessing
import random
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from tests.weights.test_mutations import BYTES, HEADER, edited, header_spec, saved_state
from tests.weights.test_mutations import SPEC as CHECKPOINT_SPEC
from twingpt.core.errors import TwinGPTError
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.data.contacts import Contact
from twingpt.data.files import CONTACTS_FILE, LIBRARY_FILE, MANIFEST_FILE, TOKENIZER_FILE
from twingpt.data.library.build import LibraryDocument, build_library
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.library.search import Library
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.log import read_metrics
from twingpt.weights.checkpoint import Progress, read_checkpoint, write_checkpoint
from twingpt.weights.huggingface import Types, export_hf, import_hf

TIME_LIMIT_S = 20
Told = tuple[int, str, str | None]
_TEXT = ["마닐라에서 비자를 연장하려면 여권 사본이 필요합니다.", "세부 은행은 오전 9시에 엽니다. 전화는 2층에서."]


def read_library(folder: Path) -> object:
    with Library(folder / LIBRARY_FILE) as library:
        found = library.search("마닐라 비자")
        return [(one, library.contacts(one)) for one in found], library.titles(3)


def read_contacts(folder: Path) -> object:
    with ContactStore.open(folder / CONTACTS_FILE) as store:
        return store.of_document("이민국")


def read_tokenizer(folder: Path) -> object:
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE, fast=False)
    ids = tokenizer.encode(_TEXT[0])
    return tokenizer.vocab_size, ids, tokenizer.decode(ids)


def read_config(folder: Path) -> object:
    return RunConfig.load(folder)


def read_manifest(folder: Path) -> object:
    return Manifest.load(folder)


def read_exported(folder: Path) -> object:
    spec, weights, types = import_hf(folder)
    return spec, sorted((name, weight.tobytes()) for name, weight in weights.items()), types


def read_checkpoint_of(folder: Path) -> object:
    found = read_checkpoint(folder)
    state = sorted((name, array.tobytes()) for name, array in found.state.items())
    return found.spec, found.progress, state


# What is read -> the file in the folder, its reader, and whether a checksum says when it has changed. Where none does
# (a person may edit the file), a change that leaves it possible is believed; it must be whole all the same.
FORMATS: dict[str, tuple[str, Callable[[Path], object], bool]] = {
    "library": (LIBRARY_FILE, read_library, False),
    "contacts": (CONTACTS_FILE, read_contacts, False),
    "tokenizer": (TOKENIZER_FILE, read_tokenizer, False),
    "config": ("config.toml", read_config, False),
    "manifest": (MANIFEST_FILE, read_manifest, False),
    "exported config": ("config.json", read_exported, False),
    "exported weights": ("model.safetensors", read_exported, False),
    "metrics": ("metrics.jsonl", read_metrics, False),
    "checkpoint weights": (
        "checkpoint/model.safetensors",
        lambda folder: read_checkpoint_of(folder / "checkpoint"),
        True,
    ),
    "checkpoint state": ("checkpoint/state.json", lambda folder: read_checkpoint_of(folder / "checkpoint"), True),
}


def write_all(folder: Path) -> None:
    """A small file of each format."""
    documents = [LibraryDocument("이민국", (_TEXT[0],), "a.txt", 1), LibraryDocument("은행", (_TEXT[1],), "a.txt", 2)]
    build_library(folder / LIBRARY_FILE, documents)
    contacts = [Contact("TEL", "(02) 8555-0123", "02-8555-0123", 0, 14, "이민국", 1, "이민국")]
    ContactStore.create(folder / CONTACTS_FILE, iter(contacts)).close()
    train_tokenizer(iter(_TEXT), 280).save(folder / TOKENIZER_FILE)
    RunConfig(
        model=GPTSpec(vocab_size=280, block_size=8, n_layer=1, n_head=1, n_embd=8), train=TrainConfig(), data="d"
    ).save(folder)
    example = Path(__file__).parents[1] / "fixtures" / "v0.1" / "data" / MANIFEST_FILE
    shutil.copyfile(example, folder / MANIFEST_FILE)
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "val_loss": 2.25}\n')
    (folder / "checkpoint").mkdir()
    state = saved_state()
    write_checkpoint(folder / "checkpoint", CHECKPOINT_SPEC, state, Progress(step=7, fingerprint={"data": "abc"}))
    spec = GPTSpec(vocab_size=11, block_size=4, n_layer=1, n_head=1, n_embd=8, activation="gelu_tanh")
    generator = np.random.default_rng(0)
    weights = {
        name: generator.standard_normal(one.shape).astype(np.float32) for name, one in parameter_table(spec).items()
    }
    export_hf(folder, spec, weights, config={}, generation={}, types=Types(), bare_names=False)


def splice(content: bytes, rng: random.Random) -> bytes:
    """The beginning and another part of the same file."""
    first, second = rng.randrange(len(content)), rng.randrange(len(content))
    return content[:first] + content[second:]


def deep(content: bytes, rng: random.Random) -> bytes:
    """Nested beyond what any reader follows, at the place of a value."""
    opening = rng.choice((b"[", b'{"a":', b"[[", b"a = ["))
    at = content.find(rng.choice((b":", b"=", b"{")), rng.randrange(len(content))) + 1
    return content[:at] + opening * rng.choice((900, 20_000, 100_000)) + content[at:]


def tree(content: bytes, rng: random.Random) -> bytes:
    """A value of JSON replaced, removed, added or renamed."""
    try:
        return json.dumps(edited(json.loads(content), rng)).encode()
    except ValueError:
        return splice(content, rng)


def toml_value(content: bytes, rng: random.Random) -> bytes:
    """The value of one setting."""
    lines = content.split(b"\n")
    at = rng.choice([number for number, line in enumerate(lines) if b" = " in line])
    values = (
        b"nan",
        b"inf",
        b"-1",
        b"0",
        b"10000000000000",
        b'"x"',
        b"true",
        b"[]",
        b"{}",
        b"1979-05-27",
        b"1e400",
        b"",
    )
    lines[at] = lines[at].split(b" = ")[0] + b" = " + rng.choice(values)
    return b"\n".join(lines)


def damaged(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    """(the kind of damage, the content after it)."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [*BYTES, splice, deep]
    if name.endswith((".json", ".jsonl")):
        kinds += [tree] * 8
    elif name.endswith(".toml"):
        kinds += [toml_value] * 8
    elif name.endswith(".safetensors"):
        # What other programs write has no spec in its header.
        kinds += [one for one in HEADER if name != "model.safetensors" or one is not header_spec] * 2
    kind = rng.choice(kinds)
    return kind.__name__, kind(content, rng)


def _attack(folder: Path, number: int, seed: int) -> Told:
    rng = random.Random(f"{seed}/{number}")
    what = list(FORMATS)[number % len(FORMATS)]
    name, read, checked = FORMATS[what]
    path = folder / name
    pristine = path.read_bytes()
    whole = read(folder)
    kind, content = damaged(name, pristine, rng)
    path.write_bytes(content)
    signal.alarm(TIME_LIMIT_S)
    broken = None
    try:
        now = read(folder)
        if checked and now != whole:
            broken = "it was read as something else, without a word"
    except TwinGPTError as error:
        if "\n" in str(error):
            broken = f"a refusal of several lines: {str(error)[:300]!r}"
    except Exception as error:
        broken = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        signal.alarm(0)
        path.write_bytes(pristine)
    return number, f"{what}, {kind}", broken


def _attacks(pipe: Connection, folder: Path, numbers: list[int], seed: int) -> None:
    for number in numbers:
        pipe.send(_attack(folder, number, seed))


def bombarded(folder: Path, numbers: Iterable[int], seed: int) -> Iterator[Told]:
    """Each mutation by its number, with what was done and what it broke."""
    pristine, work = folder / "pristine", folder / "damaged"
    pristine.mkdir()
    write_all(pristine)
    waiting = list(numbers)
    while waiting:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(pristine, work)
        ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_attacks, args=(theirs, work, waiting, seed))
        process.start()
        theirs.close()
        try:
            while waiting:
                told: Told = ours.recv()
                waiting.remove(told[0])
                yield told
        except EOFError:
            process.join()
            number = waiting.pop(0)
            what = list(FORMATS)[number % len(FORMATS)]
            yield number, f"{what}, unknown", f"the reader crashed or hung (exit code {process.exitcode})"
        process.join()
