"""What the ladder's rungs are made of, and those on updates: engine against engine, and each against plain NumPy."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, State
from twingpt.core.engine_settings import OptimizerName
from twingpt.core.muon import COEFFICIENTS, EPS, STEPS, update_scale
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import ADAMW_COUNT, ADAMW_M, ADAMW_V, MODEL, MUON_COUNT, MUON_MOMENTUM, initial_state

# Float32, no dropout. Behind each: the largest error over the ladder's built-in models, measured on a CPU (x86-64,
# torch 2.13, mlx 0.32.4).
TOLERANCES = {
    "logits": 1e-5,  # 1.1e-6 of the largest, 9.3e-7 from the pass by hand; 2.1e-6 where logits reach 33
    "loss": 1e-5,  # 2.7e-6 nats a token, also from the pass by hand
    "gradients": 1e-5,  # 2.6e-6 of the tensor's largest, 2.5e-6 from the pass by hand
    "soft loss": 1e-5,  # 1.2e-6 nats a token, 1.4e-6 from the pass by hand
    "soft gradients": 1e-5,  # 3.6e-6 of the tensor's largest, 3.0e-6 from the pass by hand
    "update": 1e-3,  # 1.8e-4 learning rates: one unit in the last place of a norm's weight
    "muon": 2.5e-4,  # 2.6e-5 learning rates, in the matrices
    # Engine against engine and engine against NumPy, with AdamW and with Muon.
    "one update, gradient norm": 2e-6,  # 2.2e-7 of the larger
    "one update, weights": 1e-3,  # 1.2e-4 learning rates
    "one update, matrices": 4e-4,  # 4.4e-5 learning rates
    "one update, m": 1e-5,  # 1.9e-6 of the tensor's largest
    "one update, v": 2e-5,  # 2.9e-6 of the tensor's largest
    "one update, momentum": 1e-5,  # 1.4e-6 of the tensor's largest
    "five updates, gradient norm": 2e-6,  # 2.9e-7 of the larger
    "five updates, weights": 6e-4,  # 6.8e-5 of the largest learning rate
    "five updates, matrices": 5e-4,  # 5.0e-5 of the largest learning rate
    "five updates, m": 2e-5,  # 3.0e-6 of the tensor's largest
    "five updates, v": 2e-5,  # 2.9e-6 of the tensor's largest
    "five updates, momentum": 2e-5,  # 2.2e-6 of the tensor's largest
}
OPTIMIZERS: dict[OptimizerName, str] = {"adamw": "AdamW", "muon": "Muon"}
MOMENTS = {"m": ADAMW_M, "v": ADAMW_V, "momentum": MUON_MOMENTUM}
COUNTS = {"AdamW's count": ADAMW_COUNT, "Muon's count": MUON_COUNT}
UPDATE_RATES = (1e-3, 3e-3, 2e-3, 1e-3, 4e-3)

EngineMaker = Callable[[str, EngineConfig], Backend]
"""Gives the engine of a name, with the model's weights in it and moments of zero."""


@dataclass(frozen=True)
class Rung:
    """One comparison. error and tolerance share a unit."""

    model: str
    number: int
    name: str
    unit: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def largest(array: NDArray[Any]) -> float:
    value = np.abs(array).max(initial=0.0)
    return float("inf") if np.isnan(value) else float(value)


