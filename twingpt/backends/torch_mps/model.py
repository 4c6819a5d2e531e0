"""The GPT in PyTorch. Module names give the canonical parameter names of twingpt.core.params."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twingpt.backends.torch_mps.ops import PLAIN_OPS, Ops
from twingpt.core.dropout import of_layer, threshold
from twingpt.core.rope import rope_table
from twingpt.core.spec import GPTSpec


class CausalSelfAttention(nn.Module):
    def __init__(self, spec: GPTSpec, ops: Ops) -> None:
        super().__init__()
        self.n_head, self.kv_heads, self.head_dim = spec.n_head, spec.kv_heads, spec.head_dim
        self.widths = [heads * spec.head_dim for heads in (spec.n_head, spec.kv_heads, spec.kv_heads)]
        self.qkv = Linear(spec.n_embd, sum(self.widths), spec.bias, ops)
        self.q_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(spec.head_dim, spec.norm_eps) if spec.qk_norm else nn.Identity()
        self.proj = Linear(self.widths[0], spec.n_embd, spec.bias, ops)
        self.explicit_mask = False

    def forward(self, x: Tensor, rope: Rope | None, cache: LayerCache | None, drop: Drop | None) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (part.view(B, T, -1, self.head_dim).transpose(1, 2) for part in self.qkv(x).split(self.widths, dim=2))
        q, k = turn(self.q_norm(q), rope).to(v.dtype), turn(self.k_norm(k), rope).to(v.dtype)
        mask = None
        if cache is not None:
            k, v, mask = cache.update(k, v)
        if self.kv_heads != self.n_head:
            k, v = (repeated(part, self.n_head // self.kv_heads) for part in (k, v))
        if drop is not None:
            # torch's own dropout takes no key, let alone one for each sequence.
            y = drop.probabilities(causal_softmax(q * self.head_dim**-0.5 @ k.mT).to(v.dtype)) @ v
        else:
            if mask is None and self.explicit_mask:
                mask = causal_mask(T, x.device)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        y = self.proj(y.transpose(1, 2).reshape(B, T, -1))
        return y if drop is None else drop.attention(y)


class MLP(nn.Module):
    def __init__(self, spec: GPTSpec, ops: Ops) -> None:
        super().__init__()
        self.activation = spec.activation
        self.fc = Linear(spec.n_embd, spec.hidden, spec.bias, ops)
        if spec.gated:
            self.gate = Linear(spec.n_embd, spec.hidden, spec.bias, ops)
        self.proj = Linear(spec.hidden, spec.n_embd, spec.bias, ops)

    def forward(self, x: Tensor, drop: Drop | None) -> Tensor:
        y = self.proj(self.hidden(x))
        return y if drop is None else drop.mlp(y)

    def hidden(self, x: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return F.silu(self.gate(x)) * self.fc(x)
        if self.activation == "relu2":
            return F.relu(self.fc(x)).square()
        return F.gelu(self.fc(x), approximate="tanh" if self.activation == "gelu_tanh" else "none")


class Block(nn.Module):
    def __init__(self, spec: GPTSpec, ops: Ops) -> None:
        super().__init__()
        self.ln1 = norm(spec)
        self.attn = CausalSelfAttention(spec, ops)
        self.ln2 = norm(spec)
        self.mlp = MLP(spec, ops)

    def forward(self, x: Tensor, rope: Rope | None, cache: LayerCache | None, drop: Drop | None) -> Tensor:
        x = x + self.attn(self.ln1(x), rope, cache, drop)
        return x + self.mlp(self.ln2(x), drop)


class GPT(nn.Module):
    """Decoder-only transformer after the spec. Weights come from outside (core.init or a checkpoint).

    activation_checkpointing: in training, keep each block's input only and compute the block again for its gradient.
    ops: what it computes with, as `choose_ops` gives it for the device.
    """

    def __init__(self, spec: GPTSpec, activation_checkpointing: bool = False, ops: Ops = PLAIN_OPS) -> None:
        super().__init__()
        self.ops = ops
        self.activation_checkpointing = activation_checkpointing
        self.tok_emb = nn.Embedding(spec.vocab_size, spec.n_embd)
        if spec.position == "learned":
            self.pos_emb = nn.Embedding(spec.block_size, spec.n_embd)
        self.blocks = nn.ModuleList(Block(spec, ops) for _ in range(spec.n_layer))
        self.ln_f = norm(spec)
        if not spec.tie_embeddings:
            self.head = nn.Linear(spec.n_embd, spec.vocab_size, bias=False)
        self.tied = spec.tie_embeddings
        self.explicit_mask = False
        self.rope: Rope | None = None

    def forward(self, tokens: Tensor, view: CacheView | None = None, drop: Drop | None = None) -> Tensor:
        """Token ids [B, T] -> hidden states [B, T, n_embd], ready for the head. Dropout only with `drop`."""
        positions = torch.arange(tokens.shape[1], device=tokens.device) if view is None else view.positions
        x = self.ops.embedding(tokens, self.tok_emb.weight, self.tied)
        if self.rope is None:
            x = x + self.pos_emb(positions)
        x = x if drop is None else drop.embedding(x)
        rope = None if self.rope is None else self.rope.at(positions)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        for layer, block in enumerate(self.blocks):
            own = None if drop is None else drop.layer(layer)
            if recompute:
                x = recomputed(block, x, rope, own)
            else:
                x = block(x, rope, None if view is None else view.layer(layer), own)
        return self.ln_f(x)

    def make_rope(self, spec: GPTSpec) -> None:
        """The angles on the weights' device; no parameter and no buffer, as no checkpoint needs them."""
        if spec.position == "rope":
            cosines, sines = (torch.from_numpy(part).to(self.tok_emb.weight.device) for part in rope_table(spec))
            self.rope = Rope(cosines, sines)

    def use_explicit_mask(self, on: bool = True) -> None:
        """Attention gets a boolean mask in place of is_causal: for a device where causal_flag_leaks."""
        self.explicit_mask = on
        for module in self.modules():
            if isinstance(module, CausalSelfAttention):
                module.explicit_mask = on

    @property
    def head_weight(self) -> Tensor:
        """[vocab_size, n_embd]"""
        return self.tok_emb.weight if self.tied else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., n_embd] -> float32 logits [..., vocab_size]."""
        return self.ops.linear(hidden, self.head_weight, None).float()


def recomputed(block: nn.Module, x: Tensor, rope: Rope | None, drop: Drop | None) -> Tensor:
    """block(x, rope, None, drop), of which the backward pass computes everything again."""
    # Nothing is drawn, so that no generator has to be put back.
    y: Tensor = checkpoint(block, x, rope, None, drop, use_reentrant=False, preserve_rng_state=False)
    return y


def norm(spec: GPTSpec) -> nn.Module:
    if spec.norm == "rmsnorm":
        return RMSNorm(spec.n_embd, spec.norm_eps)
    return nn.LayerNorm(spec.n_embd, eps=spec.norm_eps, bias=spec.bias)


class Linear(nn.Linear):
    def __init__(self, n_in: int, n_out: int, bias: bool, ops: Ops) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """Of primitives: the backward pass of torch's own has no kernel on MPS."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


