"""Several machines: the same bytes as one, and every share that does not fit refused by name."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.killing import killed_at
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data import clean, corpus, dedup, shares, spool, write_cleaned, write_samples
from twingpt.data.changes import Changes
from twingpt.data.corpus import Documents
from twingpt.data.pipeline import PrepareSettings, prepare
from twingpt.data.shares import Shard, Share
from twingpt.data.sharing import clean_share, merge, samples_share
from twingpt.data.stages import STATE_FOLDER, key_of

PLAIN = PrepareSettings(template="plain", vocab_size=400, block_size=64)
QA = PrepareSettings(template="qa", vocab_size=600, block_size=256)

Text = Callable[[int], str]


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that a little text is dealt out to several machines."""
    monkeypatch.setattr(clean, "CHUNK", 3000)
    monkeypatch.setattr(write_samples, "BATCH_BYTES", 3000)


@pytest.fixture
def raw(tmp_path: Path, korean_text: Text) -> list[str]:
    """Three files; the last repeats a document of the first, and one but for a word; chunks cross their ends."""
    documents = korean_text(36).strip("\n").split("\n\n")
    copied, changed = documents[2], documents[3].replace("꼭 적어", "반드시 적어")
    parts = [documents[:14], documents[14:20], [*documents[20:], copied, changed]]
    for name, part in zip("abc", parts, strict=True):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    return [str(tmp_path / f"{name}.txt") for name in "abc"]


def _files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


def _clean_shares(raw: Sequence[str], folder: Path, settings: PrepareSettings, count: int) -> list[Path]:
    folders = [folder / f"clean {number} of {count}" for number in range(1, count + 1)]
    for number, out in enumerate(folders, 1):
        clean_share(raw, out, settings, Shard(number, count), workers=1)
    return folders


def _samples_shares(data: Path, folder: Path, settings: PrepareSettings, count: int) -> list[Path]:
    folders = [folder / f"samples {number} of {count}" for number in range(1, count + 1)]
    for number, out in enumerate(folders, 1):
        samples_share(data, out, settings, Shard(number, count), workers=1)
    return folders


def _on_machines(raw: Sequence[str], folder: Path, settings: PrepareSettings, count: int) -> Path:
    data = folder / f"data of {count}"
    merge(_clean_shares(raw, folder, settings, count)[::-1], data)
    prepare([], data, settings, stages=["tokenizer"])
    if settings.template == "qa":
        merge(_samples_shares(data, folder, settings, count), data)
    reused = prepare(raw, data, settings).reused
    assert {stage for stage, kept in reused.items() if not kept} == {"pack"}, "the rest goes on from what was merged"
    return data


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        dataclasses.replace(PLAIN, dedup=False, val_fraction=0.2),
        dataclasses.replace(QA, contacts="mask", mask_prompt=True, val_fraction=0.2),
    ],
    ids=["plain", "plain without dedup", "qa"],
)
def test_the_same_bytes_on_any_number_of_machines(
    raw: list[str], tmp_path: Path, settings: PrepareSettings, count: int
) -> None:
    one = prepare(raw, tmp_path / "one", settings, workers=1).report["clean"]
    assert one["exact_duplicates"] + one["near_duplicates"] == 2
    assert _files(_on_machines(raw, tmp_path, settings, count)) == _files(tmp_path / "one")
    documents = [len((folder / spool.SIZES).read_bytes()) for folder in tmp_path.glob("clean*")]
    assert count == 1 or min(documents) > 0, "every machine has something to do"


def test_more_machines_than_pieces_and_than_files(raw: list[str], tmp_path: Path) -> None:
    few = raw[1:2]
    prepare(few, tmp_path / "one", QA, workers=1)
    assert _files(_on_machines(few, tmp_path, QA, 9)) == _files(tmp_path / "one")
    assert (tmp_path / "clean 9 of 9" / spool.DOCUMENTS).read_bytes() == b""
    assert (tmp_path / "samples 9 of 9" / "lines.jsonl").read_bytes() == b""


BLOCKS = st.lists(
    st.sampled_from(
        ["여권", "전화 02-8555-0123", "같은 줄이 또 나옵니다", "\x00\u200b", "카톡: ph_1 안내", "끝.", "", " "]
    )
    | st.text(max_size=12),
    max_size=40,
)


