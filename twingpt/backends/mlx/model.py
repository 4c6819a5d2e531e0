"""The GPT in MLX. Module names give the canonical parameter names of twingpt.core.params."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from twingpt.core.spec import GPTSpec

Keys = Iterator[mx.array] | None
"""One random key for every place that drops out, in the order of the forward pass; None = no dropout."""

SITES = 3
"""Places in a block that drop out."""


class CausalSelfAttention(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype) -> None:
        super().__init__()
        self.n_head = spec.n_head
        self.head_dim = spec.head_dim
        self.dropout = spec.dropout
        self.qkv = Linear(spec.n_embd, 3 * spec.n_embd, spec.bias, dtype)
        self.proj = Linear(spec.n_embd, spec.n_embd, spec.bias, dtype)

    def __call__(self, x: mx.array, cache: LayerCache | None, keys: Keys) -> mx.array:
        B, T, C = x.shape
        q, k, v = (
            part.reshape(B, T, self.n_head, self.head_dim).swapaxes(1, 2) for part in mx.split(self.qkv(x), 3, axis=-1)
        )
        mask = None
        if cache is not None:
            k, v, mask = cache.update(k, v)
        scale = self.head_dim**-0.5
        if keys is None:
            y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal" if mask is None else mask)
        else:
            causal = mx.tri(T, dtype=mx.bool_)
            scores = mx.where(causal, (q * scale) @ k.swapaxes(2, 3), mx.finfo(q.dtype).min)
            y = drop(mx.softmax(scores, axis=-1, precise=True), self.dropout, keys) @ v
        return drop(self.proj(y.swapaxes(1, 2).reshape(B, T, C)), self.dropout, keys)


class MLP(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype) -> None:
        super().__init__()
        hidden = spec.mlp_ratio * spec.n_embd
        self.dropout = spec.dropout
        self.activation = nn.gelu_approx if spec.activation == "gelu_tanh" else nn.gelu
        self.fc = Linear(spec.n_embd, hidden, spec.bias, dtype)
        self.proj = Linear(hidden, spec.n_embd, spec.bias, dtype)

    def __call__(self, x: mx.array, keys: Keys) -> mx.array:
        return drop(self.proj(self.activation(self.fc(x))), self.dropout, keys)


class Block(nn.Module):
    def __init__(self, spec: GPTSpec, dtype: mx.Dtype) -> None:
        super().__init__()
        self.ln1 = norm(spec)
        self.attn = CausalSelfAttention(spec, dtype)
        self.ln2 = norm(spec)
        self.mlp = MLP(spec, dtype)

    def __call__(self, x: mx.array, cache: LayerCache | None, site_keys: mx.array | None) -> mx.array:
        """site_keys: [SITES, 2]. An array, as an iterator would be used up when a block is computed once more."""
        # Recomputing differentiates by every argument, and random bits have no gradient.
        keys = None if site_keys is None else iter(mx.stop_gradient(site_keys))
        x = x + self.attn(self.ln1(x), cache, keys)
        return x + self.mlp(self.ln2(x), keys)


class GPT(nn.Module):
    """Decoder-only transformer after the spec. Weights come from outside (core.init or a checkpoint).

    dtype: of the matrix products; the residual stream and the norms stay float32.
    activation_checkpointing: in training, keep each block's input only and compute the block again for its gradient.
    """

    def __init__(self, spec: GPTSpec, dtype: mx.Dtype, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.dropout = spec.dropout
        self.dtype = dtype
        self.tok_emb = nn.Embedding(spec.vocab_size, spec.n_embd)
        self.pos_emb = nn.Embedding(spec.block_size, spec.n_embd)
        self.blocks = [Block(spec, dtype) for _ in range(spec.n_layer)]
        self.ln_f = norm(spec)
        if not spec.tie_embeddings:
            self.head = Linear(spec.n_embd, spec.vocab_size, False, dtype)
        self.tied = spec.tie_embeddings

    def __call__(self, tokens: mx.array, view: CacheView | None = None, key: mx.array | None = None) -> mx.array:
        """Token ids [B, T] -> hidden states [B, T, n_embd], ready for the head. Dropout only with a key."""
        keys = None
        if key is not None and self.dropout > 0.0:
            keys = mx.random.split(key, 1 + SITES * len(self.blocks))
        positions = mx.arange(tokens.shape[1]) if view is None else view.positions
        x = drop(self.tok_emb(tokens) + self.pos_emb(positions), self.dropout, None if keys is None else iter(keys[:1]))
        for layer, block in enumerate(self.blocks):
            block_keys = None if keys is None else keys[1 + SITES * layer : 1 + SITES * (layer + 1)]
            if self.activation_checkpointing and view is None:
                x = nn.utils.checkpoint(block)(x, None, block_keys)
            else:
                x = block(x, None if view is None else view.layer(layer), block_keys)
        return self.ln_f(x)

    @property
    def head_weight(self) -> mx.array:
        """[vocab_size, n_embd]"""
        return self.tok_emb.weight if self.tied else self.head.weight

    def logits(self, hidden: mx.array) -> mx.array:
        """Hidden states [..., n_embd] -> float32 logits [..., vocab_size]."""
        return (hidden.astype(self.dtype) @ self.head_weight.astype(self.dtype).T).astype(mx.float32)


def norm(spec: GPTSpec) -> nn.Module:
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


def drop(x: mx.array, probability: float, keys: Keys) -> mx.array:
    if keys is None:
        return x
    keep = mx.random.bernoulli(1.0 - probability, x.shape, key=next(keys))
    return mx.where(keep, x * (1.0 / (1.0 - probability)), 0.0)


class KVCache:
    """Keys and values of `slots` sequences, preallocated: [slots, n_head, capacity, head_dim] a layer, each."""

    def __init__(self, spec: GPTSpec, slots: int, capacity: int, dtype: mx.Dtype):
        shape = (slots, spec.n_head, capacity, spec.head_dim)
        self.k = [mx.zeros(shape, dtype=dtype) for _ in range(spec.n_layer)]
        self.v = [mx.zeros(shape, dtype=dtype) for _ in range(spec.n_layer)]
        self.lengths = [0] * slots
        self.capacity = capacity


@dataclass(slots=True)
class CacheView:
    """One forward pass over a cache: where each token goes, and what each may attend to.

    positions: int32 [n, T] of the tokens; slots: int32 [n].
    mask: None for a causal pass over an empty slot, else bool [n, 1, T, span] over the first `span` cached tokens.
    """

    cache: KVCache
    slots: mx.array
    positions: mx.array
    span: int
    mask: mx.array | None

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, index)


@dataclass(slots=True)
class LayerCache:
    view: CacheView
    index: int

    def update(self, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array, mx.array | None]:
        """Store new keys and values [n, n_head, T, head_dim]; returns what to attend to, and the mask."""
        view, cached_k, cached_v = self.view, self.view.cache.k, self.view.cache.v
        rows, i = view.slots[:, None], self.index
        # Assigned into the list's own arrays, whose only owner it is, so that MLX can write in place.
        cached_k[i][rows, :, view.positions] = k.swapaxes(1, 2).astype(cached_k[i].dtype)
        cached_v[i][rows, :, view.positions] = v.swapaxes(1, 2).astype(cached_v[i].dtype)
        if view.mask is None:
            return k, v, None
        k_all = cached_k[i][view.slots, :, : view.span].astype(k.dtype)
        return k_all, cached_v[i][view.slots, :, : view.span].astype(v.dtype), view.mask
