"""Loss and update in MLX: chunked cross-entropy, clipping, AdamW, Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx

from twingpt.backends.mlx.model import GPT, Drop
from twingpt.backends.mlx.ops import Each, Ops, Soft, counted_logits
from twingpt.core.backend import EngineConfig
from twingpt.core.muon import COEFFICIENTS, EPS, STEPS, matrices_by_shape, update_scale
from twingpt.core.params import Param

Tree = dict[str, mx.array]
"""Arrays by canonical parameter name."""


def _chunked_cross_entropy(ops: Ops, chunk: int) -> Callable[..., tuple[mx.array, mx.array, mx.array]]:
    """Summed cross-entropy whose logits exist for one chunk of tokens at a time.

    The gradient is made in the forward pass, while a chunk's logits are at hand: softmax(logits) - onehot(target), or
    less the shares of the tokens of soft targets [n, K]. It rides along as a second and third output, for the vjp to
    pick up.
    """

    @mx.custom_function
    def forward(
        hidden: mx.array, weight: mx.array, targets: mx.array, *soft: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        loss, grad_weight = mx.array(0.0), mx.zeros(weight.shape)
        grad_hidden: list[mx.array] = []
        for h, target, *own in _chunks(hidden, targets, chunk, *soft):
            # MLX runs what only the end needs at the end: a chunk's logits would wait for that, with every other's.
            (h,) = mx.depends([h], [loss, grad_weight, *grad_hidden[-1:]])
            new_loss, g, more = ops.cross_entropy(h, weight, target, (own[0], own[1]) if own else None)
            loss, grad_weight = loss + new_loss, grad_weight + more
            grad_hidden.append(g)
        (loss,) = mx.depends([loss], [grad_weight])
        return loss, mx.concatenate(grad_hidden), grad_weight

    @forward.vjp
    def backward(
        primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
    ) -> tuple[mx.array, ...]:
        _, grad_hidden, grad_weight = outputs
        grad_loss = cotangents[0]
        none = [mx.zeros_like(primal) for primal in primals[2:]]
        return grad_hidden * grad_loss.astype(grad_hidden.dtype), grad_weight * grad_loss, *none

    return cast(Callable[..., tuple[mx.array, mx.array, mx.array]], forward)


def _chunks(hidden: mx.array, targets: mx.array, chunk: int, *soft: mx.array) -> Iterator[tuple[mx.array, ...]]:
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        yield hidden[part], targets[part, None], *(each[part] for each in soft)


def loss_sum(
    model: GPT, inputs: mx.array, targets: mx.array, chunk: int, drop: Drop | None = None, soft: Soft | None = None
) -> mx.array:
    """Summed cross-entropy in nats of int32 [B, T] over the targets that are not -1; differentiable.

    soft: [B, T, K], what the targets are learned as.
    """
    hidden = model(inputs, drop=drop).flatten(0, 1).astype(model.dtype)
    flat_soft = [part.flatten(0, 1) for part in soft or ()]
    return _chunked_cross_entropy(model.ops, chunk)(hidden, model.head_weight, targets.flatten(), *flat_soft)[0]


def eval_loss_sum(model: GPT, inputs: mx.array, targets: mx.array, chunk: int) -> mx.array:
    """The same sum without the work for a gradient."""
    hidden = model(inputs).flatten(0, 1).astype(model.dtype)
    loss = mx.array(0.0)
    for h, target in _chunks(hidden, targets.flatten(), chunk):
        (h,) = mx.depends([h], [loss])
        logits, log_z, index, counted = counted_logits(h, model.head_weight, target)
        loss = loss + mx.where(counted, log_z - mx.take_along_axis(logits, index, axis=1), 0.0).sum()
    return loss


@dataclass(slots=True)
class Moments:
    """What the optimizers keep: AdamW's first and second moments, Muon's momentum, and how often each has stepped."""

    m: Tree
    v: Tree
    count: mx.array
    momentum: Tree
    muon_count: mx.array

    def arrays(self) -> list[Any]:
        """In the order that makes them again: mx.compile takes trees of arrays only."""
        return [self.m, self.v, self.count, self.momentum, self.muon_count]


def create_optimizer(table: dict[str, Param], config: EngineConfig) -> Moments:
    """AdamW's moments, or Muon's momentum for the matrices of the blocks and AdamW's for the rest, allocated now."""
    by_muon = {name for name, param in table.items() if config.optimizer == "muon" and param.optimizer == "muon"}
    m, v = ({name: mx.zeros(param.shape) for name, param in table.items() if name not in by_muon} for _ in "mv")
    momentum = {name: mx.zeros(param.shape) for name, param in table.items() if name in by_muon}
    return Moments(m, v, mx.array(0, dtype=mx.int32), momentum, mx.array(0, dtype=mx.int32))


