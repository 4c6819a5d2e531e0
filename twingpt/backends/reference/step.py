"""Loss and update in NumPy: chunked cross-entropy, clipping, AdamW, Muon."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from twingpt.backends.reference.model import GPT, Floats, Masks, Parameters, Tree
from twingpt.core.backend import Array, EngineConfig, SoftTargets
from twingpt.core.muon import COEFFICIENTS, EPS, STEPS, matrices_by_shape, update_scale
from twingpt.core.params import Param


def loss_sum(model: GPT, inputs: Array, targets: Array, chunk: int) -> float:
    """Summed cross-entropy in nats of int32 [B, T] over the targets that are not -1, without dropout."""
    hidden = model.forward(inputs)
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    starts = range(0, len(rows), chunk)
    return sum(cross_entropy(model.logits(rows[i : i + chunk]), flat[i : i + chunk])[0] for i in starts)


def add_gradients(
    model: GPT,
    inputs: Array,
    targets: Array,
    chunk: int,
    masks: Masks | None = None,
    soft: SoftTargets | None = None,
) -> float:
    """The same sum, with the gradients of it added to the model's. soft: [B, T, K], what the targets are learned as."""
    hidden = model.forward(inputs, masks=masks)
    rows, flat = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    flat_soft = None if soft is None else [part.reshape(len(flat), -1) for part in soft]
    grad_rows = np.empty_like(rows)
    grad_head = model.parameters.grads[model.head_name]
    loss = 0.0
    # The logits [B * T, V] would be the largest array by far: they exist for one chunk of tokens at a time.
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        own = None if flat_soft is None else SoftTargets(*(each[part] for each in flat_soft))
        more, grad_logits = cross_entropy(model.logits(rows[part]), flat[part], own)
        loss += more
        grad_rows[part] = grad_logits @ model.head_weight
        # A tied head is the token embedding, whose gradient then has two sources: both are added to the same array.
        grad_head += grad_logits.T @ rows[part]
    model.backward(grad_rows.reshape(hidden.shape))
    return loss


def cross_entropy(logits: Floats, targets: Array, soft: SoftTargets | None = None) -> tuple[float, Floats]:
    """(-log softmax(logits)[target] summed over the counted targets, its gradient) of [n, V] and [n].

    The gradient is softmax(logits) - onehot(target): what the model foretold less what came (Bishop, Pattern
    Recognition and Machine Learning, equation 4.109). A target of -1 is not counted and has none. With soft targets
    [n, K] several tokens have shares of what came, and a token alone is the case in which one of them has it all.
    """
    counted, tokens = targets >= 0, np.arange(len(targets))[:, None]
    if soft is None:
        soft = SoftTargets(np.maximum(targets, 0)[:, None], np.ones((len(targets), 1), dtype=np.float32))
    # The largest logit is taken off first, which changes no probability but keeps exp from overflowing.
    shifted = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(shifted)
    z = probabilities.sum(axis=1, keepdims=True)
    losses = np.log(z[:, 0]) - (soft.shares * shifted[tokens, soft.ids]).sum(axis=1)
    probabilities /= z
    # A token may stand among the ids twice, and `-=` would take off one of its shares only.
    np.subtract.at(probabilities, (tokens, soft.ids), soft.shares)
    probabilities[~counted] = 0.0
    return float(losses[counted].sum(dtype=np.float64)), probabilities


@dataclass(slots=True)
class Moments:
    """What the optimizers keep: AdamW's first and second moments, Muon's momentum, and how often each has stepped."""

    m: Tree
    v: Tree
    count: int
    momentum: Tree
    muon_count: int


def create_optimizer(table: dict[str, Param], config: EngineConfig) -> Moments:
    """AdamW's moments, or Muon's momentum for the matrices of the blocks and AdamW's for the rest, all zero."""
    by_muon = {name for name, param in table.items() if config.optimizer == "muon" and param.optimizer == "muon"}
    m, v = ({name: _zeros(param) for name, param in table.items() if name not in by_muon} for _ in "mv")
    return Moments(m, v, 0, {name: _zeros(table[name]) for name in table if name in by_muon}, 0)


