"""The one table of parameters: name, shape, initialisation, weight decay, optimizer group.

Both engines build their modules so that these names come out, and everything that touches weights (initialisation,
optimizers, checkpoints, conversion, parity) iterates over this table.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from twingpt.core.engine_settings import OptimizerName
from twingpt.core.spec import GPTSpec

TOKEN_EMBEDDING = "tok_emb.weight"
POSITION_EMBEDDING = "pos_emb.weight"
HEAD = "head.weight"


@dataclass(frozen=True, slots=True)
class Param:
    """shape: linear weights are [out, in]. init_std: standard deviation for init "normal".

    optimizer: whose the parameter is in a run that uses Muon; AdamW alone has all of them.
    parts: rows of each of the matrices that lie in it one above the other.
    """

    name: str
    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"]
    init_std: float = 0.0
    decay: bool = False
    optimizer: OptimizerName = "adamw"
    parts: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def parameter_table(spec: GPTSpec) -> dict[str, Param]:
    """Every parameter of the spec by canonical name, in the order of the forward pass.

    Matrices decay, biases and norms do not, as in nanoGPT. A tied head is not a parameter of its own.
    """
    return {param.name: param for param in _parameters(spec)}


def _parameters(spec: GPTSpec) -> Iterator[Param]:
    d, std = spec.n_embd, spec.init_std
    queries, keys = spec.n_head * spec.head_dim, spec.kv_heads * spec.head_dim

    yield Param(TOKEN_EMBEDDING, (spec.vocab_size, d), "normal", std, decay=True)
    if spec.position == "learned":
        yield Param(POSITION_EMBEDDING, (spec.block_size, d), "normal", std, decay=True)
    for i in range(spec.n_layer):
        block = f"blocks.{i}"
        yield from _norm(f"{block}.ln1", spec)
        yield from _linear(f"{block}.attn.qkv", spec, d, queries, keys, keys)
        if spec.qk_norm:
            yield Param(f"{block}.attn.q_norm.weight", (spec.head_dim,), "ones")
            yield Param(f"{block}.attn.k_norm.weight", (spec.head_dim,), "ones")
        yield from _linear(f"{block}.attn.proj", spec, queries, d, residual=True)
        yield from _norm(f"{block}.ln2", spec)
        yield from _linear(f"{block}.mlp.fc", spec, d, spec.hidden)
        if spec.gated:
            yield from _linear(f"{block}.mlp.gate", spec, d, spec.hidden)
        yield from _linear(f"{block}.mlp.proj", spec, spec.hidden, d, residual=True)
    yield from _norm("ln_f", spec)
    if not spec.tie_embeddings:
        yield Param(HEAD, (spec.vocab_size, d), "normal", std, decay=True)


def _norm(name: str, spec: GPTSpec) -> Iterator[Param]:
    yield Param(f"{name}.weight", (spec.n_embd,), "ones")
    if spec.bias and spec.norm == "layernorm":
        yield Param(f"{name}.bias", (spec.n_embd,), "zeros")


def _linear(name: str, spec: GPTSpec, n_in: int, *parts: int, residual: bool = False) -> Iterator[Param]:
    shape, std = (sum(parts), n_in), spec.init_std
    if residual and spec.residual_init != "normal":
        std = std / math.sqrt(2 * spec.n_layer) if spec.residual_init == "scaled" else 0.0
    init: Literal["normal", "zeros"] = "normal" if std else "zeros"
    yield Param(f"{name}.weight", shape, init, std, decay=True, optimizer="muon", parts=parts)
    if spec.bias:
        yield Param(f"{name}.bias", shape[:1], "zeros")


def parameter_count(spec: GPTSpec) -> int:
    return sum(param.size for param in parameter_table(spec).values())


def flops_per_token(spec: GPTSpec) -> int:
    """Training FLOPs a token, forward and backward: 6 N + 12 L d T (PaLM, arXiv 2204.02311, appendix B).

    N counts the weights that take part in a matrix product: no embeddings, but the head even when it is tied. d is the
    width of all heads together.
    """
    return 6 * matmul_weights(spec) + 12 * spec.n_layer * spec.n_head * spec.head_dim * spec.block_size


def matmul_weights(spec: GPTSpec) -> int:
    """Weights that take part in a matrix product: no embeddings, but the head even when it is tied."""
    blocks = sum(param.size for param in parameter_table(spec).values() if param.optimizer == "muon")
    return blocks + spec.vocab_size * spec.n_embd
