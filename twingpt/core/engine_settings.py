"""The settings of an engine beside the spec, without NumPy, because the command line makes options of them."""

from dataclasses import dataclass
from typing import Literal

from twingpt.core.setting import LARGEST_SEED, check_bounds, setting
from twingpt.core.spec import check_types

DeviceChoice = Literal["auto", "gpu", "cpu"]
Precision = Literal["float32", "bfloat16"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """The settings that change what an engine computes, beside the spec. They belong to the run and not to the device.

    optimizer: "adamw" with decoupled weight decay, always bias-corrected (Loshchilov and Hutter, arXiv 1711.05101), for
        everything, or "muon" (core.muon) for the matrices of the blocks and AdamW for the rest.
    precision: weights, moments and reductions are float32 either way.
    loss_chunk: so that the logits [B * T, V] are never whole.
    activation_checkpointing: keep only each block's input and compute the rest again in the backward pass.
    seed: with the step and a sequence's place in the batch it keys dropout.
    """

    precision: Precision = setting("float32", "Matrix products: float32 or bfloat16.")
    optimizer: OptimizerName = setting("adamw", "adamw, or muon for the blocks' matrices.")
    muon_lr_scale: float = setting(1.0, "Muon's learning rate as a multiple of AdamW's.", above=0, most=1e6)
    muon_momentum: float = setting(0.95, "Of Muon's gradient average.", least=0, below=1)
    beta1: float = setting(0.9, "Of AdamW's average of the gradient.", least=0, below=1)
    beta2: float = setting(0.999, "Of AdamW's average of its square.", least=0, below=1)
    eps: float = setting(1e-8, "What AdamW adds to the root that it divides by.", above=0, most=1)
    weight_decay: float = setting(0.01, "On matrices only.", least=0, most=1e3)
    grad_clip: float = setting(1.0, "Largest gradient norm. 0: off.", least=0, most=1e9)
    loss_chunk: int = setting(256, "Tokens whose logits exist at one time.", least=1, most=2**31 - 1)
    activation_checkpointing: bool = setting(False, "Less memory for about a third more time.")
    seed: int = setting(0, "Weights, data order, dropout.", least=0, most=LARGEST_SEED)

    def __post_init__(self) -> None:
        check_types(self, "train")
        check_bounds(self, "train")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(EngineSettings):
    """What an engine needs beyond the spec."""

    device: DeviceChoice = "auto"
