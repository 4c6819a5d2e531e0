"""The GPT in NumPy: every layer with its forward and its backward pass, written out.

A layer's `forward` computes its output and keeps what its own backward pass will need. Its `backward` is given the
gradient of the loss with respect to that output; it adds the gradients of the layer's parameters to `Parameters.grads`
and returns the gradient with respect to the layer's input. The whole backward pass is nothing but these calls in the
reverse order of the forward pass: the chain rule.

Letters in shapes: B sequences, T tokens, C = n_embd, H heads of queries, G heads of keys and values, D = head_dim,
S cached tokens, F = hidden width of the MLP, V = vocab_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Array
from twingpt.core.dropout import of_layer, table, threshold
from twingpt.core.params import HEAD, POSITION_EMBEDDING, TOKEN_EMBEDDING
from twingpt.core.rope import rope_table
from twingpt.core.spec import GPTSpec

Floats = NDArray[np.float32]
Tree = dict[str, Floats]
"""Arrays by canonical parameter name (twingpt.core.params)."""


@dataclass(slots=True)
class Parameters:
    """Weights and the gradients summed so far, by name. Every layer looks its own up here."""

    weights: Tree
    grads: Tree


class Linear:
    """y = x W^T + b, with W [out, in]."""

    def __init__(self, parameters: Parameters, name: str, bias: bool) -> None:
        self.parameters, self.weight_name = parameters, f"{name}.weight"
        self.bias_name = f"{name}.bias" if bias else None

    def forward(self, x: Floats) -> Floats:
        """[..., in] -> [..., out]"""
        self.x = x
        y = x @ self.parameters.weights[self.weight_name].T
        return y if self.bias_name is None else y + self.parameters.weights[self.bias_name]

    def backward(self, grad_y: Floats) -> Floats:
        """[..., out] -> [..., in]"""
        grads = self.parameters.grads
        # The same weight meets every token, so that its gradient is a sum over tokens: here the sum that is in a matrix
        # product.
        rows, grad_rows = self.x.reshape(-1, self.x.shape[-1]), grad_y.reshape(-1, grad_y.shape[-1])
        grads[self.weight_name] += grad_rows.T @ rows
        if self.bias_name is not None:
            grads[self.bias_name] += grad_rows.sum(axis=0)
        return grad_y @ self.parameters.weights[self.weight_name]


class LayerNorm:
    """y = w * (x - mean) / sqrt(variance + eps) + b over the last axis (Ba et al., arXiv 1607.06450)."""

    def __init__(self, parameters: Parameters, name: str, eps: float, bias: bool) -> None:
        self.parameters, self.weight_name, self.eps = parameters, f"{name}.weight", eps
        self.bias_name = f"{name}.bias" if bias else None

    def forward(self, x: Floats) -> Floats:
        """[..., width] -> [..., width]"""
        centred = x - x.mean(axis=-1, keepdims=True)
        self.inverse_std = 1.0 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self.eps)
        self.normed = centred * self.inverse_std
        y: Floats = self.normed * self.parameters.weights[self.weight_name]
        return y if self.bias_name is None else y + self.parameters.weights[self.bias_name]

    def backward(self, grad_y: Floats) -> Floats:
        """[..., width] -> [..., width]"""
        grads = self.parameters.grads
        grads[self.weight_name] += sum_of_rows(grad_y * self.normed)
        if self.bias_name is not None:
            grads[self.bias_name] += sum_of_rows(grad_y)
        grad_normed = grad_y * self.parameters.weights[self.weight_name]
        # Moving all of x by a constant, or stretching it, leaves y as it is. So the gradient has no part along either:
        # its mean and its projection on the normed vector are taken out.
        mean = grad_normed.mean(axis=-1, keepdims=True)
        projection = (grad_normed * self.normed).mean(axis=-1, keepdims=True)
        grad_x: Floats = self.inverse_std * (grad_normed - mean - self.normed * projection)
        return grad_x


class RMSNorm:
    """y = w * x / sqrt(mean(x^2) + eps) over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, parameters: Parameters, name: str, eps: float) -> None:
        self.parameters, self.weight_name, self.eps = parameters, f"{name}.weight", eps

    def forward(self, x: Floats) -> Floats:
        """[..., width] -> [..., width]"""
        self.inverse_rms = 1.0 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + self.eps)
        self.normed = x * self.inverse_rms
        y: Floats = self.normed * self.parameters.weights[self.weight_name]
        return y

    def backward(self, grad_y: Floats) -> Floats:
        """[..., width] -> [..., width]"""
        self.parameters.grads[self.weight_name] += sum_of_rows(grad_y * self.normed)
        grad_normed = grad_y * self.parameters.weights[self.weight_name]
        # Stretching x leaves y as it is: the part of the gradient along x is taken out.
        projection = (grad_normed * self.normed).mean(axis=-1, keepdims=True)
        grad_x: Floats = self.inverse_rms * (grad_normed - self.normed * projection)
        return grad_x