def of_the_largest(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The largest difference beside the largest entry of both; 0 where nothing differs, as between two zeros."""
    difference, size = largest(first - second), max(largest(first), largest(second))
    return float("inf") if math.isinf(size) else difference / size if size else 0.0


def key_bias(spec: GPTSpec, name: str) -> slice | None:
    """The part of a qkv bias that belongs to the keys: softmax cancels it, so its true gradient is zero.

    What an engine computes for it is rounding noise, which Adam scales up to whole steps. Norms and rotations come
    between the bias and the softmax, and leave it a gradient.
    """
    if not name.endswith("attn.qkv.bias") or spec.qk_norm or spec.position == "rope":
        return None
    queries = spec.n_head * spec.head_dim
    return slice(queries, queries + spec.kv_heads * spec.head_dim)


def without_key_bias(spec: GPTSpec, name: str, array: NDArray[Any]) -> NDArray[Any]:
    part = key_bias(spec, name)
    return array if part is None else np.delete(array, part)


def tensor_error(spec: GPTSpec, first: State, second: State, prefix: str = "") -> float:
    """The worst of the tensors whose keys begin so, each beside its own largest entry."""
    keys = [key for key in first if key.startswith(prefix)]
    return max(of_the_largest(*(without_key_bias(spec, key, state[key]) for state in (first, second))) for key in keys)


@dataclass(frozen=True)
class Batch:
    """One update's input: int32 [A, B, T], the number of tokens to divide by, and the learning rate."""

    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    tokens: int
    lr: float


@dataclass(frozen=True)
class Point:
    """Where an optimizer stands after an update: all it keeps, and the gradient's norm before clipping."""

    state: State
    norm: float


def update_batches(spec: GPTSpec) -> list[Batch]:
    """Different windows for each update, in two micro-batches, one of which has targets that are not counted.

    `tokens` is another number than the counted one, as where other ranks have more of the batch. In every second update
    it is so large that the gradient is not clipped: where it is, no factor of the gradient can be told from another.
    """
    generator = np.random.Generator(np.random.PCG64(2))
    batches = []
    for number, lr in enumerate(UPDATE_RATES):
        windows = generator.integers(0, spec.vocab_size, (2, 2, min(spec.block_size, 64) + 1), dtype=np.int32)
        inputs, targets = windows[..., :-1], windows[..., 1:].copy()
        targets[0, 0, -(targets.shape[2] // 4) :] = -1
        counted = int((targets >= 0).sum())
        batches.append(Batch(inputs, targets, counted * 5 // 4 if number % 2 == 0 else counted * 4, lr))
    return batches


def telling_config(gradients: State, optimizer: OptimizerName, device: DeviceChoice) -> EngineConfig:
    """Settings under which every part of the rule moves the result by more than rounding does.

    grad_clip is below this model's gradient norm, and eps as large as the usual entry of a gradient so clipped: it
    shows, and it keeps rounding noise from being scaled up to whole steps.
    """
    norm = math.sqrt(sum(float(np.square(gradient, dtype=np.float64).sum()) for gradient in gradients.values()))
    entries = sum(gradient.size for gradient in gradients.values())
    return EngineConfig(
        device=device,
        optimizer=optimizer,
        muon_lr_scale=2.0,
        muon_momentum=0.8,
        beta1=0.9,
        beta2=0.95,
        eps=norm / 2 / math.sqrt(entries) or 1e-8,
        weight_decay=0.5,
        grad_clip=norm / 2,
    )


def update_rungs(
    label: str, spec: GPTSpec, gradients: State, device: DeviceChoice, engines: tuple[str, str], make: EngineMaker
) -> Iterator[Rung]:
    """Rungs 5 and 6 with each optimizer: all that it keeps, after the first update and after the last of five.

    Two engines may share one mistake, so each is held against the rule in NumPy as well.
    """
    batches = update_batches(spec)
    for optimizer, title in OPTIMIZERS.items():
        config = telling_config(gradients, optimizer, device)
        courses = {name: _course(spec, make(name, config), config, batches) for name in engines}
        for number, updates, position in ((5, "one update", 0), (6, "five updates", -1)):
            lr = batches[0].lr if position == 0 else max(UPDATE_RATES)
            own = [engine[position] for engine, _ in courses.values()]
            yield from _compare(label, spec, number, (updates, title, ""), lr, own[0], own[1])
            for name, (engine, formula) in courses.items():
                names = (updates, title, f", {name} and NumPy")
                yield from _compare(label, spec, number, names, lr, engine[position], formula[position])


def _course(
    spec: GPTSpec, engine: Backend, config: EngineConfig, batches: list[Batch]
) -> tuple[list[Point], list[Point]]:
    """An engine's way through the batches, and NumPy's by the gradients that this engine has on its way."""
    weights = {key: array for key, array in engine.export_state().items() if key.startswith(MODEL)}
    state = {key: array.astype(np.float64) for key, array in initial_state(spec, 0, config.optimizer).items()} | weights
    own, formula = [], []
    for step, batch in enumerate(batches):
        state, norm = numpy_update(spec, config, state, _mean_gradients(engine, batch), batch.lr)
        formula.append(Point(state, norm))
        engine.train_step(batch.inputs, batch.targets, batch.lr, step, batch.tokens)
        own.append(Point(engine.export_state(), engine.read_stats().grad_norms[0]))
    return own, formula


def _mean_gradients(engine: Backend, batch: Batch) -> State:
    """The gradients of the summed loss of all micro-batches over `tokens`."""
    total: State = {}
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        _, gradients = engine.loss_and_grads(inputs, targets)
        share = int((targets >= 0).sum()) / batch.tokens
        total = {key: total.get(key, 0.0) + share * array.astype(np.float64) for key, array in gradients.items()}
    return total


def numpy_update(spec: GPTSpec, config: EngineConfig, state: State, gradients: State, lr: float) -> tuple[State, float]:
    """(the state after one update, the gradient's norm): clipping, AdamW and Muon as their papers write them."""
    norm = math.sqrt(sum(float(np.square(gradient).sum()) for gradient in gradients.values()))
    clip = min(1.0, config.grad_clip / (norm + 1e-6)) if config.grad_clip > 0.0 else 1.0
    new = {key: state[key] + 1 for key in COUNTS.values() if key in state}
    count = new[ADAMW_COUNT]
    for name, param in parameter_table(spec).items():
        gradient, rate = gradients[MODEL + name] * clip, lr
        if MUON_MOMENTUM + name in state:
            rate = lr * config.muon_lr_scale
            momentum = new[MUON_MOMENTUM + name] = config.muon_momentum * state[MUON_MOMENTUM + name] + gradient
            matrices = np.split(gradient + config.muon_momentum * momentum, np.cumsum(param.parts)[:-1])
            direction = np.concatenate([_orthogonal(x) * update_scale(*x.shape) for x in matrices])
        else:
            m = new[ADAMW_M + name] = config.beta1 * state[ADAMW_M + name] + (1 - config.beta1) * gradient
            v = new[ADAMW_V + name] = config.beta2 * state[ADAMW_V + name] + (1 - config.beta2) * gradient**2
            direction = m / (1 - config.beta1**count) / (np.sqrt(v / (1 - config.beta2**count)) + config.eps)
        decay = config.weight_decay if param.decay else 0.0
        new[MODEL + name] = state[MODEL + name] * (1 - rate * decay) - rate * direction
    return new, norm


def _orthogonal(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Newton and Schulz's iteration on one matrix; of a tall one, on its transpose, whose products are smaller."""
    if x.shape[0] > x.shape[1]:
        return _orthogonal(x.T).T
    a, b, c = COEFFICIENTS
    x = x / (np.linalg.norm(x) + EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _compare(
    label: str, spec: GPTSpec, number: int, names: tuple[str, str, str], lr: float, first: Point, second: Point
) -> Iterator[Rung]:
    """One rung for each kind of thing that an update changes. names: of the updates, the optimizer, and the pair."""
    updates, optimizer, pair = names

    def rung(kind: str, unit: str, error: float, tolerance: float | None = None) -> Rung:
        bound = TOLERANCES[f"{updates}, {kind}"] if tolerance is None else tolerance
        return Rung(label, number, f"{updates}, {optimizer}, {kind}{pair}", unit, error, bound)

    yield rung("gradient norm", "of the largest", of_the_largest(np.array(first.norm), np.array(second.norm)))
    moved = {"weights": 0.0, "matrices": 0.0}
    for name in parameter_table(spec):
        kind = "matrices" if MUON_MOMENTUM + name in first.state else "weights"
        difference = without_key_bias(spec, name, first.state[MODEL + name] - second.state[MODEL + name])
        moved[kind] = max(moved[kind], largest(difference) / lr)
    for kind, error in moved.items():
        if kind == "weights" or MUON_COUNT in first.state:
            yield rung(kind, "learning rates", error)
    for kind, prefix in MOMENTS.items():
        if any(key.startswith(prefix) for key in first.state):
            yield rung(kind, "of the largest", tensor_error(spec, first.state, second.state, prefix))
    for kind, key in COUNTS.items():
        if key in first.state:
            yield rung(kind, "updates", abs(float(first.state[key]) - float(second.state[key])), 0.0)
