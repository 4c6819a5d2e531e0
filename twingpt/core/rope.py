"""Rotary positions: the angles, made once in NumPy so that both engines turn by the same bits."""

import numpy as np
from numpy.typing import NDArray

from twingpt.core.spec import GPTSpec


def rope_table(spec: GPTSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(cosines, sines), each [block_size, head_dim / 2]: pair i of position t turns by t * rope_theta^(-2i / head_dim).

    Half-split: pair i is dimensions i and i + head_dim / 2.
    """
    frequencies = spec.rope_theta ** (-np.arange(0, spec.head_dim, 2) / spec.head_dim)
    angles = np.outer(np.arange(spec.block_size), frequencies)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
