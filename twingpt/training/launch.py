"""`twingpt train --hosts`: the same command as the engine's own launcher starts it, once on every host."""

import os
import shlex
import socket
import sys
from collections.abc import Sequence

from twingpt.core.engines import engines
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.world import Host, Launch
from twingpt.training.restart import without_option


def launch_hosts(hosts: Sequence[str], backend: str, arguments: Sequence[str]) -> Launch:
    """hosts: names or addresses, one for each rank; arguments: of `twingpt`, without --hosts.

    Raises UsageError for a host that the others cannot reach, TwinGPTError if the launcher is not installed.
    """
    launchers = {engine.name: engine.launcher for engine in engines() if engine.launcher is not None}
    if backend not in launchers:
        raise UsageError(
            tr(
                "unknown backend {backend!r}: choose one of {choices}",
                backend=backend,
                choices=", ".join(launchers),
            )
        )
    addresses = [_address(host) for host in hosts]
    loopback = [host for host, address in zip(hosts, addresses, strict=True) if address.startswith("127.")]
    if loopback and len(loopback) < len(hosts):
        raise UsageError(
            tr(
                "--hosts: the other machines cannot reach {address}: name this one by its own address",
                address=loopback[0],
            )
        )
    ranks = [Host(host, address, _is_local(address)) for host, address in zip(hosts, addresses, strict=True)]
    return launchers[backend].start(ranks, ["-m", "twingpt", *arguments])


def without_hosts(arguments: Sequence[str]) -> list[str]:
    """A command line without --hosts and its value."""
    return without_option(arguments, "--hosts")


def start(launch: Launch) -> list[str]:
    """Replace this process by the launcher, or return the lines to be typed on the hosts."""
    if launch.here is not None:
        sys.stdout.flush()
        os.execv(launch.here[0], launch.here)
    return [tr("on {host}:  {line}", host=host, line=shlex.join(line)) for host, line in launch.on_hosts.items()]


def _address(host: str) -> str:
    if not host:
        raise UsageError(tr("--hosts: a name is missing: write them with one comma between two"))
    try:
        return socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:
        raise UsageError(tr("--hosts: {host!r} has no address ({error})", host=host, error=error)) from None


def _is_local(address: str) -> bool:
    """Whether this machine can listen there."""
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
