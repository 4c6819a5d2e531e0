"""Memory: of this process where the device keeps no count of its own, of the machine, of a step; errors about it."""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

GIB = 1024.0**3

CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# What torch and mlx say of it, on each device; none of them has one exception type for all.
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "unable to allocate",
    "attempting to allocate",
    "insufficient memory",
    "bad_alloc",
    "could not create a primitive",  # oneDNN, whose scratch space did not fit
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Float32 values that a training step keeps, beside weights, gradients and moments.

    For its gradient a layer keeps `width` x [B, T, n_embd], `hidden` x [B, T, hidden] and `square` x
    [B, n_head, T, T]. The backward pass needs `passing` x [B, T, n_embd] once more. The loss needs `logits` x
    [loss_chunk, vocab_size], and no more than `all_logits` x [B * T, vocab_size]. half: factor on a layer's share in
    bfloat16. framework: MiB that the framework takes when it starts to work, after its import. recomputed: layers alive
    at a time with activation checkpointing, more than one as freed blocks leave holes in the C library's heap. update:
    copies of the weights that the optimizer makes beside the gradients.
    """

    width: float
    hidden: float
    square: float
    passing: float
    logits: float
    all_logits: float
    half: float
    framework: float
    recomputed: float
    update: float


def gibibytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def process_memory() -> tuple[int, int]:
    """(resident, peak resident) bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak, peak
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # The kernel counts the peak in batches, so that it can lag behind.
    return resident, max(resident, peak * 1024)


def machine_memory() -> int:
    """Bytes that this machine has, or the container it runs in."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in map(Path, CGROUP_LIMITS):
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of a framework says that memory ran out."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in OUT_OF_MEMORY)


def first_line(error: BaseException) -> str:
    """What an exception says, without the call stack that some frameworks add."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
