"""What doctor and bench do with an engine's framework beside the Backend protocol: in its measured.py."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Precision, State
from twingpt.core.spec import GPTSpec

Matrix = NDArray[np.float32]
Products = list[tuple[Any, Any]]

GARBAGE = 1e6
GARBAGE_VALUES = 1 << 16
"""What lies behind an operand in memory, so that a kernel reading past its end shows (fresh memory is zero)."""
REPEATS = 3


class Operations(Protocol):
    """What the checks ask of a framework on one device."""

    name: str
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


class Arrays(Protocol):
    """A framework's own arrays, which share `@` and `.T`, on one device."""

    def random(self, rows: int, columns: int) -> Any:
        """[rows, columns] of N(0, 1) on the device, in the run's precision."""

    def compute(self, products: Products) -> None:
        """Multiply each pair, and wait for all."""


def fastest_run(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one that is not timed."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def yes(value: bool) -> str:
    return "yes" if value else "no"
