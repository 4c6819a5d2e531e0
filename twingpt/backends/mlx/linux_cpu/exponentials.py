"""Exponentials on the CPU, where MLX's own are slow: activations and softmax, each with its own gradient.

Outside Apple's platforms MLX's exp, erf and tanh call the C library for every element: 12 to 25 ns. What g++ can
vectorise in a compiled function takes 1 to 2: float and integer arithmetic, abs, shifts; not floor, fma, maximum,
where or sqrt. Everything here is made of that. A compiled loop over a broadcast array is not vectorised either, so
that arrays are flattened first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import mlx.core as mx

LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
"""ln 2 in two parts, after Cody and Waite: small multiples of the first are exact in float32."""


def decay(x: mx.array) -> mx.array:
    """exp(x) of float32 x <= 0 to 2e-7 of its value, 0 below -87: 2^n exp(f) with x = n ln 2 + f."""
    exponent = (x * (1.0 / math.log(2.0))).astype(mx.int32)
    n = exponent.astype(mx.float32)
    # All ones where 2^n is too small for a float32. There f may be anything, and the result is 0.
    under = (exponent + 126) >> 31
    f = ((x - n * LN2_HIGH) - n * LN2_LOW) * (under.astype(mx.float32) + 1.0)
    bits = ((exponent + 127) & ~under) << 23
    # A loop of its own for what follows: fused into it, the above would not be vectorised.
    (f,) = mx.depends([f], [bits])
    square = f * f
    # Fitted to 2e-9 for -ln 2 < f <= 0. In pairs: MLX fuses only so many steps that wait for each other.
    high = (0.04149793338 + f * 0.007967041858) + square * 0.0009830285814
    return ((1.0 + f * 0.9999998323) + square * ((0.4999955476 + f * 0.1666265745) + square * high)) * bits.view(
        mx.float32
    )


def _gauss(a: mx.array) -> tuple[mx.array, mx.array]:
    """(share of the normal distribution above a, its density at a), a >= 0.

    The share is exp(-a^2 / 2) times a polynomial in 1 / (1 + 0.37 a), as in Abramowitz and Stegun's 7.1.26, fitted so
    that a times the share is right to 2e-9.
    """
    t = 1.0 / (1.0 + 0.37 * a)
    square = t * t
    bell = decay(-0.5 * (a * a))
    low = (0.0022971559 + t * 0.122066308) + square * (0.267914301 - t * 0.18031596)
    high = (0.535174551 - t * 0.303395331) + square * 0.056258969
    return (low + (square * square) * high) * bell, bell * (1.0 / math.sqrt(2.0 * math.pi))


def _logistic(a: mx.array) -> tuple[mx.array, mx.array]:
    """(1 / (1 + exp(a)), its slope without the sign), a >= 0."""
    e = decay(-a)
    tail = e / (1.0 + e)
    return tail, tail - tail * tail


def _tanh(a: mx.array) -> tuple[mx.array, mx.array]:
    """The same for the tanh approximation of GELU: logistic(2 u) with u = sqrt(2 / pi) (a + 0.044715 a^3)."""
    slope = 2.0 * math.sqrt(2.0 / math.pi)
    square = a * a
    tail, density = _logistic(a * (slope + (slope * 0.044715) * square))
    return tail, density * (slope + (3.0 * slope * 0.044715) * square)


def _activation(tail: Callable[[mx.array], tuple[mx.array, mx.array]]) -> Callable[[mx.array], mx.array]:
    """x F(x) for a distribution F that is symmetric around 0.

    tail: (1 - F(a), density of F at a) for a >= 0. With it x F(x) = max(x, 0) - |x| tail(|x|).
    """

    @mx.compile
    def value(x: mx.array) -> mx.array:
        a = mx.abs(x)
        return 0.5 * (x + a) - a * tail(a)[0]

    @mx.compile
    def gradient(x: mx.array, cotangent: mx.array) -> mx.array:
        a = mx.abs(x)
        above, density = tail(a)
        # Times the sign of x, without a case for 0.
        return cotangent * ((0.5 + (x / (a + 1e-37)) * (0.5 - above)) + x * density)

    @mx.custom_function
    def apply(x: mx.array) -> mx.array:
        return value(x.astype(mx.float32).flatten()).reshape(x.shape).astype(x.dtype)

    @apply.vjp
    def backward(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        slopes = gradient(x.astype(mx.float32).flatten(), cotangent.astype(mx.float32).flatten())
        return slopes.reshape(x.shape).astype(x.dtype)

    return cast(Callable[[mx.array], mx.array], apply)


gelu, gelu_tanh, silu = _activation(_gauss), _activation(_tanh), _activation(_logistic)


def row_sums(x: mx.array) -> mx.array:
    """[..., n] -> [..., 1]. A product: MLX's own sum waits for every addition."""
    return x @ mx.ones((x.shape[-1], 1))


_decay = mx.compile(decay)


def shifted_exponentials(x: mx.array) -> tuple[mx.array, mx.array]:
    """Of float32 [..., n]: (exp(x - largest of the row), that largest [..., 1])."""
    largest = x.max(axis=-1, keepdims=True)
    return _decay((x - largest).flatten()).reshape(x.shape), largest


@mx.custom_function
def _softmax(x: mx.array) -> mx.array:
    exponentials, _ = shifted_exponentials(x)
    return exponentials * (1.0 / row_sums(exponentials))


@_softmax.vjp
def _softmax_backward(x: mx.array, cotangent: mx.array, y: mx.array) -> mx.array:
    return y * (cotangent - row_sums(y * cotangent))


softmax = cast(Callable[[mx.array], mx.array], _softmax)
"""Over the last axis of float32."""


def cross_entropy(h: mx.array, weight: mx.array, target: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Of hidden states [n, C], the head [V, C] and targets [n, 1]: (summed loss, its gradient by h, by weight).

    softmax(logits) - onehot(target) never is an array of its own: the rows' factors go to h and to the products.
    """
    logits = h @ weight.T
    counted, index = (target >= 0).astype(h.dtype), mx.maximum(target, 0)
    right = mx.take_along_axis(logits, index, axis=1)
    # Nothing reads the logits after the exponentials are made, so that those take their place.
    (logits,) = mx.depends([logits], [right])
    exponentials, largest = shifted_exponentials(logits)
    sums = row_sums(exponentials)
    losses = mx.log(sums) + largest - right
    scale, index = counted / sums, index[:, 0]
    grad_h = (exponentials @ weight) * scale - weight[index] * counted
    grad_weight = (exponentials.T @ (h * scale)).at[index].subtract(h * counted)
    return (losses * counted).sum(), grad_h, grad_weight


def soft_cross_entropy(
    h: mx.array, weight: mx.array, target: mx.array, soft: tuple[mx.array, mx.array]
) -> tuple[mx.array, mx.array, mx.array]:
    """The same with soft targets, ids and shares [n, K]: softmax(logits) less the shares of their tokens.

    Here that is an array of its own, since rows of the head for every token of every target would take more room.
    """
    logits = h @ weight.T
    counted, (ids, shares) = (target >= 0).astype(h.dtype), soft
    right = (mx.take_along_axis(logits, ids, axis=1) * shares).sum(axis=1, keepdims=True)
    (logits,) = mx.depends([logits], [right])
    exponentials, largest = shifted_exponentials(logits)
    sums = row_sums(exponentials)
    losses = mx.log(sums) + largest - right
    g = (exponentials * (counted / sums)).at[mx.arange(len(ids))[:, None], ids].subtract(shares * counted)
    return (losses * counted).sum(), g @ weight, g.T @ h
