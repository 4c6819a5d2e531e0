"""GPTSpec: everything that decides what the model computes, and nothing about how it is trained."""

import dataclasses
from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Self, TypeVar, get_args

from twingpt.core.errors import UsageError

Activation = Literal["gelu", "gelu_tanh"]
Norm = Literal["layernorm"]
Position = Literal["learned"]
ResidualInit = Literal["normal", "scaled"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTSpec:
    """A decoder-only transformer. Defaults are the user's GPT (preset `seed`).

    vocab_size: rows of the token embedding.
    block_size: longest context, in tokens.
    n_layer, n_head, n_embd: depth, attention heads, width; n_embd is a multiple of n_head.
    mlp_ratio: width of the MLP's hidden layer as a multiple of n_embd.
    activation: "gelu" is the exact (erf) GELU, "gelu_tanh" its tanh approximation (GPT-2).
    norm, norm_eps: pre-normalisation before attention, before the MLP and before the head.
    position: "learned" adds one vector per position.
    bias: biases in the linear layers and the norms; the head never has one.
    tie_embeddings: the head is the token embedding.
    dropout: on the embedding, the attention probabilities and the residual branches, in training only.
    init_std: weights start as N(0, init_std); residual_init "scaled" divides that by sqrt(2 * n_layer)
        for the two projections that write into the residual stream (GPT-2).
    """

    vocab_size: int
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    mlp_ratio: int = 4
    activation: Activation = "gelu"
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    position: Position = "learned"
    bias: bool = True
    tie_embeddings: bool = False
    dropout: float = 0.1
    init_std: float = 0.02
    residual_init: ResidualInit = "normal"

    def __post_init__(self) -> None:
        check_types(self, "model")
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise UsageError(f"model.{name} = {getattr(self, name)}: it must be at least 1")
        if self.n_embd % self.n_head:
            raise UsageError(
                f"model.n_embd = {self.n_embd} is not a multiple of n_head = {self.n_head}: change one of them"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise UsageError(f"model.dropout = {self.dropout}: it must be at least 0 and below 1")
        for name in ("norm_eps", "init_std"):
            if not getattr(self, name) > 0.0:
                raise UsageError(f"model.{name} = {getattr(self, name)}: it must be above 0")

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

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
        raise UsageError(f"unknown setting {section}.{unknown[0]}: the settings of [{section}] are {', '.join(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UsageError(f"setting {section}.{missing[0]} is missing")
    return cls(**values)


def check_types(config: Any, section: str) -> None:
    """Hold each field of a config dataclass against its annotation: a TOML file can put anything anywhere."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        choices = get_args(field.type)
        if choices and all(isinstance(choice, str) for choice in choices):
            if value not in choices:
                raise UsageError(f"{section}.{field.name} = {value!r}: choose one of {', '.join(choices)}")
            continue
        accepted = int | float if field.type is float else field.type
        wrong_bool = isinstance(value, bool) and field.type is not bool
        if isinstance(accepted, type | UnionType) and (not isinstance(value, accepted) or wrong_bool):
            kind = getattr(field.type, "__name__", str(field.type))
            raise UsageError(f"{section}.{field.name} = {value!r}: a value of type {kind} is needed")
