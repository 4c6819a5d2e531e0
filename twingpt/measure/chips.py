"""What Apple's chips can do at most, and which one this is.

GPU FLOPs a second are cores x 128 ALUs x 2 (a fused multiply-add) x clock. Clocks: hmc-tech.com's GPU pages for M1 Max,
M2 Ultra, M3 Pro, M3 Max, M4, M4 Pro and M4 Max, their kin likewise; for M1 and M3 those that make the 2.6 and 3.5
TFLOPS usually quoted. Bandwidths: Apple's announcements and technical specifications. arXiv 2502.05317 measured 2.9
TFLOPS and 100 GB/s on an M4 with a peak of 3.8 and 120. The M5's GPU has matrix units beside its ALUs, whose rate Apple
does not publish: there, and wherever a figure is None, the products measured here stand in.
"""

import platform
import re
import subprocess
from dataclasses import dataclass

from twingpt.checks.machine import machine

ALUS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """ghz: clock of the GPU, None where it says too little. bandwidth: GB/s by the least number of GPU cores."""

    ghz: float | None
    bandwidth: dict[int, float]


FAMILIES: dict[str, Family] = {
    "Apple M1": Family(ghz=1.278, bandwidth={0: 68}),
    "Apple M1 Pro": Family(ghz=1.296, bandwidth={0: 200}),
    "Apple M1 Max": Family(ghz=1.296, bandwidth={0: 400}),
    "Apple M1 Ultra": Family(ghz=1.296, bandwidth={0: 800}),
    "Apple M2": Family(ghz=1.398, bandwidth={0: 100}),
    "Apple M2 Pro": Family(ghz=1.398, bandwidth={0: 200}),
    "Apple M2 Max": Family(ghz=1.398, bandwidth={0: 400}),
    "Apple M2 Ultra": Family(ghz=1.398, bandwidth={0: 800}),
    "Apple M3": Family(ghz=1.38, bandwidth={0: 100}),
    "Apple M3 Pro": Family(ghz=1.398, bandwidth={0: 150}),
    "Apple M3 Max": Family(ghz=1.398, bandwidth={0: 300, 40: 400}),
    "Apple M3 Ultra": Family(ghz=1.398, bandwidth={0: 819}),
    "Apple M4": Family(ghz=1.47, bandwidth={0: 120}),
    "Apple M4 Pro": Family(ghz=1.47, bandwidth={0: 273}),
    "Apple M4 Max": Family(ghz=1.678, bandwidth={0: 410, 40: 546}),
    "Apple M5": Family(ghz=None, bandwidth={0: 153}),
    "Apple M5 Pro": Family(ghz=None, bandwidth={0: 307}),
    "Apple M5 Max": Family(ghz=None, bandwidth={40: 614}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """name as the system gives it; gpu_cores, flops (a second) and bandwidth (bytes a second) None where not known."""

    name: str
    gpu_cores: int | None = None
    flops: float | None = None
    bandwidth: float | None = None


def describe(name: str, gpu_cores: int | None) -> Chip:
    """The limits of a chip's GPU, as far as the table has them."""
    family = FAMILIES.get(name)
    if family is None or gpu_cores is None:
        return Chip(name=name, gpu_cores=gpu_cores)
    flops = None if family.ghz is None else gpu_cores * ALUS * 2 * family.ghz * 1e9
    bandwidths = [family.bandwidth[cores] * 1e9 for cores in sorted(family.bandwidth) if cores <= gpu_cores]
    return Chip(name=name, gpu_cores=gpu_cores, flops=flops, bandwidth=bandwidths[-1] if bandwidths else None)


def this_chip() -> Chip:
    return describe(machine()["chip"], _gpu_cores())


def _gpu_cores() -> int | None:
    if platform.system() != "Darwin":
        return None
    answer = subprocess.run(
        ["/usr/sbin/ioreg", "-rc", "AGXAccelerator"], capture_output=True, text=True, errors="replace", check=False
    )
    found = re.search(r'"gpu-core-count" = (\d+)', answer.stdout)
    return int(found[1]) if found else None
