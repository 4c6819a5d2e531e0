"""The ways of cutting a file into windows: each token once an epoch, and nothing but (seed, epoch) decides."""

import numpy as np
import pytest
from numpy.typing import NDArray

from twingpt.core.counter import permutation, random_bits
from twingpt.data.tokens.batches import taken
from twingpt.data.tokens.windows import (
    NO_MARK,
    NOWHERE,
    FixedWindows,
    Grid,
    RowWindows,
    StreamWindows,
    Windows,
    documents_in,
    fixed_stream,
    samples_in_rows,
)

BOS, EOS, PAD = 1, 2, 0
BLOCK = 16


def stream(documents: int = 40) -> NDArray[np.int64]:
    draw = np.random.default_rng(0)
    parts = [[BOS, *draw.integers(5, 900, draw.integers(3, 30)), EOS] for _ in range(documents)]
    return np.array([token for part in parts for token in part])


def rows(count: int = 50) -> NDArray[np.int64]:
    draw, tokens = np.random.default_rng(0), []
    for _ in range(count):
        row: list[int] = []
        while len(row) < BLOCK - 2:
            row += [BOS, *draw.integers(5, 900, min(int(draw.integers(2, 7)), BLOCK - len(row)))]
        tokens += row + [PAD] * (BLOCK + 1 - len(row))
    return np.array(tokens)


def windows_of(kind: str, seed: int = 3) -> tuple[Windows, NDArray[np.int64]]:
    if kind == "rows":
        tokens = rows()
        return RowWindows(*samples_in_rows(tokens, BLOCK + 1, BOS, PAD), len(tokens), BLOCK, seed), tokens
    tokens = stream()
    if kind == "fixed":
        return FixedWindows(Grid(len(tokens), BLOCK, BLOCK), seed), tokens
    return StreamWindows(documents_in(tokens, BOS if kind == "stream" else NO_MARK), len(tokens), BLOCK, seed), tokens


@pytest.mark.parametrize("kind", ["fixed", "stream", "one document"])
def test_every_token_but_one_is_a_target_once_an_epoch(kind: str) -> None:
    windows, tokens = windows_of(kind)
    for epoch in range(3):
        targets = windows.places(epoch * windows.count, windows.count)[:, 1:]
        found = targets[targets != NOWHERE]
        assert len(found) == len(set(found.tolist())) == len(tokens) - 1


def test_every_sample_stands_whole_in_a_row_once_an_epoch() -> None:
    windows, tokens = windows_of("rows")
    begins, ends = samples_in_rows(tokens, BLOCK + 1, BOS, PAD)
    samples = sorted(tuple(tokens[a:b].tolist()) for a, b in zip(begins, ends, strict=True))
    assert len(np.unique(ends - begins)) > 3
    for epoch in range(3):
        found: list[tuple[int, ...]] = []
        for places in windows.places(epoch * windows.count, windows.count):
            row = tokens[places[places != NOWHERE]]
            assert row[0] == BOS
            assert (places[len(row) :] == NOWHERE).all()
            found += [tuple(sample.tolist()) for sample in np.split(row, np.flatnonzero(row == BOS)[1:])]
        assert sorted(found) == samples


@pytest.mark.parametrize("kind", ["stream", "one document", "rows"])
def test_an_epoch_is_cut_elsewhere_than_the_one_before(kind: str) -> None:
    windows, tokens = windows_of(kind)

    def contents(epoch: int) -> set[bytes]:
        return {tokens[row].tobytes() for row in windows.places(epoch * windows.count, windows.count)}

    assert len(contents(0) & contents(1)) < windows.count / 4


@pytest.mark.parametrize("kind", ["fixed", "stream", "one document", "rows"])
def test_windows_are_a_function_of_seed_and_position_alone(kind: str) -> None:
    windows, _ = windows_of(kind)
    length = 3 * windows.count + 5
    whole = windows.places(0, length)
    again, _ = windows_of(kind)
    # From the end, so that nothing can have been carried along.
    single = [again.places(i, 1) for i in reversed(range(length))]
    assert np.array_equal(whole, np.concatenate(single[::-1]))
    other, _ = windows_of(kind, seed=4)
    assert not np.array_equal(whole, other.places(0, length))


def test_the_streams_are_pinned() -> None:
    """A run in the middle of an epoch goes on with what it has not seen: these numbers may never change."""
    assert random_bits(2, 7, 3).tolist() == [int(x) for x in random_bits(3, 7, 3)[:2]]
    assert fixed_stream() == "6f3110165fba694daecd53177d48ea7469b7af4371e8d34a743490f226d68834"
    assert permutation(8, 1, 2).tolist() == [5, 6, 2, 7, 4, 1, 0, 3]
    assert windows_of("stream")[0].places(0, 1)[0].tolist() == [*range(336, 340), *range(267, 280)]
    rows = [*range(136, 143), *range(809, 814), *range(467, 470), NOWHERE, NOWHERE]
    assert windows_of("rows")[0].places(0, 1)[0].tolist() == rows


def test_what_stands_nowhere_is_no_target() -> None:
    tokens = np.arange(5, 12)
    places = np.array([[5, 6, NOWHERE]])
    inputs, targets = taken(tokens, places, pad_id=None)
    assert inputs.tolist() == [[10, 0]]
    assert targets.tolist() == [[11, -1]]
