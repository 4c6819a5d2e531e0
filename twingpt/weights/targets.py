"""What each format can hold, and what to do about a model that it cannot."""

from typing import Any, Literal, get_args

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec

Family = Literal["gpt2", "llama", "qwen3"]
Target = Literal["native", "hf", "mlx-lm", "gguf"]

TARGETS: tuple[Target, ...] = get_args(Target)

_FORMATS: dict[Target, str] = {"hf": "transformers", "mlx-lm": "mlx-lm", "gguf": "llama.cpp"}
_FAMILIES: dict[Family, str] = {"gpt2": "GPT-2", "llama": "Llama", "qwen3": "Qwen3"}

_COMPUTES: dict[Family, dict[str, tuple[Any, ...]]] = {
    "gpt2": {"norm": ("layernorm",), "activation": ("gelu", "gelu_tanh", "relu2"), "qk_norm": (False,)},
    "llama": {"norm": ("rmsnorm",), "activation": ("swiglu",)},
    "qwen3": {"norm": ("rmsnorm",), "activation": ("swiglu",), "bias": (False,)},
}
"""The values of a field that a family has a place for; a field that is not named may have any."""

_NARROWER: dict[tuple[Target, Family], dict[str, tuple[Any, ...]]] = {
    ("mlx-lm", "gpt2"): {"activation": ("gelu_tanh",), "tie_embeddings": (True,)},
    ("gguf", "gpt2"): {"activation": ("gelu_tanh",)},
    ("gguf", "llama"): {"bias": (False,)},
}


def family_of(spec: GPTSpec) -> Family:
    """The family of published models that a spec comes nearest to."""
    if spec.position == "learned":
        return "gpt2"
    return "qwen3" if spec.qk_norm else "llama"


def obstacles(target: Target, spec: GPTSpec) -> dict[str, str]:
    """What a format cannot hold of this spec: the field -> why, in a few words. Empty: it can hold all."""
    if target == "native":
        return {}
    family = family_of(spec)
    found = {}
    for field, values in {**_COMPUTES[family], **_NARROWER.get((target, family), {})}.items():
        if getattr(spec, field) not in values:
            found[field] = tr("it takes {values}", values=" or ".join(map(_value, values)))
    if family == "gpt2":
        if spec.kv_heads != spec.n_head:
            found["n_kv_head"] = tr("it has as many as n_head")
        if spec.head_dim * spec.n_head != spec.n_embd:
            found["head_size"] = tr("it has n_embd / n_head")
        if target == "mlx-lm" and spec.hidden != 4 * spec.n_embd:
            found["n_hidden" if spec.n_hidden else "mlp_ratio"] = tr("it has 4 * n_embd")
    elif family == "llama" and target != "gguf" and spec.n_embd % spec.n_head:
        found["n_head"] = tr("it divides n_embd {n_embd} by it", n_embd=spec.n_embd)
    return found


def check(target: Target, spec: GPTSpec) -> None:
    """Raises TwinGPTError that names what `target` cannot hold of this spec, and the nearest preset that it can."""
    found = obstacles(target, spec)
    if not found:
        return
    reasons = ", ".join(f"{field} {_value(getattr(spec, field))} ({why})" for field, why in found.items())
    preset = nearest_preset(target, spec)
    advice = tr(
        "train with that set so (--config), or with the nearest preset that opens there: {preset}", preset=preset
    )
    if approximable(target, spec):
        advice = tr("convert it with --approximate gelu, which prints the error, or {advice}", advice=advice)
    raise TwinGPTError(
        tr(
            "{family} in {format} has no place for {reasons}: {advice}",
            family=_FAMILIES[family_of(spec)],
            format=_FORMATS[target],
            reasons=reasons,
            advice=advice,
        )
    )


def approximable(target: Target, spec: GPTSpec) -> bool:
    """Whether the exact GELU in place of its tanh approximation is all that keeps a spec out."""
    return spec.activation == "gelu" and list(obstacles(target, spec)) == ["activation"]


def nearest_preset(target: Target, spec: GPTSpec) -> str:
    """The preset that `target` can hold and that differs from the spec in the fewest settings."""
    candidates = {
        name: GPTSpec(vocab_size=spec.vocab_size, **preset.model)
        for name, preset in PRESETS.items()
        if not obstacles(target, GPTSpec(vocab_size=spec.vocab_size, **preset.model))
    }
    return min(candidates, key=lambda name: _distance(spec, candidates[name]))


def _distance(spec: GPTSpec, other: GPTSpec) -> tuple[int, int]:
    """What is computed counts before how large it is."""
    kind = ("position", "norm", "activation", "qk_norm", "bias", "tie_embeddings")
    return sum(getattr(spec, field) != getattr(other, field) for field in kind), len(spec.differences(other))


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
