"""The keys of the state that crosses engines, and the strict check that each engine loads it through."""

import math

import numpy as np

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec

MODEL = "model/"
ADAMW_M = "adamw.m/"
ADAMW_V = "adamw.v/"
ADAMW_COUNT = "adamw.count"


def expected_shapes(spec: GPTSpec, *, optimizer: bool) -> dict[str, tuple[int, ...]]:
    """Every key of the state and its shape; with `optimizer`, moments and update count too."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, param in parameter_table(spec).items():
        for prefix in (MODEL, ADAMW_M, ADAMW_V) if optimizer else (MODEL,):
            shapes[prefix + name] = param.shape
    if optimizer:
        shapes[ADAMW_COUNT] = ()
    return shapes


def state_bytes(spec: GPTSpec) -> int:
    """Bytes of the whole state, in memory or in a checkpoint's files."""
    return sum(4 * math.prod(shape) for shape in expected_shapes(spec, optimizer=True).values())


def has_optimizer(state: State) -> bool:
    return any(not key.startswith(MODEL) for key in state)


def check_state(spec: GPTSpec, state: State) -> None:
    """Raises TwinGPTError naming the first key that is missing, unknown, or of another shape or type."""
    expected = expected_shapes(spec, optimizer=has_optimizer(state))
    for key in sorted(expected.keys() ^ state.keys()):
        problem = "is missing from" if key in expected else "is unknown to this model, but is in"
        raise TwinGPTError(f"{key} {problem} the state: it belongs to another spec")
    for key, shape in expected.items():
        array = state[key]
        if array.shape != shape:
            raise TwinGPTError(f"{key} has shape {list(array.shape)}, the model needs {list(shape)}")
        dtype = np.int64 if key == ADAMW_COUNT else np.float32
        if array.dtype != dtype:
            raise TwinGPTError(f"{key} is {array.dtype}, the model needs {np.dtype(dtype)}")
