"""Which tokens stand in which window: how an epoch cuts a file of tokens, as a function of (seed, epoch) alone.

Every way of cutting shows each token once an epoch, in the same number of windows an epoch, and carries no state: a run
can be resumed at any window, and several ranks agree without a word.
"""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.counter import permutation, random_bits

Tokens = NDArray[np.integer[Any]]
Places = NDArray[np.int64]
"""Where the tokens of windows stand in the file, [windows, block_size + 1]; NOWHERE is filled up."""

NOWHERE = -1
NO_MARK = -1
"""The id of a mark that stands in no text."""
CHUNK = 1 << 22
"""Tokens that are looked at together: a file of many gigabytes is mapped into memory, and need not be there."""

STREAM = "2"
"""Of the windows that are cut anew: another way to draw them gets another name, which a run's fingerprint holds."""
_ORDER, _PIECES, _ROTATION, _WITHIN = range(4)
"""What random numbers of an epoch are for."""


class Windows(Protocol):
    """The windows of a run, one after another, epoch after epoch."""

    count: int
    """Windows an epoch."""

    def places(self, position: int, count: int) -> Places:
        """Of the windows position .. position + count since the start of the run."""


@dataclass(frozen=True)
class Grid:
    """Windows one after another as the file has them.

    stride: tokens from one to the next: block_size where each window's last target is the next one's first input,
    block_size + 1 where rows stand for themselves.
    """

    tokens: int
    block_size: int
    stride: int

    @property
    def count(self) -> int:
        """Windows in the file; where they overlap, the last one is shorter, so that no token is left out."""
        if self.stride > self.block_size:
            return self.tokens // self.stride
        return max(0, -(-(self.tokens - 1) // self.block_size))

    def places(self, windows: NDArray[np.int64]) -> Places:
        """Of the windows with these numbers in the file."""
        places = windows[:, None] * self.stride + np.arange(self.block_size + 1)
        return np.where(places < self.tokens, places, NOWHERE)


class FixedWindows:
    """The windows of the file, in an order drawn for each epoch.

    Runs of versions before 0.2 were begun so, and go on so.
    """

    def __init__(self, grid: Grid, seed: int) -> None:
        self.count = grid.count
        self._grid, self._seed = grid, seed
        self._order = functools.lru_cache(maxsize=2)(self._drawn)

    def places(self, position: int, count: int) -> Places:
        numbers = [self._order(epoch)[part] for epoch, part in _epochs(position, count, self.count)]
        return self._grid.places(np.concatenate(numbers))

    def _drawn(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        return generator.permutation(self.count)


@functools.cache
def fixed_stream() -> str:
    """A hash of how `FixedWindows` draws its order: NumPy keeps its bits for ever, but not what it shuffles with them.

    A run whose order changed on the way would see some windows twice and others never.
    """
    grid = Grid(tokens=1001, block_size=1, stride=1)
    order = FixedWindows(grid, seed=1).places(0, 2000)[:, 0]
    return hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()


class StreamWindows:
    """One stream, cut anew each epoch: the documents in another order, and the first window begins somewhere else.

    Windows that end at the same tokens in every epoch show the tokens after a border with little before them every
    time. begins: where each document begins in the file, int64 [documents]; one long document only moves the borders.
    """

    def __init__(self, begins: NDArray[np.int64], tokens: int, block_size: int, seed: int) -> None:
        self._begins, self._tokens, self._seed = begins, tokens, seed
        self._grid = Grid(tokens, block_size, block_size)
        self._lengths = np.diff(begins, append=tokens)
        self.count = self._grid.count
        self._cut = functools.lru_cache(maxsize=2)(self._drawn)

    def places(self, position: int, count: int) -> Places:
        return np.concatenate([self._of_epoch(e, part) for e, part in _epochs(position, count, self.count)])

    def _of_epoch(self, epoch: int, part: slice) -> Places:
        order, sources, starts, rotation = self._cut(epoch)
        places = self._grid.places(order[part])
        turned = (places + rotation) % self._tokens
        piece = np.searchsorted(starts, turned, side="right") - 1
        return np.where(places == NOWHERE, NOWHERE, sources[piece] + turned - starts[piece])

    def _drawn(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
        documents = permutation(len(self._begins), self._seed, epoch, _PIECES)
        lengths = self._lengths[documents]
        rotation = int(random_bits(1, self._seed, epoch, _ROTATION)[0] % np.uint64(self._tokens))
        order = permutation(self.count, self._seed, epoch, _ORDER)
        return order, self._begins[documents], np.cumsum(lengths) - lengths, rotation


class RowWindows:
    """Rows of whole samples, put together anew each epoch: samples of one length change places, and their order in a
    row changes, so that no sample is cut and no row becomes longer.

    begins: where each sample begins in the file, int64 [samples]; ends: where it is over, [PAD] left out.
    """

    def __init__(
        self, begins: NDArray[np.int64], ends: NDArray[np.int64], tokens: int, block_size: int, seed: int
    ) -> None:
        self._grid = Grid(tokens, block_size, block_size + 1)
        self._begins, self._lengths, self._seed = begins, ends - begins, seed
        self._rows = begins // (block_size + 1)
        self._by_length = np.argsort(self._lengths, kind="stable")
        self.count = self._grid.count
        self._cut = functools.lru_cache(maxsize=2)(self._drawn)

    def places(self, position: int, count: int) -> Places:
        return np.concatenate([self._of_epoch(e, part) for e, part in _epochs(position, count, self.count)])

    def _of_epoch(self, epoch: int, part: slice) -> Places:
        order, sources, starts, ends = self._cut(epoch)
        places = self._grid.places(order[part])
        piece = np.searchsorted(starts, places, side="right") - 1
        return np.where(places < ends[piece], sources[piece] + places - starts[piece], NOWHERE)

    def _drawn(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        exchanged = np.empty_like(self._begins)
        drawn = random_bits(len(exchanged), self._seed, epoch, _PIECES)
        exchanged[self._by_length] = self._begins[np.lexsort((drawn, self._lengths))]
        within = np.lexsort((random_bits(len(exchanged), self._seed, epoch, _WITHIN), self._rows))
        lengths, rows = self._lengths[within], self._rows[within]
        before = np.cumsum(lengths) - lengths
        first = np.searchsorted(rows, rows, side="left")
        starts = rows * self._grid.stride + before - before[first]
        order = permutation(self.count, self._seed, epoch, _ORDER)
        return order, exchanged[within], starts, starts + lengths


class MostContext:
    """Fixed windows in which every token of a file is foretold once, where it has the most tokens before it.

    Of a stream they overlap by half: after the first window, only the second half of each is taken, so that a token has
    half a window before it, or more. rows: rows stand for themselves, and their first tokens are foretold nowhere, as
    is the first token of a stream.
    """

    def __init__(self, tokens: int, block_size: int, *, rows: bool) -> None:
        stride = block_size + 1 if rows else max(1, block_size // 2)
        self._grid = Grid(tokens, block_size, stride)
        after_the_first = max(0, tokens - block_size - 1)
        self.count = tokens // stride if rows else 1 + -(-after_the_first // stride)

    def first(self, window: int) -> int:
        """The first place in the file that is this window's, and not the one's before it."""
        grid = self._grid
        if grid.stride > grid.block_size or window == 0:
            return min(grid.tokens, window * grid.stride)
        return min(grid.tokens, (window - 1) * grid.stride + grid.block_size + 1)

    def places(self, windows: range) -> tuple[Places, NDArray[np.bool_]]:
        """(where the tokens of these windows stand, which of them are theirs to foretell, [windows, block_size])."""
        places = self._grid.places(np.arange(windows.start, windows.stop))
        first = np.array([self.first(window) for window in windows])
        # NOWHERE comes before every place.
        return places, places[:, 1:] >= first[:, None]


def _epochs(position: int, count: int, per_epoch: int) -> list[tuple[int, slice]]:
    """(epoch, which of its windows) of the windows position .. position + count of a run."""
    found = []
    while count > 0:
        epoch, first = divmod(position, per_epoch)
        taken = min(count, per_epoch - first)
        found.append((epoch, slice(first, first + taken)))
        position, count = position + taken, count - taken
    return found


def where(tokens: Tokens, token: int) -> NDArray[np.int64]:
    """The places at which a token stands, int64 [found]."""
    found = [start + np.flatnonzero(tokens[start : start + CHUNK] == token) for start in range(0, len(tokens), CHUNK)]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def documents_in(tokens: Tokens, bos_id: int) -> NDArray[np.int64]:
    """Where each document begins, int64 [documents]; one where no mark says so."""
    begins = where(tokens, bos_id)
    return begins if len(begins) and begins[0] == 0 else np.concatenate([np.zeros(1, dtype=np.int64), begins])


def samples_in_rows(tokens: Tokens, row: int, bos_id: int, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(where each sample begins, where it is over), int64 [samples], in a file of rows of `row` tokens."""
    begins = where(tokens, bos_id)
    # A row is filled up at its end, so that its text is as long as its other tokens are many.
    rows = np.arange(len(tokens) // row)
    filled = np.bincount(where(tokens, pad_id) // row, minlength=len(rows))
    ends_of_rows = (rows + 1) * row - filled
    following = np.append(begins[1:], len(tokens))
    return begins, np.minimum(following, ends_of_rows[begins // row])
