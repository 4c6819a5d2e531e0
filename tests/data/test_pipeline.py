"""`prepare` as a whole: the same bytes on every way to them, one line for every bad input, nothing half-written."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.killing import killed_at
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.prepare import parallel, pipeline, write_samples
from twingpt.data.prepare.inspect import inspect_data
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.prepare.stages import STATE_FOLDER, Workspace
from twingpt.data.text import clean
from twingpt.data.text.corpus import Documents
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.pack import read_samples
from twingpt.data.tokens.tokenizer import Tokenizer

PLAIN = PrepareSettings(template="plain", separator="blank-line", vocab_size=600, block_size=64)
QA = PrepareSettings(template="qa", vocab_size=600, block_size=256)

Text = Callable[[int], str]


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def _raw(folder: Path, text: str, name: str = "raw.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.fixture
def raw(tmp_path: Path, korean_text: Text) -> Path:
    return _raw(tmp_path, korean_text(120))


def _changed(settings: PrepareSettings, **changes: Any) -> PrepareSettings:
    return dataclasses.replace(settings, **changes)


def test_plain(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepared = prepare([str(raw)], out, PLAIN)
    assert sorted(_files(out)) == [
        *("cleaned.txt", "contacts.sqlite", "library.sqlite", "manifest.json", "report.json", "tokenizer.json"),
        *("train.bin", "val.bin"),
    ]
    manifest, tokenizer = Manifest.load(out), Tokenizer.load(out / "tokenizer.json")
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert manifest.train.documents + manifest.val.documents == len(Documents(out / "cleaned.txt")) == 120
    text = tokenizer.decode(np.fromfile(out / "train.bin", dtype=np.uint16))
    for document in list(Documents(out / "cleaned.txt"))[:20]:
        held_out = f"[BOS]{document}[EOS]" not in text
        assert not held_out or f"[BOS]{document}[EOS]" in tokenizer.decode(
            np.fromfile(out / "val.bin", dtype=np.uint16)
        )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report == prepared.report
    assert report["pack"]["bytes_per_token"] > 2
    assert len(report["pack"]["shown"]) == 3
    assert "documents with contacts brought into one form" not in report["clean"]["changes"]
    assert report["clean"]["contacts"] == 120 and "전화: 02-8555-0001" in text


def test_qa(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    report = prepare([str(raw)], out, _changed(QA, mask_prompt=True)).report
    samples = list(read_samples(out / "samples.jsonl"))
    assert {sample.kind for sample in samples} == {"closed", "open", "summary"}
    assert {sample.split for sample in samples} == {"train", "val"}
    assert report["pack"]["fitting"] == 1.0 and report["pack"]["longest"] <= 257
    assert report["samples"]["samples"] == len(samples) and len(report["samples"]["shown"]) == 3
    sides = {(sample.document, sample.split) for sample in samples}
    assert len(sides) == len({document for document, _ in sides}), "a document lies on one side of the split"
    manifest = Manifest.load(out)
    assert manifest.layout == "rows" and manifest.train.mask_file == "train.mask"
    assert [sample.id for sample in samples] == sorted((s.id for s in samples), key=lambda one: int(one[:6]))


def test_the_same_bytes_for_any_number_of_workers(
    tmp_path: Path, korean_text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "ALONE_BYTES", 0)
    monkeypatch.setattr(write_samples, "BATCH_BYTES", 4096)
    monkeypatch.setattr(clean, "CHUNK", 4096)
    path = _raw(tmp_path, korean_text(60))
    for settings, counts in ((PLAIN, (1, 3)), (_changed(QA, max_samples=100), (1, 2))):
        made = []
        for workers in counts:
            out = tmp_path / f"{settings.template}{workers}"
            prepare([str(path)], out, settings, workers=workers)
            made.append(_files(out))
        assert made[0] == made[1]


def test_stage_by_stage_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    at_once, by_stage = tmp_path / "once", tmp_path / "stages"
    prepare([str(raw)], at_once, QA)
    for stage in pipeline.STAGES:
        prepare([str(raw)] if stage == "clean" else [], by_stage, QA, stages=[stage])
    once, staged = _files(at_once), _files(by_stage)
    assert once.pop("report.json") and staged.pop("report.json")
    assert once == staged


def test_finished_stages_are_not_repeated(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert not any(prepare([str(raw)], out, PLAIN).reused.values())
    before = _files(out)
    assert all(prepare([str(raw)], out, PLAIN).reused.values())
    assert _files(out) == before
    reused = prepare([str(raw)], out, _changed(PLAIN, block_size=32)).reused
    assert reused == {"clean": True, "library": True, "tokenizer": True, "pack": False}
    reused = prepare([str(raw)], out, _changed(PLAIN, vocab_size=500)).reused
    assert reused == {"clean": True, "library": True, "tokenizer": False, "pack": False}
    raw.write_text(raw.read_text(encoding="utf-8").replace("현금만", "카드만"), encoding="utf-8")
    assert not any(prepare([str(raw)], out, _changed(PLAIN, vocab_size=500)).reused.values())


@pytest.mark.parametrize("file", ["cleaned.txt", "tokenizer.json", "train.bin", "manifest.json"])
def test_a_damaged_result_is_made_again(raw: Path, tmp_path: Path, file: str) -> None:
    out = tmp_path / "data"
    prepare([str(raw)], out, PLAIN)
    before = _files(out)
    data = bytearray(before[file])
    data[len(data) // 2] ^= 1
    (out / file).write_bytes(data)
    prepare([str(raw)], out, PLAIN)
    assert _files(out) == before


def test_switching_templates_leaves_no_stale_file(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([str(raw)], out, _changed(QA, mask_prompt=True))
    prepare([str(raw)], out, PLAIN)
    fresh = tmp_path / "fresh"
    prepare([str(raw)], fresh, PLAIN)
    assert _files(out) == _files(fresh)


_PREPARE = """
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
count_from_here()
settings = PrepareSettings(template="plain", separator="blank-line", vocab_size=600, block_size=64)
prepare([sys.argv[1]], Path(sys.argv[2]), settings)
"""


def test_killed_between_any_two_file_operations_it_ends_with_the_same_bytes(tmp_path: Path, korean_text: Text) -> None:
    raw = _raw(tmp_path, korean_text(40))
    good = tmp_path / "good"
    prepare([str(raw)], good, PLAIN)
    out = tmp_path / "data"
    finished: set[str] = set()
    for at in range(2, 60, 5):
        shutil.rmtree(out, ignore_errors=True)
        killed = killed_at(at, ("replace", "mkdir", "unlink"), _PREPARE, str(raw), str(out))
        done = {path.stem for path in (out / STATE_FOLDER).glob("*.json")}
        finished |= done
        reused = prepare([str(raw)], out, PLAIN).reused
        assert {stage for stage, kept in reused.items() if kept} == done, f"killed at operation {at}"
        assert _files(out) == _files(good), f"killed at operation {at}"
        if not killed:
            break
    assert finished == {"clean", "library", "tokenizer", "pack"}, "the kills must fall into every stage"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [PLAIN, QA], ids=["plain", "qa"])
def test_killed_at_random_moments(tmp_path: Path, korean_text: Text, settings: PrepareSettings) -> None:
    raw = _raw(tmp_path, korean_text(5000 if settings.template == "plain" else 300))
    command = [sys.executable, "-m", "twingpt", "prepare", str(raw), "--template", settings.template]
    command += [
        "--vocab-size",
        str(settings.vocab_size),
        "--block-size",
        str(settings.block_size),
        "--workers",
        "2",
        "--out",
    ]
    good, out = tmp_path / "good", tmp_path / "data"
    started = time.monotonic()
    subprocess.run([*command, str(good)], check=True, capture_output=True)
    whole = time.monotonic() - started
    moments = random.Random(1)
    for _ in range(6):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(0.3, whole))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run([*command, str(out)], check=True, capture_output=True)
    assert _files(out) == _files(good)


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_nothing_half_written(tmp_path: Path, korean_text: Text) -> None:
    raw = _raw(tmp_path, korean_text(9000))
    command = [sys.executable, "-m", "twingpt", "prepare", str(raw), "--template", "plain", "--workers", "2"]
    for delay in (0.1, 1.0):
        out = tmp_path / f"data{delay}"
        process = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while not (out / STATE_FOLDER).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 130 and "Traceback" not in errors and "interrupted" in errors
        assert not list(out.glob(f"{STATE_FOLDER}/*.tmp")) if out.exists() else True


def _one_line(inputs: list[str], out: Path, settings: PrepareSettings = PLAIN) -> str:
    with pytest.raises(TwinGPTError) as caught:
        prepare(inputs, out, settings)
    message = str(caught.value)
    assert "\n" not in message
    finished = {"cleaned.txt", "contacts.sqlite", "library.sqlite", "tokenizer.json"}
    assert not out.exists() or set(_files(out)) <= finished, "only finished stages may be left"
    assert not out.exists() or not list((out / STATE_FOLDER).glob("*.tmp"))
    return message


def test_an_empty_file(tmp_path: Path) -> None:
    message = _one_line([str(_raw(tmp_path, ""))], tmp_path / "data")
    assert "raw.txt" in message and "no text is left" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["a", "😀🎉" * 200, "\x00" * 100 + "가나다" * 100, " \n\n\t"])
def test_too_little_text_of_any_kind(tmp_path: Path, text: str) -> None:
    message = _one_line([str(_raw(tmp_path, text))], tmp_path / "data")
    assert "supports a vocabulary of" in message or "no text is left" in message


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(random.Random(0).randbytes(5000))
    assert "looks like a binary file" in _one_line([str(path)], tmp_path / "data")


def test_invalid_utf8(tmp_path: Path, korean_text: Text) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes(korean_text(20).encode().replace("다.".encode(), b"\xed\x95\xff\xff\xff"))
    assert "are not utf-8" in _one_line([str(path)], tmp_path / "data")
    prepare([str(path)], tmp_path / "data", _changed(PLAIN, max_undecodable=0.2))


def test_missing_file_and_no_input(tmp_path: Path) -> None:
    assert "none.txt does not exist" in _one_line([str(tmp_path / "none.txt")], tmp_path / "data")
    assert "no text given" in _one_line([], tmp_path / "data")


def test_too_large_a_vocabulary_and_too_long_a_block(raw: Path, tmp_path: Path) -> None:
    message = _one_line([str(raw)], tmp_path / "data", _changed(PLAIN, vocab_size=50_000))
    assert "the text supports a vocabulary of" in message and "--vocab-size" in message
    assert "block_size 100000 is longer than the data" in _one_line(
        [str(raw)], tmp_path / "data", _changed(PLAIN, block_size=100_000)
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 100},
        {"block_size": 2},
        {"val_fraction": 0.9},
        {"max_samples": 0},
        {"closed_share": 2},
        {"mask_prompt": True},
    ],
)
def test_settings_that_cannot_be_meant(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        _changed(PLAIN, **changes)


def test_stages_without_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "data"
    for stage in ("tokenizer", "samples", "pack"):
        with pytest.raises(TwinGPTError, match="does not exist: make it with"):
            prepare([], out, QA, stages=[stage])


def test_a_folder_that_cannot_be_written_and_one_in_use(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match=r"cannot be written to"):
        prepare([str(raw)], raw / "data", PLAIN)
    out = tmp_path / "data"
    with Workspace(out).locked(), pytest.raises(TwinGPTError, match="is being written by another twingpt"):
        prepare([str(raw)], out, PLAIN)


def test_a_refused_prepare_leaves_the_running_one_alone(raw: Path, tmp_path: Path) -> None:
    """Before its first record stands there, the folder of the running one looks empty."""
    out = tmp_path / "data"
    workspace = Workspace(out)
    with workspace.locked():
        (workspace.scratch / "clean.tmp").mkdir()
        with pytest.raises(TwinGPTError, match="is being written by another twingpt"):
            prepare([str(raw)], out, PLAIN)
        assert (workspace.scratch / "clean.tmp").is_dir()
    assert not out.exists()


def test_stdin_and_several_inputs(tmp_path: Path, korean_text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    text = korean_text(60)
    first, second = _raw(tmp_path, text[: len(text) // 2], "1.txt"), _raw(tmp_path, text[len(text) // 2 :], "2.txt")
    with first.open("rb") as file:
        monkeypatch.setattr(sys, "stdin", _Stdin(file))
        prepare(["-", str(second)], tmp_path / "stdin", PLAIN)
    prepare([str(first), str(second)], tmp_path / "files", PLAIN)
    for name in ("cleaned.txt", "train.bin", "tokenizer.json"):
        assert (tmp_path / "stdin" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()
    assert not (tmp_path / "stdin" / STATE_FOLDER / "stdin").exists()


class _Stdin:
    def __init__(self, buffer: Any) -> None:
        self.buffer = buffer


def test_duplicates_are_dropped_or_kept_together(tmp_path: Path, korean_text: Text) -> None:
    text = korean_text(30)
    path = _raw(tmp_path, text + "\n" + text.replace("꼭 적어", "반드시 적어"))
    dropped = prepare([str(path)], tmp_path / "dropped", PLAIN).report["clean"]
    assert dropped["documents"] == 30
    assert dropped["exact_duplicates"] + dropped["near_duplicates"] == 30
    out = tmp_path / "kept"
    prepare([str(path)], out, _changed(PLAIN, dedup=False, val_fraction=0.3))
    documents = Documents(out / "cleaned.txt")
    assert len(documents) == 60
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    held_out = tokenizer.decode(np.fromfile(out / "val.bin", dtype=np.uint16))
    sides = [document in held_out for document in documents]
    assert sides[:30] == sides[30:] and 0 < sum(sides) < 60


def test_copies_of_the_example_in_other_encodings_give_the_same_cleaned_bytes(tmp_path: Path) -> None:
    text = resources.files("twingpt").joinpath("examples/ph_life_ko.txt").read_text(encoding="utf-8")
    mojibake = "".join(
        bytes([byte]).decode("cp1252", errors="replace") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )
    copies = {
        "utf-8": text.encode(),
        "with mark": text.encode("utf-8-sig"),
        "utf-16": text.encode("utf-16"),
        "utf-16-be": text.encode("utf-16-be"),
        "cp1252": mojibake.encode(),
        "latin-1": text.encode().decode("latin-1").encode(),
        "windows": text.replace("\n", "\r\n").encode(),
    }
    for contacts in ("keep", "mask"):
        cleaned = {name: _cleaned(tmp_path, name, data, contacts) for name, data in copies.items()}
        assert len(set(cleaned.values())) == 1, {name: len(data) for name, data in cleaned.items()}
    # CP949 has no emoji selector (U+FE0F), so its copy is held against the text without it.
    plain = text.replace("\ufe0f", "")
    assert _cleaned(tmp_path, "cp949", plain.encode("cp949"), "keep") == _cleaned(
        tmp_path, "plain", plain.encode(), "keep"
    )


def _cleaned(tmp_path: Path, name: str, data: bytes, contacts: Any) -> bytes:
    path, out = tmp_path / f"{name}.txt", tmp_path / f"{name} {contacts}"
    path.write_bytes(data)
    prepare([str(path)], out, _changed(QA, contacts=contacts), stages=["clean"])
    return (out / "cleaned.txt").read_bytes()


def test_max_samples_draws_from_all_documents(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([str(raw)], out, _changed(QA, max_samples=40, val_fraction=0.2))
    samples = list(read_samples(out / "samples.jsonl"))
    assert len(samples) == 40
    assert {sample.split for sample in samples} == {"train", "val"}
    assert max(sample.document for sample in samples) > 60 > min(sample.document for sample in samples)


def test_inspect(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare([str(raw)], out, PLAIN)
    found = inspect_data(out, samples=2, tokens=5)
    manifest = Manifest.load(out)
    assert len(found.samples) == 2 and all(one.startswith("[BOS]") and one.endswith("[EOS]") for one in found.samples)
    assert found.splits["train"]["tokens"] == manifest.train.tokens
    assert found.splits["train"]["special_tokens"] == 2 * manifest.train.documents
    assert [one["bytes"] for one in found.longest_tokens] == sorted(
        (o["bytes"] for o in found.longest_tokens), reverse=True
    )
    assert found.vocab_size == 600 and 0 < found.everyday_syllables < found.everyday_syllables_of == 2350
    assert 0.5 < found.share_of_syllables_whole <= 1
    assert len(SPECIAL_TOKENS) - 2 <= found.unused_tokens < 600
    shutil.copy(out / "tokenizer.json", tmp_path / "other.json")
    prepare([str(raw)], tmp_path / "other", _changed(PLAIN, vocab_size=500))
    shutil.copy(tmp_path / "other" / "tokenizer.json", out / "tokenizer.json")
    with pytest.raises(TwinGPTError, match="not the one that the data were packed with"):
        inspect_data(out)


@pytest.mark.slow
def test_one_line_of_50_megabytes(tmp_path: Path, korean_text: Text) -> None:
    line = korean_text(2000).replace("\n", " ")
    path = _raw(tmp_path, line * (50_000_000 // len(line.encode()) + 1))
    report = prepare([str(path)], tmp_path / "data", _changed(PLAIN, separator="file")).report
    assert report["clean"]["documents"] == 1
    assert report["clean"]["cleaned_bytes"] > 49_000_000
    assert 0.009 < report["pack"]["val_share"] < 0.011
    parts = Documents(tmp_path / "data" / "cleaned.txt")
    assert max(map(len, parts)) <= clean.LARGEST_CHUNK and len(parts) < 20


@pytest.mark.slow
def test_a_folder_of_10000_small_files(tmp_path: Path, korean_text: Text) -> None:
    folder = tmp_path / "notes"
    documents = korean_text(10_000).split("\n\n")
    for number, document in enumerate(documents):
        path = folder / f"{number // 100:03}" / f"{number:05}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document, encoding="utf-8")
    report = prepare([str(folder)], tmp_path / "data", _changed(PLAIN, dedup=False)).report
    assert (report["clean"]["files"], report["clean"]["documents"]) == (10_000, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize("at", ["clean", "pack"])
def test_a_full_disk(tmp_path: Path, korean_text: Text, at: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine cannot mount a small tmpfs")
    try:
        raw, out = _raw(tmp_path, korean_text(5000)), disk / "data"
        if at == "pack":
            prepare([str(raw)], out, PLAIN, stages=["clean", "tokenizer"])
        before = _files(out) if out.exists() else {}
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 300_000))
        with pytest.raises(TwinGPTError, match=rf"disk of .*data is full: {at} needs about [\d,]+ bytes") as caught:
            prepare([str(raw)], out, PLAIN)
        assert "\n" not in str(caught.value) and str(disk) in str(caught.value)
        assert (_files(out) if out.exists() else {}) == before, "nothing lost, nothing half-written"
        filler.unlink()
        reused = prepare([str(raw)], out, PLAIN).reused
        assert reused == {"clean": at == "pack", "tokenizer": at == "pack", "pack": False}
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
