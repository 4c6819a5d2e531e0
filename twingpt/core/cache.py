"""Where tokens stand in a key-value cache, and what each may attend to. All engines share this arithmetic."""

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Array
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr

BUCKET = 64
"""Lengths are rounded up to this many tokens: Metal compiles a kernel for every new shape it meets."""


def attention_span(length: int, capacity: int) -> int:
    """How many cached positions to attend over: `length` rounded up to a bucket. Raises TwinGPTError when full."""
    if length > capacity:
        raise TwinGPTError(tr("the key-value cache holds {capacity} tokens and is full", capacity=capacity))
    return min(capacity, -(-length // BUCKET) * BUCKET)


def slot_run(slots: list[int]) -> slice | None:
    """The slots as a slice where they follow each other, which an engine can read in place; else None."""
    first = slots[0]
    return slice(first, first + len(slots)) if slots == list(range(first, first + len(slots))) else None


def prefill_plan(tokens: Array, capacity: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """(tokens padded to a bucket [T'], positions [1, T']).

    The padding does no harm: in a causal pass no real token sees it, and the next decode overwrites its first entry.
    """
    if len(tokens) == 0:
        raise TwinGPTError(tr("a prompt needs at least one token"))
    padded = np.zeros(attention_span(len(tokens), capacity), dtype=np.int32)
    padded[: len(tokens)] = tokens
    return padded, np.arange(len(padded), dtype=np.int32)[None]


def decode_plan(lengths: list[int], span: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """(positions [n, 1], mask [n, 1, 1, span]) for one more token in each of n slots of these lengths."""
    positions = np.array(lengths, dtype=np.int32)[:, None]
    mask = np.arange(span) <= positions
    return positions, mask[:, None, None, :]