def norm(parameters: Parameters, name: str, spec: GPTSpec) -> LayerNorm | RMSNorm:
    if spec.norm == "rmsnorm":
        return RMSNorm(parameters, name, spec.norm_eps)
    return LayerNorm(parameters, name, spec.norm_eps, spec.bias)


def sum_of_rows(x: Floats) -> Floats:
    """[..., width] -> [width]: over everything but the last axis."""
    rows: Floats = x.reshape(-1, x.shape[-1]).sum(axis=0)
    return rows


@dataclass(slots=True)
class Masks:
    """What drops out of a batch, after core.dropout. keys: [B, ...], those of the whole model or of one layer."""

    spec: GPTSpec
    keys: NDArray[np.uint32]

    def layer(self, index: int) -> Masks:
        return Masks(self.spec, self.keys[:, of_layer(self.spec.n_head, index)])

    def keep(self, keys: NDArray[np.uint32], rows: int, columns: int) -> NDArray[np.bool_]:
        """Keys [...] -> [..., rows, columns]"""
        numbers = table(self.spec)[: rows * columns].reshape(rows, columns)
        products: NDArray[np.uint32] = numbers * keys[..., None, None]
        return products >= np.uint32(threshold(self.spec.dropout))


class Dropout:
    """Sets each value to zero with a probability, and scales up the others so that the mean stays (arXiv 1207.0580).

    columns: which of the keys are this one's.
    """

    def __init__(self, probability: float, columns: int | slice) -> None:
        self.probability, self.columns = probability, columns

    def forward(self, x: Floats, masks: Masks | None) -> Floats:
        """[..., n, m] -> [..., n, m]. Without masks nothing is dropped."""
        self.mask: Floats | None = None
        if masks is None:
            return x
        keep = masks.keep(masks.keys[:, self.columns], *x.shape[-2:])
        self.mask = keep * np.float32(1.0 / (1.0 - self.probability))
        return x * self.mask

    def backward(self, grad_y: Floats) -> Floats:
        return grad_y if self.mask is None else grad_y * self.mask


