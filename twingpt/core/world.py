"""Several processes that train one model: what the trainer asks of them, and how it knows that it was started so.

Each engine joins them on its framework's own runtime, in its distributed.py.
"""

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from twingpt.core.engines import engines

_MPI_SIGNS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Set for each rank by Open MPI and by MPICH."""


@dataclass(frozen=True, slots=True)
class Host:
    """name: as the user gave it. here: whether it is this machine."""

    name: str
    address: str
    here: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts a run of several ranks: to be run here, or to be typed on each host by the person."""

    here: list[str] | None
    on_hosts: dict[str, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """What starts the ranks of an engine.

    signs: variables that it sets, all of them, for each rank. restarts: the variable in which it counts how often it
    has started the ranks again. start: (a host for each rank, arguments of Python) -> what starts them; raises
    UsageError for hosts that it cannot take, TwinGPTError if it is not installed.
    """

    name: str
    signs: tuple[str, ...]
    start: Callable[[Sequence[Host], list[str]], Launch]
    restarts: str = ""


class World(Protocol):
    """The ranks of one run. rank: which of them this process is, from 0; size: how many there are."""

    rank: int
    size: int

    def gather(self, data: bytes) -> list[bytes]:
        """What every rank hands in, in the order of ranks; of one length everywhere. Waits for all of them.

        Raises PeerLostError if one of them is gone.
        """


class Alone:
    """The world of a process that nobody launched with others."""

    rank = 0
    size = 1

    def gather(self, data: bytes) -> list[bytes]:
        return [data]


def launched_for() -> str | None:
    """The engine whose launcher started this process as one of several ranks; None if nobody did."""
    if any(sign in os.environ for sign in _MPI_SIGNS):
        return next((engine.name for engine in engines() if engine.joins_mpi), None)
    for engine in engines():
        if engine.launcher is not None and all(sign in os.environ for sign in engine.launcher.signs):
            return engine.name
    return None


def started_again() -> bool:
    """Whether an engine's launcher has started this process anew, after a rank was lost."""
    counters = [engine.launcher.restarts for engine in engines() if engine.launcher and engine.launcher.restarts]
    return any(os.environ.get(counter, "0") != "0" for counter in counters)


def totals(world: World, *values: float) -> list[float]:
    """Each value summed over the ranks in float64: the same bits on all of them."""
    layout = f"{len(values)}d"
    rows = [struct.unpack(layout, data) for data in world.gather(struct.pack(layout, *values))]
    return [math.fsum(column) for column in zip(*rows, strict=True)]


def gather_facts(world: World, facts: dict[str, str]) -> list[dict[str, str]]:
    """Each rank's facts, in the order of ranks."""
    data = json.dumps(facts).encode()
    longest = max(struct.unpack("q", size)[0] for size in world.gather(struct.pack("q", len(data))))
    return [json.loads(part) for part in world.gather(data.ljust(longest))]
