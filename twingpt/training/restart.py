"""Going on in a fresh process, where running out of memory has ended this one or left it unusable.

MLX raises, and the process that it raised in can still replace itself: `restart`. Metal may also abort a process, and a
system out of memory kill it, and nothing in that process can help: a parent that holds no framework waits for it, and
goes on from the last checkpoint with half the micro-batch: `supervise`. The trial before a run makes that rare, but a
run of days beside other programs meets it, and nobody is there to type --resume. The price is one idle process and the
signals that it hands on. Without it, what the dead process left behind tells the next --resume: `RunningMark`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from rich.console import Console

from twingpt.core.errors import StoppedError, TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.training.estimate import LESS_MEMORY, smaller_micro_batch
from twingpt.training.probe import MEMORY_SIGNALS
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.format import write_whole

MARK_FILE = "running.json"
SUPERVISED = "TWINGPT_SUPERVISED"
ASKED_FOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def restart(arguments: list[str], run_dir: Path, micro_batch: int) -> NoReturn:
    """Replace this process by the same `twingpt train`, from the last checkpoint, or the start if there is none yet.

    arguments: the command line after `twingpt`.
    """
    arguments = restart_arguments(arguments, micro_batch, resume=bool(CheckpointStore(run_dir).steps()))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "twingpt", *arguments])


def without_option(arguments: Sequence[str], name: str) -> list[str]:
    """A command line without an option and its value."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == name:
            next(rest, None)
        elif not argument.startswith(f"{name}="):
            kept.append(argument)
    return kept


def restart_arguments(arguments: list[str], micro_batch: int, *, resume: bool) -> list[str]:
    """The command line again, with another --micro-batch and, if there is a checkpoint to go on from, --resume."""
    kept = without_option(arguments, "--micro-batch")
    if resume:
        # What it began with is in its own checkpoints by now.
        kept = [argument for argument in without_option(kept, "--from") if argument != "--moments"]
    return [*kept, *(["--resume"] if resume and "--resume" not in kept else []), "--micro-batch", str(micro_batch)]


@dataclass(frozen=True, slots=True)
class RunningMark:
    """RUN/running.json: there while a process trains, and after one that ended without a word."""

    pid: int
    micro_batch: int
    batch_size: int

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        try:
            mark = cls(**json.loads((run_dir / MARK_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return mark if all(isinstance(value, int) for value in asdict(mark).values()) else None

    def write(self, run_dir: Path) -> None:
        try:
            write_whole(run_dir / MARK_FILE, json.dumps(asdict(self)).encode())
        except OSError as error:
            raise TwinGPTError(
                tr("{path} cannot be written: {reason}", path=run_dir / MARK_FILE, reason=os_reason(error))
            ) from None

    @staticmethod
    def remove(run_dir: Path) -> None:
        with contextlib.suppress(OSError):
            (run_dir / MARK_FILE).unlink()

    @property
    def alive(self) -> bool:
        """Whether its process is there; the folder must be one of this machine's."""
        try:
            os.kill(self.pid, 0)
        except PermissionError:
            return True
        except (OSError, OverflowError):
            return False
        return True

    @property
    def advice(self) -> str:
        """What to tell the person who resumes."""
        said = tr(
            "the last process ended without a word at micro-batch {micro_batch} (killed, or by Metal)",
            micro_batch=self.micro_batch,
        )
        smaller = smaller_micro_batch(self.batch_size, self.micro_batch)
        return (
            said
            if smaller is None
            else tr("{said}. If memory had run out, add --micro-batch {smaller}", said=said, smaller=smaller)
        )


def supervise(arguments: list[str], run_dir: Path, console: Console) -> int:
    """`twingpt train` in a process of its own, and once more with half the micro-batch whenever memory ends it.

    Returns its exit code, 128 + the signal's number if it was asked to stop. Raises TwinGPTError if it was ended by
    anything that less memory does not help, or needed too much with one sequence at a time.
    """
    while True:
        pid, code = _run([sys.executable, "-m", "twingpt", *arguments, "--no-supervise"])
        if code >= 0:
            return code
        if -code in ASKED_FOR:
            return 128 - code
        name = signal.Signals(-code).name
        mark = RunningMark.read(run_dir)
        if -code not in MEMORY_SIGNALS or mark is None or mark.pid != pid:
            raise TwinGPTError(
                tr("the training process was ended by {name}: `twingpt doctor` checks the device", name=name)
            )
        smaller = smaller_micro_batch(mark.batch_size, mark.micro_batch)
        if smaller is None:
            raise TwinGPTError(
                tr(
                    "the training process was ended by {name}, with one sequence at a time: if memory ran out, "
                    "{advice}, or close other programs",
                    name=name,
                    advice=tr(LESS_MEMORY),
                )
            )
        console.show_cursor()  # which its progress bar had hidden
        console.print(
            tr(
                "the training process was ended by {name} at micro-batch {micro_batch}; "
                "going on from the last checkpoint with {smaller}",
                name=name,
                micro_batch=mark.micro_batch,
                smaller=smaller,
            ),
            highlight=False,
            soft_wrap=True,
        )
        RunningMark.remove(run_dir)
        arguments = restart_arguments(arguments, smaller, resume=bool(CheckpointStore(run_dir).steps()))


def train_supervised(options: Sequence[str], run_dir: Path, console: Console) -> None:
    """`supervise` for a command that trains as a part of its work.

    Raises StoppedError with the exit code of a training that said itself why it ended.
    """
    code = supervise(["train", "--out", str(run_dir), *options], run_dir, console)
    if code > 128:
        console.print(tr("The command that you gave goes on from here, too."), highlight=False)
    if code:
        raise StoppedError(code)


def is_supervised() -> bool:
    """Whether another twingpt waits for this process, and says itself what comes next."""
    return os.environ.get(SUPERVISED) == "1"


def _run(command: list[str]) -> tuple[int, int]:
    """(process id, exit code, negative for the signal that ended it) of a command that gets this process's signals.

    A process group of its own, or the terminal's Ctrl-C would reach it twice: from the terminal, and handed on. Its
    standard input ends when this process does.
    """
    child = subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0, env={**os.environ, SUPERVISED: "1"})

    def hand_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)
            child.send_signal(signal.SIGCONT)

    previous = {number: signal.signal(number, hand_on) for number in (*ASKED_FOR, signal.SIGTSTP)}
    try:
        with child:
            return child.pid, child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def marked(run_dir: Path, mark: RunningMark) -> Iterator[None]:
    """While this process trains, whoever finds it dead can see what it was doing."""
    mark.write(run_dir)
    try:
        yield
    finally:
        RunningMark.remove(run_dir)


def stop_with_supervisor() -> None:
    """In a supervised process: an orderly stop if the supervisor is killed, as it cannot hand that on."""
    if not is_supervised():
        return

    def wait() -> None:
        # Not sys.stdin: its lock, held by a thread, makes the interpreter's end an abort.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="supervisor", daemon=True).start()
