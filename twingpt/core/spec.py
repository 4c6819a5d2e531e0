"""GPTSpec: everything that decides what the model computes, and nothing about how it is trained."""

import dataclasses
import math
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Self, TypeVar, get_args

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.setting import check_bounds, setting

Activation = Literal["gelu", "gelu_tanh", "swiglu", "relu2"]
Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["learned", "rope"]
ResidualInit = Literal["normal", "scaled", "zero"]

T = TypeVar("T")

LARGEST_HEAD = 4096
"""Of published models the widest has 256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTSpec:
    """A decoder-only transformer. Defaults are the user's GPT (preset `seed`).

    vocab_size: rows of the token embedding.
    block_size: longest context, in tokens.
    n_layer, n_head, n_embd: depth, attention heads, width.
    n_kv_head: heads of keys and values, each shared by n_head / n_kv_head queries (grouped-query attention, Ainslie et
        al., arXiv 2305.13245); 0: as many as n_head.
    head_size: width of a head; 0: n_embd / n_head.
    mlp_ratio: width of the MLP's hidden layer as a multiple of n_embd; of a gated one two thirds of that, rounded up
        to a multiple of 64. n_hidden: the width itself; 0: as mlp_ratio says.
    activation: "gelu" is the exact (erf) GELU, "gelu_tanh" its tanh approximation (GPT-2), "swiglu" a gated SiLU with a
        third matrix (Shazeer, arXiv 2002.05202), "relu2" the squared ReLU (So et al., arXiv 2109.08668).
    norm, norm_eps: pre-normalisation before attention, before the MLP and before the head. "rmsnorm" divides by the
        root mean square and has no bias (Zhang and Sennrich, arXiv 1910.07467).
    position: "learned" adds one vector per position; "rope" turns queries and keys by it, in half-split layout as Llama
        and Qwen3 do (Su et al., arXiv 2104.09864), with base rope_theta.
    qk_norm: RMS norm of each head's queries and keys, before they are turned (Qwen3).
    bias: biases in the linear layers and the layer norms; the head never has one.
    tie_embeddings: the head is the token embedding.
    dropout: on the embedding, the attention probabilities and the residual branches, in training only.
    init_std: weights start as N(0, init_std). residual_init: the two projections that write into the residual stream
        start so too ("normal"), divided by sqrt(2 * n_layer) ("scaled", GPT-2), or at zero ("zero").
    """

    vocab_size: int = setting(dataclasses.MISSING, "Rows of the token embedding.", least=1, most=2**31 - 1)
    block_size: int = setting(256, "Context in tokens; plain text only.", least=1, most=2**24, none="DATA's")
    n_layer: int = setting(6, "Blocks.", least=1, most=10_000)
    n_head: int = setting(6, "Heads of attention.", least=1, most=2**16)
    n_embd: int = setting(384, "Width.", least=1, most=2**20)
    n_kv_head: int = setting(0, "Heads of keys and values. 0: n_head.", least=0, most=2**16)
    head_size: int = setting(0, "Width of a head. 0: n_embd / n_head.", least=0, most=LARGEST_HEAD)
    mlp_ratio: int = setting(4, "Width of the MLP, as a multiple.", least=1, most=1024)
    n_hidden: int = setting(0, "Width of the MLP. 0: as mlp_ratio says.", least=0, most=2**24)
    activation: Activation = "gelu"
    norm: Norm = "layernorm"
    norm_eps: float = setting(1e-5, "Added to the variance.", above=0, most=1)
    position: Position = "learned"
    rope_theta: float = setting(10_000.0, "Base of the rotation.", above=0, most=1e15)
    qk_norm: bool = False
    bias: bool = True
    tie_embeddings: bool = False
    dropout: float = setting(0.1, "Probability, in training.", least=0, below=1)
    init_std: float = setting(0.02, "Of the first weights.", above=0, most=100)
    residual_init: ResidualInit = "normal"

    def __post_init__(self) -> None:
        check_types(self, "model")
        check_bounds(self, "model")
        if not self.head_size and self.n_embd % self.n_head:
            raise UsageError(
                tr(
                    "model.n_embd = {n_embd} is not a multiple of n_head = {n_head}: change one of them",
                    n_embd=self.n_embd,
                    n_head=self.n_head,
                )
            )
        if self.n_head % self.kv_heads:
            raise UsageError(
                tr(
                    "model.n_head = {n_head} is not a multiple of n_kv_head = {n_kv_head}: change one of them",
                    n_head=self.n_head,
                    n_kv_head=self.n_kv_head,
                )
            )
        if self.position == "rope" and self.head_dim % 2:
            raise UsageError(
                tr(
                    "a head of {head_dim} cannot be turned in pairs: rope needs an even model.head_size",
                    head_dim=self.head_dim,
                )
            )
        if self.head_dim > LARGEST_HEAD:
            raise UsageError(
                tr(
                    "a head of {head_dim:,} is too wide: raise model.n_head, or lower model.n_embd",
                    head_dim=self.head_dim,
                )
            )

    @property
    def head_dim(self) -> int:
        return self.head_size or self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        """Width of the MLP's hidden layer."""
        width = self.mlp_ratio * self.n_embd
        if self.gated:
            # Three matrices with two thirds of the width have the weights of two.
            width = math.ceil(width * 2 / 3 / 64) * 64
        return self.n_hidden or width

    @property
    def gated(self) -> bool:
        """Whether the MLP has a third matrix that gates the hidden layer."""
        return self.activation == "swiglu"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Raises UsageError on an unknown, missing or impossible setting."""
        return build(cls, values, "model")

    def differences(self, other: "GPTSpec") -> list[str]:
        """The fields in which two specs differ, as "n_layer 6 / 8"."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [f"{name} {mine[name]} / {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def build(cls: type[T], values: dict[str, Any], section: str) -> T:
    """A dataclass from a table of a config file; unknown and missing keys are errors that name the section."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise UsageError(
            tr(
                "unknown setting {section}.{setting}: the settings of [{section}] are {choices}",
                section=section,
                setting=unknown[0],
                choices=", ".join(fields),
            )
        )
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(tr("setting {section}.{setting} is missing", section=section, setting=missing[0]))
    return cls(**values)


def check_types(config: Any, section: str) -> None:
    """Hold each field of a config dataclass against its annotation: a TOML file can put anything anywhere."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = get_args(field.type)
        if choices and all(isinstance(choice, str) for choice in choices):
            if value not in choices:
                raise UsageError(
                    tr(
                        "{section}.{setting} = {value!r}: choose one of {choices}",
                        section=section,
                        setting=field.name,
                        value=value,
                        choices=", ".join(choices),
                    )
                )
            continue
        accepted = int | float if field.type is float else field.type
        wrong_bool = isinstance(value, bool) and field.type is not bool
        if isinstance(accepted, type | UnionType) and (not isinstance(value, accepted) or wrong_bool):
            kind = getattr(field.type, "__name__", str(field.type))
            raise UsageError(
                tr(
                    "{section}.{setting} = {value!r}: a value of type {kind} is needed",
                    section=section,
                    setting=field.name,
                    value=value,
                    kind=kind,
                )
            )
