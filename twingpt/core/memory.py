"""The memory of this process, where the device keeps no count of its own."""

import resource
import sys
from pathlib import Path


def process_memory() -> tuple[int, int]:
    """(resident, peak resident) bytes of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak, peak
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    # The kernel counts the peak in batches, so that it can lag behind.
    return resident, max(resident, peak * 1024)
