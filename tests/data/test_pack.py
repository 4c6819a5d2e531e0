"""What is in the packed files: every sample whole, the rest padding, the manifest true."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.core.errors import TwinGPTError
from twingpt.data.text.corpus import Documents
from twingpt.data.text.hold_out import HeldOut
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.pack import best_fit, pack_documents, pack_samples, token_dtype
from twingpt.data.tokens.template import Sample, sample_segments
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer

ROW = 33


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["여권을 잃어버렸을 때는 경찰서에서 신고서를 받습니다. 여권 사본을 준비하세요."] * 3, 300)


def _samples(count: int) -> list[Sample]:
    made = []
    for n in range(count):
        split: Any = "val" if n % 5 == 0 else "train"
        answer = "경찰서에서 신고서를 받습니다. "[: 3 + n % 5]
        if n % 3 == 0:
            made.append(Sample(f"{n:06}/closed/0", n, "closed", split, "여권?", None, answer))
        elif n % 3 == 1:
            made.append(Sample(f"{n:06}/open/0", n, "open", split, "여권?", "사본", answer))
        else:
            made.append(Sample(f"{n:06}/summary/0", n, "summary", split, None, "사본", answer))
    return made


def _write(path: Path, samples: Sequence[Sample]) -> Path:
    path.write_text("".join(sample.to_json() + "\n" for sample in samples), encoding="utf-8")
    return path


def _pack(tmp_path: Path, tokenizer: Tokenizer, samples: Sequence[Sample], **options: Any) -> Any:
    chosen = {"block_size": ROW - 1, "mask_prompt": False, "allow_long": False, "text_sha256": "0" * 64, **options}
    return pack_samples(_write(tmp_path / "samples.jsonl", samples), tokenizer, tmp_path, **chosen)


def _split_at_bos(row: np.ndarray[Any, Any], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    starts = [*np.flatnonzero(row == tokenizer.bos_id), len(row)]
    return [tuple(int(t) for t in row[a:b] if t != tokenizer.pad_id) for a, b in itertools.pairwise(starts)]


def test_every_sample_is_in_one_row_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = _samples(60)
    manifest, report = _pack(tmp_path, tokenizer, samples)
    assert manifest.layout == "rows" and manifest.dtype == "uint16" and report.fitting == 1.0
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        rows = np.fromfile(tmp_path / split.file, dtype=np.uint16).reshape(-1, ROW)
        assert (rows[:, 0] == tokenizer.bos_id).all()
        packed = Counter(one for row in rows for one in _split_at_bos(row, tokenizer))
        expected = Counter(
            tuple(tokenizer.encode_segments(sample_segments(sample))[0]) for sample in samples if sample.split == name
        )
        assert packed == expected
        chosen = [sample for sample in samples if sample.split == name]
        assert split.documents == len(chosen)
        fields = [text for s in chosen for text in (s.question, s.doc, s.answer) if text is not None]
        assert split.text_bytes == sum(len(text.encode()) for text in fields)
        assert split.tokens == rows.size
        assert split.sha256 == hashlib.sha256((tmp_path / split.file).read_bytes()).hexdigest()
        assert split.mask_file is None
    used = sum(len(tokenizer.encode_segments(sample_segments(sample))[0]) for sample in samples)
    assert report.waste == pytest.approx(1 - used / (manifest.train.tokens + manifest.val.tokens))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.jsonl", "train.bin", "val.bin"]


def test_the_mask_counts_answers_alone(tmp_path: Path, tokenizer: Tokenizer) -> None:
    samples = _samples(20)
    manifest, report = _pack(tmp_path, tokenizer, samples, mask_prompt=True)
    rows = np.fromfile(tmp_path / "train.bin", dtype=np.uint16)
    mask = np.fromfile(tmp_path / manifest.train.mask_file, dtype=np.uint8)
    assert mask.shape == rows.shape and set(mask) == {0, 1}
    expected: Counter[int] = Counter()
    for sample in samples:
        if sample.split == "train":
            ids, counted = tokenizer.encode_segments(sample_segments(sample))
            expected.update(token for token, one in zip(ids, counted, strict=True) if one)
    assert Counter(int(t) for t in rows[mask == 1]) == expected
    assert not mask[rows == tokenizer.pad_id].any()
    assert 0 < report.counted_share < 1


def test_long_samples_are_refused_or_cut_when_allowed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = Sample("000000/closed/0", 0, "closed", "train", "여권?", None, "준비하세요. " * 30)
    with pytest.raises(
        TwinGPTError, match=r"sample 000000/closed/0 has \d+ tokens, block_size 32 holds 33.*--allow-long"
    ):
        _pack(tmp_path, tokenizer, [long, *_samples(5)])
    _, report = _pack(tmp_path, tokenizer, [long, *_samples(5)], allow_long=True)
    rows = np.fromfile(tmp_path / "train.bin", dtype=np.uint16).reshape(-1, ROW)
    ids = tokenizer.encode_segments(sample_segments(long))[0]
    assert any(row.tolist() == ids[:ROW] for row in rows)
    assert (report.truncated, report.longest) == (1, len(ids))
    assert report.fitting == pytest.approx(5 / 6)
    assert (rows[:, 0] == tokenizer.bos_id).all()


def test_no_training_sample_and_damaged_lines_are_one_line(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(TwinGPTError, match="no training sample"):
        _pack(tmp_path, tokenizer, [sample for sample in _samples(10) if sample.split == "val"])
    (tmp_path / "samples.jsonl").write_text(_samples(1)[0].to_json() + "\n{broken\n", encoding="utf-8")
    with pytest.raises(TwinGPTError, match=r"samples\.jsonl line 2: not a sample") as caught:
        pack_samples(
            tmp_path / "samples.jsonl",
            tokenizer,
            tmp_path,
            block_size=32,
            mask_prompt=False,
            allow_long=False,
            text_sha256="",
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(TwinGPTError, match="does not exist"):
        pack_samples(
            tmp_path / "no", tokenizer, tmp_path, block_size=32, mask_prompt=False, allow_long=False, text_sha256=""
        )


def _rows(lengths: list[int]) -> list[list[int]]:
    members, counts = best_fit(np.asarray(lengths, dtype=np.int32), 20)
    return [part.tolist() for part in np.split(members, np.cumsum(counts)[:-1])] if len(counts) else []


@given(lengths=st.lists(st.integers(1, 20), max_size=200))
@settings(max_examples=200, deadline=None)
def test_best_fit_places_each_sample_once_and_never_overfills(lengths: list[int]) -> None:
    rows = _rows(lengths)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert all(row == sorted(row) for row in rows) and rows == sorted(rows)
    # At most one row can be half empty, or two of them would have been joined.
    assert sum(sum(lengths[index] for index in row) <= 10 for row in rows) <= 1


def _best_fit_of_all_rows(lengths: list[int], row: int) -> list[list[int]]:
    """The rule, looking at every row each time: of the fullest rows that fit, the one that was filled last."""
    rows: list[list[int]] = []
    state: list[tuple[int, int]] = []  # free tokens, when it was filled
    for turn, index in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fitting = [(free, -filled, number) for number, (free, filled) in enumerate(state) if free >= lengths[index]]
        if fitting:
            free, _, number = min(fitting)
        else:
            free, number = row, len(rows)
            rows.append([])
            state.append((0, 0))
        rows[number].append(index)
        state[number] = free - lengths[index], turn
    return sorted(sorted(members) for members in rows)


@given(lengths=st.lists(st.integers(1, 20), max_size=200))
@settings(max_examples=200, deadline=None)
def test_best_fit_chooses_as_the_rule_says(lengths: list[int]) -> None:
    assert _rows(lengths) == _best_fit_of_all_rows(lengths, 20)


def test_best_fit_wastes_less_than_first_come(tmp_path: Path) -> None:
    lengths = [7, 13, 11, 9, 16, 4, 5, 15]
    assert len(_rows(lengths)) == 4
    with pytest.raises(ValueError, match="does not fit"):
        _rows([21])


def test_documents_become_one_stream(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"여권 {n}\n신고서를 받습니다 [EOS]." for n in range(50)]
    path = tmp_path / "cleaned.txt"
    path.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    validation = np.arange(50) % 10 == 3
    manifest, _ = pack_documents(
        Documents(path), HeldOut(validation), tokenizer, tmp_path, block_size=32, text_sha256="0"
    )
    for wanted, split in ((~validation, manifest.train), (validation, manifest.val)):
        ids = np.fromfile(tmp_path / split.file, dtype=np.uint16)
        chosen = [text for text, one in zip(texts, wanted, strict=True) if one]
        expected = [t for text in chosen for t in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
        assert ids.tolist() == expected
        assert (split.tokens, split.documents) == (len(expected), len(chosen))
        assert split.text_bytes == sum(len(text.encode()) for text in chosen)
    assert (manifest.layout, manifest.template) == ("contiguous", "plain")
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


def test_block_size_longer_than_the_data(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "cleaned.txt"
    path.write_text("여권\n", encoding="utf-8")
    with pytest.raises(TwinGPTError, match=r"block_size 256 is longer than the data.*257 are needed"):
        pack_documents(
            Documents(path), HeldOut(np.asarray([False])), tokenizer, tmp_path, block_size=256, text_sha256="0"
        )


def test_documents_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cleaned.txt"
    path.write_text("하나\n둘\n\n셋\n\n넷\n", encoding="utf-8")
    documents = Documents(path)
    assert list(documents) == ["하나\n둘", "셋", "넷"]
    assert documents[1:] == ["셋", "넷"] and documents[-1] == "넷"
    assert documents.sizes().tolist() == [10, 3, 3]
    assert [list(batch) for batch in documents.batches(13)] == [[0, 1], [2]]
    assert [list(batch) for batch in documents.batches(1)] == [[0], [1], [2]]
    path.write_text("", encoding="utf-8")
    with pytest.raises(TwinGPTError, match="is empty"):
        Documents(path)
    with pytest.raises(TwinGPTError, match="does not exist"):
        Documents(tmp_path / "no.txt")


def test_dtype_holds_the_vocabulary() -> None:
    assert [token_dtype(size) for size in (16_000, 65_536, 65_537)] == ["uint16", "uint16", "uint32"]
