"""What is installed, and what the machine says of itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from twingpt import __version__
from twingpt.core.engines import engines
from twingpt.core.language import mark
from twingpt.core.memory import gibibytes

PACKAGES = ("numpy", "tokenizers", "safetensors")


def versions() -> dict[str, str]:
    found = {"twingpt": __version__, "python": platform.python_version(), mark("system"): _system()}
    for package in (*(name for engine in engines() for name in engine.packages), *PACKAGES):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = mark("not installed")
    return found


def machine() -> dict[str, str]:
    """The hardware, and the variables that frameworks read: a forgotten one changes a run from afar."""
    known = engines()
    fallbacks = [engine.fallback for engine in known if engine.fallback]
    variables = [name for engine in known for name in engine.variables]
    return {
        mark("chip"): _chip() or "unknown",
        mark("cores"): str(os.cpu_count()),
        mark("memory"): gibibytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        **{name: os.environ.get(name, mark("not set")) for name in fallbacks},
        **{name: os.environ[name] for name in variables if name in os.environ},
    }


def notes() -> list[str]:
    return [note for engine in engines() for note in engine.notes()]


def _system() -> str:
    if platform.system() == "Darwin":
        return f"macOS {platform.mac_ver()[0]} ({platform.machine()})"
    return f"{platform.system()} {platform.release()} ({platform.machine()})"


def _chip() -> str:
    if platform.system() == "Darwin":
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return answer.stdout.strip()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
