"""What is held out of plain text: the share that was asked for, in whole documents where they are small enough."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.data.text.corpus import Documents
from twingpt.data.text.dedup import _as_pairs
from twingpt.data.text.hold_out import HeldOut, hold_out, sentence_borders

SENTENCE = "그는 {number}번째로 집을 나섰고 비가 내렸다."


def parts_of(folder: Path, documents: list[list[str]]) -> Documents:
    """cleaned.txt of documents, each of some parts."""
    path = folder / "cleaned.txt"
    path.write_bytes("\n\n".join("\f" + "\n\n".join(parts) for parts in documents).encode() + b"\n")
    return Documents(path)


def novel(sentences: int, between: str = " ") -> str:
    return between.join(SENTENCE.format(number=number) for number in range(sentences))


def held_bytes(parts: Documents, held: HeldOut) -> int:
    whole = int(parts.sizes()[held.parts].sum())
    return whole + sum(
        len(parts[part][start:end].encode()) for part, ranges in held.within.items() for start, end in ranges
    )


def held(parts: Documents, fraction: float = 0.01, *, seed: int = 0, least: int = 0) -> HeldOut:
    return hold_out(parts, _as_pairs([]), fraction=fraction, seed=seed, least=least)


def test_parts_and_documents_are_told_apart(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [["가", "나"], ["다"]])
    assert list(parts) == ["가", "나", "다"] and parts.begins.tolist() == [True, False, True]
    assert parts.sizes().tolist() == [3, 3, 3]
    (tmp_path / "old.txt").write_text("가\n\n나\n", encoding="utf-8")
    old = Documents(tmp_path / "old.txt")
    assert list(old) == ["가", "나"] and old.begins.all()


def test_marks_are_found_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twingpt.data.text.corpus._BLOCK_BYTES", 7)
    parts = parts_of(tmp_path, [["가나다라", "나"], ["다"], ["라마바사아"], ["자", "차"]])
    assert parts.begins.tolist() == [True, False, True, True, True, False]
    assert list(parts) == ["가나다라", "나", "다", "라마바사아", "자", "차"]


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("shape", ["one line", "lines", "paragraphs", "three novels"])
def test_the_share_of_a_novel_is_met(tmp_path: Path, shape: str, fraction: float) -> None:
    """114 KB and more; of 20,000 characters as a document, 1 % became 20 %."""
    text = novel(2000)
    documents = {
        "one line": [[text]],
        "lines": [[novel(2000, "\n")]],
        "paragraphs": [novel(2000, "\n").split("\n")],
        "three novels": [[text], [text + " 끝."], [novel(500)]],
    }[shape]
    parts = parts_of(tmp_path, documents)
    found = held(parts, fraction, least=768)
    share = held_bytes(parts, found) / int(parts.sizes().sum())
    assert share == pytest.approx(fraction, rel=0.15)
    for part, ranges in found.within.items():
        borders = sentence_borders(parts[part])
        assert all(start in borders and end in borders for start, end in ranges)


def test_many_documents_are_held_out_whole(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [[f"{number}번 글입니다. {SENTENCE}", "둘째 문단."] for number in range(1000)])
    found = held(parts)
    assert not found.within
    assert (found.parts[::2] == found.parts[1::2]).all() and 5 <= found.parts[::2].sum() <= 20


def test_another_seed_holds_out_another_stretch(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [[novel(2000)]])
    assert held(parts, seed=0).within == held(parts, seed=0).within != held(parts, seed=1).within


def test_nothing_is_held_out_of_a_sentence_or_where_nothing_is_asked_for(tmp_path: Path) -> None:
    for text, fraction in (("안녕", 0.5), (novel(2000), 0.0)):
        found = held(parts_of(tmp_path, [[text]]), fraction)
        assert not found.parts.any() and not found.within


WORDS = st.sampled_from(["가", "나다. ", "라마! ", "\n", " ", "바。", "사아다 ", "z", "한다\n"])
PART = st.lists(WORDS, min_size=1, max_size=40).map(lambda words: "".join(words).strip()).filter(bool)


@given(
    documents=st.lists(
        st.lists(PART.filter(lambda t: "\n\n" not in t), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    fraction=st.floats(0.001, 0.5),
    seed=st.integers(0, 5),
    least=st.integers(0, 200),
)
@settings(max_examples=60, deadline=None)
def test_something_is_left_to_train_on_and_ranges_are_in_order(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]], fraction: float, seed: int, least: int
) -> None:
    parts = parts_of(tmp_path_factory.mktemp("held"), documents)
    found = held(parts, fraction, seed=seed, least=least)
    total = int(parts.sizes().sum())
    assert held_bytes(parts, found) < total
    for part, ranges in found.within.items():
        flat = np.asarray(ranges).ravel()
        assert (np.diff(flat) > 0).all() and flat[0] >= 0 and flat[-1] <= len(parts[part])
        assert not found.parts[part] and ranges != [(0, len(parts[part]))]
    if sum(len(sentence_borders(part)) - 1 for part in parts) > 1:
        assert held_bytes(parts, found) > 0
