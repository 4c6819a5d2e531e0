"""Batches from arrays of tokens that somebody made otherwise than by `prepare`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.data.tokens.batches import Batch, evenly, taken
from twingpt.data.tokens.cut import Cut
from twingpt.data.tokens.windows import CHUNK, FixedWindows, Grid, Places, StreamWindows, Tokens, Windows


@dataclass(frozen=True, eq=False)
class TokenArrays:
    """Tokens to train on and to validate with, each one stream, in a 1-D array of any integer type.

    token_bytes: how many bytes of text each token stands for, by its number, for the bits a byte of an evaluation;
    None: 1 each. Raises UsageError for arrays that cannot be meant.
    """

    train: Tokens
    val: Tokens
    token_bytes: Tokens | None = None

    def __post_init__(self) -> None:
        for name, array in (("train", self.train), ("val", self.val), ("token_bytes", self.token_bytes)):
            if array is None:
                continue
            if not isinstance(array, np.ndarray) or array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
                found = f"{array.ndim}-D {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise UsageError(
                    tr("the array {name} is {found}: give a 1-D NumPy array of integers", name=name, found=found)
                )
            lowest = min((int(chunk.min()) for chunk in _chunks(array)), default=0)
            if lowest < 0:
                raise UsageError(
                    tr("the array {name} holds {lowest}: give numbers from 0 on", name=name, lowest=lowest)
                )
        for name, array in (("train", self.train), ("val", self.val)):
            if len(array) < 2:
                raise UsageError(
                    tr(
                        "the array {name} holds {tokens} tokens: give 2 or more, so that one is predicted",
                        name=name,
                        tokens=len(array),
                    )
                )

    def largest(self) -> tuple[int, str]:
        """(the largest token, the name of the array that holds it)."""
        return max((max(int(chunk.max()) for chunk in _chunks(each)), name) for each, name in self._named())

    def fingerprint(self) -> dict[str, str]:
        """Hashes by which a run knows its arrays again, whatever integer type holds the same numbers."""
        parts = " ".join(_sha256(each) for each, _ in self._named())
        found = {"data": hashlib.sha256(parts.encode()).hexdigest()}
        # What is absent has a name of its own: leaving token_bytes out on a resume would change what is measured.
        return found | {"token_bytes": "1 each" if self.token_bytes is None else _sha256(self.token_bytes)}

    def bytes_of(self, vocab_size: int) -> NDArray[np.int32]:
        """Bytes that each token stands for. Raises UsageError if token_bytes are not those of the vocabulary."""
        if self.token_bytes is None:
            return np.ones(vocab_size, dtype=np.int32)
        if len(self.token_bytes) != vocab_size:
            raise UsageError(
                tr(
                    "token_bytes has {entries} entries: give one for each of {vocab_size} tokens",
                    entries=len(self.token_bytes),
                    vocab_size=vocab_size,
                )
            )
        return self.token_bytes.astype(np.int32)

    def _named(self) -> tuple[tuple[Tokens, str], tuple[Tokens, str]]:
        return (self.train, "train"), (self.val, "val")


class ArrayBatches:
    """The windows of one array, cut as `Batches` cuts a stream: a pure function of (seed, position).

    Each is block_size tokens and what follows them; the last one is shorter and filled up, so that no token is left
    out. Raises UsageError if the tokens are too few for block_size.
    """

    def __init__(self, tokens: Tokens, block_size: int, seed: int = 0, *, least: int = 2, cut: Cut = "fixed") -> None:
        """least: tokens below which there is nothing to learn from."""
        if len(tokens) < least:
            raise UsageError(
                tr(
                    "an array holds {tokens:,} tokens, fewer than one window of block_size {block_size}: "
                    "use more tokens or a smaller block_size",
                    tokens=len(tokens),
                    block_size=block_size,
                )
            )
        self._tokens = tokens
        self._grid = Grid(len(tokens), block_size, block_size)
        # Nobody here knows where a document begins: the stream is cut as one.
        begins = np.zeros(1, dtype=np.int64)
        self._run: Windows = (
            FixedWindows(self._grid, seed) if cut == "fixed" else StreamWindows(begins, len(tokens), block_size, seed)
        )

    @property
    def per_epoch(self) -> int:
        return self._grid.count

    def places(self, position: int, count: int) -> Places:
        """Where the tokens of these windows, and the one that follows each, stand in the array."""
        return self._run.places(position, count)

    def batch(self, position: int, count: int) -> Batch:
        """(inputs, targets) int32 [count, T] of the windows position .. position + count since the run's start."""
        return taken(self._tokens, self._run.places(position, count), pad_id=None)

    def gather(self, windows: list[int]) -> Batch:
        """(inputs, targets) of the windows with these numbers in the array."""
        return taken(self._tokens, self._grid.places(np.asarray(windows, dtype=np.int64)), pad_id=None)

    def spread(self, limit: int) -> list[int]:
        """Up to `limit` window numbers spread evenly over the array; all of them for 0."""
        return evenly(self._grid.count, limit)


def _chunks(array: Tokens) -> Iterator[Tokens]:
    for start in range(0, len(array), CHUNK):
        yield array[start : start + CHUNK]


def _sha256(array: Tokens) -> str:
    digest = hashlib.sha256()
    for chunk in _chunks(array):
        digest.update(chunk.astype("<i8").tobytes())
    return digest.hexdigest()