@given(files=st.lists(BLOCKS, min_size=1, max_size=4), count=st.integers(1, 5), size=st.integers(5, 60))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_the_same_documents_and_report(files: list[list[str]], count: int, size: int) -> None:
    options = dataclasses.replace(PLAIN, max_undecodable=1)
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "CHUNK", size)
        patch.setattr(clean, "LARGEST_CHUNK", 4 * size)
        patch.setattr(clean, "BOILERPLATE_DOCUMENTS", 3)
        folder, raw = Path(name), []
        for number, blocks in enumerate(files):
            raw.append(str(folder / f"{number}.txt"))
            Path(raw[-1]).write_bytes("\n\n".join(blocks).encode("utf-8", errors="replace"))
        try:
            prepare(raw, folder / "one", options, stages=["clean"], workers=1)
        except TwinGPTError as error:
            with pytest.raises(TwinGPTError) as caught:
                merge(_clean_shares(raw, folder, options, count), folder / "data")
            assert str(caught.value) == str(error)
            return
        merge(_clean_shares(raw, folder, options, count), folder / "data")
        assert _files(folder / "data") == _files(folder / "one")
        reports = [
            json.loads((folder / out / STATE_FOLDER / "clean.json").read_text(encoding="utf-8"))["report"]
            for out in ("one", "data")
        ]
        assert reports[0] == reports[1]


def _refused(folders: Sequence[Path], out: Path) -> str:
    before = _files(out) if out.exists() else None
    with pytest.raises(TwinGPTError) as caught:
        merge(folders, out)
    assert "\n" not in str(caught.value)
    assert (_files(out) if out.exists() else None) == before, "a refused merge leaves DATA as it was"
    return str(caught.value)


def _rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """share.json of another making, with a hash that is right."""
    path = folder / shares.SHARE_FILE
    raw = json.loads(path.read_text(encoding="utf-8"))
    del raw["sha256"]
    change(raw)
    path.write_text(json.dumps({**raw, "sha256": key_of(raw)}), encoding="utf-8")


def test_shares_that_are_not_all_there_once(raw: list[str], tmp_path: Path) -> None:
    folders, out = _clean_shares(raw, tmp_path, PLAIN, 3), tmp_path / "data"
    assert "share 2/3 is missing" in _refused([folders[0], folders[2]], out)
    copied = tmp_path / "copy"
    shutil.copytree(folders[1], copied)
    message = _refused([*folders, copied], out)
    assert "are both share 2/3" in message and str(folders[1]) in message and str(copied) in message
    assert f"{tmp_path / 'none'} holds no share" in _refused([*folders, tmp_path / "none"], out)
    other = tmp_path / "other"
    clean_share(raw, other, PLAIN, Shard(2, 2), workers=1)
    message = _refused([folders[0], other], out)
    assert f"{other} does not fit" in message and "it is share 2/2, not one of 3" in message
    with pytest.raises(UsageError, match="no share given"):
        merge([], out)


@pytest.mark.parametrize("name", [*spool.SPOOL_FILES, shares.SHARE_FILE])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_share(raw: list[str], tmp_path: Path, name: str, damage: str) -> None:
    folders = _clean_shares(raw, tmp_path, PLAIN, 2)
    path = folders[1] / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[:-1] if name != shares.SHARE_FILE else data[:-9])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    message = _refused(folders, tmp_path / "data")
    assert str(folders[1]) in message and (name in message or damage == "gone")
    clean_share(raw, folders[1], PLAIN, Shard(2, 2), workers=1)
    merge(folders, tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda raw: raw["versions"].update(twingpt="0.0.9"), "with twingpt 0.0.9, not "),
        (lambda raw: raw["versions"].update({"the stage clean": "1"}), "with the stage clean 1, not 2"),
        (lambda raw: raw["versions"].update(phonenumbers="1.0"), "with phonenumbers 1.0, not "),
        (lambda raw: raw["settings"].update(contacts="mask"), "with --contacts mask, not keep"),
        (lambda raw: raw["inputs"].update({"raw text": "0" * 64}), "from another raw text"),
        (lambda raw: raw["report"]["reading"].update(more=1), "read the same files otherwise"),
        (lambda raw: raw.update(stage="samples"), "a share of samples, not of clean"),
        (lambda raw: raw.update(format_version=9), "has format version 9, this twingpt reads 1"),
        (lambda raw: raw.pop("inputs"), "is damaged"),
    ],
)
def test_a_share_of_another_making(raw: list[str], tmp_path: Path, change: Any, told: str) -> None:
    folders = _clean_shares(raw, tmp_path, PLAIN, 2)
    _rewrite(folders[1], change)
    message = _refused(folders, tmp_path / "data")
    assert told in message and str(folders[1]) in message


