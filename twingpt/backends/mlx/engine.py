"""What the MLX engine says of itself. MLX itself is not imported here."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twingpt.core.engines import Engine, Exchange
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.memory import Footprint
from twingpt.core.world import Host, Launch, Launcher

BUCKET_BYTES = 32 * 1024**2
"""Gradients that travel together, as in mlx.nn.average_gradients."""

TF32 = "MLX_ENABLE_TF32"

# Fitted as PyTorch's. MLX on the CPU hands out work, and memory for it, some ten chunks of the loss ahead.
_COMMON = {
    "width": 14.0,
    "hidden": 4.0,
    "logits": 10.5,
    "all_logits": 2.5,
    "half": 0.6,
    "framework": 6,
    "recomputed": 2.3,
    "update": 2.5,
}
GPU = Footprint(square=1.0, passing=40.0, **_COMMON)
GPU_DROPOUT = Footprint(square=2.5, passing=40.0, **_COMMON)
# Its own exponentials on the CPU need room of their own, and a part of a batch for every thread its own gradients:
# 45 and 207 MB more than before with a vocabulary of 4,000 and 16,000.
_CPU = {"logits": 22.0, "all_logits": 5.0}
CPU, CPU_DROPOUT = replace(GPU, **_CPU), replace(GPU_DROPOUT, **_CPU)


def footprint(device: str, dropout: bool) -> Footprint:
    if device == "cpu":
        return CPU_DROPOUT if dropout else CPU
    return GPU_DROPOUT if dropout else GPU


def prepare() -> None:
    """What MLX takes once and for all when it is imported: its settings, and on Linux its BLAS."""
    # On an M5 and on CUDA, MLX would compute float32 products in TF32 (mlx#3860): here float32 means float32.
    # MLX_ENABLE_TF32=1 in the environment trades the precision for speed.
    os.environ.setdefault(TF32, "0")
    from twingpt.backends.mlx.linux_cpu import blas

    blas.load()


def launch(hosts: Sequence[Host], command: list[str]) -> Launch:
    """mlx.launch reaches the hosts over ssh. Raises TwinGPTError if it is not installed."""
    launcher = shutil.which("mlx.launch", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if launcher is None:
        raise TwinGPTError(tr("mlx.launch, which comes with mlx, is not on the PATH: pip install 'twingpt[mlx]'"))
    # mlx.launch starts what is on 127.0.0.1 without ssh, which a Mac need not serve to itself.
    listed = [{"ssh": "127.0.0.1" if host.here else host.name, "ips": [host.address]} for host in hosts]
    with tempfile.NamedTemporaryFile("w", prefix="twingpt-hosts-", suffix=".json", delete=False) as file:
        json.dump(listed, file)
    return Launch([launcher, "--backend", "ring", "--hostfile", file.name, "--", sys.executable, *command], {})


def notes() -> list[str]:
    if os.environ.get(TF32) == "0" or platform.system() != "Darwin":
        return []
    return [
        tr(
            "MLX may compute float32 products in TF32 on an M5 or newer (mlx#3860); {tf32}=0 keeps them whole",
            tf32=TF32,
        )
    ]


ENGINE = Engine(
    name="mlx",
    title="MLX",
    order=2,
    package="twingpt.backends.mlx",
    framework="mlx.core",
    extra="mlx",
    packages=("mlx",),
    prepare=prepare,
    compared=True,
    footprint=footprint,
    launcher=Launcher(name="mlx.launch", signs=("MLX_RANK",), start=launch),
    joins_mpi=True,
    # A hop is half of an all-reduce of next to nothing between two processes, 0.08 ms on the development machine.
    # Passes: put into groups, copied by the ring, divided into means and multiplied to sums.
    exchange=Exchange(bucket_bytes=BUCKET_BYTES, hop_seconds=40e-6, passes=4, sleeps=False),
    chip_device="metal",
    variables=(TF32, "MLX_DISABLE_COMPILE"),
    notes=notes,
    advice=tr("for MLX on an M5 or newer, or on CUDA, set {tf32}=0 and try again; else ", tf32=TF32),
    colour="#2e6f95",
)
