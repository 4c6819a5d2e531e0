"""Initial weights, made in NumPy so that both engines start from the same bits."""

import zlib

import numpy as np
from numpy.typing import NDArray

from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec

Weights = dict[str, NDArray[np.float32]]


def initial_weights(spec: GPTSpec, seed: int) -> Weights:
    """Float32 weights by canonical name.

    Each parameter draws from its own stream, keyed by (seed, name): adding a layer or an option to the spec leaves
    the other parameters' values as they were.
    """
    weights: Weights = {}
    for name, param in parameter_table(spec).items():
        if param.init == "normal":
            generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
            weights[name] = generator.standard_normal(param.shape, dtype=np.float32)
            weights[name] *= np.float32(param.init_std)
        else:
            fill = np.ones if param.init == "ones" else np.zeros
            weights[name] = fill(param.shape, dtype=np.float32)
    return weights
