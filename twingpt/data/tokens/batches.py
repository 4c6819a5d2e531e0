"""Batches from the packed files: which window comes when is a pure function of (seed, position)."""

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.tokens.custody import check_content
from twingpt.data.tokens.cut import Cut
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.windows import (
    NO_MARK,
    NOWHERE,
    FixedWindows,
    Grid,
    Places,
    RowWindows,
    StreamWindows,
    Tokens,
    Windows,
    documents_in,
    samples_in_rows,
)

NOT_COUNTED = -1

Batch = tuple[NDArray[np.int32], NDArray[np.int32]]


class BatchSource(Protocol):
    """Where a trainer's windows come from: packed files (`Batches`), or anything of the same form.

    Each batch is (inputs, targets), int32 [count, T]; a target of -1 is not counted. The windows of the validation
    split have numbers from 0 on. per_epoch: windows that show every token once.
    """

    @property
    def per_epoch(self) -> int: ...

    def batch(self, position: int, count: int) -> Batch:
        """The windows position .. position + count of the run, by the position alone: so runs can be resumed."""

    def places(self, position: int, count: int) -> Places:
        """Where the tokens of these windows, and the one that follows each, stand among all tokens."""

    def gather(self, windows: list[int]) -> Batch:
        """The windows with these numbers."""

    def spread(self, limit: int) -> list[int]:
        """Up to `limit` numbers spread evenly over all windows; all of them for 0."""


def evenly(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers below `count`, spread evenly over them; all of them for 0."""
    if limit == 0 or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


def taken(tokens: Tokens, places: Places, *, pad_id: int | None, mask: Tokens | None = None) -> Batch:
    """(inputs, targets) int32 [windows, T] of the tokens at these places.

    A target of NOT_COUNTED is one that stands nowhere, is [PAD], or that the mask, one number a token, does not count.
    """
    filling, aims = pad_id or 0, places[:, 1:]
    targets = tokens[aims].astype(np.int32)
    counted = aims != NOWHERE
    # What nothing follows is no input either: the last token of a stream asks for nothing.
    inputs = np.where(counted, tokens[places[:, :-1]], filling).astype(np.int32)
    if pad_id is not None:
        counted &= targets != pad_id
    if mask is not None:
        counted &= mask[aims] != 0
    return inputs, np.where(counted, targets, NOT_COUNTED).astype(np.int32)


class Batches:
    """The windows of one split: a pure function of (seed, position).

    bos_id: the mark that a document or sample begins with, at which "anew" cuts.
    Raises TwinGPTError if the files are not those that the manifest was written with, or too short for block_size.
    """

    def __init__(
        self,
        data_dir: Path,
        manifest: Manifest,
        split: Literal["train", "val"],
        block_size: int,
        seed: int = 0,
        *,
        cut: Cut = "fixed",
        bos_id: int = NO_MARK,
    ) -> None:
        self._manifest = manifest
        self._split = getattr(manifest, split)
        self.block_size = block_size
        self.seed = seed
        self._tokens = self._map(
            data_dir / self._split.file, np.dtype(manifest.dtype), self._split.sha256, manifest.vocab_size
        )
        self._mask = None
        if self._split.mask_file:
            mask, sha256 = data_dir / self._split.mask_file, self._split.mask_sha256
            self._mask = self._map(mask, np.dtype(np.uint8), sha256, 2)
        if manifest.layout == "rows" and block_size != manifest.block_size:
            raise TwinGPTError(
                tr(
                    "the samples in {data_dir} were packed for block_size {block_size}, the model has "
                    "{block_size_2}: run `twingpt prepare` with --block-size {block_size_2}",
                    data_dir=data_dir,
                    block_size=manifest.block_size,
                    block_size_2=block_size,
                )
            )
        stride = block_size + (manifest.layout == "rows")
        self._grid = Grid(len(self._tokens), block_size, stride)
        self.windows = self._grid.count
        if split == "val" and self.windows < 1:
            raise TwinGPTError(
                tr(
                    "{data_dir} holds no text to validate with: run `twingpt prepare` with a larger --val-fraction",
                    data_dir=data_dir,
                )
            )
        if self.windows < 1 or (split == "train" and len(self._tokens) <= block_size):
            raise TwinGPTError(
                tr(
                    "{path} holds {tokens:,} tokens, fewer than one window of "
                    "block_size {block_size}: use more text or a smaller block_size",
                    path=data_dir / self._split.file,
                    tokens=len(self._tokens),
                    block_size=block_size,
                )
            )
        self._run = self._windows(cut, seed, bos_id)

    def _windows(self, cut: Cut, seed: int, bos_id: int) -> Windows:
        if cut == "fixed":
            return FixedWindows(self._grid, seed)
        size = len(self._tokens)
        if self._manifest.layout == "rows":
            begins, ends = samples_in_rows(self._tokens, self.block_size + 1, bos_id, self._manifest.pad_id)
            return RowWindows(begins, ends, size, self.block_size, seed)
        return StreamWindows(documents_in(self._tokens, bos_id), size, self.block_size, seed)

    @property
    def per_epoch(self) -> int:
        return self.windows

    @property
    def tokens(self) -> Tokens:
        """All tokens of the file."""
        return self._tokens

    def places(self, position: int, count: int) -> Places:
        return self._run.places(position, count)

    def batch(self, position: int, count: int) -> Batch:
        """(inputs, targets) int32 [count, T] of windows position .. position + count.

        position: windows consumed since the start of the run. Targets are NOT_COUNTED where the loss does not count.
        """
        return self._taken(self._run.places(position, count))

    def gather(self, windows: list[int]) -> Batch:
        """(inputs, targets) of the windows with these numbers in the file."""
        return self._taken(self._grid.places(np.asarray(windows, dtype=np.int64)))

    def _taken(self, places: Places) -> Batch:
        return taken(self._tokens, places, pad_id=self._manifest.pad_id, mask=self._mask)

    def spread(self, limit: int) -> list[int]:
        """Up to `limit` window numbers spread evenly over the file; all of them for 0."""
        return evenly(self.windows, limit)

    def _map(self, path: Path, dtype: np.dtype[np.integer[Any]], sha256: str | None, below: int) -> Tokens:
        try:
            size = path.stat().st_size
        except OSError:
            raise TwinGPTError(tr("{path} is missing: run `twingpt prepare` again", path=path)) from None
        if size != self._split.tokens * dtype.itemsize:
            raise TwinGPTError(
                tr(
                    "{path} has {size:,} bytes, its manifest says {tokens:,}: run `twingpt prepare` again",
                    path=path,
                    size=size,
                    tokens=self._split.tokens * dtype.itemsize,
                )
            )
        check_content(path, dtype, sha256, below)
        return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)
