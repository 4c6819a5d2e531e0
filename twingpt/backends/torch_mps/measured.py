"""What doctor and bench do with PyTorch beside the Backend protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from twingpt.backends.torch_mps.backend import choose_device
from twingpt.backends.torch_mps.model import GPT
from twingpt.backends.torch_mps.step import skips_found_inf
from twingpt.core.backend import DeviceChoice, Precision, State
from twingpt.core.measured import GARBAGE, GARBAGE_VALUES, Matrix, Products, fastest_run, yes
from twingpt.core.memory import gibibytes
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL


class TorchOperations:
    name = "mps"

    def __init__(self, choice: DeviceChoice) -> None:
        self._device = choose_device(choice)
        self.device = self._device.type

    def facts(self) -> dict[str, str]:
        mps = torch.backends.mps
        facts = {
            "device taken": str(self._device),
            "built with MPS": yes(mps.is_built()),
            "MPS available": yes(mps.is_available()),
            "CUDA available": yes(torch.cuda.is_available()),
            "threads": str(torch.get_num_threads()),
        }
        if mps.is_available():
            facts["working-set limit"] = gibibytes(torch.mps.recommended_max_memory())
        if torch.cuda.is_available():
            facts["CUDA device"] = torch.cuda.get_device_name()
            facts["CUDA memory"] = gibibytes(torch.cuda.get_device_properties(0).total_memory)
        return facts

    def matmul(self, a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        product: Matrix = self._place(a, precision).matmul(self._place(b, precision)).float().cpu().numpy()
        return product

    def matmul_seconds(self, n: int, precision: Precision) -> float:
        a = torch.ones((n, n), device=self._device, dtype=getattr(torch, precision))
        return fastest_run(lambda: a.matmul(a)[0, 0].item())

    def whole_loss_and_grads(
        self, spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> tuple[float, State]:
        model = GPT(spec)
        model.load_state_dict({key.removeprefix(MODEL): torch.from_numpy(w) for key, w in weights.items()})
        model.to(self._device).eval()
        x, y = (torch.from_numpy(tokens).long().to(self._device) for tokens in (inputs, targets))
        loss = F.cross_entropy(model.logits(model(x)).flatten(0, 1), y.flatten(), ignore_index=-1)
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        return loss.item(), {MODEL + name: g.cpu().numpy() for name, g in zip(names, gradients, strict=True)}

    def skips_on_device(self) -> bool:
        return skips_found_inf(self._device)

    def _place(self, matrix: Matrix, precision: Precision) -> torch.Tensor:
        transposed = not matrix.flags.c_contiguous
        stored = torch.from_numpy(np.ascontiguousarray(matrix.T if transposed else matrix))
        buffer = torch.full((stored.numel() + GARBAGE_VALUES,), GARBAGE, device=self._device)
        buffer[: stored.numel()] = stored.flatten().to(self._device)
        placed = buffer.to(getattr(torch, precision))[: stored.numel()].view(stored.shape)
        return placed.T if transposed else placed


class TorchArrays:
    def __init__(self, choice: DeviceChoice, precision: Precision) -> None:
        self._device = choose_device(choice)
        self._dtype = getattr(torch, precision)

    def random(self, rows: int, columns: int) -> Any:
        return torch.randn(rows, columns, device=self._device).to(self._dtype)

    def compute(self, products: Products) -> None:
        for left, right in products:
            left @ right
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize()


def open_operations(choice: DeviceChoice) -> TorchOperations:
    return TorchOperations(choice)


def open_arrays(choice: DeviceChoice, precision: Precision) -> TorchArrays:
    return TorchArrays(choice, precision)
