"""Processes of one run, given what each engine's launcher gives them, so that a test can reach each by itself."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def rank_environments(backend: str, size: int, folder: Path) -> list[dict[str, str]]:
    """What each engine's launcher sets."""
    if backend == "mps":
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": str(size)}
        return [{**shared, "RANK": str(rank)} for rank in range(size)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in free_ports(size)]))
    return [{"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)} for rank in range(size)]


@contextmanager
def ranks(
    backend: str, folder: Path, size: int, *options: str, of_rank: dict[int, list[str]] | None = None
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a run in folder/run."""
    command = [sys.executable, "-m", "twingpt", "train", "--backend", backend, "--out", str(folder / "run"), *options]
    processes = [
        subprocess.Popen(
            [*command, *(of_rank or {}).get(rank, [])],
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, environment in enumerate(rank_environments(backend, size, folder))
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
