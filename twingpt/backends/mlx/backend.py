"""The Backend protocol on MLX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from twingpt.backends.mlx.distributed import GradientSum, is_peer_lost
from twingpt.backends.mlx.model import GPT, CacheView, Drop, KVCache
from twingpt.backends.mlx.ops import Soft, choose_ops
from twingpt.backends.mlx.step import Moments, clip_and_update, create_optimizer, eval_loss_sum, loss_sum
from twingpt.core import dropout
from twingpt.core.backend import Array, BackendName, EngineConfig, SoftTargets, State, StepStats, by_micro_batch
from twingpt.core.cache import attention_span, decode_plan, prefill_plan, slot_run
from twingpt.core.errors import OutOfMemoryError, PeerLostError, TwinGPTError
from twingpt.core.language import tr
from twingpt.core.memory import first_line, is_out_of_memory, process_memory
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


def on_device(method: Method) -> Method:
    """Run a method's operations on the backend's own device: two backends of one process may differ in it.

    Running out of memory leaves a GPU's process unusable (mlx raises from whichever call comes next), so that our error
    asks for a fresh one.
    """

    @functools.wraps(method)
    def wrapped(self: MLXBackend, *args: Any, **options: Any) -> Any:
        try:
            with mx.stream(self._device):
                return method(self, *args, **options)
        except (RuntimeError, MemoryError) as error:
            if is_peer_lost(error):
                raise PeerLostError(first_line(error)) from None
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(first_line(error), retry=False) from None

    return cast(Method, wrapped)


class MLXBackend:
    name: BackendName = "mlx"

    def __init__(self, spec: GPTSpec, config: EngineConfig, world: World | None = None) -> None:
        self.spec = spec
        self.config = config
        self._device, self.device = choose_device(config.device)
        self._ops = choose_ops(self.device)
        self._table = parameter_table(spec)
        self._dtype = mx.bfloat16 if config.precision == "bfloat16" else mx.float32
        with mx.stream(self._device):
            self._model = GPT(spec, self._dtype, config.activation_checkpointing, self._ops)
            self._moments = create_optimizer(self._table, config)
        self._set_weights({name: mx.zeros(param.shape) for name, param in self._table.items()})
        self._rank, self._ranks = (world.rank, world.size) if world else (0, 1)
        self._gradient_sum = GradientSum(world) if world and self._ranks > 1 else None
        self._loss_and_grads = mx.value_and_grad(self._loss)
        self._micro_step = self._ops.micro_step(self._loss_and_grads)
        self._update = mx.compile(clip_and_update(self._table, config, self._ops))
        self._compiled_decode = mx.compile(self._one_token_each, inputs=[self._model.state])
        self._drop_table: mx.array | None = None
        self._pending: list[tuple[mx.array, int, mx.array, mx.array]] = []

    @on_device
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
        weights = self._weights()
        total, grads = mx.array(0.0), None
        parts = zip(inputs, targets, by_micro_batch(soft, len(inputs)), strict=True)
        for micro_batch, (x, y, own) in enumerate(parts):
            keys = self._drop_keys(step, micro_batch * len(x), len(x))
            loss, new = self._micro_step(weights, _to_mlx(x), _to_mlx(y), keys, _soft_to_mlx(own))
            grads = new if grads is None else {name: grads[name] + new[name] for name in grads}
            total = total + loss
            if len(inputs) > 1:
                # One micro-batch's graph at a time, or the activations of all of them would live together.
                mx.async_eval(total, grads)
        if self._gradient_sum and grads is not None:
            grads, total = self._gradient_sum(grads, total)
        moments = self._moments.arrays()
        # Held by the graph alone, the old moments can be written over.
        del self._moments
        weights, moments, norm, applied = self._update(
            weights, moments, grads, total, mx.array(float(tokens)), mx.array(lr)
        )
        self._set_weights(weights)
        self._moments = Moments(*moments)
        # What is left of the old arrays belongs to the graph alone now, which may write over them.
        del weights, grads, new
        mx.async_eval(self._model.parameters(), moments, total, norm, applied)
        self._pending.append((total, tokens, norm, applied))

    def _drop_keys(self, step: int, first: int, count: int) -> mx.array | None:
        """Those of `count` sequences, from the one that is this rank's number `first` in the step's batch."""
        if self.spec.dropout == 0.0:
            return None
        if self._drop_table is None:
            self._drop_table = mx.array(dropout.table(self.spec))
        sequences = np.arange(first, first + count) * self._ranks + self._rank
        return mx.array(dropout.keys(self.spec, self.config.seed, step, sequences))

    @on_device
    def read_stats(self) -> StepStats:
        stats = StepStats()
        for loss, tokens, norm, applied in self._pending:
            stats.loss_sums.append(float(loss))
            stats.tokens.append(tokens)
            stats.grad_norms.append(float(norm))
            stats.applied.append(bool(applied))
        self._pending.clear()
        return stats

    @on_device
    def eval_step(self, inputs: Array, targets: Array) -> tuple[float, int]:
        self._ops.take_all_threads()
        loss = eval_loss_sum(self._model, _to_mlx(inputs), _to_mlx(targets), self.config.loss_chunk)
        return float(loss), int((targets >= 0).sum())

    @on_device
    def loss_and_grads(self, inputs: Array, targets: Array, soft: SoftTargets | None = None) -> tuple[float, State]:
        self._ops.take_all_threads()
        weights = self._weights()
        loss, grads = self._loss_and_grads(weights, _to_mlx(inputs), _to_mlx(targets), None, _soft_to_mlx(soft))
        self._set_weights(weights)
        tokens = int((targets >= 0).sum())
        return float(loss) / tokens, {MODEL + name: _to_numpy(grads[name] / tokens) for name in self._table}

    @on_device
    def logits(self, tokens: Array) -> NDArray[np.float32]:
        self._ops.take_all_threads()
        return _to_numpy(self._model.logits(self._model(_to_mlx(tokens))))

    @on_device
    def new_cache(self, slots: int, capacity: int) -> KVCache:
        return KVCache(self.spec, slots, min(capacity, self.spec.block_size), self._dtype)

    @on_device
    def prefill(self, cache: KVCache, slot: int, tokens: Array) -> NDArray[np.float32]:
        padded, positions = prefill_plan(tokens, cache.capacity)
        view = CacheView(cache.k, cache.v, mx.array([slot]), mx.array(positions), 0, None, None)
        logits = self._cached_logits(padded[None], view, last=len(tokens) - 1)
        cache.lengths[slot] = len(tokens)
        return logits[0]

    @on_device
    def decode(self, cache: KVCache, slots: list[int], tokens: Array) -> NDArray[np.float32]:
        lengths = [cache.lengths[slot] for slot in slots]
        span = attention_span(max(lengths) + 1, cache.capacity)
        positions, mask = decode_plan(lengths, span)
        run = slot_run(slots)
        if self._ops.compiled_decoding and run is not None:
            logits = self._decode_run(cache, run, tokens, positions, mask)
        else:
            view = CacheView(cache.k, cache.v, mx.array(slots), mx.array(positions), span, mx.array(mask), run)
            logits = self._cached_logits(np.asarray(tokens)[:, None], view, last=0)
        for slot in slots:
            cache.lengths[slot] += 1
        return logits

    def _decode_run(
        self, cache: KVCache, run: slice, tokens: Array, positions: Array, mask: Array
    ) -> NDArray[np.float32]:
        """decode of slots that follow each other, without making their graph in Python again."""
        self._ops.take_all_threads()
        # Held by the graph alone, the cache can be written in place.
        k, v, cache.k, cache.v = cache.k, cache.v, [], []
        logits, cache.k, cache.v = self._compiled_decode(
            k, v, run.start, _to_mlx(tokens)[:, None], mx.array(positions), mx.array(mask)
        )
        del k, v
        mx.eval(logits, cache.k, cache.v)
        return _to_numpy(logits)

    def free(self, cache: KVCache, slot: int) -> None:
        cache.lengths[slot] = 0

    @on_device
    def export_state(self, *, optimizer: bool = True) -> State:
        state = {MODEL + name: _to_numpy(weight) for name, weight in self._weights().items()}
        if not optimizer:
            return state
        moments = self._moments
        for name in moments.m:
            state[ADAMW_M + name] = _to_numpy(moments.m[name])
            state[ADAMW_V + name] = _to_numpy(moments.v[name])
        state[ADAMW_COUNT] = np.array(moments.count.item(), dtype=np.int64)
        if moments.momentum:
            state |= {MUON_MOMENTUM + name: _to_numpy(momentum) for name, momentum in moments.momentum.items()}
            state[MUON_COUNT] = np.array(moments.muon_count.item(), dtype=np.int64)
        return state

    @on_device
    def load_state(self, state: State) -> None:
        check_state(self.spec, state, self.config.optimizer)
        self._set_weights({name: mx.array(state[MODEL + name]) for name in self._table})
        if state_optimizer(state) is not None:
            old = self._moments
            self._moments = Moments(
                {name: mx.array(state[ADAMW_M + name]) for name in old.m},
                {name: mx.array(state[ADAMW_V + name]) for name in old.v},
                mx.array(int(state[ADAMW_COUNT]), dtype=mx.int32),
                {name: mx.array(state[MUON_MOMENTUM + name]) for name in old.momentum},
                mx.array(int(state.get(MUON_COUNT, 0)), dtype=mx.int32),
            )
            mx.eval(self._moments.arrays())
        # Without moments of their own the zeros stay unmade, as a model that only generates never needs them.
        mx.eval(self._model.parameters())

    def memory(self) -> tuple[int, int]:
        if self.device == "cpu":
            return process_memory()
        return mx.get_active_memory(), mx.get_peak_memory()

    def memory_limit(self) -> int | None:
        if self.device == "cpu":
            return None
        info = mx.device_info(self._device)
        return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or info["memory_size"])

    @on_device
    def synchronize(self) -> None:
        mx.synchronize(mx.default_stream(self._device))

    def _cached_logits(self, tokens: Array, view: CacheView, last: int) -> NDArray[np.float32]:
        self._ops.take_all_threads()
        hidden = self._model(_to_mlx(tokens), view)
        logits = self._model.logits(hidden[:, last])
        mx.eval(logits, view.k, view.v)
        return _to_numpy(logits)

    def _one_token_each(
        self, k: list[mx.array], v: list[mx.array], first: int, tokens: mx.array, positions: mx.array, mask: mx.array
    ) -> tuple[mx.array, list[mx.array], list[mx.array]]:
        end = first + len(tokens)
        view = CacheView(k, v, mx.arange(first, end), positions, mask.shape[-1], mask, slice(first, end))
        return self._model.logits(self._model(tokens, view)[:, 0]), k, v

    def _loss(
        self,
        weights: dict[str, mx.array],
        inputs: mx.array,
        targets: mx.array,
        keys: mx.array | None,
        soft: Soft | None = None,
        parts: int = 1,
    ) -> mx.array:
        """parts: how many of these are computed at one time; the chunk of the loss is for all of them together."""
        # Differentiating or compiling this leaves placeholders in the model: whoever does so sets the weights after.
        self._set_weights(weights)
        drop = None
        if keys is not None and self._drop_table is not None:
            drop = Drop(self.spec.dropout, self.spec.n_head, self._drop_table, keys)
        return loss_sum(self._model, inputs, targets, max(1, self.config.loss_chunk // parts), drop, soft)

    def _weights(self) -> dict[str, mx.array]:
        flat = dict(tree_flatten(self._model.parameters()))
        return {name: flat[name] for name in self._table}

    def _set_weights(self, weights: dict[str, mx.array]) -> None:
        self._model.update(tree_unflatten(list(weights.items())))


def create(spec: GPTSpec, config: EngineConfig, world: World | None = None) -> MLXBackend:
    return MLXBackend(spec, config, world)


def choose_device(choice: str) -> tuple[mx.Device, str]:
    """auto: Metal or CUDA, else cpu. Raises TwinGPTError if a gpu is asked for and there is none."""
    if choice != "cpu":
        if mx.metal.is_available():
            return mx.Device(mx.gpu), "metal"
        if mx.cuda.is_available():
            return mx.Device(mx.gpu), "cuda"
        if choice == "gpu":
            raise TwinGPTError(tr("--device gpu: mlx sees neither Metal nor CUDA here; use --device auto or cpu"))
    return mx.Device(mx.cpu), "cpu"


def _to_mlx(array: Array) -> mx.array:
    return mx.array(np.ascontiguousarray(array, dtype=np.int32))


def _soft_to_mlx(soft: SoftTargets | None) -> Soft | None:
    if soft is None:
        return None
    return _to_mlx(soft.ids), mx.array(np.ascontiguousarray(soft.shares, dtype=np.float32))


def _to_numpy(array: mx.array) -> NDArray[Any]:
    return np.array(array.astype(mx.float32))