class Attention:
    """Causal self-attention: softmax(q k^T / sqrt(D)) v for every head (Vaswani et al., arXiv 1706.03762)."""

    def __init__(self, parameters: Parameters, name: str, spec: GPTSpec) -> None:
        self.n_head, self.kv_heads, self.head_dim = spec.n_head, spec.kv_heads, spec.head_dim
        self.scale = np.float32(1.0 / math.sqrt(spec.head_dim))
        self.qkv = Linear(parameters, f"{name}.qkv", spec.bias)
        self.q_norm = RMSNorm(parameters, f"{name}.q_norm", spec.norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(parameters, f"{name}.k_norm", spec.norm_eps) if spec.qk_norm else None
        self.proj = Linear(parameters, f"{name}.proj", spec.bias)
        self.probability_drop = Dropout(spec.dropout, slice(spec.n_head))
        self.drop = Dropout(spec.dropout, -2)

    def forward(self, x: Floats, rope: Rope | None, cache: LayerCache | None, masks: Masks | None) -> Floats:
        """[B, T, C] -> [B, T, C]"""
        B, T, _ = x.shape
        self.rope = rope
        q, k, v = self._split_into_heads(self.qkv.forward(x))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm.forward(q), self.k_norm.forward(k)
        q, k = turn(q, rope), turn(k, rope)
        # A query may look at its own token and at those before it, or it would see the token it is to foretell.
        allowed: Array = np.tri(T, dtype=np.bool_)
        if cache is not None:
            k, v, mask = cache.update(k, v)
            allowed = allowed if mask is None else mask
        y = self._attend(q, self._shared(k), self._shared(v), allowed, masks)
        return self.drop.forward(self.proj.forward(y.swapaxes(1, 2).reshape(B, T, -1)), masks)

    def _attend(self, q: Floats, k: Floats, v: Floats, allowed: Array, masks: Masks | None) -> Floats:
        """q [B, H, T, D], k and v [B, H, S, D] -> [B, H, T, D]"""
        scores = (q @ k.swapaxes(2, 3)) * self.scale
        self.q, self.k, self.v = q, k, v
        self.probabilities = softmax(np.where(allowed, scores, np.float32(-np.inf)))
        self.dropped = self.probability_drop.forward(self.probabilities, masks)
        return self.dropped @ v

    def backward(self, grad_y: Floats) -> Floats:
        """[B, T, C] -> [B, T, C]"""
        B, T, _ = grad_y.shape
        grad_heads = self.proj.backward(self.drop.backward(grad_y)).reshape(B, T, self.n_head, -1).swapaxes(1, 2)
        grad_q, grad_k, grad_v = self._attend_backward(grad_heads)
        grad_k, grad_v = self._summed_over_sharers(grad_k), self._summed_over_sharers(grad_v)
        grad_q, grad_k = turn_back(grad_q, self.rope), turn_back(grad_k, self.rope)
        if self.q_norm is not None and self.k_norm is not None:
            grad_q, grad_k = self.q_norm.backward(grad_q), self.k_norm.backward(grad_k)
        grad_heads = np.concatenate((grad_q, grad_k, grad_v), axis=1)
        return self.qkv.backward(grad_heads.swapaxes(1, 2).reshape(B, T, -1))

    def _attend_backward(self, grad_y: Floats) -> tuple[Floats, Floats, Floats]:
        """[B, H, T, D] -> gradients of q, k and v, each [B, H, T, D]"""
        grad_v = self.dropped.swapaxes(2, 3) @ grad_y
        grad_p = self.probability_drop.backward(grad_y @ self.v.swapaxes(2, 3))
        # The probabilities of a row sum to one, so that raising one score lowers all the others' probabilities:
        # d p_i / d s_j = p_i (1[i = j] - p_j). A score that was masked has p = 0 and so gets no gradient.
        p = self.probabilities
        grad_scores = p * (grad_p - (grad_p * p).sum(axis=-1, keepdims=True)) * self.scale
        return grad_scores @ self.k, grad_scores.swapaxes(2, 3) @ self.q, grad_v

    def _split_into_heads(self, qkv: Floats) -> tuple[Floats, Floats, Floats]:
        """[B, T, (H + 2 G) D] -> q [B, H, T, D], k and v [B, G, T, D]"""
        B, T, _ = qkv.shape
        heads = qkv.reshape(B, T, -1, self.head_dim).swapaxes(1, 2)
        q, k, v = np.split(heads, [self.n_head, self.n_head + self.kv_heads], axis=1)
        return q, k, v

    def _shared(self, x: Floats) -> Floats:
        """[B, G, S, D] -> [B, H, S, D]: each head of keys or values once for every query head that shares it."""
        return x if self.kv_heads == self.n_head else np.repeat(x, self.n_head // self.kv_heads, axis=1)

    def _summed_over_sharers(self, grad: Floats) -> Floats:
        """[B, H, T, D] -> [B, G, T, D]: what was used several times gets the sum of the gradients of its uses."""
        B, _, T, D = grad.shape
        summed: Floats = grad.reshape(B, self.kv_heads, -1, T, D).sum(axis=2)
        return summed


def softmax(scores: Floats) -> Floats:
    """Over the last axis. The largest is taken off first, which changes nothing but keeps exp from overflowing."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities: Floats = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


class MLP:
    """Two linear layers with an activation between them, or three where the activation is gated."""

    def __init__(self, parameters: Parameters, name: str, spec: GPTSpec) -> None:
        self.activation = spec.activation
        self.fc = Linear(parameters, f"{name}.fc", spec.bias)
        self.gate = Linear(parameters, f"{name}.gate", spec.bias) if spec.gated else None
        self.proj = Linear(parameters, f"{name}.proj", spec.bias)
        self.drop = Dropout(spec.dropout, -1)

    def forward(self, x: Floats, masks: Masks | None) -> Floats:
        """[B, T, C] -> [B, T, C]"""
        self.up = self.fc.forward(x)
        if self.gate is None:
            hidden, self.slope = activate(self.activation, self.up)
        else:
            self.gating, self.slope = silu(self.gate.forward(x))
            hidden = self.gating * self.up
        return self.drop.forward(self.proj.forward(hidden), masks)

    def backward(self, grad_y: Floats) -> Floats:
        """[B, T, C] -> [B, T, C]"""
        grad_hidden = self.proj.backward(self.drop.backward(grad_y))
        if self.gate is None:
            return self.fc.backward(grad_hidden * self.slope)
        # By the product rule, and both paths lead back to the same x: their gradients add.
        return self.fc.backward(grad_hidden * self.gating) + self.gate.backward(grad_hidden * self.up * self.slope)


def activate(name: str, x: Floats) -> tuple[Floats, Floats]:
    """(activation, its derivative) of every value, both in the shape of x."""
    if name == "relu2":
        positive = np.maximum(x, np.float32(0.0))
        return positive * positive, np.float32(2.0) * positive
    return gelu_tanh(x) if name == "gelu_tanh" else gelu(x)


def gelu(x: Floats) -> tuple[Floats, Floats]:
    """x Phi(x) and its derivative Phi(x) + x phi(x), Phi being the normal distribution (arXiv 1606.08415)."""
    wide = x.astype(np.float64)
    below = 0.5 * (1.0 + erf(wide / math.sqrt(2.0)))
    density = np.exp(-0.5 * wide * wide) / math.sqrt(2.0 * math.pi)
    return (wide * below).astype(np.float32), (below + wide * density).astype(np.float32)


def gelu_tanh(x: Floats) -> tuple[Floats, Floats]:
    """GPT-2's 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) and its derivative (arXiv 1606.08415)."""
    c = math.sqrt(2.0 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x * x * x))
    slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3 * 0.044715 * x * x)
    return (0.5 * x * (1.0 + t)).astype(np.float32), slope.astype(np.float32)


