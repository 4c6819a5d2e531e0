"""Commands of twingpt that are struck at the call of a chosen number: killed there, or with a full disk from there on.

A process that has imported everything forks a child for each command, so that a blow costs what the command costs and
not the seconds that a framework takes to start. faults.c, loaded before the C library (LD_PRELOAD), counts the calls by
which the child changes files. A tracer (strace) would see the same calls, but has to start the process anew each time
and makes every call slow; a patched `os` would not see what native code writes, and SQLite and safetensors are native.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SHIM = Path(__file__).with_name("faults.c")
MODES = ("count", "kill", "tear", "full")
"""kill: dead before the call. tear: dead after it, of a write after half of it. full: no room from the call on."""
Mode = Literal["count", "kill", "tear", "full"]
KILLED = -9
PATIENCE_S = 120


@dataclass(frozen=True)
class Outcome:
    """How a command ended. code: its exit code, KILLED where it was. calls: those it made, what: the one struck."""

    code: int
    calls: int
    what: str
    out: str
    err: str


def why_not() -> str | None:
    """Why commands cannot be struck on this machine, or None."""
    if sys.platform != "linux":
        return "calls are counted through LD_PRELOAD, which is Linux's"
    return None if shutil.which("cc") else "there is no C compiler"


class Host:
    """The process that forks a child for each command."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(
        self, folder: Path, arguments: Sequence[str], mode: Mode = "count", at: int = 0, seconds: float = 0.0
    ) -> Outcome:
        """`twingpt ARGUMENTS` in a folder, struck at call `at`. seconds: how far its clock is moved."""
        assert self._process.stdin and self._process.stdout
        request = {"folder": str(folder), "arguments": list(arguments), "mode": mode, "at": at, "seconds": seconds}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks the commands is gone"
        return Outcome(**json.loads(answer))


@contextmanager
def host(environment: Mapping[str, str]) -> Iterator[Host]:
    """A Host with these variables in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        shim = Path(folder) / "faults.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, SHIM, "-ldl"], check=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.faulty", str(shim)],
            env={**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Host(process)
        finally:
            process.communicate()


# From here on: what runs in that process.


def _serve(shim: str) -> None:
    import ctypes

    faults = ctypes.CDLL(shim)
    faults.faults_calls.restype = ctypes.c_long
    faults.faults_what.restype = ctypes.c_char_p
    _import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        faults.faults_reset()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                _command(faults, request)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            out.seek(0)
            err.seek(0)
            outcome = Outcome(
                code,
                faults.faults_calls(),
                faults.faults_what().decode(),
                out.read().decode(errors="replace"),
                err.read().decode(errors="replace"),
            )
        sys.stdout.write(json.dumps(outcome.__dict__) + "\n")
        sys.stdout.flush()


def _command(faults: object, request: dict[str, object]) -> None:
    """The child's whole life."""
    import signal
    import time
    import traceback

    code = 70
    try:
        signal.alarm(PATIENCE_S)
        os.chdir(str(request["folder"]))
        sys.argv = ["twingpt", *request["arguments"]]  # type: ignore[misc]
        if moved := float(str(request["seconds"])):
            clock, clock_ns = time.time, time.time_ns
            time.time = lambda: clock() + moved
            time.time_ns = lambda: clock_ns() + int(moved * 1e9)
        from twingpt.cli import main

        faults.faults_arm(request["at"], MODES.index(str(request["mode"])))  # type: ignore[attr-defined]
        main()
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _import_everything() -> None:
    """What the commands import when they run; nothing here may start a thread, which no fork would take along."""
    import importlib
    import pkgutil

    import twingpt
    from twingpt.core.engines import compared, find_engine

    for name in compared():
        find_engine(name).prepare()
    for module in pkgutil.walk_packages(twingpt.__path__, "twingpt."):
        if module.name.split(".")[1] not in ("__main__", "serve", "report"):
            importlib.import_module(module.name)


if __name__ == "__main__":
    _serve(sys.argv[1])