@dataclass(slots=True)
class Rope:
    """Cosines and sines of core.rope, [block_size, head_dim / 2], or [..., 1, T, head_dim / 2] of some positions."""

    cosines: Tensor
    sines: Tensor

    def at(self, positions: Tensor) -> Rope:
        return Rope(self.cosines[positions].unsqueeze(-3), self.sines[positions].unsqueeze(-3))


def turn(x: Tensor, rope: Rope | None) -> Tensor:
    """Queries or keys [B, heads, T, head_dim], turned by their position; in float32."""
    if rope is None:
        return x
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * rope.cosines - b * rope.sines, b * rope.cosines + a * rope.sines), dim=-1)


@dataclass(slots=True)
class Drop:
    """What drops out of a batch, after core.dropout, whose unsigned numbers are signed here.

    table: int32 [n]; keys: int32 [B, ...], those of the whole model or of one layer.
    """

    probability: float
    n_head: int
    table: Tensor
    keys: Tensor

    def layer(self, index: int) -> Drop:
        return replace(self, keys=self.keys[:, of_layer(self.n_head, index)])

    def embedding(self, x: Tensor) -> Tensor:
        """[B, T, n_embd]; with the keys of the whole model."""
        return self._dropped(x, self.keys[:, 0])

    def probabilities(self, x: Tensor) -> Tensor:
        """[B, n_head, T, T]; with the keys of a layer, as the two below."""
        return self._dropped(x, self.keys[:, : self.n_head])

    def attention(self, x: Tensor) -> Tensor:
        """[B, T, n_embd]"""
        return self._dropped(x, self.keys[:, -2])

    def mlp(self, x: Tensor) -> Tensor:
        """[B, T, n_embd]"""
        return self._dropped(x, self.keys[:, -1])

    def _dropped(self, x: Tensor, keys: Tensor) -> Tensor:
        rows, columns = x.shape[-2:]
        products = self.table[: rows * columns].view(rows, columns) * keys[..., None, None]
        keep = products >= threshold(self.probability) - 2**31
        return torch.where(keep, x * (1.0 / (1.0 - self.probability)), 0.0)


