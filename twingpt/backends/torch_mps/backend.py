"""The Backend protocol on PyTorch."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twingpt.backends.torch_mps.distributed import GradientSum
from twingpt.backends.torch_mps.model import GPT, CacheView, Drop, KVCache, causal_flag_leaks, signed_keys
from twingpt.backends.torch_mps.ops import choose_ops
from twingpt.backends.torch_mps.step import Optimizer, Soft, clip_and_update, loss_sum
from twingpt.core import dropout
from twingpt.core.backend import Array, BackendName, EngineConfig, SoftTargets, State, StepStats, by_micro_batch
from twingpt.core.cache import attention_span, decode_plan, prefill_plan, slot_run
from twingpt.core.errors import OutOfMemoryError, TwinGPTError
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


def memory_reported(method: Method) -> Method:
    """Running out of memory outside a step's gradients, where nothing can be cut smaller, as our error too."""

    @functools.wraps(method)
    def wrapped(self: TorchBackend, *args: Any, **options: Any) -> Any:
        try:
            return method(self, *args, **options)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(first_line(error), retry=False) from None

    return cast(Method, wrapped)


class TorchBackend:
    name: BackendName = "mps"

    def __init__(self, spec: GPTSpec, config: EngineConfig, world: World | None = None) -> None:
        self.spec = spec
        self.config = config
        self._device = choose_device(config.device)
        self.device = self._device.type
        self._table = parameter_table(spec)
        with torch.device("meta"):
            model = GPT(spec, config.activation_checkpointing, choose_ops(self.device))
        self._model = model.to_empty(device=self._device)
        self._model.make_rope(spec)
        self._dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        if causal_flag_leaks(spec, self._device, self._dtype):
            self._model.use_explicit_mask()
            logging.getLogger(__name__).warning(
                "attention with is_causal leaks later tokens on %s in %s: an explicit mask is used instead",
                self.device,
                config.precision,
            )
        self._optimizer = Optimizer(self._model, self._table, config)
        self._parameters = self._optimizer.parameters
        self._rank, self._ranks = (world.rank, world.size) if world else (0, 1)
        self._gradient_sum = GradientSum(self._parameters) if self._ranks > 1 else None
        self._drop_table: Tensor | None = None
        self._pending: list[tuple[Tensor, int, Tensor, Tensor]] = []

    @memory_reported
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
            total = self._sum_gradients(inputs, targets, step, soft)
            problem = None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        if problem is not None:
            # Only now, with the exception gone, does nothing hold the tensors of the attempt any more.
            self._optimizer.zero_grad()
            if self.device != "cpu":
                getattr(torch, self.device).empty_cache()
            raise OutOfMemoryError(problem, retry=True)
        norm, applied = clip_and_update(self._optimizer, total, tokens, self.config, lr)
        self._pending.append((total, tokens, norm, applied))

    def _sum_gradients(self, inputs: Array, targets: Array, step: int, soft: SoftTargets | None) -> Tensor:
        """Accumulate the gradients of all micro-batches; returns the summed loss."""
        total = torch.zeros((), device=self._device)
        parts = zip(inputs, targets, by_micro_batch(soft, len(inputs)), strict=True)
        for micro_batch, (x, y, own) in enumerate(parts):
            if self._gradient_sum and micro_batch == len(inputs) - 1:
                self._gradient_sum.arm()
            with self._autocast():
                loss = loss_sum(
                    self._model,
                    self._to_device(x),
                    self._to_device(y),
                    self.config.loss_chunk,
                    self._drop(step, micro_batch * len(x), len(x)),
                    self._soft(own),
                )
            loss.backward()
            total += loss.detach()
        return self._gradient_sum.finish(total) if self._gradient_sum else total

    def _drop(self, step: int, first: int, count: int) -> Drop | None:
        """What drops out of `count` sequences, from the one that is this rank's number `first` in the step's batch."""
        if self.spec.dropout == 0.0:
            return None
        if self._drop_table is None:
            self._drop_table = torch.from_numpy(dropout.table(self.spec).view(np.int32)).to(self._device)
        sequences = np.arange(first, first + count) * self._ranks + self._rank
        keys = signed_keys(dropout.keys(self.spec, self.config.seed, step, sequences))
        on_device = torch.from_numpy(keys).to(self._device)
        return Drop(self.spec.dropout, self.spec.n_head, self._drop_table, on_device)

    @memory_reported
    def read_stats(self) -> StepStats:
        stats = StepStats()
        if self._pending:
            rows = torch.stack([torch.stack((loss, norm, ok.float())) for loss, _, norm, ok in self._pending])
            for (loss, norm, applied), (_, tokens, _, _) in zip(rows.tolist(), self._pending, strict=True):
                stats.loss_sums.append(loss)
                stats.tokens.append(tokens)
                stats.grad_norms.append(norm)
                stats.applied.append(bool(applied))
        self._pending.clear()
        return stats

    @memory_reported
    @torch.no_grad()
    def eval_step(self, inputs: Array, targets: Array) -> tuple[float, int]:
        with self._autocast():
            loss = loss_sum(self._model, self._to_device(inputs), self._to_device(targets), self.config.loss_chunk)
        return float(loss), int((targets >= 0).sum())

    @memory_reported
    def loss_and_grads(self, inputs: Array, targets: Array, soft: SoftTargets | None = None) -> tuple[float, State]:
        with self._autocast():
            loss = loss_sum(
                self._model,
                self._to_device(inputs),
                self._to_device(targets),
                self.config.loss_chunk,
                soft=self._soft(soft),
            )
        mean = loss / int((targets >= 0).sum())
        grads = torch.autograd.grad(mean, list(self._parameters.values()))
        return mean.item(), {
            MODEL + name: grad.float().cpu().numpy() for name, grad in zip(self._parameters, grads, strict=True)
        }

    @memory_reported
    @torch.no_grad()
    def logits(self, tokens: Array) -> NDArray[np.float32]:
        with self._autocast():
            logits = self._model.logits(self._model(self._to_device(tokens)))
        return _to_numpy(logits)

    @memory_reported
    def new_cache(self, slots: int, capacity: int) -> KVCache:
        return KVCache(self.spec, slots, min(capacity, self.spec.block_size), self._device, self._dtype)

    @memory_reported
    def prefill(self, cache: KVCache, slot: int, tokens: Array) -> NDArray[np.float32]:
        padded, positions = prefill_plan(tokens, cache.capacity)
        view = CacheView(cache, self._to_device(np.array([slot])), self._to_device(positions), 0, None, None)
        logits = self._cached_logits(padded[None], view, last=len(tokens) - 1)
        cache.lengths[slot] = len(tokens)
        return logits[0]

    @memory_reported
    def decode(self, cache: KVCache, slots: list[int], tokens: Array) -> NDArray[np.float32]:
        lengths = [cache.lengths[slot] for slot in slots]
        span = attention_span(max(lengths) + 1, cache.capacity)
        positions, mask = decode_plan(lengths, span)
        view = CacheView(
            cache,
            self._to_device(np.array(slots)),
            self._to_device(positions),
            span,
            torch.from_numpy(mask).to(self._device),
            slot_run(slots),
        )
        logits = self._cached_logits(np.asarray(tokens)[:, None], view, last=0)
        for slot in slots:
            cache.lengths[slot] += 1
        return logits

    def free(self, cache: KVCache, slot: int) -> None:
        cache.lengths[slot] = 0

    @memory_reported
    @torch.no_grad()
    def export_state(self, *, optimizer: bool = True) -> State:
        state = {MODEL + name: _to_numpy(parameter) for name, parameter in self._parameters.items()}
        if not optimizer:
            return state
        for name, parameter in self._optimizer.adamw_parameters.items():
            moments = self._optimizer.adamw.state[parameter]
            state[ADAMW_M + name] = _to_numpy(moments["exp_avg"])
            state[ADAMW_V + name] = _to_numpy(moments["exp_avg_sq"])
            state[ADAMW_COUNT] = np.array(int(moments["step"]), dtype=np.int64)
        if (muon := self._optimizer.muon) is not None:
            state |= {MUON_MOMENTUM + name: _to_numpy(momentum) for name, momentum in muon.momentum.items()}
            state[MUON_COUNT] = np.array(int(muon.count), dtype=np.int64)
        return state

    @memory_reported
    @torch.no_grad()
    def load_state(self, state: State) -> None:
        check_state(self.spec, state, self.config.optimizer)
        for name, parameter in self._parameters.items():
            parameter.copy_(torch.from_numpy(state[MODEL + name]))
        if state_optimizer(state) is None:
            return
        for name, parameter in self._optimizer.adamw_parameters.items():
            moments = self._optimizer.adamw.state[parameter]
            moments["exp_avg"].copy_(torch.from_numpy(state[ADAMW_M + name]))
            moments["exp_avg_sq"].copy_(torch.from_numpy(state[ADAMW_V + name]))
            moments["step"].fill_(int(state[ADAMW_COUNT]))
        if (muon := self._optimizer.muon) is not None:
            for name, momentum in muon.momentum.items():
                momentum.copy_(torch.from_numpy(state[MUON_MOMENTUM + name]))
            muon.count.fill_(int(state[MUON_COUNT]))

    def memory(self) -> tuple[int, int]:
        if self.device == "cuda":
            return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        if self.device == "mps":
            # Metal keeps no peak counter; the driver's figure includes what the allocator holds on to.
            return torch.mps.current_allocated_memory(), torch.mps.driver_allocated_memory()
        return process_memory()

    def memory_limit(self) -> int | None:
        if self.device == "cuda":
            return torch.cuda.get_device_properties(self._device).total_memory
        return torch.mps.recommended_max_memory() if self.device == "mps" else None

    def synchronize(self) -> None:
        if self.device != "cpu":
            getattr(torch, self.device).synchronize()

    @torch.no_grad()
    def _cached_logits(self, tokens: Array, view: CacheView, last: int) -> NDArray[np.float32]:
        with self._autocast():
            hidden = self._model(self._to_device(tokens), view)
            return _to_numpy(self._model.logits(hidden[:, last]))

    def _to_device(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._device)

    def _soft(self, soft: SoftTargets | None) -> Soft | None:
        if soft is None:
            return None
        shares = np.ascontiguousarray(soft.shares, dtype=np.float32)
        return self._to_device(soft.ids), torch.from_numpy(shares).to(self._device)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        if self.config.precision == "bfloat16":
            with torch.autocast(self.device, dtype=torch.bfloat16):
                yield
        else:
            yield


def create(spec: GPTSpec, config: EngineConfig, world: World | None = None) -> TorchBackend:
    return TorchBackend(spec, config, world)


def choose_device(choice: str) -> torch.device:
    """auto: mps, else cuda, else cpu. Raises TwinGPTError if a gpu is asked for and there is none."""
    if choice != "cpu":
        if torch.backends.mps.is_available():
            return torch.device("mps")
        if torch.cuda.is_available():
            return torch.device("cuda")
        if choice == "gpu":
            raise TwinGPTError(tr("--device gpu: torch sees neither Metal nor CUDA here; use --device auto or cpu"))
    return torch.device("cpu")


def _to_numpy(tensor: Tensor) -> NDArray[Any]:
    """A float32 copy that later updates in place do not reach."""
    return np.array(tensor.detach().float().cpu().numpy())
