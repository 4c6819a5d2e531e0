"""The operations as MLX has them: the set that runs on Metal. On a Linux CPU linux_cpu/ops.py takes its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn

from twingpt.backends.mlx import linux_cpu

Item = TypeVar("Item")

Soft = tuple[mx.array, mx.array]
"""What targets are learned as: int32 ids [..., K] and their shares, float32 [..., K], which sum to one."""

LossAndGrads = Callable[..., tuple[mx.array, dict[str, mx.array]]]
"""(weights, inputs [B, T], targets [B, T], keys of dropout [B, ...] or None, soft targets [B, T, K] or None, parts of
the batch at one time) -> (summed loss, its gradients)."""

Each = Callable[[Callable[[str, mx.array], mx.array], dict[str, mx.array]], dict[str, mx.array]]
"""(function of a name and its array, arrays by name) -> what the function makes of each."""


class Ops:
    """What the model and the step compute with, given to them when the engine is made."""

    compiled_decoding = False
    """Whether a token's graph is made once and kept, where making it again in Python takes longer than running it."""

    def gelu(self, x: mx.array) -> mx.array:
        return nn.gelu(x)

    def gelu_tanh(self, x: mx.array) -> mx.array:
        return nn.gelu_approx(x)

    def silu(self, x: mx.array) -> mx.array:
        return nn.silu(x)

    def attention(self, q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None) -> mx.array:
        """Queries [B, heads, T, head_dim], keys and values [B, kv_heads, S, head_dim] -> [B, heads, T, head_dim].

        mask: bool, to be broadcast to [B, heads, T, S]; None for what is causal, T = S.
        """
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal" if mask is None else mask)

    def causal_softmax(self, scores: mx.array) -> mx.array:
        """[..., T, T] over the last axis, up to the query's own position."""
        causal = mx.tri(scores.shape[-1], dtype=mx.bool_)
        return mx.softmax(mx.where(causal, scores, mx.finfo(scores.dtype).min), axis=-1, precise=True)

    def cross_entropy(
        self, h: mx.array, weight: mx.array, target: mx.array, soft: Soft | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Of hidden states [n, C], the head [V, C] and targets [n, 1]: (summed loss, its gradient by h, by weight).

        In nats, over the targets that are not -1. softmax(logits) - onehot(target) is the gradient by the logits, or,
        with soft targets [n, K], softmax(logits) less the shares of their tokens.
        """
        logits, log_z, index, counted = counted_logits(h, weight, target)
        if soft is None:
            right = mx.take_along_axis(logits, index, axis=1)
            wanted = mx.arange(logits.shape[1]) == index
        else:
            ids, shares = soft
            right = (mx.take_along_axis(logits, ids, axis=1) * shares).sum(axis=1, keepdims=True)
            wanted = mx.zeros_like(logits).at[mx.arange(len(ids))[:, None], ids].add(shares)
        losses = log_z - right
        g = (mx.where(counted, mx.exp(logits - log_z) - wanted, 0.0)).astype(h.dtype)
        return mx.where(counted, losses, 0.0).sum(), g @ weight.astype(h.dtype), (g.T @ h).astype(mx.float32)

    def micro_step(self, loss_and_grads: LossAndGrads) -> LossAndGrads:
        """The loss and the gradients of one micro-batch, made ready to be called for every one."""
        return mx.compile(loss_and_grads)

    def each(self, sizes: dict[str, int]) -> Each:
        """A way to do the same to every parameter alone. sizes: how many numbers each has."""
        return lambda function, arrays: {name: function(name, array) for name, array in arrays.items()}

    def in_turn(self, items: list[Item]) -> Iterable[list[Item]]:
        """The items in their order, as many at one time as are best computed together."""
        return [items]

    def take_all_threads(self) -> None:
        """Before anything but a micro-step: a micro-step may leave the products fewer threads than there are."""


def counted_logits(h: mx.array, weight: mx.array, target: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """(float32 logits [n, V], log of their partition sum [n, 1], target index [n, 1], counted [n, 1])."""
    logits = (h @ weight.astype(h.dtype).T).astype(mx.float32)
    return logits, mx.logsumexp(logits, axis=1, keepdims=True), mx.maximum(target, 0), target >= 0


PLAIN_OPS = Ops()


def choose_ops(device: str) -> Ops:
    """The set that an engine on this device ("metal", "cuda", "cpu") computes with; the one place that asks."""
    if device == "cpu" and linux_cpu.wanted():
        from twingpt.backends.mlx.linux_cpu.ops import LinuxOps

        return LinuxOps()
    return PLAIN_OPS
