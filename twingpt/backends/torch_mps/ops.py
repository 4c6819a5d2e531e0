"""The operations as PyTorch has them: the set that runs on Metal. On a Linux CPU linux_cpu/ops.py takes its place."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from twingpt.backends.torch_mps import linux_cpu


class Ops:
    """What the model computes with, given to it when the engine is made."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[..., n_in] by weights [n_out, n_in] -> [..., n_out]."""
        return F.linear(x, weight, bias)

    def embedding(self, tokens: Tensor, weight: Tensor, tied: bool) -> Tensor:
        """Rows of weights [vocab_size, n_embd] for token ids [...]; tied: the weights are the head's too."""
        return F.embedding(tokens, weight)


PLAIN_OPS = Ops()


def choose_ops(device: str) -> Ops:
    """The set that an engine on this device ("mps", "cuda", "cpu") computes with; the one place that asks."""
    if device == "cpu" and linux_cpu.wanted():
        from twingpt.backends.torch_mps.linux_cpu.ops import LinuxOps

        return LinuxOps()
    return PLAIN_OPS