def test_shares_of_another_version_than_the_merging_machine(
    raw: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = _clean_shares(raw, tmp_path, PLAIN, 2)
    monkeypatch.setattr(shares, "__version__", "9.9")
    message = _refused(folders, tmp_path / "data")
    assert str(folders[0]) in message and "not 9.9" in message


def test_shares_of_other_files(raw: list[str], tmp_path: Path) -> None:
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "data"
    clean_share(raw, first, PLAIN, Shard(1, 2), workers=1)
    clean_share(raw[:2], second, PLAIN, Shard(2, 2), workers=1)
    assert "from 2 files, not 3" in _refused([first, second], out)
    Path(raw[1]).write_text(Path(raw[1]).read_text(encoding="utf-8") + "끝\n", encoding="utf-8")
    clean_share(raw, second, PLAIN, Shard(2, 2), workers=1)
    message = _refused([first, second], out)
    assert f"{second} does not fit {first}: its file 2, {raw[1]}, is another" in message
    clean_share(raw, first, PLAIN, Shard(1, 2), workers=1)
    merge([first, second], out)


def test_shares_that_were_cut_otherwise(raw: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a version had changed how text is dealt out without counting up: nothing is left out in silence."""
    first, second = tmp_path / "1", tmp_path / "2"
    clean_share(raw, first, PLAIN, Shard(1, 2), workers=1)
    monkeypatch.setattr(clean, "CHUNK", 900)
    clean_share(raw, second, PLAIN, Shard(2, 2), workers=1)
    assert "do not add up to the whole text" in _refused([first, second], tmp_path / "data")


def test_samples_of_another_data(raw: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, settings = tmp_path / "data", dataclasses.replace(QA, dedup=False, val_fraction=0.3)
    prepare(raw, data, settings, stages=["clean", "tokenizer"], workers=1)
    good = _samples_shares(data, tmp_path, settings, 2)
    second = tmp_path / "second"
    for name, told in (("cleaned.txt", "cleaned.txt"), ("tokenizer.json", "tokenizer.json")):
        other = tmp_path / f"other {name}"
        shutil.copytree(data, other)
        if name == "cleaned.txt":
            text = (other / name).read_text(encoding="utf-8").replace("현금만", "카드만")
            (other / name).write_text(text, encoding="utf-8")
        else:
            prepare([], other, dataclasses.replace(settings, vocab_size=500), stages=["tokenizer"])
        samples_share(other, second, settings, Shard(2, 2), workers=1)
        assert f"{second} does not fit {good[0]}: it was made from another {told}" in _refused([good[0], second], data)
        assert f"{good[0]} does not fit {other}: it was made from another {told}" in _refused(good, other)
    # Without what the stage clean knows of duplicates another split may come out, and is noticed.
    other = tmp_path / "without"
    shutil.copytree(data, other, ignore=shutil.ignore_patterns(STATE_FOLDER))
    monkeypatch.setattr(dedup, "ties", lambda documents, folder: dedup.connected(dedup._as_pairs([(0, 1), (1, 2)])))
    samples_share(other, second, settings, Shard(2, 2), workers=1)
    assert "another split into training and validation" in _refused([good[0], second], data)
    monkeypatch.undo()
    merge(good, data)


def test_samples_dealt_out_otherwise(raw: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    prepare(raw, data, QA, stages=["clean", "tokenizer"], workers=1)
    first, second = tmp_path / "1", tmp_path / "2"
    samples_share(data, first, QA, Shard(1, 2), workers=1)
    monkeypatch.setattr(write_samples, "BATCH_BYTES", 900)
    samples_share(data, second, QA, Shard(2, 2), workers=1)
    assert "do not add up to all samples" in _refused([first, second], data)
    assert not (data / "samples.jsonl").exists()


def test_what_a_share_would_destroy(raw: list[str], tmp_path: Path) -> None:
    data, share = tmp_path / "data", tmp_path / "share"
    prepare(raw, data, QA, stages=["clean", "tokenizer"], workers=1)
    with pytest.raises(TwinGPTError, match=r"data holds cleaned\.txt: a share needs a folder of its own"):
        samples_share(data, data, QA, Shard(1, 2), workers=1)
    with pytest.raises(TwinGPTError, match="a share needs a folder of its own"):
        clean_share(raw, data, QA, Shard(1, 2), workers=1)
    clean_share(raw, share, QA, Shard(1, 2), workers=1)
    with pytest.raises(TwinGPTError, match="share holds share 1/2 of clean"):
        clean_share(raw, share, QA, Shard(2, 2), workers=1)
    with pytest.raises(TwinGPTError, match="share holds share 1/2 of clean"):
        samples_share(data, share, QA, Shard(1, 2), workers=1)
    other = tmp_path / "other"
    clean_share(raw, other, QA, Shard(2, 2), workers=1)
    assert "share holds a share: give another --out" in _refused([share, other], share)
    with pytest.raises(UsageError, match="--max-samples has no --shard"):
        samples_share(data, tmp_path / "few", dataclasses.replace(QA, max_samples=5), Shard(1, 2))
    with pytest.raises(UsageError, match="no text given"):
        clean_share([], tmp_path / "none", QA, Shard(1, 2))


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/2", "a/b", "1/2/3", " 1/2", "1.0/2"])
def test_shards_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError, match=r"--shard .* cannot be meant: give 2/3"):
        Shard.parse(text)


@given(st.integers(0, 50), st.integers(1, 9))
def test_pieces_are_dealt_out_once(pieces: int, count: int) -> None:
    shards = [Shard.parse(f"{number}/{count}") for number in range(1, count + 1)]
    dealt = [list(range(pieces))[shard.dealt[0] :: shard.dealt[1]] for shard in shards]
    assert sorted(piece for share in dealt for piece in share) == list(range(pieces))
    assert shares.dealt_out(pieces, count) == list(map(len, dealt))


_OPERATIONS = ("replace", "mkdir", "unlink", "write_text", "write_bytes")
_SHARE_OR_MERGE = """
from twingpt.data import clean
from twingpt.data.pipeline import PrepareSettings
from twingpt.data.shares import Shard
from twingpt.data.sharing import clean_share, merge
clean.CHUNK = 3000
count_from_here()
what, out, others = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
settings = PrepareSettings(template="plain", vocab_size=400, block_size=64)
if what == "share":
    clean_share(others, out, settings, Shard(2, 2), workers=1)
else:
    merge([Path(other) for other in others], out)
"""


@pytest.mark.parametrize("stale", [False, True], ids=["new folder", "over an older share"])
def test_a_share_killed_between_any_two_file_operations(raw: list[str], tmp_path: Path, stale: bool) -> None:
    """It is refused, or whole; made again it is whole."""
    one = tmp_path / "one"
    prepare(raw, one, PLAIN, stages=["clean"], workers=1)
    first, second, out = tmp_path / "1", tmp_path / "2", tmp_path / "data"
    clean_share(raw, first, PLAIN, Shard(1, 2), workers=1)
    older = tmp_path / "older"
    clean_share(raw[:2], older, PLAIN, Shard(2, 2), workers=1)
    refused = 0
    for operation in range(1, 70, 6):
        for folder in (second, out):
            shutil.rmtree(folder, ignore_errors=True)
        if stale:
            shutil.copytree(older, second)
        killed = killed_at(operation, _OPERATIONS, _SHARE_OR_MERGE, "share", str(second), *raw)
        try:
            merge([first, second], out)
        except TwinGPTError as error:
            assert killed and str(second) in str(error), f"killed at operation {operation}"
            refused += 1
            clean_share(raw, second, PLAIN, Shard(2, 2), workers=1)
            merge([first, second], out)
        assert _files(out) == _files(one), f"killed at operation {operation}"
        if not killed:
            break
    assert not killed and refused > 2


def test_a_merge_killed_between_any_two_file_operations(raw: list[str], tmp_path: Path) -> None:
    one, out = tmp_path / "one", tmp_path / "data"
    prepare(raw, one, PLAIN, workers=1)
    folders = [str(folder) for folder in _clean_shares(raw, tmp_path, PLAIN, 2)]
    for operation in range(1, 50, 5):
        shutil.rmtree(out, ignore_errors=True)
        killed = killed_at(operation, _OPERATIONS, _SHARE_OR_MERGE, "merge", str(out), *folders)
        record = (out / STATE_FOLDER / "clean.json").exists()
        assert killed or record
        result = merge([Path(folder) for folder in folders], out)[1]
        assert result.reused == record
        prepare(raw, out, PLAIN, workers=1)
        assert _files(out) == _files(one), f"killed at operation {operation}"
        if not killed:
            break
    assert not killed


def test_a_finished_share_is_kept_and_another_is_made_again(raw: list[str], tmp_path: Path) -> None:
    share = tmp_path / "share"
    assert not clean_share(raw, share, PLAIN, Shard(1, 2), workers=1).reused
    before = _files(share)
    assert clean_share(raw, share, PLAIN, Shard(1, 2), workers=1).reused and _files(share) == before
    assert not clean_share(raw, share, dataclasses.replace(PLAIN, contacts="mask"), Shard(1, 2), workers=1).reused
    assert Share.load(share).settings["contacts"] == "mask" and _files(share) != before


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_documents_stay_tied_when_others_are_dropped(documents: list[tuple[int, bool]]) -> None:
    """Each a group (0: alone) and whether it is dropped."""
    first: dict[int, int] = {}
    tied = [[first[g], i] for i, (g, _) in enumerate(documents) if g and first.setdefault(g, i) != i]
    kept = [group for group, dropped in documents if not dropped]
    first.clear()
    expected = [[first[g], i] for i, g in enumerate(kept) if g and first.setdefault(g, i) != i]
    dropped = np.asarray([one for _, one in documents], dtype=np.bool_)
    assert write_cleaned._tied(dedup._as_pairs(tied), dropped) == expected


def _spool(folder: Path, documents: int) -> Path:
    """Short documents, one in ten of which comes twice and of which no two others are alike, cleaned."""
    folder.mkdir()
    texts = [hashlib.sha256(b"%d" % (number - number % 10 // 9)).hexdigest()[:20] for number in range(documents)]
    with spool.SpoolWriter(folder) as writer:
        for start in range(0, documents, 500):
            chunk = clean.clean_chunk("\n\n".join(texts[start : start + 500]), clean.CleanSettings(merge=False))
            writer.add(chunk)
    return folder


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_a_few_bytes_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the text nor with the signatures, which take 256 bytes a document. Measured: 36 and 38."""
    for module, name in ((corpus, "_PART_BYTES"), (corpus, "_BLOCK_BYTES"), (dedup, "_SORTED")):
        monkeypatch.setattr(module, name, 1 << 10)
    monkeypatch.setattr(clean, "_BUCKETS", np.uint64(1 << 8))
    # The first round is for what is imported and remembered once.
    _, small, large = (_peaks_of_cleaning_and_splitting(tmp_path / str(count), count) for count in (1000, 4000, 12000))
    grown = [(b - a) / (12000 - 4000) for a, b in zip(small, large, strict=True)]
    assert all(bytes_each < 60 for bytes_each in grown), grown


def _peaks_of_cleaning_and_splitting(target: Path, documents: int) -> tuple[int, int]:
    target.mkdir()
    folder = _spool(target / "spool", documents)

    def split() -> None:
        kept = Documents(target / "cleaned.txt")
        dedup.split_validation(kept, kept.sizes(), dedup._as_pairs([]), fraction=0.01, seed=0)

    cleaning = _peak(lambda: write_cleaned.write_cleaned(folder, target, PLAIN, Changes(), ["raw.txt"], 1))
    return cleaning, _peak(split)


def test_the_packages_whose_versions_count_are_installed() -> None:
    for stage in ("clean", "samples"):
        assert len(shares.versions(stage, 1, "qa")) > len(shares.versions(stage, 1, "plain")) > 3
    assert os.sep not in shares.SHARE_FILE
