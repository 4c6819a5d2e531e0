"""The Backend protocol on NumPy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from twingpt.backends.reference.model import GPT, CacheView, Floats, KVCache, Masks, Parameters
from twingpt.backends.reference.step import Moments, add_gradients, clip_and_update, create_optimizer, loss_sum
from twingpt.core import dropout
from twingpt.core.backend import Array, BackendName, EngineConfig, SoftTargets, State, StepStats, by_micro_batch
from twingpt.core.cache import attention_span, decode_plan, prefill_plan
from twingpt.core.errors import OutOfMemoryError, TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.memory import first_line, process_memory
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import (
    ADAMW_COUNT,
    ADAMW_M,
    ADAMW_V,
    MODEL,
    MUON_COUNT,
    MUON_MOMENTUM,
    check_state,
    state_optimizer,
)
from twingpt.core.world import World

Method = TypeVar("Method", bound=Callable[..., Any])


def computed(method: Method) -> Method:
    """Running out of memory as our error; a value that is not finite is seen in the results, and is no warning."""

    @functools.wraps(method)
    def wrapped(self: ReferenceBackend, *args: Any, **options: Any) -> Any:
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                return method(self, *args, **options)
        except MemoryError as error:
            raise OutOfMemoryError(first_line(error), retry=False) from None

    return cast(Method, wrapped)


class ReferenceBackend:
    name: BackendName = "reference"
    device = "cpu"

    def __init__(self, spec: GPTSpec, config: EngineConfig) -> None:
        self.spec = spec
        self.config = config
        self._table = parameter_table(spec)
        weights, grads = ({name: np.zeros(p.shape, dtype=np.float32) for name, p in self._table.items()} for _ in "wg")
        self._parameters = Parameters(weights, grads)
        self._model = GPT(spec, self._parameters)
        self._moments = create_optimizer(self._table, config)
        self._stats = StepStats()

    @computed
    def train_step(
        self,
        inputs: Array,
        targets: Array,
        lr: float,
        step: int,
        tokens: int | None = None,
        soft: SoftTargets | None = None,
    ) -> None:
        tokens = int((targets >= 0).sum()) if tokens is None else tokens
        try:
            loss = self._sum_gradients(inputs, targets, step, soft)
        except MemoryError as error:
            # No weight has moved yet: the same step can be tried again in smaller pieces.
            raise OutOfMemoryError(first_line(error), retry=True) from None
        norm, applied = clip_and_update(self._parameters, self._moments, self._table, self.config, loss, tokens, lr)
        self._stats.loss_sums.append(loss)
        self._stats.tokens.append(tokens)
        self._stats.grad_norms.append(norm)
        self._stats.applied.append(applied)

    def _sum_gradients(self, inputs: Array, targets: Array, step: int, soft: SoftTargets | None) -> float:
        """Accumulate the gradients of all micro-batches [A, B, T]; returns the summed loss."""
        self._clear_gradients()
        loss = 0.0
        parts = zip(inputs, targets, by_micro_batch(soft, len(inputs)), strict=True)
        for micro_batch, (x, y, own) in enumerate(parts):
            masks = self._masks(step, micro_batch * len(x), len(x))
            loss += add_gradients(self._model, x, y, self.config.loss_chunk, masks, own)
        return loss

    def _masks(self, step: int, first: int, count: int) -> Masks | None:
        """What drops out of `count` sequences, from number `first` of the step's batch."""
        if self.spec.dropout == 0.0:
            return None
        return Masks(self.spec, dropout.keys(self.spec, self.config.seed, step, np.arange(first, first + count)))

    def _clear_gradients(self) -> None:
        for grad in self._parameters.grads.values():
            grad.fill(0.0)

    def read_stats(self) -> StepStats:
        stats, self._stats = self._stats, StepStats()
        return stats

    @computed
    def eval_step(self, inputs: Array, targets: Array) -> tuple[float, int]:
        return loss_sum(self._model, inputs, targets, self.config.loss_chunk), int((targets >= 0).sum())

    @computed
    def loss_and_grads(self, inputs: Array, targets: Array, soft: SoftTargets | None = None) -> tuple[float, State]:
        self._clear_gradients()
        loss = add_gradients(self._model, inputs, targets, self.config.loss_chunk, soft=soft)
        tokens = int((targets >= 0).sum())
        return loss / tokens, {MODEL + name: grad / tokens for name, grad in self._parameters.grads.items()}

    @computed
    def logits(self, tokens: Array) -> NDArray[np.float32]:
        return self._model.logits(self._model.forward(tokens))

    @computed
    def new_cache(self, slots: int, capacity: int) -> KVCache:
        return KVCache(self.spec, slots, min(capacity, self.spec.block_size))

    @computed
    def prefill(self, cache: KVCache, slot: int, tokens: Array) -> NDArray[np.float32]:
        padded, positions = prefill_plan(tokens, cache.capacity)
        view = CacheView(cache, np.array([slot]), positions, 0, None)
        logits = self._cached_logits(padded[None], view, last=len(tokens) - 1)
        cache.lengths[slot] = len(tokens)
        return logits[0]

    @computed
    def decode(self, cache: KVCache, slots: list[int], tokens: Array) -> NDArray[np.float32]:
        lengths = [cache.lengths[slot] for slot in slots]
        span = attention_span(max(lengths) + 1, cache.capacity)
        positions, mask = decode_plan(lengths, span)
        view = CacheView(cache, np.array(slots), positions, span, mask)
        logits = self._cached_logits(np.asarray(tokens)[:, None], view, last=0)
        for slot in slots:
            cache.lengths[slot] += 1
        return logits

    def free(self, cache: KVCache, slot: int) -> None:
        cache.lengths[slot] = 0

    def _cached_logits(self, tokens: Array, view: CacheView, last: int) -> Floats:
        return self._model.logits(self._model.forward(tokens, view)[:, last])

    @computed
    def export_state(self, *, optimizer: bool = True) -> State:
        state: State = {MODEL + name: weight.copy() for name, weight in self._parameters.weights.items()}
        if not optimizer:
            return state
        moments = self._moments
        state |= {ADAMW_M + name: m.copy() for name, m in moments.m.items()}
        state |= {ADAMW_V + name: v.copy() for name, v in moments.v.items()}
        state[ADAMW_COUNT] = np.array(moments.count, dtype=np.int64)
        if moments.momentum:
            state |= {MUON_MOMENTUM + name: momentum.copy() for name, momentum in moments.momentum.items()}
            state[MUON_COUNT] = np.array(moments.muon_count, dtype=np.int64)
        return state

    @computed
    def load_state(self, state: State) -> None:
        check_state(self.spec, state, self.config.optimizer)
        # Into the arrays that the layers know.
        for name, weight in self._parameters.weights.items():
            weight[...] = state[MODEL + name]
        if state_optimizer(state) is None:
            return
        old = self._moments
        self._moments = Moments(
            {name: state[ADAMW_M + name].copy() for name in old.m},
            {name: state[ADAMW_V + name].copy() for name in old.v},
            int(state[ADAMW_COUNT]),
            {name: state[MUON_MOMENTUM + name].copy() for name in old.momentum},
            int(state.get(MUON_COUNT, 0)),
        )

    def memory(self) -> tuple[int, int]:
        return process_memory()

    def memory_limit(self) -> int | None:
        return None

    def synchronize(self) -> None:
        """Nothing to wait for: NumPy returns when it is done."""


def create(spec: GPTSpec, config: EngineConfig, world: World | None = None) -> ReferenceBackend:
    """Raises UsageError for bfloat16 and for a GPU, TwinGPTError for several ranks: this engine has none of them."""
    if config.precision != "float32":
        raise UsageError(
            tr(
                "backend reference computes in float32 only: use --precision float32, not {precision}",
                precision=config.precision,
            )
        )
    if config.device == "gpu":
        raise UsageError(tr("backend reference computes on the CPU only: use --device auto or cpu"))
    if world is not None and world.size > 1:
        raise TwinGPTError(tr("backend reference trains on one process: choose --backend mps or mlx for several ranks"))
    return ReferenceBackend(spec, config)
