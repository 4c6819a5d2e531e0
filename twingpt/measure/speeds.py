"""How fast one machine trains: from the table of chips, from a measurement here, or as the user says."""

import re
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from twingpt.checks.machine import machine
from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec
from twingpt.measure.child import in_fresh_process
from twingpt.measure.chips import FAMILIES, Chip, describe, this_chip
from twingpt.measure.cost import Machine, reached_flops
from twingpt.training.config import TrainConfig
from twingpt.training.estimate import plan_memory
from twingpt.training.probe import probe

REACHED = 0.3
"""Share of a chip's FLOPs that training reaches: an estimate, as nothing was measured on a Mac. arXiv 2502.05317 has
76 % for large products alone on an M4; in a model of this size they are small and much else lies between them."""

MEMORY_REACHED = 0.8
"""Share of the bandwidth that simple loops reach: arXiv 2502.05317 measured 100 of an M4's 120 GB/s."""

UPDATES = 3
COPIED = 64 * 1024**2

# The most GPU cores that each chip is sold with, by Apple's specifications.
GPU_CORES = {
    "M1": 8,
    "M1 Pro": 16,
    "M1 Max": 32,
    "M1 Ultra": 64,
    "M2": 10,
    "M2 Pro": 19,
    "M2 Max": 38,
    "M2 Ultra": 76,
    "M3": 10,
    "M3 Pro": 18,
    "M3 Max": 40,
    "M3 Ultra": 80,
    "M4": 10,
    "M4 Pro": 20,
    "M4 Max": 40,
    "M5": 10,
    "M5 Pro": 20,
    "M5 Max": 40,
}


def named_chip(name: str, gpu_cores: int | None) -> Chip:
    """The chip that "M4 Max" or "Apple M4 Max" means, with its most GPU cores if none are given.

    Raises UsageError if the table does not have it.
    """
    short = re.sub(r"^apple\s+", "", name.strip(), flags=re.IGNORECASE)
    for chip, cores in GPU_CORES.items():
        if chip.lower() == short.lower():
            return describe(f"Apple {chip}", gpu_cores or cores)
    known = ", ".join(chip.removeprefix("Apple ") for chip in FAMILIES)
    raise UsageError(
        tr("unknown chip {name!r}: choose one of {known}, or say --tokens-per-second", name=name, known=known)
    )


def from_chip(chip: Chip, share: float | None) -> Machine:
    """A machine of the table. Raises UsageError if the table does not say how fast it is.

    share: of its FLOPs that training reaches, REACHED if None.
    """
    if chip.flops is None or chip.bandwidth is None:
        raise UsageError(
            tr(
                "{chip}: how fast its GPU multiplies is not published: give --tokens-per-second, as `twingpt bench` "
                "measures it there",
                chip=chip.name,
            )
        )
    return Machine(
        name=tr("{chip}, {gpu_cores} GPU cores", chip=chip.name, gpu_cores=chip.gpu_cores),
        flops=chip.flops * (share or REACHED),
        memory=chip.bandwidth * MEMORY_REACHED,
        source=tr("{share:.0%} of the chip's {flops:.1f} TFLOP/s", share=share or REACHED, flops=chip.flops / 1e12)
        + ("" if share else tr(", an estimate: --tokens-per-second makes it yours")),
    )


def from_speed(
    name: str, chip: Chip | None, spec: GPTSpec, config: TrainConfig, tokens_per_second: float, source: str
) -> Machine:
    """A machine that trains so many tokens a second, alone, in batches of config.batch_size.

    chip: None for one whose GPU nobody knows of, or that trains on its CPU.
    """
    memory = chip.bandwidth * MEMORY_REACHED if chip and chip.bandwidth else copy_speed()
    seconds = config.batch_size * spec.block_size / tokens_per_second
    flops = reached_flops(spec, config, seconds, memory)
    return Machine(name=name, flops=flops, memory=memory, source=source, spare_cores=chip is not None)


def measured_here(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, device: DeviceChoice, stage: Callable[[str], None]
) -> Machine:
    """This machine, from a few updates on random tokens in a process of their own.

    Raises TwinGPTError if they do not fit into its memory.
    """
    stage(tr("{backend}: device and memory", backend=backend))
    found = in_fresh_process("describe", spec, config, backend, device)
    micro_batch = plan_memory(spec, config, backend, found["device"], found["limit"], strict=False).micro_batch
    stage(
        tr(
            "timing {updates} updates, {micro_batch} of {batch_size} sequences at a time",
            updates=UPDATES,
            micro_batch=micro_batch,
            batch_size=config.batch_size,
        )
    )
    result = probe(spec, replace(config, micro_batch=micro_batch), backend, device, micro_batch, UPDATES)
    if not result.fits:
        raise TwinGPTError(tr("an update does not fit into memory here: {reason}", reason=result.reason))
    chip = None if found["device"] == "cpu" else this_chip()
    speed = config.batch_size * spec.block_size / result.seconds_per_step
    source = tr(
        "measured here: {backend} on {device}, {speed:,.0f} tokens/s",
        backend=backend,
        device=found["device"],
        speed=speed,
    )
    return from_speed(machine()["chip"], chip, spec, config, speed, source)


def copy_speed() -> float:
    """Bytes a second that this machine's memory reads and writes while it copies."""
    source, target = np.ones(COPIED, dtype=np.uint8), np.zeros(COPIED, dtype=np.uint8)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return 2 * COPIED / min(seconds)
