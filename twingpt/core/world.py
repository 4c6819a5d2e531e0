"""Several processes that train one model: what the trainer asks of them, and how it knows that it was started so.

Each engine joins them on its framework's own runtime, in its distributed.py.
"""

import json
import math
import os
import struct
from typing import Protocol

LAUNCHERS = {"mps": "torchrun", "mlx": "mlx.launch"}
"""Engine -> the launcher that starts its ranks."""

# Set by torchrun; by mlx.launch; and by Open MPI and MPICH, which MLX can use as well.
_SIGNS = {"mps": ("WORLD_SIZE", "RANK", "MASTER_ADDR"), "mlx": ("MLX_RANK",)}
_MPI_SIGNS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
ELASTIC_RESTARTS = "TORCHELASTIC_RESTART_COUNT"


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
        return "mlx"
    return next((name for name, signs in _SIGNS.items() if all(sign in os.environ for sign in signs)), None)


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
