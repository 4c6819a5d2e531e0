"""The one table of parameters: name, shape, initialisation, weight decay, optimizer group.

Both engines build their modules so that these names come out, and everything that touches weights (initialisation,
optimizers, checkpoints, conversion, parity) iterates over this table.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from twingpt.core.spec import GPTSpec

TOKEN_EMBEDDING = "tok_emb.weight"
HEAD = "head.weight"


@dataclass(frozen=True, slots=True)
class Param:
    """shape: linear weights are [out, in]. init_std: standard deviation for init "normal"."""

    name: str
    shape: tuple[int, ...]
    init: Literal["normal", "zeros", "ones"]
    init_std: float = 0.0
    decay: bool = False
    optimizer: Literal["adamw"] = "adamw"

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def parameter_table(spec: GPTSpec) -> dict[str, Param]:
    """Every parameter of the spec by canonical name, in the order of the forward pass.

    Matrices decay, biases and norms do not, as in nanoGPT. A tied head is not a parameter of its own.
    """
    return {param.name: param for param in _parameters(spec)}


def _parameters(spec: GPTSpec) -> Iterator[Param]:
    d, hidden, std = spec.n_embd, spec.mlp_ratio * spec.n_embd, spec.init_std
    residual_std = std / math.sqrt(2 * spec.n_layer) if spec.residual_init == "scaled" else std

    yield Param(TOKEN_EMBEDDING, (spec.vocab_size, d), "normal", std, decay=True)
    yield Param("pos_emb.weight", (spec.block_size, d), "normal", std, decay=True)
    for i in range(spec.n_layer):
        block = f"blocks.{i}"
        yield from _norm(f"{block}.ln1", spec)
        yield from _linear(f"{block}.attn.qkv", 3 * d, d, std, spec.bias)
        yield from _linear(f"{block}.attn.proj", d, d, residual_std, spec.bias)
        yield from _norm(f"{block}.ln2", spec)
        yield from _linear(f"{block}.mlp.fc", hidden, d, std, spec.bias)
        yield from _linear(f"{block}.mlp.proj", d, hidden, residual_std, spec.bias)
    yield from _norm("ln_f", spec)
    if not spec.tie_embeddings:
        yield Param(HEAD, (spec.vocab_size, d), "normal", std, decay=True)


def _norm(name: str, spec: GPTSpec) -> Iterator[Param]:
    yield Param(f"{name}.weight", (spec.n_embd,), "ones")
    if spec.bias:
        yield Param(f"{name}.bias", (spec.n_embd,), "zeros")


def _linear(name: str, n_out: int, n_in: int, std: float, bias: bool) -> Iterator[Param]:
    yield Param(f"{name}.weight", (n_out, n_in), "normal", std, decay=True)
    if bias:
        yield Param(f"{name}.bias", (n_out,), "zeros")


def parameter_count(spec: GPTSpec) -> int:
    return sum(param.size for param in parameter_table(spec).values())


def flops_per_token(spec: GPTSpec) -> int:
    """Training FLOPs a token, forward and backward: 6 N + 12 L d T (PaLM, arXiv 2204.02311, appendix B).

    N counts the weights that take part in a matrix product: no embeddings, but the head even when it is tied.
    """
    matmul = sum(
        param.size
        for name, param in parameter_table(spec).items()
        if len(param.shape) == 2 and name not in (TOKEN_EMBEDDING, "pos_emb.weight", HEAD)
    )
    matmul += spec.vocab_size * spec.n_embd
    return 6 * matmul + 12 * spec.n_layer * spec.n_embd * spec.block_size