def signed_keys(keys: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Keys of core.dropout whose products with the table compare signed as the right ones do unsigned.

    That takes 2^31 added to each product; as the table is odd, adding it to the key does that.
    """
    return (keys ^ np.uint32(2**31)).view(np.int32)


def causal_mask(length: int, device: torch.device) -> Tensor:
    """bool [T, T]: up to the query's own position."""
    positions = torch.arange(length, device=device)
    return positions[:, None] >= positions


def causal_softmax(scores: Tensor) -> Tensor:
    """[..., T, T] over the last axis, up to the query's own position, in float32."""
    hidden = ~causal_mask(scores.shape[-1], scores.device)
    return scores.float().masked_fill(hidden, -torch.inf).softmax(dim=-1)


def repeated(x: Tensor, times: int) -> Tensor:
    """Keys or values [B, kv_heads, T, head_dim], each head `times` times in a row, for the queries that share it."""
    B, heads, T, width = x.shape
    return x[:, :, None].expand(B, heads, times, T, width).reshape(B, heads * times, T, width)


@torch.no_grad()
def causal_flag_leaks(spec: GPTSpec, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether attention with is_causal=True lets a token see later ones on this device.

    Some torch releases do so on MPS, in half precision and under no_grad (pytorch#195910). Which kernel runs depends on
    the size of a head, the length and the data type, so these are the model's; two heads stand for all of them.
    """
    heads, longest = min(spec.n_head, 2), spec.block_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = CausalSelfAttention(
            replace(spec, n_head=heads, n_kv_head=0, n_embd=heads * spec.head_dim), PLAIN_OPS
        ).eval()
        one, other = torch.randn(2, 1, longest, heads * spec.head_dim).to(device)
    attention.to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        for T in {min(length, longest) for length in (8, 64, longest)}:
            y = attention(one[:, :T], None, None, None)
            for t in {0, min(1, T - 1), T // 2, max(T - 2, 0)}:
                changed = torch.cat((one[:, : t + 1], other[:, t + 1 : T]), dim=1)
                if not torch.equal(attention(changed, None, None, None)[:, : t + 1], y[:, : t + 1]):
                    return True
    return False


class KVCache:
    """Keys and values of `slots` sequences, preallocated: [n_layer, slots, kv_heads, capacity, head_dim] each."""

    def __init__(self, spec: GPTSpec, slots: int, capacity: int, device: torch.device, dtype: torch.dtype):
        shape = (spec.n_layer, slots, spec.kv_heads, capacity, spec.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * slots
        self.capacity = capacity


@dataclass(slots=True)
class CacheView:
    """One forward pass over a cache: where each token goes, and what each may attend to.

    positions: int64 [n, T] of the tokens; slots: int64 [n].
    mask: None for a causal pass over an empty slot, else bool [n, 1, T, span] over the first `span` cached tokens.
    run: the slots as a slice, if they are one, so that the cache is read where it lies.
    """

    cache: KVCache
    slots: Tensor
    positions: Tensor
    span: int
    mask: Tensor | None
    run: slice | None

    def layer(self, index: int) -> LayerCache:
        return LayerCache(self, self.cache.k[index], self.cache.v[index])


@dataclass(slots=True)
class LayerCache:
    view: CacheView
    k: Tensor
    v: Tensor

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store new keys and values [n, kv_heads, T, head_dim]; returns what to attend to, and the mask."""
        view = self.view
        places = view.slots[:, None]
        self.k[places, :, view.positions] = k.transpose(1, 2).to(self.k.dtype)
        self.v[places, :, view.positions] = v.transpose(1, 2).to(self.v.dtype)
        if view.mask is None:
            return k, v, None
        rows = view.slots if view.run is None else view.run
        return self.k[rows, :, : view.span].to(k.dtype), self.v[rows, :, : view.span].to(v.dtype), view.mask
