"""The GPT in MLX. Module names give the canonical parameter names of twingpt.core.params."""

from __future__ import annotations

from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn

from twingpt.backends.mlx.ops import PLAIN_OPS, Ops
from twingpt.core.dropout import of_layer, threshold
from twingpt.core.rope import rope_table
from twingpt.core.spec import GPTSpec


class CausalSelfAttention(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.n_head, self.kv_heads, self.head_dim = spec.n_head, spec.kv_heads, spec.head_dim
        self.qkv = Linear(spec.n_embd, (spec.n_head + 2 * spec.kv_heads) * spec.head_dim, spec.bias, dtype)
        if spec.qk_norm:
            self.q_norm = nn.RMSNorm(spec.head_dim, spec.norm_eps)
            self.k_norm = nn.RMSNorm(spec.head_dim, spec.norm_eps)
        self.proj = Linear(spec.n_head * spec.head_dim, spec.n_embd, spec.bias, dtype)

    def __call__(self, x: mx.array, rope: Rope | None, cache: LayerCache | None, drop: Drop | None) -> mx.array:
        B, T, _ = x.shape
        heads = self.qkv(x).reshape(B, T, -1, self.head_dim).swapaxes(1, 2)
        q, k, v = mx.split(heads, [self.n_head, self.n_head + self.kv_heads], axis=1)
        if "q_norm" in self:
            q, k = self.q_norm(q.astype(mx.float32)), self.k_norm(k.astype(mx.float32))
        q, k = turn(q, rope).astype(v.dtype), turn(k, rope).astype(v.dtype)
        mask = None
        if cache is not None:
            k, v, mask = cache.update(k, v)
        scale = self.head_dim**-0.5
        if drop is None:
            y = self.ops.attention(q, k, v, scale, mask)
        else:
            if self.kv_heads != self.n_head:
                k, v = (mx.repeat(part, self.n_head // self.kv_heads, axis=1) for part in (k, v))
            y = drop.probabilities(self.ops.causal_softmax((q * scale) @ k.swapaxes(2, 3))) @ v
        y = self.proj(y.swapaxes(1, 2).reshape(B, T, -1))
        return y if drop is None else drop.attention(y)


class MLP(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.activation = spec.activation
        self.fc = Linear(spec.n_embd, spec.hidden, spec.bias, dtype)
        if spec.gated:
            self.gate = Linear(spec.n_embd, spec.hidden, spec.bias, dtype)
        self.proj = Linear(spec.hidden, spec.n_embd, spec.bias, dtype)

    def __call__(self, x: mx.array, drop: Drop | None) -> mx.array:
        y = self.proj(self.hidden(x))
        return y if drop is None else drop.mlp(y)

    def hidden(self, x: mx.array) -> mx.array:
        if self.activation == "swiglu":
            return self.ops.silu(self.gate(x)) * self.fc(x)
        if self.activation == "relu2":
            return nn.relu2(self.fc(x))
        if self.activation == "gelu_tanh":
            return self.ops.gelu_tanh(self.fc(x))
        return self.ops.gelu(self.fc(x))


class Block(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype, ops: Ops) -> None:
        super().__init__()
        self.ln1 = norm(spec)
        self.attn = CausalSelfAttention(spec, dtype, ops)
        self.ln2 = norm(spec)
        self.mlp = MLP(spec, dtype, ops)

    def __call__(self, x: mx.array, rope: Rope | None, cache: LayerCache | None, drop: Drop | None) -> mx.array:
        x = x + self.attn(self.ln1(x), rope, cache, drop)
        return x + self.mlp(self.ln2(x), drop)


class GPT(nn.Module):
    """Decoder-only transformer after the spec. Weights come from outside (core.init or a checkpoint).

    dtype: of the matrix products; the residual stream and the norms stay float32.
    activation_checkpointing: in training, keep each block's input only and compute the block again for its gradient.
    ops: what it computes with, as `choose_ops` gives it for the device.
    """

    def __init__(
        self, spec: GPTSpec, dtype: mx.Dtype, activation_checkpointing: bool = False, ops: Ops = PLAIN_OPS
    ) -> None:
        super().__init__()
        self.ops = ops
        self.activation_checkpointing = activation_checkpointing
        self.dtype = dtype
        self.tok_emb = nn.Embedding(spec.vocab_size, spec.n_embd)
        if spec.position == "learned":
            self.pos_emb = nn.Embedding(spec.block_size, spec.n_embd)
        self.blocks = [Block(spec, dtype, ops) for _ in range(spec.n_layer)]
        self.ln_f = norm(spec)
        if not spec.tie_embeddings:
            self.head = Linear(spec.n_embd, spec.vocab_size, False, dtype)
        self.tied = spec.tie_embeddings
        # The underscore keeps it out of the parameters: no checkpoint needs it.
        self._rope = Rope(*map(mx.array, rope_table(spec))) if spec.position == "rope" else None

    def __call__(self, tokens: mx.array, view: CacheView | None = None, drop: Drop | None = None) -> mx.array:
        """Token ids [B, T] -> hidden states [B, T, n_embd], ready for the head. Dropout only with `drop`."""
        positions = mx.arange(tokens.shape[1]) if view is None else view.positions
        x = self.tok_emb(tokens)
        if self._rope is None:
            x = x + self.pos_emb(positions)
        x = x if drop is None else drop.embedding(x)
        rope = None if self._rope is None else self._rope.at(positions)
        for layer, block in enumerate(self.blocks):
            own = None if drop is None else drop.layer(layer)
            if self.activation_checkpointing and view is None:
                x = recomputed(block, x, rope, own)
            else:
                x = block(x, rope, None if view is None else view.layer(layer), own)
        return self.ln_f(x)

    @property
    def head_weight(self) -> mx.array:
        """[vocab_size, n_embd]"""
        return self.tok_emb.weight if self.tied else self.head.weight

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states [..., n_embd] -> float32 logits [..., vocab_size]."""
        return (hidden.astype(self.dtype) @ self.head_weight.astype(self.dtype).T).astype(mx.float32)


def recomputed(block: Block, x: mx.array, rope: Rope | None, drop: Drop | None) -> mx.array:
    """block(x, rope, None, drop), of which the backward pass computes everything again."""

    def run(x: mx.array) -> mx.array:
        return block(x, rope, None, drop)

    y: mx.array = nn.utils.checkpoint(block, run)(x)
    return y


def norm(spec: GPTSpec) -> nn.Module:
    if spec.norm == "rmsnorm":
        return nn.RMSNorm(spec.n_embd, spec.norm_eps)
    return nn.LayerNorm(spec.n_embd, eps=spec.norm_eps, bias=spec.bias)


class Linear(nn.Linear):
    """A linear layer that computes in `dtype` whatever its weights are kept in, as autocast does in PyTorch."""

    def __init__(self, n_in: int, n_out: int, bias: bool, dtype: mx.Dtype) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.dtype = dtype

    def __call__(self, x: mx.array) -> mx.array:
        x, weight = x.astype(self.dtype), self.weight.astype(self.dtype)
        if "bias" in self:
            return mx.addmm(self.bias.astype(self.dtype), x, weight.T)
        return x @ weight.T


@dataclass(slots=True)
class Rope:
    """Cosines and sines of core.rope, [block_size, head_dim / 2], or [..., 1, T, head_dim / 2] of some positions."""

    cosines: mx.array
    sines: mx.array

    def at(self, positions: mx.array) -> Rope:
        return Rope(mx.expand_dims(self.cosines[positions], -3), mx.expand_dims(self.sines[positions], -3))


def turn(x: mx.array, rope: Rope | None) -> mx.array:
    """Queries or keys [B, heads, T, head_dim], turned by their position; in float32."""
    if rope is None:
        return x
    a, b = mx.split(x.astype(mx.float32), 2, axis=-1)
    return mx.concatenate([a * rope.cosines - b * rope.sines, b * rope.cosines + a * rope.sines], axis=-1)


@dataclass(slots=True)
class Drop:
    """What drops out of a batch, after core.dropout.

    table: uint32 [n]; keys: uint32 [B, ...], those of the whole model or of one layer.
    """

    probability: float
    n_head: int
    table: mx.array
    keys: mx.array

    def layer(self, index: int) -> Drop:
        return replace(self, keys=self.keys[:, of_layer(self.n_head, index)])

    def embedding(self, x: mx.array) -> mx.array:
        """[B, T, n_embd]; with the keys of the whole model."""
        return self._dropped(x, self.keys[:, 0])

    def probabilities(self, x: mx.array) -> mx.array:
        """[B, n_head, T, T]; with the keys of a layer, as the two below."""
        return self._dropped(x, self.keys[:, : self.n_head])

    def attention(self, x: mx.array) -> mx.array:
        """[B, T, n_embd]"""
        return self._dropped(x, self.keys[:, -2])

    def mlp(self, x: mx.array) -> mx.array:
        """[B, T, n_embd]"""
        return self._dropped(x, self.keys[:, -1])

    def _dropped(self, x: mx.array, keys: mx.array) -> mx.array:
        rows, columns = x.shape[-2:]
        products = self.table[: rows * columns].reshape(rows, columns) * keys[..., None, None]
        keep = products >= mx.array(threshold(self.probability), dtype=mx.uint32)
        return mx.where(keep, x * (1.0 / (1.0 - self.probability)), 0.0)


class KVCache:
    """Keys and values of `slots` sequences, preallocated: [slots, kv_heads, capacity, head_dim] a layer, each."""

    def __init__(self, spec: GPTSpec, slots: int, capacity: int, dtype: mx.Dtype):
        shape = (slots, spec.kv_heads, capacity, spec.head_dim)
        self.k = [mx.zeros(shape, dtype=dtype) for _ in range(spec.n_layer)]
        self.v = [mx.zeros(shape, dtype=dtype) for _ in range(spec.n_layer)]
        self.lengths = [0] * slots
        self.capacity = capacity


@dataclass(slots=True)
class CacheView:
    """One forward pass over a cache: where each token goes, and what each may attend to.

    k, v: the cache's own lists.
    positions: int32 [n, T] of the tokens; slots: int32 [n].
    mask: None for a causal pass over an empty slot, else bool [n, 1, T, span] over the first `span` cached tokens.
    run: the slots as a slice, if they are one, so that the cache is read where it lies.
    """

    k: list[mx.array]
    v: list[mx.array]
    slots: mx.array
    positions: mx.array
    span: int
    mask: mx.array | None
    run: slice | None

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, index)


@dataclass(slots=True)
class LayerCache:
    view: CacheView
    index: int

    def update(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array | None]:
        """Store new keys and values [n, kv_heads, T, head_dim]; returns what to attend to, and the mask."""
        view, cached_k, cached_v = self.view, self.view.k, self.view.v
        places, i = view.slots[:, None], self.index
        # Assigned into the list's own arrays, whose only owner it is, so that MLX can write in place.
        cached_k[i][places, :, view.positions] = k.swapaxes(1, 2).astype(cached_k[i].dtype)
        cached_v[i][places, :, view.positions] = v.swapaxes(1, 2).astype(cached_v[i].dtype)
        if view.mask is None:
            return k, v, None
        rows = view.slots if view.run is None else view.run
        k, v = (cached[i][rows, :, : view.span].astype(k.dtype) for cached in (cached_k, cached_v))
        return k, v, view.mask
