"""What the PyTorch engine says of itself. PyTorch itself is not imported here."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence

from twingpt.core.engines import Engine, Exchange
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.memory import Footprint
from twingpt.core.world import Host, Launch, Launcher

BUCKET_BYTES = 25 * 1024**2
"""Gradients that travel together, as in torch's DistributedDataParallel."""

RESTARTS = "TORCHELASTIC_RESTART_COUNT"
FALLBACK = "PYTORCH_ENABLE_MPS_FALLBACK"

MASTER_PORT = 29500
"""Where rank 0 of torch.distributed waits for the others: torchrun's own default."""

BRIDGE = "bridge0"
"""A Mac's Thunderbolt Bridge."""

# Fitted to peak resident memory on a CPU (x86-64, torch 2.13, mlx 0.32.4) with n_embd 64 to 384, 2 and 6 layers, T 64
# and 256, mlp_ratio 1 and 4, vocabulary 512 and 16,000: 30 measurements, -11 to +7 % of the total; 4 more with
# activation checkpointing, -5 to +11 %. SQUARE is MPS's attention, measured by turning the fused one off on the CPU;
# nothing here was measured on a Mac. `python benchmarks/estimates.py` holds whole runs against it.
_COMMON = {
    "hidden": 2.0,
    "logits": 3.0,
    "all_logits": 3.0,
    "half": 0.6,
    "framework": 88,
    "recomputed": 3.8,
    "update": 0.0,
}
FLASH = Footprint(width=9.8, square=0.0, passing=19.0, **_COMMON)
SQUARE = Footprint(width=11.0, square=2.0, passing=19.0, **_COMMON)
SQUARE_DROPOUT = Footprint(width=14.5, square=4.0, passing=20.0, **_COMMON)


def footprint(device: str, dropout: bool) -> Footprint:
    """Which kernels are taken for attention: MPS has no fused one, and none takes dropout's keys."""
    if dropout:
        return SQUARE_DROPOUT
    return SQUARE if device == "mps" else FLASH


def launch(hosts: Sequence[Host], command: list[str]) -> Launch:
    """torchrun reaches no other machine: where the hosts are not all this one, each needs its own line.

    Raises UsageError for hosts that have different numbers of ranks.
    """
    if all(host.here for host in hosts):
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        # By its own name, which torchrun would take, a Mac may not find itself.
        alone = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(len(hosts))]
        return Launch([*torchrun, *alone, *command], {})
    ranks = Counter(host.name for host in hosts)
    if len(set(ranks.values())) > 1:
        raise UsageError(tr("--hosts: with --backend mps every machine must be named the same number of times"))
    lines, own = {}, interface_here(hosts)
    here = {host.name for host in hosts if host.here}
    for number, host in enumerate(ranks):
        where = ["--nnodes", str(len(ranks)), "--node-rank", str(number), "--nproc-per-node", str(ranks[host])]
        master = ["--master-addr", hosts[0].address, "--master-port", str(MASTER_PORT)]
        # Else gloo takes the interface of the host's name, which may be Wi-Fi.
        interface = own if host in here or own == BRIDGE else None
        named = [] if interface is None else ["env", f"GLOO_SOCKET_IFNAME={interface}"]
        lines[host] = [*named, "torchrun", *where, *master, *command]
    return Launch(None, lines)


def interface_here(hosts: Sequence[Host]) -> str | None:
    """The name of the interface that this machine is one of the hosts by; None where that cannot be told.

    Only the bridge has the same name on every Mac. On another system a name that the host does not have ends the run.
    """
    import psutil  # type: ignore[import-untyped]

    own = [host.address for host in hosts if host.here]
    if not own:
        return BRIDGE if sys.platform == "darwin" else None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address in own for address in addresses):
            return str(name)
    return None


def device_name(device: str) -> str | None:
    if device != "cuda":
        return None
    import torch

    return torch.cuda.get_device_name()


def notes() -> list[str]:
    if os.environ.get(FALLBACK, "0") in ("", "0"):
        return []
    return [
        tr(
            "{fallback} is set: an operation without a Metal kernel runs on the CPU, with a warning "
            "at most; unset it to be stopped instead",
            fallback=FALLBACK,
        )
    ]


ENGINE = Engine(
    name="mps",
    aliases=("torch",),
    # `mps` also computes on CUDA and on a CPU, so its name would mislead in a sentence.
    title="PyTorch",
    order=1,
    package="twingpt.backends.torch_mps",
    framework="torch",
    extra="torch",
    packages=("torch",),
    compared=True,
    footprint=footprint,
    launcher=Launcher(name="torchrun", signs=("WORLD_SIZE", "RANK", "MASTER_ADDR"), start=launch, restarts=RESTARTS),
    # A hop is half of an all-reduce of next to nothing between two processes, 0.20 ms on the development machine.
    # Passes: put into buckets, from Metal to the CPU and back.
    exchange=Exchange(bucket_bytes=BUCKET_BYTES, hop_seconds=100e-6, passes=3),
    device_name=device_name,
    chip_device="mps",
    fallback=FALLBACK,
    variables=(
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO",
        "PYTORCH_MPS_PREFER_METAL",
        "PYTORCH_MPS_FAST_MATH",
    ),
    notes=notes,
    colour="#d1495b",
)
