"""What the MLX engine does its own way on a Linux CPU, against MLX's own functions and their gradients."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from numpy.typing import NDArray

from twingpt.backends.mlx.linux_cpu import blas, exponentials, ops
from twingpt.backends.mlx.linux_cpu.parts import Parts
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engine_settings import OptimizerName
from twingpt.core.init import initial_weights
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL

pytestmark = pytest.mark.usefixtures("mlx_on_the_cpu")

Function = Callable[[mx.array], mx.array]


def largest(x: mx.array) -> float:
    return float(np.abs(np.array(x)).max())


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32))


def test_the_exponential_is_right_down_to_where_float32_ends() -> None:
    x = np.concatenate([-np.logspace(-30, 2, 20_000), [0.0, -87.0, -88.0, -1e4, -3e38]]).astype(np.float32)
    found, wanted = np.array(exponentials.decay(mx.array(x)), dtype=np.float64), np.exp(x.astype(np.float64))
    normal_numbers = x >= -87.0
    assert np.abs(found / np.maximum(wanted, 1e-300) - 1.0)[normal_numbers].max() < 2.5e-7
    assert (found[x < -89.0] == 0.0).all()
    assert np.isnan(np.array(exponentials.decay(mx.array([math.nan])))).all()


@pytest.mark.parametrize(
    ("ours", "plain"),
    [(exponentials.gelu, nn.gelu), (exponentials.gelu_tanh, nn.gelu_approx), (exponentials.silu, nn.silu)],
    ids=["erf", "tanh", "silu"],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_activations_and_their_gradients(ours: Function, plain: Function, compiled: bool) -> None:
    x = mx.concatenate([normal(4_000, scale=3.0), mx.array([0.0, 1e-20, -1e-20, 30.0, -30.0, 1e4, -1e4])])
    cotangent = normal(x.size, seed=1)

    def value_and_gradient(function: Function) -> tuple[mx.array, mx.array]:
        def run(x: mx.array, cotangent: mx.array) -> tuple[mx.array, mx.array]:
            values, gradients = mx.vjp(function, [x], [cotangent])
            return values[0], gradients[0]

        return (mx.compile(run) if compiled else run)(x, cotangent)

    for found, wanted in zip(value_and_gradient(ours), value_and_gradient(plain), strict=True):
        assert largest((found - wanted) / (1.0 + mx.abs(wanted))) < 1.5e-6


def test_activations_keep_shape_and_type() -> None:
    x = normal(2, 3, 5).astype(mx.bfloat16)
    y = exponentials.gelu(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_softmax_and_its_gradient() -> None:
    x, cotangent = normal(3, 7, 129, scale=4.0), normal(3, 7, 129, seed=1)
    x[0, 0, 5:] = mx.finfo(mx.float32).min / 2
    found, wanted = (
        mx.vjp(function, [x], [cotangent]) for function in (exponentials.softmax, lambda x: mx.softmax(x, axis=-1))
    )
    assert largest(found[0][0] - wanted[0][0]) < 1e-6
    assert largest(found[1][0] - wanted[1][0]) < 2e-6
    assert largest(found[0][0][0, 0, 5:]) == 0.0


def test_cross_entropy_and_its_gradients() -> None:
    h, weight = normal(40, 16), normal(300, 16, seed=1)
    targets = np.random.default_rng(2).integers(0, 300, (40, 1)).astype(np.int32)
    # A target more than once: its gradients add up.
    targets[:3], targets[5:8] = 7, -1
    target = mx.array(targets)

    def plain(h: mx.array, weight: mx.array) -> mx.array:
        losses = nn.losses.cross_entropy(h @ weight.T, mx.maximum(target[:, 0], 0))
        total: mx.array = (losses * (target[:, 0] >= 0)).sum()
        return total

    wanted, gradients = mx.value_and_grad(plain, argnums=(0, 1))(h, weight)
    found = exponentials.cross_entropy(h, weight, target)
    for a, b in zip(found, (wanted, *gradients), strict=True):
        assert largest(a - b) < 3e-6 * (1.0 + largest(b))


def use_threads(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(number, blas.load())
    monkeypatch.setattr(ops, "parts_of_this_machine", lambda: parts)


def trained(spec: GPTSpec, rows: int, optimizer: OptimizerName) -> dict[str, NDArray[Any]]:
    """The state after two updates of two micro-batches, the last row's targets not all counted."""
    backend = create_backend("mlx", spec, EngineConfig(device="cpu", loss_chunk=24, optimizer=optimizer))
    backend.load_state({MODEL + name: weight for name, weight in initial_weights(spec, 0).items()})
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, rows, 17), dtype=np.int32)
    targets = tokens[..., 1:].copy()
    targets[:, -1, 3:9] = -1
    for step in range(2):
        backend.train_step(tokens[..., :-1], targets, 1e-3, step)
    stats = backend.read_stats()
    return backend.export_state() | {"loss": np.array(stats.loss_sums), "norm": np.array(stats.grad_norms)}


@pytest.mark.parametrize(
    ("rows", "optimizer", "dropout"), [(1, "adamw", 0.0), (3, "adamw", 0.2), (4, "adamw", 0.2), (4, "muon", 0.0)]
)
def test_a_batch_in_parts_is_the_batch(
    rows: int, optimizer: OptimizerName, dropout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = GPTSpec(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=16, dropout=dropout)
    use_threads(1, monkeypatch)
    whole = trained(spec, rows, optimizer)
    use_threads(2, monkeypatch)
    parts = trained(spec, rows, optimizer)
    assert whole.keys() == parts.keys()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=2e-4, atol=2e-6, err_msg=name)


def test_the_compiled_decoding_follows_slot_length_and_weights() -> None:
    spec = GPTSpec(vocab_size=50, block_size=80, n_layer=2, n_head=2, n_embd=16)
    backend = create_backend("mlx", spec, EngineConfig(device="cpu"))
    tokens = np.random.default_rng(0).integers(0, 50, 70, dtype=np.int32)
    for seed in range(2):
        backend.load_state({MODEL + name: 5.0 * weight for name, weight in initial_weights(spec, seed).items()})
        cache = backend.new_cache(2, 80)
        for slot in (1, 0):
            found = [backend.prefill(cache, slot, tokens[:60])]
            found += [backend.decode(cache, [slot], tokens[i : i + 1])[0] for i in range(60, 70)]
            np.testing.assert_allclose(found, backend.logits(tokens[None])[0, 59:], rtol=1e-4, atol=1e-4)


def test_slots_that_follow_each_other_are_decoded_together() -> None:
    spec = GPTSpec(vocab_size=50, block_size=80, n_layer=2, n_head=2, n_embd=16)
    backend = create_backend("mlx", spec, EngineConfig(device="cpu"))
    backend.load_state({MODEL + name: 5.0 * weight for name, weight in initial_weights(spec, 0).items()})
    tokens = np.random.default_rng(0).integers(0, 50, (4, 70), dtype=np.int32)
    lengths = [30, 5, 61, 17]

    def filled() -> Any:
        cache = backend.new_cache(4, 80)
        for slot, length in enumerate(lengths):
            backend.prefill(cache, slot, tokens[slot, :length])
        return cache

    for slots in ([0, 1, 2, 3], [1, 2], [3], [2, 3]):
        together = filled()
        for step in range(5):
            new = np.array([tokens[slot, lengths[slot] + step] for slot in slots], dtype=np.int32)
            found = backend.decode(together, slots, new)
            for slot, logits in zip(slots, found, strict=True):
                wanted = backend.logits(tokens[slot : slot + 1, : lengths[slot] + step + 1])[0, -1]
                np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