def silu(x: Floats) -> tuple[Floats, Floats]:
    """x sigmoid(x) and its derivative; the sigmoid by tanh, which cannot overflow."""
    sigmoid = 0.5 * (1.0 + np.tanh(0.5 * x))
    return (x * sigmoid).astype(np.float32), (sigmoid * (1.0 + x * (1.0 - sigmoid))).astype(np.float32)


# NumPy has no error function. From 6 on it is 1 in float64.
_ERF_STEP = 1.0 / 256
_ERF_LIMIT = 6.0
_ERF_POINTS = np.arange(-_ERF_LIMIT, _ERF_LIMIT + _ERF_STEP / 2, _ERF_STEP)
_ERF_VALUES = np.array([math.erf(point) for point in _ERF_POINTS])


def erf(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The error function, within 1e-11: math.erf at the nearest of many points, and Taylor's cubic from there.

    With erf'(p) = s: erf''(p) = -2 p s and erf'''(p) = (4 p^2 - 2) s (Abramowitz and Stegun, 7.1.19).
    """
    x = np.clip(x, -_ERF_LIMIT, _ERF_LIMIT)
    # A NaN has no nearest point; it stays one through the distance d.
    nearest = np.rint((np.nan_to_num(x) + _ERF_LIMIT) / _ERF_STEP).astype(np.int64)
    p = _ERF_POINTS[nearest]
    s = 2.0 / math.sqrt(math.pi) * np.exp(-p * p)
    d = x - p
    value: NDArray[np.float64] = _ERF_VALUES[nearest] + s * d * (1.0 - p * d + (4.0 * p * p - 2.0) / 6.0 * d * d)
    return value


class Block:
    """x + attention(norm(x)), then x + mlp(norm(x)): both write into the residual stream x."""

    def __init__(self, parameters: Parameters, name: str, spec: GPTSpec) -> None:
        self.ln1 = norm(parameters, f"{name}.ln1", spec)
        self.attn = Attention(parameters, f"{name}.attn", spec)
        self.ln2 = norm(parameters, f"{name}.ln2", spec)
        self.mlp = MLP(parameters, f"{name}.mlp", spec)

    def forward(self, x: Floats, rope: Rope | None, cache: LayerCache | None, masks: Masks | None) -> Floats:
        """[B, T, C] -> [B, T, C]"""
        x = x + self.attn.forward(self.ln1.forward(x), rope, cache, masks)
        return x + self.mlp.forward(self.ln2.forward(x), masks)

    def backward(self, grad_x: Floats) -> Floats:
        """[B, T, C] -> [B, T, C]. A sum hands its gradient on to both of its terms, whole."""
        grad_x = grad_x + self.ln2.backward(self.mlp.backward(grad_x))
        return grad_x + self.ln1.backward(self.attn.backward(grad_x))


class GPT:
    """Decoder-only transformer after the spec. Weights come from outside (core.init or a checkpoint)."""

    def __init__(self, spec: GPTSpec, parameters: Parameters) -> None:
        self.parameters = parameters
        self.learned_positions = spec.position == "learned"
        self.rope = Rope(*rope_table(spec)) if spec.position == "rope" else None
        self.drop = Dropout(spec.dropout, 0)
        self.blocks = [Block(parameters, f"blocks.{i}", spec) for i in range(spec.n_layer)]
        self.ln_f = norm(parameters, "ln_f", spec)
        self.head_name = TOKEN_EMBEDDING if spec.tie_embeddings else HEAD

    def forward(self, tokens: Array, view: CacheView | None = None, masks: Masks | None = None) -> Floats:
        """Token ids [B, T] -> hidden states [B, T, C], ready for the head. masks: what drops out."""
        positions = np.arange(tokens.shape[1]) if view is None else view.positions
        self.tokens = tokens
        x = self.parameters.weights[TOKEN_EMBEDDING][tokens]
        if self.learned_positions:
            x = x + self.parameters.weights[POSITION_EMBEDDING][positions]
        x = self.drop.forward(x, masks)
        rope = None if self.rope is None else self.rope.at(positions)
        for layer, block in enumerate(self.blocks):
            own = None if masks is None else masks.layer(layer)
            x = block.forward(x, rope, None if view is None else view.layer(layer), own)
        return self.ln_f.forward(x)

    def backward(self, grad_hidden: Floats) -> None:
        """From the gradient of the hidden states [B, T, C] to those of all parameters but the head."""
        grads = self.parameters.grads
        grad_x = self.ln_f.backward(grad_hidden)
        for block in reversed(self.blocks):
            grad_x = block.backward(grad_x)
        grad_x = self.drop.backward(grad_x)
        # Looking up a row is a product with a one-hot vector: its gradient goes to that row alone, and a token that
        # comes several times gets the sum. `grads[...][tokens] += grad_x` would keep only one of them.
        np.add.at(grads[TOKEN_EMBEDDING], self.tokens, grad_x)
        if self.learned_positions:
            grads[POSITION_EMBEDDING][: grad_x.shape[1]] += grad_x.sum(axis=0)

    @property
    def head_weight(self) -> Floats:
        """[V, C]"""
        return self.parameters.weights[self.head_name]

    def logits(self, hidden: Floats) -> Floats:
        """Hidden states [..., C] -> logits [..., V]."""
        return hidden @ self.head_weight.T


@dataclass(slots=True)
class Rope:
    """Cosines and sines of core.rope, [block_size, D / 2], or [..., 1, T, D / 2] of some positions."""

    cosines: Floats
    sines: Floats

    def at(self, positions: Array) -> Rope:
        return Rope(np.expand_dims(self.cosines[positions], -3), np.expand_dims(self.sines[positions], -3))


def turn(x: Floats, rope: Rope | None) -> Floats:
    """Queries or keys [B, heads, T, D], each pair (i, i + D / 2) turned by its position (arXiv 2104.09864)."""
    if rope is None:
        return x
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * rope.cosines - b * rope.sines, b * rope.cosines + a * rope.sines), axis=-1)


def turn_back(grad: Floats, rope: Rope | None) -> Floats:
    """The backward pass of `turn`. A rotation's transpose is its inverse: the same turn by the negative angle."""
    return grad if rope is None else turn(grad, Rope(rope.cosines, -rope.sines))


class KVCache:
    """Keys and values of `slots` sequences, preallocated: [n_layer, slots, G, capacity, D] each.

    Past tokens' keys and values never change, as no token sees later ones: kept, they need not be computed again.
    """

    def __init__(self, spec: GPTSpec, slots: int, capacity: int) -> None:
        shape = (spec.n_layer, slots, spec.kv_heads, capacity, spec.head_dim)
        self.k = np.zeros(shape, dtype=np.float32)
        self.v = np.zeros(shape, dtype=np.float32)
        self.lengths = [0] * slots
        self.capacity = capacity


@dataclass(slots=True)
class CacheView:
    """One forward pass over a cache: where each token goes, and what each may attend to.

    positions: int32 [n, T] of the tokens; slots: int64 [n].
    mask: None for a causal pass over an empty slot, else bool [n, 1, T, span] over the first `span` cached tokens.
    """

    cache: KVCache
    slots: Array
    positions: Array
    span: int
    mask: Array | None

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, self.cache.k[index], self.cache.v[index])


@dataclass(slots=True)
class LayerCache:
    view: CacheView
    k: Floats
    v: Floats

    def update(self, k: Floats, v: Floats) -> tuple[Floats, Floats, Array | None]:
        """Store new keys and values [n, G, T, D]; returns what to attend to, and the mask."""
        view = self.view
        places = view.slots[:, None]
        self.k[places, :, view.positions] = k.swapaxes(1, 2)
        self.v[places, :, view.positions] = v.swapaxes(1, 2)
        if view.mask is None:
            return k, v, None
        return self.k[view.slots, :, : view.span], self.v[view.slots, :, : view.span], view.mask
