"""What is installed, and what the machine says of itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from twingpt import __version__

GIB = 1024.0**3
PACKAGES = ("torch", "mlx", "numpy", "tokenizers", "safetensors")
# Read by the frameworks when they are imported or first used, so that a forgotten one changes a run from afar.
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"
VARIABLES = (
    "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
    "PYTORCH_MPS_LOW_WATERMARK_RATIO",
    "PYTORCH_MPS_PREFER_METAL",
    "PYTORCH_MPS_FAST_MATH",
    "MLX_ENABLE_TF32",
    "MLX_DISABLE_COMPILE",
)


def versions() -> dict[str, str]:
    found = {"twingpt": __version__, "python": platform.python_version(), "system": _system()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def machine() -> dict[str, str]:
    return {
        "chip": _chip() or "unknown",
        "cores": str(os.cpu_count()),
        "memory": gibibytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        FALLBACK: os.environ.get(FALLBACK, "not set"),
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def notes() -> list[str]:
    found = []
    if os.environ.get(FALLBACK, "0") not in ("", "0"):
        found.append(
            f"{FALLBACK} is set: an operation without a Metal kernel runs on the CPU, with a warning "
            "at most; unset it to be stopped instead"
        )
    if os.environ.get("MLX_ENABLE_TF32") != "0" and platform.system() == "Darwin":
        found.append(
            "MLX may compute float32 products in TF32 on an M5 or newer (mlx#3860); MLX_ENABLE_TF32=0 keeps them whole"
        )
    return found


def gibibytes(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def torch_facts(device: Any) -> dict[str, str]:
    """State of PyTorch's devices. device: the torch.device that the engine takes."""
    import torch

    mps = torch.backends.mps
    facts = {
        "device taken": str(device),
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


def mlx_facts(device: Any) -> dict[str, str]:
    """State of MLX's devices. device: the mlx.core.Device that the engine takes."""
    import mlx.core as mx

    info = mx.device_info(device)
    facts = {
        "device taken": str(device),
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


def yes(value: bool) -> str:
    return "yes" if value else "no"


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
