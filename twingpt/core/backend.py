"""The Backend protocol: what every engine must be able to do for the rest of twingpt.

An engine is given NumPy arrays. It gives back NumPy arrays, floats, or a handle into which only the engine looks. A
tensor of a device never leaves the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.engine_settings import DeviceChoice as DeviceChoice
from twingpt.core.engine_settings import EngineConfig as EngineConfig
from twingpt.core.engine_settings import EngineSettings as EngineSettings
from twingpt.core.engine_settings import Precision as Precision
from twingpt.core.engines import find_engine
from twingpt.core.spec import GPTSpec
from twingpt.core.world import World

BackendName = str
"""An engine's name, as its record has it (core.engines)."""

State = dict[str, NDArray[Any]]
"""`model/<name>`, `adamw.m/<name>`, `adamw.v/<name>`, `muon.momentum/<name>` (float32),
`adamw.count` and `muon.count` (int64, shape [])."""

Array = NDArray[Any]


class SoftTargets(NamedTuple):
    """What each target is learned as, where that is not one token alone: shares of several tokens, which sum to one.

    ids: int32 [..., K], the target itself among them; one that stands there twice has both shares. shares: float32
    [..., K].
    """

    ids: Array
    shares: Array


def by_micro_batch(soft: SoftTargets | None, count: int) -> Sequence[SoftTargets | None]:
    """Those of each of `count` micro-batches, from [A, B, T, K]; nothing for each where there are none."""
    return [None] * count if soft is None else [SoftTargets(*part) for part in zip(*soft, strict=True)]


@dataclass(slots=True)
class StepStats:
    """What happened in each update since the last read, oldest first.

    loss_sums: cross-entropy in nats, summed over the counted tokens. grad_norms: before clipping.
    applied: False if the update changed no weight, moment or count. This is so if the loss or a gradient was not
    finite, and if the batch had no counted target; in the second case the norm is NaN.
    """

    loss_sums: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The mean loss for a counted token over these updates; NaN if no token was counted."""
        tokens = sum(self.tokens)
        return sum(self.loss_sums) / tokens if tokens else float("nan")


class Backend(Protocol):
    """An engine that holds one model and its optimizer on one device."""

    name: BackendName
    device: str
    spec: GPTSpec

    def train_step(
        self,
        inputs: Array,
        targets: Array,
        lr: float,
        step: int,
        tokens: int | None = None,
        soft: SoftTargets | None = None,
    ) -> None:
        """Do one update from int32 [A, B, T], A micro-batches whose gradients are added up. Target -1 is not counted.

        soft: [A, B, T, K], what the counted targets are learned as; None: each as the token that it is. The loss is the
        cross-entropy with these shares, and `targets` then only says which of them are counted.

        The loss is summed over the counted tokens of all micro-batches and all ranks, and divided once by `tokens`,
        their number (None: those of `targets`, where there is one rank). The call never waits for the device.
        Sequence b of micro-batch a has the number (a B + b) ranks + rank in the batch of the step. Dropout depends on
        (seed, step, that number), as `core.dropout` says, so the step is the same up to rounding whichever way the
        batch is cut.
        Raises OutOfMemoryError, and PeerLostError if another rank is gone. Because the device may lag behind, any later
        call may raise them too.
        """

    def read_stats(self) -> StepStats:
        """What happened since the last read. No other call of the training loop waits for the device."""

    def eval_step(self, inputs: Array, targets: Array) -> tuple[float, int]:
        """(summed loss in nats, counted tokens) of int32 [B, T], without dropout."""

    def loss_and_grads(self, inputs: Array, targets: Array, soft: SoftTargets | None = None) -> tuple[float, State]:
        """Mean loss and its unclipped gradients by `model/<name>`, without dropout. soft: [B, T, K], if any."""

    def logits(self, tokens: Array) -> NDArray[np.float32]:
        """int32 [B, T] -> float32 [B, T, V], without dropout."""

    def new_cache(self, slots: int, capacity: int) -> Any:
        """A key-value cache for `slots` sequences of up to `capacity` tokens, allocated now."""

    def prefill(self, cache: Any, slot: int, tokens: Array) -> NDArray[np.float32]:
        """Fill an empty slot from int32 [T]; returns the logits [V] after the last token."""

    def decode(self, cache: Any, slots: list[int], tokens: Array) -> NDArray[np.float32]:
        """Append one token to each of n slots; returns the logits [n, V] after each."""

    def free(self, cache: Any, slot: int) -> None:
        """Empty a slot."""

    def export_state(self, *, optimizer: bool = True) -> State:
        """Weights and, if asked for, optimizer state, copied to NumPy."""

    def load_state(self, state: State) -> None:
        """Take over weights, and optimizer state if there is any. Raises TwinGPTError on a wrong name or shape."""

    def memory(self) -> tuple[int, int]:
        """(active, peak) bytes on the device; resident set of the process on the CPU."""

    def memory_limit(self) -> int | None:
        """How many bytes a process may use on the device; None if the machine's memory is the only limit."""

    def synchronize(self) -> None:
        """Wait until the device has nothing left to do."""


def create_backend(name: str, spec: GPTSpec, config: EngineConfig | None = None, world: World | None = None) -> Backend:
    """Import the engine asked for, and only that one.

    world: what `join_world` gave, if this process is one of several ranks: gradients are summed over them.
    Raises UsageError for a name that is no engine, TwinGPTError if its framework is not installed.
    """
    backend: Backend = find_engine(name).part("backend").create(spec, config or EngineConfig(), world)
    return backend


def join_world(name: str, timeout: float) -> World:
    """Find the other ranks that the engine's launcher started, waiting up to `timeout` seconds where it can.

    Raises what `create_backend` raises, and TwinGPTError if the ranks do not find each other.
    """
    world: World = find_engine(name).part("distributed").join(timeout)
    return world
