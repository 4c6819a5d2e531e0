"""Memory: of this process where the device keeps no count of its own, of the machine, and errors about it."""

import os
import resource
import sys
from pathlib import Path

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
