"""Named models with their recipes. A config file and options change single settings of the preset that was chosen."""

from dataclasses import dataclass, field
from typing import Any

from twingpt.core.errors import UsageError
from twingpt.core.language import tr


@dataclass(frozen=True, slots=True)
class Preset:
    """model: GPTSpec fields besides vocab_size. train: TrainConfig fields. Both only where they differ."""

    summary: str
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preset] = {
    "seed": Preset("the user's GPT: 6 layers x 384, context 256, untied head, exact GELU"),
    "seed-large": Preset(
        "the same at 8 layers x 512, context 512",
        model={"block_size": 512, "n_layer": 8, "n_head": 8, "n_embd": 512},
    ),
    "tiny": Preset(
        "4 layers x 128, context 256: tests and the demo",
        model={"n_layer": 4, "n_head": 4, "n_embd": 128},
        train={"learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 20, "beta2": 0.95},
    ),
    "modern": Preset(
        "6 layers x 384, context 256: rotary, RMSNorm, SwiGLU, QK-norm, trained with Muon; opens as Qwen3",
        model={
            "position": "rope",
            "norm": "rmsnorm",
            "norm_eps": 1e-6,
            "activation": "swiglu",
            "qk_norm": True,
            "bias": False,
            "dropout": 0.0,
            "residual_init": "zero",
        },
        train={
            "optimizer": "muon",
            # Of embeddings, head and norms; the matrices' is muon_lr_scale of it. benchmarks/LOG.md has what was tried.
            "learning_rate": 2e-2,
            "muon_lr_scale": 0.2,
            "schedule": "wsd",
            "decay_fraction": 0.5,
            "warmup_steps": 20,
            "beta2": 0.95,
            "weight_decay": 0.1,
        },
    ),
    "llama": Preset(
        "6 layers x 384, context 256: rotary, RMSNorm, SwiGLU, trained with AdamW; opens as Llama",
        model={
            "position": "rope",
            "norm": "rmsnorm",
            "norm_eps": 1e-5,
            "activation": "swiglu",
            "bias": False,
            "dropout": 0.0,
            "residual_init": "scaled",
        },
        train={
            "learning_rate": 1e-3,
            "min_learning_rate": 1e-4,
            "schedule": "cosine",
            "warmup_steps": 100,
            "beta2": 0.95,
            "weight_decay": 0.1,
        },
    ),
    "gpt2": Preset(
        "GPT-2 small: 12 layers x 768, context 1024, tied head, tanh GELU",
        model={
            "block_size": 1024,
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "activation": "gelu_tanh",
            "tie_embeddings": True,
            "dropout": 0.0,
            "residual_init": "scaled",
        },
        train={
            "learning_rate": 6e-4,
            "min_learning_rate": 6e-5,
            "schedule": "cosine",
            "warmup_steps": 700,
            "beta2": 0.95,
            "weight_decay": 0.1,
        },
    ),
}


def find_preset(name: str) -> Preset:
    """Raises UsageError if there is none of that name."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(
            tr("unknown preset {name!r}: choose one of {choices}", name=name, choices=", ".join(PRESETS))
        ) from None
