"""The few operations of a framework that the checks need besides the Backend protocol, the same for both."""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.checks import machine
from twingpt.core.backend import BackendName, DeviceChoice, Precision, State
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL

Matrix = NDArray[np.float32]
GARBAGE = 1e6
GARBAGE_VALUES = 1 << 16
"""What lies behind an operand in memory, so that a kernel reading past its end shows (fresh memory is zero)."""
REPEATS = 3


class Engine(Protocol):
    name: BackendName
    device: str

    def facts(self) -> dict[str, str]:
        """State of the framework and its devices."""

    def matmul(self, a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        """[M, K] @ [K, N] on the device, each operand stored as given (a transposed view stays one)."""

    def matmul_seconds(self, n: int, precision: Precision) -> float:
        """The fastest of some [n, n] products."""

    def whole_loss_and_grads(
        self, spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> tuple[float, State]:
        """Mean loss and gradients in float32 from all logits at once, by the framework's own cross-entropy."""

    def skips_on_device(self) -> bool:
        """Whether a step is skipped without the host's waiting for its gradient."""


class TorchEngine:
    name: BackendName = "mps"

    def __init__(self, choice: DeviceChoice) -> None:
        from twingpt.backends.torch_mps.backend import choose_device

        self._device = choose_device(choice)
        self.device = self._device.type

    def facts(self) -> dict[str, str]:
        return machine.torch_facts(self._device)

    def matmul(self, a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        product: Matrix = self._place(a, precision).matmul(self._place(b, precision)).float().cpu().numpy()
        return product

    def matmul_seconds(self, n: int, precision: Precision) -> float:
        import torch

        a = torch.ones((n, n), device=self._device, dtype=getattr(torch, precision))

        def run() -> None:
            a.matmul(a)[0, 0].item()

        return _fastest(run)

    def whole_loss_and_grads(
        self, spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> tuple[float, State]:
        import torch
        from torch.nn import functional as F

        from twingpt.backends.torch_mps.model import GPT

        model = GPT(spec)
        model.load_state_dict({key.removeprefix(MODEL): torch.from_numpy(w) for key, w in weights.items()})
        model.to(self._device).eval()
        x, y = (torch.from_numpy(tokens).long().to(self._device) for tokens in (inputs, targets))
        loss = F.cross_entropy(model.logits(model(x)).flatten(0, 1), y.flatten(), ignore_index=-1)
        names, parameters = zip(*model.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        return loss.item(), {MODEL + name: g.cpu().numpy() for name, g in zip(names, gradients, strict=True)}

    def skips_on_device(self) -> bool:
        from twingpt.backends.torch_mps.step import skips_found_inf

        return skips_found_inf(self._device)

    def _place(self, matrix: Matrix, precision: Precision) -> Any:
        import torch

        transposed = not matrix.flags.c_contiguous
        stored = torch.from_numpy(np.ascontiguousarray(matrix.T if transposed else matrix))
        buffer = torch.full((stored.numel() + GARBAGE_VALUES,), GARBAGE, device=self._device)
        buffer[: stored.numel()] = stored.flatten().to(self._device)
        placed = buffer.to(getattr(torch, precision))[: stored.numel()].view(stored.shape)
        return placed.T if transposed else placed


class MLXEngine:
    name: BackendName = "mlx"

    def __init__(self, choice: DeviceChoice) -> None:
        from twingpt.backends.mlx.backend import choose_device

        self._device, self.device = choose_device(choice)

    def facts(self) -> dict[str, str]:
        return machine.mlx_facts(self._device)

    def matmul(self, a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        import mlx.core as mx

        with mx.stream(self._device):
            product = self._place(a, precision) @ self._place(b, precision)
            return np.array(product.astype(mx.float32))

    def matmul_seconds(self, n: int, precision: Precision) -> float:
        import mlx.core as mx

        with mx.stream(self._device):
            a = mx.ones((n, n), dtype=getattr(mx, precision))
            mx.eval(a)
            return _fastest(lambda: mx.eval(a @ a))

    def whole_loss_and_grads(
        self, spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> tuple[float, State]:
        import mlx.core as mx
        import mlx.nn as nn
        from mlx.utils import tree_flatten, tree_unflatten

        from twingpt.backends.mlx.model import GPT

        def loss(model: GPT) -> Any:
            losses = nn.losses.cross_entropy(model.logits(model(x)), mx.maximum(y, 0))
            return mx.where(y >= 0, losses, 0.0).sum() / (y >= 0).sum()

        with mx.stream(self._device):
            model = GPT(spec, mx.float32)
            model.update(tree_unflatten([(key.removeprefix(MODEL), mx.array(w)) for key, w in weights.items()]))
            x, y = mx.array(inputs), mx.array(targets)
            value, gradients = nn.value_and_grad(model, loss)(model)
            return value.item(), {MODEL + name: np.array(g) for name, g in tree_flatten(gradients)}

    def skips_on_device(self) -> bool:
        return True

    def _place(self, matrix: Matrix, precision: Precision) -> Any:
        import mlx.core as mx

        transposed = not matrix.flags.c_contiguous
        stored = np.ascontiguousarray(matrix.T if transposed else matrix)
        values = np.concatenate((stored.ravel(), np.full(GARBAGE_VALUES, GARBAGE, dtype=np.float32)))
        buffer = mx.array(values).astype(getattr(mx, precision))
        placed = buffer[: stored.size].reshape(stored.shape)
        return placed.T if transposed else placed


def open_engine(name: BackendName, choice: DeviceChoice) -> Engine:
    """Raises TwinGPTError if the framework lacks the device, and whatever a broken framework raises."""
    return TorchEngine(choice) if name == "mps" else MLXEngine(choice)


def _fastest(run: Any) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
