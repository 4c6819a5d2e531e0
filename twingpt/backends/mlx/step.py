"""Loss and update in MLX: chunked cross-entropy, clipping, AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import mlx.core as mx

from twingpt.backends.mlx.model import GPT
from twingpt.core.backend import EngineConfig
from twingpt.core.params import Param

Tree = dict[str, mx.array]
"""Arrays by canonical parameter name."""


def _chunked_cross_entropy(chunk: int) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """Summed cross-entropy whose logits exist for one chunk of tokens at a time.

    The gradient is made in the forward pass, while a chunk's logits are at hand: softmax(logits) - onehot(target).
    It rides along as a second and third output, for the vjp to pick up.
    """

    @mx.custom_function
    def forward(hidden: mx.array, weight: mx.array, targets: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        loss, grad_weight = mx.array(0.0), mx.zeros(weight.shape)
        grad_hidden: list[mx.array] = []
        for h, target in _chunks(hidden, targets, chunk):
            # MLX runs what only the end needs at the end: a chunk's logits would wait for that, with every other's.
            (h,) = mx.depends([h], [loss, grad_weight, *grad_hidden[-1:]])
            logits, log_z, index, counted = _logits(h, weight, target)
            losses = log_z - mx.take_along_axis(logits, index, axis=1)
            loss = loss + mx.where(counted, losses, 0.0).sum()
            onehot = mx.arange(logits.shape[1]) == index
            g = (mx.where(counted, mx.exp(logits - log_z) - onehot, 0.0)).astype(h.dtype)
            grad_hidden.append(g @ weight.astype(h.dtype))
            grad_weight = grad_weight + (g.T @ h).astype(mx.float32)
        (loss,) = mx.depends([loss], [grad_weight])
        return loss, mx.concatenate(grad_hidden), grad_weight

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, mx.array, mx.array]:
        _, grad_hidden, grad_weight = outputs
        grad_loss = cotangents[0]
        return grad_hidden * grad_loss.astype(grad_hidden.dtype), grad_weight * grad_loss, mx.zeros_like(primals[2])

    return cast(Callable[..., tuple[mx.array, mx.array, mx.array]], forward)


def _chunks(hidden: mx.array, targets: mx.array, chunk: int) -> Iterator[tuple[mx.array, mx.array]]:
    for start in range(0, hidden.shape[0], chunk):
        yield hidden[start : start + chunk], targets[start : start + chunk, None]


def _logits(h: mx.array, weight: mx.array, target: mx.array) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """(float32 logits [n, V], log of their partition sum [n, 1], target index [n, 1], counted [n, 1])."""
    logits = (h @ weight.astype(h.dtype).T).astype(mx.float32)
    return logits, mx.logsumexp(logits, axis=1, keepdims=True), mx.maximum(target, 0), target >= 0


def loss_sum(model: GPT, inputs: mx.array, targets: mx.array, chunk: int, key: mx.array | None = None) -> mx.array:
    """Summed cross-entropy in nats of int32 [B, T] over the targets that are not -1; differentiable."""
    hidden = model(inputs, key=key).flatten(0, 1).astype(model.dtype)
    return _chunked_cross_entropy(chunk)(hidden, model.head_weight, targets.flatten())[0]


def eval_loss_sum(model: GPT, inputs: mx.array, targets: mx.array, chunk: int) -> mx.array:
    """The same sum without the work for a gradient."""
    hidden = model(inputs).flatten(0, 1).astype(model.dtype)
    loss = mx.array(0.0)
    for h, target in _chunks(hidden, targets.flatten(), chunk):
        (h,) = mx.depends([h], [loss])
        logits, log_z, index, counted = _logits(h, model.head_weight, target)
        loss = loss + mx.where(counted, log_z - mx.take_along_axis(logits, index, axis=1), 0.0).sum()
    return loss


def create_optimizer(table: dict[str, Param]) -> tuple[Tree, Tree, mx.array]:
    """AdamW's first moments, second moments and update count, allocated now."""
    m = {name: mx.zeros(param.shape) for name, param in table.items()}
    v = {name: mx.zeros(param.shape) for name, param in table.items()}
    return m, v, mx.array(0, dtype=mx.int32)


def clip_and_update(
    table: dict[str, Param], config: EngineConfig
) -> Callable[..., tuple[Tree, Tree, Tree, mx.array, mx.array, mx.array]]:
    """The update as one pure function, for mx.compile to fuse.

    (weights, m, v, count, summed gradients, loss, tokens, lr) -> (weights, m, v, count, gradient norm before
    clipping, whether the update was applied). Means are made from the sums, the global norm is clipped, and AdamW with
    bias correction is applied; mlx.optimizers has no way to leave everything alone when a gradient is not finite.
    """

    def update(
        weights: Tree,
        m: Tree,
        v: Tree,
        count: mx.array,
        grads: Tree,
        loss: mx.array,
        tokens: mx.array,
        lr: mx.array,
    ) -> tuple[Tree, Tree, Tree, mx.array, mx.array, mx.array]:
        # Row by row: MLX on the CPU adds up a large tensor in one float32, 1.6e-4 off at 2,000 x 128.
        norm = mx.sqrt(mx.stack([mx.square(grad).sum(axis=-1).sum() for grad in grads.values()]).sum()) / tokens
        scale = 1.0 / tokens
        if config.grad_clip > 0.0:
            # The 1e-6 keeps a zero gradient from dividing by zero, as in torch.nn.utils.clip_grad_norm_.
            scale = scale * mx.minimum(config.grad_clip / (norm + 1e-6), 1.0)
        finite = mx.isfinite(norm) & mx.isfinite(loss)
        count = count + finite.astype(count.dtype)
        step_size = lr / (1.0 - config.beta1**count)
        root_correction = mx.sqrt(1.0 - config.beta2**count)

        new_weights, new_m, new_v = {}, {}, {}
        for name, param in table.items():
            decay = config.weight_decay if param.decay else 0.0
            grad = grads[name] * scale
            first = config.beta1 * m[name] + (1.0 - config.beta1) * grad
            second = config.beta2 * v[name] + (1.0 - config.beta2) * mx.square(grad)
            weight = weights[name] * (1.0 - lr * decay)
            weight = weight - step_size * first / (mx.sqrt(second) / root_correction + config.eps)
            new_weights[name] = mx.where(finite, weight, weights[name])
            new_m[name] = mx.where(finite, first, m[name])
            new_v[name] = mx.where(finite, second, v[name])
        return new_weights, new_m, new_v, count, norm, finite

    return update
