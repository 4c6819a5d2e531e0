"""Two network namespaces of this machine, joined by a cable of a set speed: two machines as far as TCP can tell."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

ADDRESSES = ("10.77.0.1", "10.77.0.2")
INTERFACE = "link0"
MASTER_PORT = "29500"
RING_PORT = 5000
PAYLOAD = 1448 / 1514
"""Of the bytes that tc counts, those that TCP carries: MTU 1500 and time stamps, with the Ethernet header."""

BURST = "256kb"
"""What tbf lets through at once: less, and a processor that is late by some 0.1 ms costs bandwidth."""

TIMEOUT = 1800


class Cable:
    """The namespaces while the `with` block runs; they are removed whatever ends it.

    gbits: of each direction, as a network card counts them; 0: as fast as this machine copies. delay: ms, one way.
    """

    def __init__(self, gbits: float, delay: float = 0.0) -> None:
        self._gbits, self._delay = gbits, delay
        self._names = tuple(f"twingpt-{os.getpid()}-{rank}" for rank in range(2))
        self._processes: list[subprocess.Popen[str]] = []
        self._ring = Path(tempfile.gettempdir()) / f"{self._names[0]}.json"

    def __enter__(self) -> "Cable":
        if os.geteuid() != 0:
            sys.exit("network namespaces need root: run this as root (sudo -E)")
        for tool in ("ip", "tc"):
            if shutil.which(tool) is None:
                sys.exit(f"{tool} is missing: install iproute2")
        # Python would end without leaving the `with` block.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        self._ring.write_text(json.dumps([[f"{address}:{RING_PORT}"] for address in ADDRESSES]), encoding="utf-8")
        try:
            self._connect()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _connect(self) -> None:
        first, second = self._names
        for name in self._names:
            _do("ip", "netns", "add", name)
        _do("ip", "link", "add", INTERFACE, "netns", first, "type", "veth", "peer", "name", INTERFACE, "netns", second)
        for name, address in zip(self._names, ADDRESSES, strict=True):
            _do("ip", "-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            _do("ip", "-n", name, "link", "set", INTERFACE, "up")
            _do("ip", "-n", name, "link", "set", "lo", "up")
            queue = ("tc", "-n", name, "qdisc", "add", "dev", INTERFACE)
            if self._delay:
                _do(*queue, "root", "handle", "1:", "netem", "delay", f"{self._delay}ms", "limit", "100000")
            if self._gbits:
                parent = ("parent", "1:1") if self._delay else ("root",)
                _do(*queue, *parent, "tbf", "rate", f"{self._gbits}gbit", "burst", BURST, "limit", "8mb")

    def _remove(self) -> None:
        self._kill()
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL, check=False)
        self._ring.unlink(missing_ok=True)

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def environment(self, rank: int, backend: str) -> dict[str, str]:
        """What mlx.launch or torchrun would set for this rank, and the one network card that gloo may take."""
        if backend == "mlx":
            return {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(self._ring)}
        return {
            "MASTER_ADDR": ADDRESSES[0],
            "MASTER_PORT": MASTER_PORT,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1",
            "GLOO_SOCKET_IFNAME": INTERFACE,
        }

    def run(
        self, commands: tuple[list[str], list[str]], environments: tuple[dict[str, str], dict[str, str]]
    ) -> tuple[str, str]:
        """A process in each namespace, on a core of its own where there are two; what they print.

        Raises RuntimeError, with the end of what it said, if one fails; the other is killed then.
        """
        cores = sorted(os.sched_getaffinity(0))
        single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with tempfile.TemporaryDirectory() as folder:
            outputs = [Path(folder) / f"{rank}.{kind}" for rank in range(2) for kind in ("out", "err")]
            self._processes = []
            for rank, (command, extra) in enumerate(zip(commands, environments, strict=True)):
                with outputs[2 * rank].open("w") as out, outputs[2 * rank + 1].open("w") as err:
                    place = ["ip", "netns", "exec", self._names[rank], "taskset", "-c", str(cores[rank % len(cores)])]
                    self._processes.append(
                        subprocess.Popen(
                            [*place, *command], env={**os.environ, **single, **extra}, stdout=out, stderr=err, text=True
                        )
                    )
            self._wait(outputs)
            first, second = (path.read_text() for path in outputs[::2])
            return first, second

    def _wait(self, outputs: list[Path]) -> None:
        deadline = time.monotonic() + TIMEOUT
        failed: list[int] = []
        while not failed and any(process.poll() is None for process in self._processes):
            time.sleep(0.05)
            late = time.monotonic() > deadline
            failed = [rank for rank, process in enumerate(self._processes) if process.poll() or late]
        failed = failed or [rank for rank, process in enumerate(self._processes) if process.returncode]
        codes = [process.returncode for process in self._processes]
        self._kill()
        if failed:
            said = "\n".join(outputs[2 * rank + 1].read_text().strip()[-2000:] for rank in failed)
            raise RuntimeError(f"rank {failed[0]} of exit codes {codes} failed: {said}")


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        hint = " (does the kernel have this queue?)" if command[0] == "tc" else ""
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}{hint}")
