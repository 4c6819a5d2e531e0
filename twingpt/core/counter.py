"""Random bits as a function of what they are for, by a counter-based generator that is pinned here.

NumPy does not promise that its generators draw the same numbers for ever, and a run that goes on must. So what a run
depends on while it trains is drawn from these bits, which need no state to be carried along.
"""

import numpy as np
from numpy.typing import NDArray


def mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Random bits of counters: the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def random_bits(count: int, *key: int) -> NDArray[np.uint64]:
    """Random bits [count], a function of the key, which is any numbers from 0 to 2^64 - 1."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = mixed(state + np.array([part], dtype=np.uint64))
    return mixed(state[0] + np.arange(count, dtype=np.uint64))


def permutation(count: int, *key: int) -> NDArray[np.int64]:
    """The numbers below `count` in an order that is a function of the key."""
    return np.argsort(random_bits(count, *key), kind="stable")
