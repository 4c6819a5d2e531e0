"""What one engine does on this machine: training, generation, memory. Runs in a process of its own (see child)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from twingpt.core.backend import Backend, BackendName, DeviceChoice, create_backend
from twingpt.core.engines import find_engine
from twingpt.core.init import initial_weights
from twingpt.core.language import tr
from twingpt.core.memory import machine_memory, process_memory
from twingpt.core.sampling import Sampling, sample
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.measure.products import matmul_speed, token_seconds
from twingpt.training.config import TrainConfig
from twingpt.training.estimate import USABLE, plan_memory

BLOCKS = 5
WARM_UP = 2
BATCHES = 4
ROUNDS = 3
PROMPT = 56
NEW_TOKENS = 128
SLOTS = (1, 8)

Stage = Callable[[str], None]


def measure(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, device: DeviceChoice, seconds: float, stage: Stage
) -> dict[str, Any]:
    """All figures of one engine in the config's precision; `seconds`: about how long to time training."""
    start = time.perf_counter()
    stage("loading")
    find_engine(backend).part("backend")
    imported = process_memory()[0]
    engine = create_backend(backend, spec, config.engine(device))
    engine.load_state({MODEL + name: weight for name, weight in initial_weights(spec, config.seed).items()})
    engine.synchronize()
    ready = time.perf_counter() - start
    plan = plan_memory(spec, config, backend, engine.device, device_memory(engine), strict=False)
    config = dataclasses.replace(config, micro_batch=plan.micro_batch)
    training = time_training(engine, config, seconds, stage)
    peak = engine.memory()[1]
    stage("generation")
    generation = [time_generation(engine, slots, config.seed) for slots in SLOTS]
    stage("matrix products")
    arrays = find_engine(backend).arrays(device, config.precision)
    return {
        "backend": backend,
        "device": engine.device,
        "precision": config.precision,
        "batch_size": config.batch_size,
        "micro_batch": config.micro_batch,
        "start_seconds": ready,
        "training": training,
        "peak_bytes": peak - imported if engine.device == "cpu" else peak,
        "first_token_seconds": generation[0].pop("first_token_seconds"),
        "generation": generation,
        "matmul_flops": matmul_speed(arrays, spec, config.micro_batch * spec.block_size, config.loss_chunk),
        "token_matmul_seconds": [token_seconds(arrays, spec, slots) for slots in SLOTS],
    }


def describe(spec: GPTSpec, config: TrainConfig, backend: BackendName, device: DeviceChoice) -> dict[str, Any]:
    """Which device an engine takes and how many bytes a run there may plan with, from a model of hardly any size."""
    small = dataclasses.replace(spec, vocab_size=16, block_size=8, n_layer=1)
    engine = create_backend(backend, small, config.engine(device))
    return {"device": engine.device, "limit": device_memory(engine)}


def device_memory(engine: Backend) -> int:
    return engine.memory_limit() or int(USABLE * machine_memory())


def time_training(engine: Backend, config: TrainConfig, seconds: float, stage: Stage) -> dict[str, Any]:
    """Whole updates of random tokens, in blocks that end when the device has nothing left to do."""
    spec = engine.spec
    shape = (BATCHES, config.accumulation, config.batch_size // config.accumulation, spec.block_size + 1)
    tokens = np.random.default_rng(config.seed).integers(0, spec.vocab_size, shape, dtype=np.int32)
    done = 0

    def block(updates: int) -> float:
        nonlocal done
        start = time.perf_counter()
        for _ in range(updates):
            batch = tokens[done % BATCHES]
            done += 1
            engine.train_step(batch[..., :-1], batch[..., 1:], config.learning_rate, done)
        engine.read_stats()
        return time.perf_counter() - start

    stage("training: warm-up")
    # The first update compiles kernels and fills caches.
    once = [block(1) for _ in range(WARM_UP)][-1]
    updates = max(1, round(seconds / BLOCKS / once))
    times = []
    for number in range(BLOCKS):
        stage(tr("training: block {number} of {blocks}", number=number + 1, blocks=BLOCKS))
        times.append(block(updates))
    work = updates * config.batch_size * spec.block_size
    return {
        **spread([work / taken for taken in times]),
        "step_seconds": statistics.median(times) / updates,
        "updates_a_block": updates,
    }


def time_generation(engine: Backend, slots: int, seed: int) -> dict[str, Any]:
    """Sampled text from random prompts in n slots at once: tokens a second after the first, over all slots.

    first_token_seconds: from the prompts to one token in each slot, with the cache made anew.
    """
    spec = engine.spec
    length = min(PROMPT, max(1, spec.block_size // 2))
    new = min(NEW_TOKENS, spec.block_size - length)
    prompts = np.random.default_rng(seed).integers(0, spec.vocab_size, (slots, length), dtype=np.int32)
    first: list[float] = []
    speeds: list[float] = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        cache = engine.new_cache(slots, spec.block_size)
        chosen = [_choose(engine.prefill(cache, slot, prompts[slot]), length, seed) for slot in range(slots)]
        between = time.perf_counter()
        for position in range(length + 1, length + 1 + new):
            logits = engine.decode(cache, list(range(slots)), np.array(chosen, dtype=np.int32))
            chosen = [_choose(row, position, seed) for row in logits]
        speeds.append(slots * new / (time.perf_counter() - between))
        first.append(between - start)
    return {"slots": slots, **spread(speeds[1:]), "first_token_seconds": statistics.median(first[1:])}


def _choose(logits: Any, position: int, seed: int) -> int:
    return sample(logits, Sampling(seed=seed), position)


def spread(speeds: list[float]) -> dict[str, float]:
    return {"tokens_per_second": statistics.median(speeds), "slowest": min(speeds), "fastest": max(speeds)}
