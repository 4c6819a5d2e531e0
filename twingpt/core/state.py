"""The keys of the state that crosses engines, and the strict check that each engine loads it through."""

import math

import numpy as np

from twingpt.core.backend import State
from twingpt.core.engine_settings import OptimizerName
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.language import tr
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec

MODEL = "model/"
ADAMW_M = "adamw.m/"
ADAMW_V = "adamw.v/"
ADAMW_COUNT = "adamw.count"
MUON_MOMENTUM = "muon.momentum/"
MUON_COUNT = "muon.count"
COUNTS = (ADAMW_COUNT, MUON_COUNT)
FINITE_CHUNK = 1 << 16
"""Numbers that are looked at together."""


def expected_shapes(spec: GPTSpec, *, optimizer: OptimizerName | None) -> dict[str, tuple[int, ...]]:
    """Every key of the state and its shape: of the weights, and of what the optimizer keeps, if one is named."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, param in parameter_table(spec).items():
        shapes[MODEL + name] = param.shape
        if optimizer == "muon" and param.optimizer == "muon":
            shapes[MUON_MOMENTUM + name] = param.shape
        elif optimizer is not None:
            shapes[ADAMW_M + name] = shapes[ADAMW_V + name] = param.shape
    if optimizer is not None:
        shapes[ADAMW_COUNT] = ()
    if optimizer == "muon":
        shapes[MUON_COUNT] = ()
    return shapes


def initial_state(spec: GPTSpec, seed: int, optimizer: OptimizerName) -> State:
    """What a run begins with: initial weights, and moments and counts of zero."""
    state: State = {
        key: np.zeros(shape, dtype=np.int64 if key in COUNTS else np.float32)
        for key, shape in expected_shapes(spec, optimizer=optimizer).items()
        if not key.startswith(MODEL)
    }
    return state | {MODEL + name: weight for name, weight in initial_weights(spec, seed).items()}


def state_bytes(spec: GPTSpec, optimizer: OptimizerName) -> int:
    """Bytes of the whole state, in memory or in a checkpoint's files."""
    return sum(4 * math.prod(shape) for shape in expected_shapes(spec, optimizer=optimizer).values())


def state_optimizer(state: State) -> OptimizerName | None:
    """Whose moments a state holds; None: weights alone."""
    if any(key.startswith("muon.") for key in state):
        return "muon"
    return None if all(key.startswith(MODEL) for key in state) else "adamw"


def weights_only(state: State) -> State:
    """The weights of a state, which an engine with any optimizer takes."""
    return {key: array for key, array in state.items() if key.startswith(MODEL)}


def first_not_finite(state: State) -> str | None:
    """The first key of a state that holds a NaN or an infinity; None if every number is one."""
    for key, array in state.items():
        flat = array.reshape(-1)
        # In pieces that stay in the processor's cache: a whole array of answers takes three times as long.
        if not all(np.isfinite(flat[i : i + FINITE_CHUNK]).all() for i in range(0, flat.size, FINITE_CHUNK)):
            return key
    return None


def check_state(spec: GPTSpec, state: State, optimizer: OptimizerName | None = None) -> None:
    """Raises TwinGPTError naming the first key that is missing, unknown, or of another shape or type.

    optimizer: the one that is to go on from it. A state of weights alone serves any.
    """
    found = state_optimizer(state)
    if optimizer is not None and found is not None and found != optimizer:
        raise TwinGPTError(
            tr(
                "the state holds what {found} keeps, and cannot be gone on with by {optimizer}",
                found=found,
                optimizer=optimizer,
            )
        )
    expected = expected_shapes(spec, optimizer=found)
    for key in sorted(expected.keys() ^ state.keys()):
        problem = tr("is missing from") if key in expected else tr("is unknown to this model, but is in")
        raise TwinGPTError(tr("{key} {problem} the state: it belongs to another spec", key=key, problem=problem))
    for key, shape in expected.items():
        array = state[key]
        if array.shape != shape:
            raise TwinGPTError(
                tr(
                    "{key} has shape {found}, the model needs {needed}",
                    key=key,
                    found=list(array.shape),
                    needed=list(shape),
                )
            )
        dtype = np.int64 if key in COUNTS else np.float32
        if array.dtype != dtype:
            raise TwinGPTError(
                tr("{key} is {found}, the model needs {needed}", key=key, found=array.dtype, needed=np.dtype(dtype))
            )
