"""Batches from the packed files: which window comes when is a pure function of (seed, position)."""

import functools
import hashlib
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.data.tokens.custody import check_content
from twingpt.data.tokens.manifest import Manifest

NOT_COUNTED = -1

Batch = tuple[NDArray[np.int32], NDArray[np.int32]]


class BatchSource(Protocol):
    """Where a trainer's windows come from: packed files (`Batches`), or anything of the same form.

    Each batch is (inputs, targets), int32 [count, T]; a target of -1 is not counted. The windows of the validation
    split have numbers from 0 on.
    """

    def batch(self, position: int, count: int) -> Batch:
        """The windows position .. position + count of the run, by the position alone: so runs can be resumed."""

    def gather(self, windows: list[int]) -> Batch:
        """The windows with these numbers."""

    def spread(self, limit: int) -> list[int]:
        """Up to `limit` numbers spread evenly over all windows; all of them for 0."""


class Order:
    """Which window comes when: each of `count` once an epoch, in an order keyed by (seed, epoch)."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        # Of the epoch asked for last, which is the one asked for next.
        self._epoch = -1
        self._permutation = np.zeros(0, dtype=np.int64)

    def windows(self, position: int, count: int) -> list[int]:
        """The numbers of the windows position .. position + count since the start of the run."""
        return [self._at(index) for index in range(position, position + count)]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, self._count)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self._count)
        return int(self._permutation[index])


@functools.cache
def order_stream() -> str:
    """A hash of how an order is drawn from a seed: NumPy keeps its bits for ever, but not what it shuffles with them.

    A run whose order changed on the way would see some windows twice and others never.
    """
    windows = Order(count=1000, seed=1).windows(0, 2000)
    return hashlib.sha256(np.array(windows, dtype="<i8").tobytes()).hexdigest()


def evenly(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers below `count`, spread evenly over them; all of them for 0."""
    if limit == 0 or limit >= count:
        return list(range(count))
    return [i * count // limit for i in range(limit)]


class Batches:
    """The windows of one split, in an order keyed by (seed, epoch): each once an epoch.

    Raises TwinGPTError if the files are not those that the manifest was written with, or too short for block_size.
    """

    def __init__(
        self, data_dir: Path, manifest: Manifest, split: Literal["train", "val"], block_size: int, seed: int = 0
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
        if manifest.layout == "rows":
            if block_size != manifest.block_size:
                raise TwinGPTError(
                    f"the samples in {data_dir} were packed for block_size {manifest.block_size}, the model has "
                    f"{block_size}: run `twingpt prepare` with --block-size {block_size}"
                )
            self.windows = len(self._tokens) // (block_size + 1)
        else:
            # The last window is shorter and padded: no token is left out.
            self.windows = -(-(len(self._tokens) - 1) // block_size)
        if split == "val" and self.windows < 1:
            raise TwinGPTError(
                f"{data_dir} holds no text to validate with: run `twingpt prepare` with a larger --val-fraction"
            )
        if self.windows < 1 or (split == "train" and len(self._tokens) <= block_size):
            raise TwinGPTError(
                f"{data_dir / self._split.file} holds {len(self._tokens):,} tokens, fewer than one window of "
                f"block_size {block_size}: use more text or a smaller block_size"
            )
        self._order = Order(self.windows, seed)

    def batch(self, position: int, count: int) -> Batch:
        """(inputs, targets) int32 [count, T] of windows position .. position + count.

        position: windows consumed since the start of the run. Targets are NOT_COUNTED where the loss does not count.
        """
        return self.gather(self._order.windows(position, count))

    def gather(self, windows: list[int]) -> Batch:
        """(inputs, targets) of the windows with these numbers in the file."""
        inputs = np.full((len(windows), self.block_size), self._manifest.pad_id, dtype=np.int32)
        targets = np.full((len(windows), self.block_size), NOT_COUNTED, dtype=np.int32)
        for row, window in enumerate(windows):
            start = window * (self.block_size + (self._manifest.layout == "rows"))
            tokens = self._tokens[start : start + self.block_size + 1].astype(np.int32)
            length = len(tokens) - 1
            inputs[row, :length] = tokens[:-1]
            counted = tokens[1:] != self._manifest.pad_id
            if self._mask is not None:
                counted &= self._mask[start + 1 : start + 1 + length] != 0
            targets[row, :length] = np.where(counted, tokens[1:], NOT_COUNTED)
        return inputs, targets

    def spread(self, limit: int) -> list[int]:
        """Up to `limit` window numbers spread evenly over the file; all of them for 0."""
        return evenly(self.windows, limit)

    def _map(self, path: Path, dtype: np.dtype[np.generic], sha256: str | None, below: int) -> NDArray[np.generic]:
        try:
            size = path.stat().st_size
        except OSError:
            raise TwinGPTError(f"{path} is missing: run `twingpt prepare` again") from None
        if size != self._split.tokens * dtype.itemsize:
            raise TwinGPTError(
                f"{path} has {size:,} bytes, its manifest says {self._split.tokens * dtype.itemsize:,}: "
                "run `twingpt prepare` again"
            )
        check_content(path, dtype, sha256, below)
        return np.memmap(path, dtype=dtype, mode="r") if size else np.zeros(0, dtype=dtype)
