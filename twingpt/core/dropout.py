"""What drops out: a function of (seed, step, sequence, place in the model) and of nothing else.

The same update comes out however a batch is cut into micro-batches, over ranks or between engines, for every sequence
brings its own masks along. No generator of a framework takes a key for each sequence, and a counter-based one (Philox,
Threefry) costs tens of operations for each number. Here a mask costs one multiplication and one comparison: number i of
a table of random odd integers, times the random odd integer that is the mask's key, modulo 2^32, falls below p 2^32
with probability p. For a fixed i that holds exactly and independently from key to key, since an odd factor only
permutes the odd residues; within one mask it holds from i to i as far as the table is random. The table never changes.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from twingpt.core.counter import mixed
from twingpt.core.spec import GPTSpec

STREAM = "1"
"""Of these numbers: another way to draw them gets another name, and a run that goes on with it says so."""

Words = NDArray[np.uint32]


def keys(spec: GPTSpec, seed: int, step: int, sequences: NDArray[np.int64]) -> Words:
    """Keys [n, 1 + n_layer * (n_head + 2)] of the masks of n sequences, by their number in the step's whole batch.

    One for what the embeddings sum up to, then for each layer one a head for the attention probabilities, one for what
    attention writes and one for what the MLP writes (`of_layer`).
    """
    places = np.arange(1 + spec.n_layer * (spec.n_head + 2), dtype=np.uint64)
    place = mixed(mixed(np.array([seed], dtype=np.uint64)) + np.uint64(step))
    return _odd(mixed(mixed(place + sequences.astype(np.uint64))[:, None] + places))


def of_layer(n_head: int, layer: int) -> slice:
    """Which of the columns that `keys` gives belong to a layer: its heads', attention's, the MLP's."""
    start = 1 + layer * (n_head + 2)
    return slice(start, start + n_head + 2)


@functools.lru_cache(maxsize=2)
def table(spec: GPTSpec) -> Words:
    """Random odd numbers [n], enough for a mask of [T, T] or [T, n_embd]; a larger table begins with a smaller one."""
    size = spec.block_size * max(spec.block_size, spec.n_embd)
    return _odd(mixed(np.arange(size, dtype=np.uint64)))


def threshold(probability: float) -> int:
    """A product below this one drops out."""
    return min(round(probability * 2**32), 2**32 - 1)


def _odd(x: NDArray[np.uint64]) -> Words:
    return (x >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
