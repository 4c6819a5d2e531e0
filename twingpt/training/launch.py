"""`twingpt train --hosts`: the same command as the engine's own launcher starts it, once on every host."""

import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twingpt.core.backend import BACKENDS
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.training.restart import without_option

MASTER_PORT = 29500
"""Where rank 0 of torch.distributed waits for the others: torchrun's own default."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts a run of several ranks: to be run here, or to be typed on each host by the person."""

    here: list[str] | None
    on_hosts: dict[str, list[str]]


def launch_hosts(hosts: Sequence[str], backend: str, arguments: Sequence[str]) -> Launch:
    """hosts: names or addresses, one for each rank; arguments: of `twingpt`, without --hosts.

    mlx.launch reaches the hosts over ssh. torchrun has no such way: where they are not all this machine, each needs its
    own line. Raises UsageError for a host that the others cannot reach, TwinGPTError if the launcher is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    addresses = [_address(host) for host in hosts]
    loopback = [host for host, address in zip(hosts, addresses, strict=True) if address.startswith("127.")]
    if loopback and len(loopback) < len(hosts):
        raise UsageError(f"--hosts: the other machines cannot reach {loopback[0]}: name this one by its own address")
    command = ["-m", "twingpt", *arguments]
    if backend == "mlx":
        return Launch(_mlx_launch(hosts, addresses, command), {})
    if all(_is_local(address) for address in addresses):
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        # By its own name, which torchrun would take, a Mac may not find itself.
        here = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(len(hosts))]
        return Launch([*torchrun, *here, *command], {})
    ranks = Counter(hosts)
    if len(set(ranks.values())) > 1:
        raise UsageError("--hosts: with --backend mps every machine must be named the same number of times")
    lines = {}
    for number, host in enumerate(ranks):
        where = ["--nnodes", str(len(ranks)), "--node-rank", str(number), "--nproc-per-node", str(ranks[host])]
        master = ["--master-addr", addresses[0], "--master-port", str(MASTER_PORT)]
        # Else gloo takes the interface of the host's name, which may be Wi-Fi. bridge0 is a Mac's Thunderbolt Bridge.
        lines[host] = ["env", "GLOO_SOCKET_IFNAME=bridge0", "torchrun", *where, *master, *command]
    return Launch(None, lines)


def without_hosts(arguments: Sequence[str]) -> list[str]:
    """A command line without --hosts and its value."""
    return without_option(arguments, "--hosts")


def start(launch: Launch) -> list[str]:
    """Replace this process by the launcher, or return the lines to be typed on the hosts."""
    if launch.here is not None:
        sys.stdout.flush()
        os.execv(launch.here[0], launch.here)
    return [f"on {host}:  {shlex.join(line)}" for host, line in launch.on_hosts.items()]


def _mlx_launch(hosts: Sequence[str], addresses: Sequence[str], command: list[str]) -> list[str]:
    launcher = shutil.which("mlx.launch", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if launcher is None:
        raise TwinGPTError("mlx.launch, which comes with mlx, is not on the PATH: pip install 'twingpt[mlx]'")
    listed = [
        # mlx.launch starts what is on 127.0.0.1 without ssh, which a Mac need not serve to itself.
        {"ssh": "127.0.0.1" if _is_local(address) else host, "ips": [address]}
        for host, address in zip(hosts, addresses, strict=True)
    ]
    with tempfile.NamedTemporaryFile("w", prefix="twingpt-hosts-", suffix=".json", delete=False) as file:
        json.dump(listed, file)
    return [launcher, "--backend", "ring", "--hostfile", file.name, "--", sys.executable, *command]


def _address(host: str) -> str:
    if not host:
        raise UsageError("--hosts: a name is missing: write them with one comma between two")
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--hosts: {host!r} has no address ({error})") from None


def _is_local(address: str) -> bool:
    """Whether this machine can listen there."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