def _zeros(param: Param) -> Floats:
    return np.zeros(param.shape, dtype=np.float32)


def clip_and_update(
    parameters: Parameters,
    moments: Moments,
    table: dict[str, Param],
    config: EngineConfig,
    loss: float,
    tokens: int,
    lr: float,
) -> tuple[float, bool]:
    """Turn summed gradients into means, clip their global norm, apply the optimizer.

    Returns (gradient norm before clipping, whether the update was applied). A loss or a gradient that is not finite
    leaves every weight, moment and count alone: one bad batch must not poison what all the others built. So does a
    batch without a counted target, which has no mean.
    """
    norm = global_norm(parameters.grads) / tokens if tokens else math.nan
    if not (math.isfinite(norm) and math.isfinite(loss)):
        return norm, False
    scale = 1.0 / tokens
    if config.grad_clip > 0.0:
        # The 1e-6 keeps a zero gradient from dividing by zero, as in torch.nn.utils.clip_grad_norm_.
        scale *= min(config.grad_clip / (norm + 1e-6), 1.0)
    for grad in parameters.grads.values():
        grad *= scale
    adamw(parameters, moments, table, config, lr)
    if moments.momentum:
        muon(parameters, moments, table, config, lr * config.muon_lr_scale)
    return norm, True


def global_norm(grads: Tree) -> float:
    """The length of all gradients as one vector."""
    return math.hypot(*(length(grad) for grad in grads.values()))


def length(x: Floats) -> float:
    """Root of the sum of squares. In float64, as a float32 sum of many squares is not exact enough to clip by."""
    return math.sqrt(float(np.square(x, dtype=np.float64).sum()))


def adamw(parameters: Parameters, moments: Moments, table: dict[str, Param], config: EngineConfig, lr: float) -> None:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) with decoupled weight decay (arXiv 1711.05101, algorithm 2).

    m and v are running means of the gradient and of its square. They begin at zero and so are too small at first, by
    1 - beta^count: the division by that puts them right.
    """
    moments.count += 1
    first_correction = 1.0 - config.beta1**moments.count
    second_correction = math.sqrt(1.0 - config.beta2**moments.count)
    for name, m in moments.m.items():
        weight, grad, v = parameters.weights[name], parameters.grads[name], moments.v[name]
        m *= config.beta1
        m += (1.0 - config.beta1) * grad
        v *= config.beta2
        v += (1.0 - config.beta2) * grad * grad
        if table[name].decay:
            weight *= 1.0 - lr * config.weight_decay
        weight -= lr / first_correction * m / (np.sqrt(v) / second_correction + config.eps)


def muon(parameters: Parameters, moments: Moments, table: dict[str, Param], config: EngineConfig, lr: float) -> None:
    """The rule of twingpt.core.muon, matrix by matrix: queries, keys and values are three that share a weight."""
    moments.muon_count += 1
    for (rows, columns), group in matrices_by_shape(table).items():
        for matrix in group:
            part = slice(matrix.start, matrix.stop)
            weight, grad = parameters.weights[matrix.name][part], parameters.grads[matrix.name][part]
            momentum = moments.momentum[matrix.name][part]
            # These are views, so that what is done to them in place is done to the whole weight and momentum.
            momentum *= config.muon_momentum
            momentum += grad
            update = orthogonal(grad + config.muon_momentum * momentum)
            weight *= 1.0 - lr * config.weight_decay
            weight -= lr * update_scale(rows, columns) * update


def orthogonal(x: Floats) -> Floats:
    """A matrix [rows, columns] brought near to the closest orthogonal one, by Newton and Schulz's iteration.

    In x = U S V^T each round puts every singular value s through a s + b s^3 + c s^5, which drives all of them towards
    1 and leaves U and V alone; no singular value decomposition is needed (twingpt.core.muon has the sources).
    """
    a, b, c = COEFFICIENTS
    # The Gram matrix is the smaller one if the matrix is not taller than it is wide.
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / np.float32(length(x) + EPS)
    for _ in range(STEPS):
        gram = x @ x.T
        x = (a * x + (b * gram + c * (gram @ gram)) @ x).astype(np.float32, copy=False)
    return x.T if tall else x
