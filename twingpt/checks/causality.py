"""The future-token probe: whatever comes after position t, what the model says up to t must not move.

A leaking attention trains to a wonderful loss and writes nonsense. It has happened, silently, in one mode, data type
and length and not in others (pytorch#195910), so each is looked at, on the device that will run it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend, EngineConfig, State, create_backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.params import TOKEN_EMBEDDING, parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL

Mode = Literal["eval", "gradient", "train"]
Tokens = NDArray[np.int32]

MODES: dict[Mode, str] = {
    "eval": "without gradients, as in evaluation and generation",
    "gradient": "with gradients",
    "train": "a training step, dropout on",
}

# Measured on a CPU: 0, in every mode and both engines, for a hidden token is multiplied by an exact zero. A device that
# does not repeat itself to the bit is allowed ten times what the same tokens differ by in two runs, and never more than
# rounding can make of it: some last places of float32, one of bfloat16.
MARGIN = 10.0
MOST = {"float32": 1e-6, "bfloat16": 2.0**-8}

AVERAGED = 4
"""Positions behind one loss: more would thin out the leak of a single row, fewer could miss that of a group."""

VOCABULARY = 64
FUTURE = VOCABULARY // 2
"""Tokens from this one on appear only after position t."""


@dataclass(frozen=True)
class Movement:
    """How far a change after position t moved what was said up to t, relative to the largest value there."""

    mode: Mode
    length: int
    t: int
    moved: float
    allowed: float

    @property
    def leaks(self) -> bool:
        return not self.moved <= self.allowed

    def __str__(self) -> str:
        return tr(
            "tokens after position {t} of {length} move what comes before by {moved:.2g}",
            t=self.t,
            length=self.length,
            moved=self.moved,
        )


def probe_spec(spec: GPTSpec) -> GPTSpec:
    """A small model whose attention runs the kernels of `spec`: its head size, context and dropout, in one layer."""
    heads = min(spec.n_head, 2)
    return dataclasses.replace(
        spec,
        vocab_size=VOCABULARY,
        n_layer=1,
        n_head=heads,
        n_kv_head=0 if spec.kv_heads == spec.n_head else 1,
        n_embd=heads * spec.head_dim,
        n_hidden=heads * spec.head_dim,
        # The gradient of a future token's embedding must be zero, which the head's share in it would hide.
        tie_embeddings=False,
    )


def probe_weights(spec: GPTSpec, seed: int = 0) -> State:
    """Weights with which attention is far from uniform, so that one key too many shows."""
    generator = np.random.Generator(np.random.PCG64(seed))
    state: State = {}
    for name, param in parameter_table(spec).items():
        values = generator.standard_normal(param.shape, dtype=np.float32)
        if name.endswith("_emb.weight"):
            state[MODEL + name] = values
        elif len(param.shape) == 2:
            state[MODEL + name] = values * np.float32(1.25 / np.sqrt(param.shape[1]))
        else:
            state[MODEL + name] = values * np.float32(0.1) + np.float32(param.init == "ones")
    return state


def positions(length: int, mode: Mode) -> list[int]:
    """Where to cut a sequence: its ends, its middle, and, where it is cheap, every place in a group of four."""
    cuts = (0, length // 2, length - 2, *((1, 2, 3) if mode == "eval" else ()))
    return sorted({t for t in cuts if 0 <= t < length - 1})


def movements(backend: Backend, mode: Mode, lengths: Iterable[int], precision: str) -> Iterator[Movement]:
    """Probe a backend that holds probe_spec and probe_weights. A training step at learning rate 0 moves no weight."""
    generator = np.random.Generator(np.random.PCG64(1))
    for length in lengths:
        targets = generator.integers(0, VOCABULARY, length, dtype=np.int32)
        for t in positions(length, mode):
            past = generator.integers(0, FUTURE, t + 1, dtype=np.int32)
            one, other = generator.integers(FUTURE, VOCABULARY, (2, length - t - 1), dtype=np.int32)
            other = np.where(one == other, FUTURE + (other + 1) % FUTURE, other).astype(np.int32)
            tokens, changed = np.concatenate((past, one)), np.concatenate((past, other))
            said, unseen = _say(backend, mode, tokens, targets, t)
            scale = np.abs(said).max()
            moved = np.abs(_say(backend, mode, changed, targets, t)[0] - said).max() / scale
            allowed = 0.0
            if moved != 0.0:
                noise = np.abs(_say(backend, mode, tokens, targets, t)[0] - said).max() / scale
                allowed = min(MARGIN * float(noise), MOST[precision])
            # NumPy's maximum passes a NaN on, Python's may drop it.
            yield Movement(mode, length, t, float(np.maximum(moved, unseen)), allowed)


def _say(
    backend: Backend, mode: Mode, tokens: Tokens, targets: Tokens, t: int
) -> tuple[NDArray[np.floating[Any]], float]:
    """(what the model says up to position t, the share that the future has in the gradient of it).

    That is its logits or, where there is only a mean to be had, the loss of the last few positions up to t.
    """
    index = np.arange(len(tokens))
    counted = np.where((index <= t) & (index > t - AVERAGED), targets, -1).astype(np.int32)
    if mode == "eval":
        return backend.logits(tokens[None])[0, : t + 1], 0.0
    if mode == "gradient":
        loss, gradients = backend.loss_and_grads(tokens[None], counted[None])
        embedding = np.abs(gradients[MODEL + TOKEN_EMBEDDING])
        return np.array([loss]), float(embedding[FUTURE:].max() / embedding.max())
    backend.train_step(tokens[None, None], counted[None, None], 0.0, 0)
    return np.array([backend.read_stats().loss]), 0.0


def worst(found: Iterable[Movement]) -> Movement:
    """The one furthest above what it is allowed."""
    return max(found, key=lambda movement: (movement.leaks, np.nan_to_num(movement.moved, nan=np.inf)))


def startup_check(name: str, spec: GPTSpec, config: EngineConfig) -> None:
    """Before a run: the probe in the run's engine, device, precision, context and head size, in every mode.

    It runs on a small model of its own, so that the run's weights, moments and random numbers are untouched.
    Raises TwinGPTError if the past sees the future.
    """
    if spec.block_size < 2:
        return
    probe = create_backend(name, probe_spec(spec), config)
    probe.load_state(probe_weights(probe.spec))
    for mode, what in MODES.items():
        movement = worst(movements(probe, mode, [spec.block_size], config.precision))
        if movement.leaks:
            raise TwinGPTError(
                tr(
                    "{name} on {device} computes attention wrongly in {precision} ({what}): {movement}; "
                    "a model trained so is worthless: try the other --precision, the other --backend or --device cpu, "
                    "and run `twingpt doctor`",
                    name=name,
                    device=probe.device,
                    precision=config.precision,
                    what=what,
                    movement=movement,
                )
            )
