"""Which aten operations a piece of torch code needs, and whether the installed torch has a Metal kernel for each.

There is no Mac in this test: the code runs on the CPU under torch's profiler, which also sees the operations that a
kernel calls, and every operation is held against the table that torch was generated from, `native_functions.yaml`.
It says that a kernel is registered for MPS. It says nothing of the data types the kernel takes, nor of its results:
`twingpt doctor` looks at those, on the device itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchgen  # type: ignore[import-untyped]
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torchgen.gen import parse_native_yaml  # type: ignore[import-untyped]
from torchgen.model import DispatchKey, NativeFunction  # type: ignore[import-untyped]

# Operations that torch registers for MPS by hand: as a trip to the CPU, whatever PYTORCH_ENABLE_MPS_FALLBACK says, or
# only to raise (_slow_conv2d_forward). Source: the TORCH_LIBRARY_IMPL(aten, MPS, m) block at the end of
# aten/src/ATen/mps/MPSFallback.mm. A release's table holds until a later one is listed. What has since got a kernel in
# native_functions.yaml no longer falls back, for torch takes one registration or the other.
CPU_FALLBACKS: dict[tuple[int, int], frozenset[str]] = {
    (2, 9): frozenset(
        {
            "embedding_renorm_",
            "linalg_svd",
            "linalg_svd.U",
            "col2im",
            "_slow_conv2d_forward",
            "upsample_nearest3d.vec",
        }
    ),
    # pytorch#185954 brought a native singular value decomposition.
    (2, 14): frozenset({"embedding_renorm_", "_slow_conv2d_forward", "upsample_nearest3d.vec"}),
}

# Where MPS takes another way than the CPU: an operation seen in a CPU trace -> what MPS may run in its place.
# Sources: the MPS entries of native_functions.yaml, tools/autograd/derivatives.yaml for the backward formulas, and
# scaled_dot_product_attention in aten/src/ATen/native/transformers/attention.cpp.
MPS_ROUTES: dict[str, tuple[str, ...]] = {
    "linear": ("linear", "linear_backward"),
    "scaled_dot_product_attention": ("_scaled_dot_product_attention_math_for_mps",),
    "rms_norm": ("_fused_rms_norm", "_fused_rms_norm_backward"),
}

# Between host and device, which on the CPU are one.
TRANSFERS = ("_to_copy", "copy_", "_copy_from", "_copy_from_and_resize", "_local_scalar_dense")


@dataclass(frozen=True)
class Gap:
    """One operation without a Metal kernel, and the operations that led to it, outermost first."""

    op: str
    reason: str
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op}: {self.reason}" + (f" (called by {' > '.join(self.path)})" if self.path else "")


class KernelTable:
    """native_functions.yaml of the installed torch."""

    def __init__(self) -> None:
        folder = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
        parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
        self._functions = {str(function.func.name): function for function in parsed.native_functions}
        self._mps = parsed.backend_indices[DispatchKey.MPS]
        self._cpu = parsed.backend_indices[DispatchKey.CPU]
        self._fallbacks = cpu_fallbacks(torch.__version__)

    def __contains__(self, op: str) -> bool:
        return op in self._functions

    def falls_back(self, op: str) -> bool:
        return op in self._fallbacks

    def has_mps_kernel(self, op: str) -> bool:
        """Of its own, or the structured kernel that its out variant has."""
        return self._has_kernel(op, self._mps)

    def has_cpu_kernel(self, op: str) -> bool:
        return self._has_kernel(op, self._cpu)

    def is_composite(self, op: str) -> bool:
        """Made of other operations, which the trace shows one level down."""
        function = self._functions[op]
        return bool(
            function.has_composite_implicit_autograd_kernel
            or function.has_composite_explicit_autograd_kernel
            or function.has_composite_explicit_autograd_non_functional_kernel
        )

    def _has_kernel(self, op: str, index: Any) -> bool:
        function: NativeFunction = self._functions[op]
        if index.has_kernel(function):
            return True
        delegate = function.structured_delegate
        return delegate is not None and bool(index.has_kernel(self._functions[str(delegate)]))


def cpu_fallbacks(version: str) -> frozenset[str]:
    """The table of the newest listed release that is not newer than `version`."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return CPU_FALLBACKS[max(release for release in CPU_FALLBACKS if release <= (major, minor))]


@functools.cache
def kernel_table() -> KernelTable:
    return KernelTable()


def gaps(table: KernelTable, run: Callable[[], object]) -> tuple[set[str], list[Gap]]:
    """(every operation that decides the question, those of them that MPS cannot run), tracing `run` on the CPU.

    Attention runs as the chain of operations that MPS differentiates through, not as the CPU's fused kernel.
    """
    config = torch._C._profiler._ExperimentalConfig(capture_overload_names=True)
    with (
        sdpa_kernel([SDPBackend.MATH]),
        profile(activities=[ProfilerActivity.CPU], experimental_config=config) as trace,
    ):
        run()
    seen: set[str] = set()
    found: dict[str, Gap] = {}
    for event in trace.events():
        if event.cpu_parent is None:
            for gap in _walk(table, event, (), seen):
                found.setdefault(gap.op, gap)
    for op in (*TRANSFERS, *(route for name in list(seen) for route in MPS_ROUTES.get(name, ()))):
        seen.add(op)
        if not (table.has_mps_kernel(op) or table.is_composite(op)):
            found.setdefault(op, Gap(op, "no MPS kernel"))
    return seen, list(found.values())


def _walk(table: KernelTable, event: FunctionEvent, path: tuple[str, ...], seen: set[str]) -> Iterator[Gap]:
    op = _operation(event)
    if op is None:
        # Autograd's own bookkeeping, and marks set by Python.
        for child in event.cpu_children:
            yield from _walk(table, child, path, seen)
        return
    gap = _judge(table, op, seen)
    if gap is not None:
        yield dataclasses.replace(gap, path=path)
        return
    if table.has_mps_kernel(op):
        # What the CPU's kernel calls is no matter of Metal's; the routes of MPS_ROUTES are looked at apart.
        return
    for child in event.cpu_children:
        yield from _walk(table, child, (*path, op), seen)


def _judge(table: KernelTable, op: str, seen: set[str]) -> Gap | None:
    seen.add(op)
    if op not in table:
        return Gap(op, "not in native_functions.yaml")
    if table.has_mps_kernel(op):
        return None
    if table.falls_back(op):
        return Gap(op, "registered for MPS as a fallback to the CPU")
    if not table.is_composite(op):
        return Gap(op, "no MPS kernel")
    if table.has_cpu_kernel(op):
        return Gap(op, "the CPU has a kernel of its own, so that the trace does not show what MPS would run")
    return None


def _operation(event: FunctionEvent) -> str | None:
    if not event.name.startswith("aten::"):
        return None
    name = event.name.removeprefix("aten::")
    overload = getattr(event, "overload_name", "")
    return f"{name}.{overload}" if overload else name
