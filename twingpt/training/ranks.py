"""A run of several ranks: do they agree, and is none of them stuck?"""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from twingpt import __version__
from twingpt.core.engines import find_engine
from twingpt.core.errors import StoppedError, TwinGPTError, UsageError
from twingpt.core.language import mark, tr
from twingpt.core.world import World, gather_facts, launched_for, started_again, totals
from twingpt.training.config import RunConfig
from twingpt.training.record import read_sessions
from twingpt.weights.checkpoint import Checkpoint, read_progress

OF_EACH_RANK = ("micro_batch", "keep_last", "save_every")
"""Settings that may differ: they change nothing that is computed together."""

ASKED_WITHIN = 2.0
"""Seconds of updates after which the ranks ask each other again: torchrun kills 30 s after a Ctrl-C."""


def check_launcher(backend: str) -> None:
    """Raises UsageError if another engine's launcher started this process."""
    name = launched_for()
    if name is not None and name != find_engine(backend).name:
        own, other = find_engine(backend).launcher, find_engine(name).launcher
        raise UsageError(
            tr(
                "--backend {backend} was started by {other}, which serves --backend {name}: ",
                backend=backend,
                other=other.name if other else "MPI",
                name=name,
            )
            + (
                tr("start it with {own}", own=own.name)
                if own
                else tr("it trains in one process, so start it without a launcher")
            )
        )


def restarted(run_dir: Path) -> bool:
    """Whether the launcher starts this process again after a rank of its run was lost.

    torchrun also does so after a refusal, and then a run that is older than torchrun is another one.
    """
    if not started_again():
        return False
    sessions = read_sessions(run_dir)
    launched = psutil.Process(os.getppid()).create_time()
    return bool(sessions) and datetime.fromisoformat(sessions[0].started).timestamp() >= launched


def check_agreement(
    world: World, config: RunConfig, fingerprint: dict[str, str], start: Checkpoint | None, options: dict[str, str]
) -> None:
    """Raises TwinGPTError, on every rank, that names the ranks which would train something else, and in what.

    options: of the command line, those that decide which exchanges the ranks make.
    """
    train = {name: value for name, value in asdict(config.train).items() if name not in OF_EACH_RANK}
    facts = {
        mark("version of twingpt"): __version__,
        "step": str(start.progress.step if start else 0),
        "checkpoint": "none" if start is None else " ".join(sorted(read_progress(start.path)[1].values())),
        mark("evaluation of that step"): str(start is not None and start.progress.val_loss is not None),
        mark("position in the data"): str(start.progress.samples if start else 0),
        **fingerprint,
        **options,
        **{f"model.{name}": str(value) for name, value in config.model.to_dict().items()},
        **{f"train.{name}": str(value) for name, value in train.items()},
    }
    first, *others = gather_facts(world, facts)
    for rank, theirs in enumerate(others, 1):
        for name in first | theirs:
            here, there = first.get(name, "nothing"), theirs.get(name, "nothing")
            if here != there:
                raise TwinGPTError(
                    tr(
                        "rank {rank} has another {name} than rank 0 ({there} there, {here} on rank 0): "
                        "give every rank the same DATA, RUN and options",
                        rank=rank,
                        name=tr(name),
                        there=there[:60],
                        here=here[:60],
                    )
                )


def local_batch(batch_size: int, world: World) -> int:
    """Sequences of an update that one rank has. Raises UsageError if the ranks cannot share them evenly."""
    if batch_size % world.size:
        raise UsageError(
            tr(
                "--batch-size {batch_size} cannot be shared by {size} ranks: choose a multiple",
                batch_size=batch_size,
                size=world.size,
            )
        )
    return batch_size // world.size


class StopVote:
    """Whether any rank was told to stop, which each may be at another step: they have to end at the same one."""

    def __init__(self, world: World, step: int, at_most: int) -> None:
        """at_most: steps between two votes."""
        self._world, self._at_most = world, at_most
        self._last, self._next, self._time = step, step, time.monotonic()

    def __call__(self, step: int, wish: bool) -> bool:
        """To be asked before each step."""
        if self._world.size == 1:
            return wish
        if step < self._next:
            return False
        now, done = time.monotonic(), step - self._last
        wishes, seconds = totals(self._world, float(wish), now - self._time)
        mean = seconds / self._world.size
        until_next = int(done * ASKED_WITHIN / mean) if done and mean > 0 else 1
        self._last, self._next, self._time = step, step + min(self._at_most, max(1, until_next)), now
        return wishes > 0


class Watchdog:
    """Ends this process if its training loop does not move for too long: a rank may hang and say nothing.

    A thread, as the loop itself waits in the frameworks' calls, which have no common timeout (MLX has none at all).
    """

    def __init__(self, timeout: float) -> None:
        """timeout: seconds between two beats, in which a log interval's updates, an evaluation and a save must fit."""
        self._timeout = timeout
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()

    def _watch(self) -> None:
        while (left := self._last + self._timeout - time.monotonic()) > 0:
            time.sleep(left)
        sys.stderr.write(
            tr(
                "error: no rank moved for {timeout:g} s (--rank-timeout): one of them hangs, or is much slower; "
                "start all of them again with --resume\n",
                timeout=self._timeout,
            )
        )
        leave_at_once(1)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """For one of several ranks: end without the frameworks' own farewell, which waits for ranks that are gone."""
    try:
        yield
    except TwinGPTError as error:
        sys.stderr.write(tr("error: {error}\n", error=error))
        leave_at_once(error.exit_code)
    except StoppedError as stopped:
        leave_at_once(stopped.exit_code)
    except Exception:
        traceback.print_exc()
        leave_at_once(1)


def leave_at_once(code: int) -> None:
    """Also after all went well: what gloo tears down may meet what another rank has torn down already."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