def clip_and_update(
    table: dict[str, Param], config: EngineConfig, ops: Ops
) -> Callable[..., tuple[Tree, list[Any], mx.array, mx.array]]:
    """The update as one pure function, for mx.compile to fuse.

    (weights, moments' arrays, summed gradients, loss, tokens, lr) -> (weights, moments' arrays, gradient norm before
    clipping, whether the update was applied). Means are made from the sums, the global norm is clipped, and the
    optimizer is applied; mlx.optimizers has no way to leave everything alone when a gradient is not finite.
    """
    each = ops.each({name: math.prod(param.shape) for name, param in table.items()})

    def update(
        weights: Tree, arrays: list[Any], grads: Tree, loss: mx.array, tokens: mx.array, lr: mx.array
    ) -> tuple[Tree, list[Any], mx.array, mx.array]:
        # Row by row: MLX on the CPU adds up a large tensor in one float32, 1.6e-4 off at 2,000 x 128.
        squares = each(lambda _, grad: mx.square(grad).sum(axis=-1).sum(), grads)
        norm = mx.sqrt(mx.stack(list(squares.values())).sum()) / tokens
        scale = 1.0 / tokens
        if config.grad_clip > 0.0:
            # The 1e-6 keeps a zero gradient from dividing by zero, as in torch.nn.utils.clip_grad_norm_.
            scale = scale * mx.minimum(config.grad_clip / (norm + 1e-6), 1.0)
        finite = mx.isfinite(norm) & mx.isfinite(loss)
        grads = each(lambda _, grad: grad * scale, grads)
        old = Moments(*arrays)
        new_weights, new = _adamw(weights, old, grads, lr, table, config, each)
        if old.momentum:
            more_weights, new.momentum = _muon(weights, old.momentum, grads, lr, table, config, ops)
            new.muon_count = old.muon_count + 1
            new_weights |= more_weights

        def applied(old: Any, new: Any) -> Any:
            if isinstance(old, mx.array):
                return mx.where(finite, new, old)
            return each(lambda name, old: mx.where(finite, new[name], old), old)

        return applied(weights, new_weights), list(map(applied, arrays, new.arrays())), norm, finite

    return update


def _adamw(
    weights: Tree,
    moments: Moments,
    grads: Tree,
    lr: mx.array,
    table: dict[str, Param],
    config: EngineConfig,
    each: Each,
) -> tuple[Tree, Moments]:
    """(new weights of AdamW's parameters, new moments)."""
    count = moments.count + 1
    step_size = lr / (1.0 - config.beta1**count)
    root_correction = mx.sqrt(1.0 - config.beta2**count)
    m = each(lambda name, m: config.beta1 * m + (1.0 - config.beta1) * grads[name], moments.m)
    v = each(lambda name, v: config.beta2 * v + (1.0 - config.beta2) * mx.square(grads[name]), moments.v)

    def moved(name: str, m: mx.array) -> mx.array:
        weight = weights[name] * (1.0 - lr * (config.weight_decay if table[name].decay else 0.0))
        return weight - step_size * m / (mx.sqrt(v[name]) / root_correction + config.eps)

    return each(moved, m), Moments(m, v, count, moments.momentum, moments.muon_count)


def _muon(
    weights: Tree, momentum: Tree, grads: Tree, lr: mx.array, table: dict[str, Param], config: EngineConfig, ops: Ops
) -> tuple[Tree, Tree]:
    """(new weights of Muon's matrices, new momentum): the rule of twingpt.core.muon, one shape at a time."""
    lr, beta = lr * config.muon_lr_scale, config.muon_momentum
    momentum = {name: beta * old + grads[name] for name, old in momentum.items()}
    directions = {name: grads[name] + beta * new for name, new in momentum.items()}
    updates: dict[str, list[mx.array]] = {name: [] for name in momentum}
    for (rows, columns), group in matrices_by_shape(table).items():
        for own in ops.in_turn(group):
            x = mx.stack([directions[matrix.name][matrix.start : matrix.stop] for matrix in own])
            for matrix, update in zip(own, orthogonal(x) * update_scale(rows, columns), strict=True):
                updates[matrix.name].append(update)
    return {
        name: weights[name] * (1.0 - lr * config.weight_decay) - lr * mx.concatenate(parts)
        for name, parts in updates.items()
    }, momentum


def orthogonal(x: mx.array) -> mx.array:
    """Matrices [n, rows, columns] brought near to the closest orthogonal ones, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = x.swapaxes(1, 2) if tall else x
    x = x / (mx.sqrt(mx.square(x).sum(axis=2).sum(axis=1))[:, None, None] + EPS)
    for _ in range(STEPS):
        gram = x @ x.swapaxes(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.swapaxes(1, 2) if tall else x
