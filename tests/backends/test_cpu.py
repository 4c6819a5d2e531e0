"""What the MLX engine does its own way on a CPU, against MLX's own functions and their gradients."""

import math
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from twingpt.backends.mlx import cpu

Function = Callable[[mx.array], mx.array]


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    with mx.stream(mx.Device(mx.cpu)):
        yield


def largest(x: mx.array) -> float:
    return float(np.abs(np.array(x)).max())


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(0.0, scale, shape).astype(np.float32))


def test_the_exponential_is_right_down_to_where_float32_ends() -> None:
    x = np.concatenate([-np.logspace(-30, 2, 20_000), [0.0, -87.0, -88.0, -1e4, -3e38]]).astype(np.float32)
    found, wanted = np.array(cpu.decay(mx.array(x)), dtype=np.float64), np.exp(x.astype(np.float64))
    normal_numbers = x >= -87.0
    assert np.abs(found / np.maximum(wanted, 1e-300) - 1.0)[normal_numbers].max() < 2.5e-7
    assert (found[x < -89.0] == 0.0).all()
    assert np.isnan(np.array(cpu.decay(mx.array([math.nan])))).all()


@pytest.mark.parametrize(
    ("ours", "plain"),
    [(cpu.gelu, nn.gelu), (cpu.gelu_tanh, nn.gelu_approx), (cpu.silu, nn.silu)],
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
    y = cpu.gelu(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


def test_softmax_and_its_gradient() -> None:
    x, cotangent = normal(3, 7, 129, scale=4.0), normal(3, 7, 129, seed=1)
    x[0, 0, 5:] = mx.finfo(mx.float32).min / 2
    found, wanted = (mx.vjp(function, [x], [cotangent]) for function in (cpu.softmax, lambda x: mx.softmax(x, axis=-1)))
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
    found = cpu.cross_entropy(h, weight, target)
    for a, b in zip(found, (wanted, *gradients), strict=True):
        assert largest(a - b) < 3e-6 * (1.0 + largest(b))
