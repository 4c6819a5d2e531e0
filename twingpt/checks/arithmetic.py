"""The checks: each runs on the real device, in the real data type, and compares with something that is known right.

TOLERANCES stand beside the errors they were set from; none is more than ten times the largest one measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.checks.causality import MODES, VOCABULARY, Mode, movements, probe_spec, probe_weights, worst
from twingpt.checks.findings import Check, judged
from twingpt.checks.parity import key_bias, perturbed
from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, Precision, State, create_backend
from twingpt.core.engines import engines
from twingpt.core.measured import Matrix, Operations
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

# Beside each line, the largest error that it was set from, float32 and bfloat16: both engines, eight seeds, on a CPU
# (x86-64, torch 2.13, mlx 0.32.4 with OpenBLAS and with reference BLAS). A step on a GPU against the CPU has it from
# the nearest thing that a CPU can show: PyTorch's step against MLX's.
TOLERANCES: dict[str, dict[Precision, float]] = {
    "cache": {"float32": 9e-6, "bfloat16": 6e-2},  # 9.0e-7, 6.0e-3
    "step loss": {"float32": 3e-6, "bfloat16": 2e-4},  # 3.8e-7, 2.2e-5
    "step gradients": {"float32": 1.6e-5, "bfloat16": 1.2e-1},  # 1.6e-6, 1.2e-2
    "step update": {"float32": 1.9e-2, "bfloat16": 1e-3},  # 1.9e-3, 1.2e-4
    "matmul": {"float32": 6e-5, "bfloat16": 3e-2},  # 6.6e-6 (4.7e-7 with OpenBLAS), 3.7e-3
    "chunked loss": {"float32": 5e-6},  # 5.6e-7
    "chunked gradients": {"float32": 2e-5},  # 2.6e-6
}

SEED_STYLE = GPTSpec(vocab_size=VOCABULARY)
STEP_SPEC = GPTSpec(vocab_size=512, block_size=64, n_layer=2, n_head=2, n_embd=128, dropout=0.0)
LENGTHS: dict[Mode, tuple[int, ...]] = {
    "eval": (2, 5, 37, 64, 100, 256),
    "gradient": (37, 100, 256),
    "train": (37, 256),
}
PROMPTS = (1, 5, 63, 64, 65, 100)
DECODED = 3
LARGE_K = (32_767, 32_768, 40_000)
LEARNING_RATE = 1e-3

ELSEWHERE = "use the other engine (--backend) or --device cpu until a newer release passes"


def first_try() -> str:
    """What the engines say is to be tried when products are wrong."""
    return "".join(engine.advice for engine in engines())


@dataclass(frozen=True)
class Subject:
    """The engine under examination, on the device that was asked for."""

    engine: Operations
    choice: DeviceChoice

    def backend(self, spec: GPTSpec, weights: State, **config: Any) -> Backend:
        made = create_backend(self.engine.name, spec, EngineConfig(**{"device": self.choice, **config}))
        made.load_state(weights)
        return made

    def judged(self, name: str, measured: float, tolerance: float, unit: str, detail: str, advice: str) -> Check:
        return judged(
            measured,
            tolerance,
            engine=self.engine.name,
            device=self.engine.device,
            name=name,
            unit=unit,
            detail=detail,
            advice=advice,
        )

    def skipped(self, name: str, why: str) -> Check:
        return Check(engine=self.engine.name, device=self.engine.device, name=name, status="skipped", detail=why)


def future_tokens(subject: Subject) -> Iterator[Check]:
    spec = probe_spec(SEED_STYLE)
    for precision in PRECISIONS:
        backend = subject.backend(spec, probe_weights(spec), precision=precision)
        for mode, what in MODES.items():
            found = worst(movements(backend, mode, LENGTHS[mode], precision))
            yield subject.judged(
                f"future tokens, {precision}, {mode}",
                found.moved,
                found.allowed,
                "of the largest",
                f"{what}: {found}",
                f"the past sees the future, and what is trained or written so is worthless: {ELSEWHERE}",
            )


def cached_generation(subject: Subject) -> Iterator[Check]:
    """Prefill and decode against one pass over the whole text: a prompt that sees its padding shows here."""
    spec = probe_spec(SEED_STYLE)
    tokens = np.random.Generator(np.random.PCG64(2)).integers(0, VOCABULARY, spec.block_size, dtype=np.int32)
    for precision in PRECISIONS:
        backend = subject.backend(spec, probe_weights(spec), precision=precision)
        worst_error, where = -1.0, ""
        for prompt in PROMPTS:
            whole = backend.logits(tokens[None, : prompt + DECODED])[0]
            cache = backend.new_cache(2, spec.block_size)
            rows = [backend.prefill(cache, 1, tokens[:prompt])]
            rows += [backend.decode(cache, [1], tokens[i : i + 1])[0] for i in range(prompt, prompt + DECODED)]
            for i, row in enumerate(rows):
                error = _relative(row, whole[prompt - 1 + i])
                if not error <= worst_error:
                    worst_error, where = error, f"a prompt of {prompt}" + (f", {i} written" if i else "")
        yield subject.judged(
            f"cached generation, {precision}",
            worst_error,
            TOLERANCES["cache"][precision],
            "of the largest logit",
            f"{where}, against one pass over the whole text",
            f"generated text is not what the model says: {ELSEWHERE}",
        )


def step_against_cpu(subject: Subject) -> Iterator[Check]:
    names = {part: f"one step against the CPU, {part}" for part in ("loss", "gradients", "update")}
    if subject.engine.device == "cpu":
        for name in names.values():
            yield subject.skipped(name, "the engine runs on the CPU itself; `twingpt parity` holds it to the other")
        return
    weights = perturbed(STEP_SPEC)
    for precision in PRECISIONS:
        here = subject.backend(STEP_SPEC, weights, precision=precision)
        reference = subject.backend(STEP_SPEC, weights, precision=precision, device="cpu")
        for part, error in step_errors(here, reference, precision).items():
            yield subject.judged(
                f"{names[part]}, {precision}",
                error,
                TOLERANCES[f"step {part}"][precision],
                {"update": "learning rates"}.get(part, "of the largest"),
                "the same weights and tokens on both devices",
                f"training computes something else than the model: {first_try()}{ELSEWHERE}",
            )


def dropout_against_cpu(subject: Subject) -> Iterator[Check]:
    """Masks are products of integers that overflow: a device that saturates or rounds them draws others."""
    name = "dropout against the CPU"
    if subject.engine.device == "cpu":
        yield subject.skipped(name, "the engine runs on the CPU itself")
        return
    spec = dataclasses.replace(STEP_SPEC, dropout=0.1)
    inputs, targets = step_tokens(spec)
    losses = []
    for device in (subject.choice, "cpu"):
        backend = subject.backend(spec, perturbed(spec), device=device)
        backend.train_step(inputs[None], targets[None], 0.0, 0)
        losses.append(backend.read_stats().loss)
    yield subject.judged(
        name,
        abs(losses[0] / losses[1] - 1.0),
        TOLERANCES["step loss"]["float32"],
        "of the loss",
        "the same weights, tokens and masks on both devices",
        f"other values drop out than should: train with --dropout 0, or {ELSEWHERE}",
    )


def step_errors(one: Backend, reference: Backend, precision: Precision) -> dict[str, float]:
    """Loss, gradients and update of one step, as relative errors; the update in learning rates.

    Where a gradient is rounding noise, Adam's first step is its sign: those weights, and the key biases, whose true
    gradient is zero, are left out.
    """
    inputs, targets = step_tokens(STEP_SPEC)
    (loss, gradients), (right_loss, right) = (b.loss_and_grads(inputs, targets) for b in (one, reference))
    states = []
    for backend in (one, reference):
        backend.train_step(inputs[None], targets[None], LEARNING_RATE, 0)
        backend.read_stats()
        states.append(backend.export_state())
    gradient_error, update_error = 0.0, 0.0
    for key, gradient in right.items():
        clear = np.abs(gradient) > TOLERANCES["step gradients"][precision] * np.abs(gradient).max()
        part = key_bias(STEP_SPEC, key)
        known = np.ones(gradient.shape, dtype=bool)
        if part is not None:
            known[part] = False
        gradient_error = _larger(gradient_error, _relative(gradients[key][known], gradient[known]))
        moved = np.abs(states[0][key] - states[1][key])[known & clear] / LEARNING_RATE
        update_error = _larger(update_error, float(moved.max(initial=0.0)))
    return {"loss": abs(loss / right_loss - 1.0), "gradients": gradient_error, "update": update_error}


def step_tokens(spec: GPTSpec) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Random windows, part of one uncounted."""
    tokens = np.random.Generator(np.random.PCG64(3)).integers(0, spec.vocab_size, (4, spec.block_size + 1), np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, -(spec.block_size // 4) :] = -1
    return inputs, targets


def large_inner_dimension(subject: Subject) -> Iterator[Check]:
    """Products over 32,767 and more, where M1 and M2 read past the end of an operand (pytorch#183535, #195163)."""
    error, where = _matmul_error(subject.engine, LARGE_K, 48, "float32")
    yield subject.judged(
        "products over a long dimension",
        error,
        TOLERANCES["matmul"]["float32"],
        "of the largest",
        f"{where}, against float64",
        f"gradients of large batches and vocabularies are wrong: lower --micro-batch; {first_try()}{ELSEWHERE}",
    )


def bfloat16_products(subject: Subject) -> Iterator[Check]:
    error, where = _matmul_error(subject.engine, (1024,), 256, "bfloat16")
    n = 256 if subject.engine.device == "cpu" else 2048
    speed = subject.engine.matmul_seconds(n, "float32") / subject.engine.matmul_seconds(n, "bfloat16")
    worth = "worth a try" if speed > 1.1 else "no gain in speed on this chip"
    yield subject.judged(
        f"bfloat16 products ({speed:.2g} x the speed of float32)",
        error,
        TOLERANCES["matmul"]["bfloat16"],
        "of the largest",
        f"{where}, against float64; --precision bfloat16: {worth}",
        "stay with --precision float32",
    )


def _matmul_error(engine: Operations, inner: tuple[int, ...], outer: int, precision: Precision) -> tuple[float, str]:
    """The largest error over the layouts that forward and backward of a linear layer use."""
    generator = np.random.Generator(np.random.PCG64(4))
    worst_error, where = -1.0, ""
    for K in inner:
        a, b = (_bfloat16(generator.standard_normal((outer, K), dtype=np.float32)) for _ in range(2))
        right = a.astype(np.float64) @ b.astype(np.float64).T
        columns = [np.ascontiguousarray(m.T).T for m in (a, b)]
        for layout, left, second in (("a b^T", a, b.T), ("a b", a, columns[1].T), ("a^T b", columns[0], columns[1].T)):
            error = _relative(engine.matmul(left, second, precision), right)
            if not error <= worst_error:
                worst_error, where = error, f"{layout} over {K:,}"
    return worst_error, where


def _bfloat16(values: Matrix) -> Matrix:
    """Rounded (towards zero) to what bfloat16 holds, so that the inputs are the same in either precision."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def chunked_loss(subject: Subject) -> Iterator[Check]:
    spec = GPTSpec(vocab_size=4096, block_size=100, n_layer=1, n_head=2, n_embd=128, dropout=0.0)
    weights = perturbed(spec)
    inputs, targets = step_tokens(spec)
    loss, gradients = subject.backend(spec, weights, loss_chunk=128).loss_and_grads(inputs, targets)
    right_loss, right = subject.engine.whole_loss_and_grads(spec, weights, inputs, targets)
    error = 0.0
    for key, gradient in right.items():
        known = np.ones(gradient.shape, dtype=bool)
        part = key_bias(spec, key)
        if part is not None:
            known[part] = False
        error = _larger(error, _relative(gradients[key][known], gradient[known]))
    detail = f"{targets.size} tokens in chunks of 128, against the framework's own cross-entropy over all logits"
    advice = f"the loss or what is learned from it is wrong: {ELSEWHERE}"
    for name, measured in (("loss", abs(loss / right_loss - 1.0)), ("gradients", error)):
        key = f"chunked {name}"
        yield subject.judged(key, measured, TOLERANCES[key]["float32"], "of the largest", detail, advice)


def non_finite_step(subject: Subject) -> Iterator[Check]:
    """A step whose loss is not finite must change no weight, moment or count."""
    weights = perturbed(STEP_SPEC)
    weights[MODEL + "head.weight"][0, 0] = np.inf
    backend = subject.backend(STEP_SPEC, weights)
    before = backend.export_state()
    inputs, targets = step_tokens(STEP_SPEC)
    backend.train_step(inputs[None], targets[None], LEARNING_RATE, 0)
    applied = backend.read_stats().applied
    after = backend.export_state()
    changed = sum(not np.array_equal(before[key], after[key], equal_nan=True) for key in before)
    how = "on the device" if subject.engine.skips_on_device() else "by the host, which waits for each step (slower)"
    yield subject.judged(
        "a step that is not finite is skipped",
        float(changed + sum(applied)),
        0.0,
        "arrays changed",
        f"skipped {how}",
        f"one bad batch ruins a run: {ELSEWHERE}",
    )


CHECKS: dict[str, Callable[[Subject], Iterator[Check]]] = {
    "future tokens": future_tokens,
    "cached generation": cached_generation,
    "one step against the CPU": step_against_cpu,
    "dropout against the CPU": dropout_against_cpu,
    "products over a long dimension": large_inner_dimension,
    "chunked loss": chunked_loss,
    "a step that is not finite": non_finite_step,
    "bfloat16 products": bfloat16_products,
}


def _relative(values: NDArray[Any], right: NDArray[Any]) -> float:
    """Largest error, relative to the largest right value; NaN stays NaN."""
    return float(np.abs(values.astype(np.float64) - right).max() / np.abs(right).max())


def _larger(a: float, b: float) -> float:
    """The larger one, or NaN if either is."""
    return float(np.maximum(a, b))
