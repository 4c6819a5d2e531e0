"""Duplicates are found and others are not; no near duplicate of a training document is in validation."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twingpt.data.text import dedup
from twingpt.data.text.corpus import Table
from twingpt.data.text.dedup import digest, find_duplicates, near_pairs, normalised, signatures, similarity, ties

SENTENCE = "{}번 문서는 {} 지역의 {}에 대한 안내이며 방문할 때는 {}을 꼭 챙겨야 합니다. "
PLACES = ["마닐라", "세부", "바기오", "다바오", "앙헬레스", "일로일로", "보홀", "클락"]
TOPICS = ["병원", "은행", "학교", "이민국", "경찰서", "대사관", "운전면허", "휴대폰"]


def _document(number: int, length: int = 12) -> str:
    return "".join(
        SENTENCE.format(
            number * 100 + k, PLACES[(number * 3 + k * k) % 8], TOPICS[(number + k * 5) % 8], TOPICS[(k * number) % 8]
        )
        for k in range(length)
    ).strip()


@contextmanager
def _table(rows: bytes, width: int, dtype: str) -> Iterator[Table]:
    with tempfile.TemporaryFile() as file:
        file.write(rows)
        file.flush()
        yield Table(file, dtype, width)


def _find(texts: list[str]) -> dedup.Duplicates:
    normals = [normalised(text) for text in texts]
    with (
        _table(b"".join(digest(one) for one in normals), 2, "<u8") as digests,
        _table(signatures(normals).tobytes(), dedup.PERMUTATIONS, "<u4") as rows,
    ):
        return find_duplicates(digests, rows, lambda i: texts[i])


def _near_pairs(texts: list[str]) -> list[tuple[int, int]]:
    rows = signatures([normalised(text) for text in texts])
    with _table(rows.tobytes(), dedup.PERMUTATIONS, "<u4") as table:
        return near_pairs(table, lambda i: texts[i])


def test_exact_duplicates_differ_in_blanks_case_and_punctuation_only() -> None:
    found = _find(["여권 분실, ABC", "다른 글입니다", "여권  분실 abc!", "다른 글입니까"])
    assert found.exact.tolist() == [[0, 2]]


def test_near_duplicates_are_found_and_the_first_is_kept() -> None:
    first = _document(1)
    texts = [_document(0), first, first.replace("꼭 챙겨야", "반드시 챙겨야", 1), _document(2)]
    found = _find(texts)
    assert found.near.tolist() == [[1, 2]]
    assert found.tied.tolist() == [[1, 2]]


def test_another_number_makes_another_document_of_the_same_group() -> None:
    text = _document(1)
    other = text.replace("100번", "555번", 1)
    assert similarity(text, other) > 0.9
    found = _find([text, other])
    assert not len(found.near) and not len(found.exact)
    assert found.tied.tolist() == [[0, 1]]


def test_different_documents_are_kept() -> None:
    found = _find([_document(n) for n in range(50)])
    assert not len(found.near) and not len(found.exact)


def test_pairs_above_the_threshold_are_found() -> None:
    """Against the exact similarity of all pairs, on texts with every degree of overlap."""
    texts = []
    for number in range(20):
        sentences = _document(number, 20).split(". ")
        texts += [
            ". ".join(sentences[:keep] + _document(number + 50, 20).split(". ")[keep:]) for keep in (20, 19, 18, 10)
        ]
    exact = {
        (i, j) for i in range(len(texts)) for j in range(i + 1, len(texts)) if similarity(texts[i], texts[j]) >= 0.8
    }
    found = set(_near_pairs(texts))
    assert found <= exact and len(exact) >= 20
    first = {later: leader for leader, later in ties(texts).tolist()}
    assert all(first.get(i, i) == first.get(j, j) for i, j in exact)


def test_short_and_empty_texts() -> None:
    found = _find(["", "가", "가", "!!!", "???", "😀"])
    assert found.exact.tolist() == [[1, 2]]
    assert signatures([]).shape == (0, dedup.PERMUTATIONS)
    assert _near_pairs([]) == [] and not len(ties([]))


@given(st.lists(st.sampled_from([*range(6), 2**63, 2**64 - 1]), max_size=60), st.integers(1, 4))
def test_equal_digests_are_found_whatever_the_parts_they_are_sorted_in(values: list[int], part: int) -> None:
    rows = np.asarray([(value, value // 3) for value in values], dtype=np.uint64).reshape(-1, 2)
    first: dict[int, int] = {}
    expected = [[first[v], i] for i, v in enumerate(values) if first.setdefault(v, i) != i]
    with pytest.MonkeyPatch.context() as patch, _table(rows.tobytes(), 2, "<u8") as digests:
        patch.setattr(dedup, "_SORTED", part)
        assert dedup._equal(digests).tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_chains_of_pairs_are_tied_to_their_first(pairs: list[tuple[int, int]]) -> None:
    group = list(range(31))
    for _ in range(31):
        for i, j in pairs:
            group[i] = group[j] = min(group[i], group[j])
    found = dedup.connected(np.asarray(pairs, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == [[leader, member] for member, leader in enumerate(group) if leader != member]


def test_signatures_do_not_depend_on_their_company() -> None:
    texts = [normalised(_document(n)) for n in range(30)]
    alone = np.concatenate([signatures([text]) for text in texts])
    assert np.array_equal(signatures(texts), alone)


def _split(texts: list[str], **options: float) -> npt.NDArray[np.bool_]:
    sizes = np.asarray([len(text.encode()) for text in texts])
    chosen: dict[str, float] = {"fraction": 0.1, "seed": 0, **options}
    return dedup.split_validation(
        texts,
        sizes,
        ties(texts),
        fraction=chosen["fraction"],
        seed=int(chosen["seed"]),
        min_bytes=int(chosen.get("min_bytes", 0)),
    )


def test_no_validation_document_is_near_a_training_one() -> None:
    texts = []
    for number in range(60):
        text = _document(number)
        texts += [
            text,
            text.replace("꼭 챙겨야", "반드시 챙겨야", 1),
            text.replace(f"{number * 100}번", f"{number * 100 + 7}번", 1),
        ]
    held_out = _split(texts, fraction=0.2)
    assert 0.05 < held_out.mean() < 0.5
    for i in np.flatnonzero(held_out):
        assert max(similarity(texts[int(i)], texts[int(j)]) for j in np.flatnonzero(~held_out)) < 0.8


def test_the_split_depends_on_text_and_seed_alone() -> None:
    texts = [_document(n) for n in range(200)]
    held_out = _split(texts)
    assert 5 < held_out.sum() < 40
    assert np.array_equal(_split(texts[::-1])[::-1], held_out)
    assert not np.array_equal(_split(texts, seed=1), held_out)
    assert np.array_equal(_split(texts[:150]), held_out[:150])


@pytest.mark.parametrize("count", [2, 3, 10])
def test_both_sides_get_a_document(count: int) -> None:
    for seed in range(20):
        held_out = _split([_document(n) for n in range(count)], fraction=0.001, seed=seed)
        assert held_out.any() and not held_out.all()


def test_one_document_or_no_fraction_leaves_validation_empty() -> None:
    assert _split([_document(0)]).tolist() == [False]
    assert _split([_document(0), _document(1)], fraction=0).tolist() == [False, False]
    assert _split([_document(0), _document(0)]).tolist() == [False, False]


def test_validation_gets_enough_text_for_a_window() -> None:
    texts = [_document(n) for n in range(50)]
    held_out = _split(texts, fraction=0.001, min_bytes=5000)
    assert sum(len(text.encode()) for text, held in zip(texts, held_out, strict=True) if held) >= 5000
    assert _split(texts, fraction=0.001, min_bytes=10**9).mean() <= 0.5
