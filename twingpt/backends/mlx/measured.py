"""What doctor and bench do with MLX beside the Backend protocol."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from numpy.typing import NDArray

from twingpt.backends.mlx.backend import choose_device
from twingpt.backends.mlx.model import GPT
from twingpt.core.backend import DeviceChoice, Precision, State
from twingpt.core.measured import GARBAGE, GARBAGE_VALUES, Matrix, Products, fastest_run, yes
from twingpt.core.memory import gibibytes
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL


class MLXOperations:
    name = "mlx"

    def __init__(self, choice: DeviceChoice) -> None:
        self._device, self.device = choose_device(choice)

    def facts(self) -> dict[str, str]:
        info = mx.device_info(self._device)
        facts = {
            "device taken": str(self._device),
            "Metal available": yes(mx.metal.is_available()),
            "CUDA available": yes(mx.cuda.is_available()),
            "architecture": str(info.get("architecture", "unknown")),
        }
        for name, key in (
            ("memory", "memory_size"),
            ("working-set limit", "max_recommended_working_set_size"),
            ("largest buffer", "max_buffer_length"),
        ):
            if key in info:
                facts[name] = gibibytes(int(info[key]))
        return facts

    def matmul(self, a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        with mx.stream(self._device):
            product = self._place(a, precision) @ self._place(b, precision)
            return np.array(product.astype(mx.float32))

    def matmul_seconds(self, n: int, precision: Precision) -> float:
        with mx.stream(self._device):
            a = mx.ones((n, n), dtype=getattr(mx, precision))
            mx.eval(a)
            return fastest_run(lambda: mx.eval(a @ a))

    def whole_loss_and_grads(
        self, spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
    ) -> tuple[float, State]:
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
        transposed = not matrix.flags.c_contiguous
        stored = np.ascontiguousarray(matrix.T if transposed else matrix)
        values = np.concatenate((stored.ravel(), np.full(GARBAGE_VALUES, GARBAGE, dtype=np.float32)))
        buffer = mx.array(values).astype(getattr(mx, precision))
        placed = buffer[: stored.size].reshape(stored.shape)
        return placed.T if transposed else placed


class MLXArrays:
    def __init__(self, choice: DeviceChoice, precision: Precision) -> None:
        self._device, _ = choose_device(choice)
        self._precision = precision

    def random(self, rows: int, columns: int) -> Any:
        with mx.stream(self._device):
            array = mx.random.normal((rows, columns)).astype(getattr(mx, self._precision))
            mx.eval(array)
        return array

    def compute(self, products: Products) -> None:
        with mx.stream(self._device):
            mx.eval([left @ right for left, right in products])


def open_operations(choice: DeviceChoice) -> MLXOperations:
    return MLXOperations(choice)


def open_arrays(choice: DeviceChoice, precision: Precision) -> MLXArrays:
    return MLXArrays(choice, precision)
