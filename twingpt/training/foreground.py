"""A session run to its end in front of the user: progress, Ctrl-C, and what to do next."""

import os
import shlex
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event, Timer
from types import FrameType

from rich.console import Console

from twingpt.core.engines import find_engine
from twingpt.core.errors import StoppedError
from twingpt.core.language import mark, tr
from twingpt.core.params import parameter_count
from twingpt.data.files import LIBRARY_FILE
from twingpt.training.config import RunConfig
from twingpt.training.estimate import GIB, LESS_MEMORY, MemoryPlan, TimeEstimate
from twingpt.training.guards import keep_awake
from twingpt.training.log import MicroBatchReport, TrainDisplay
from twingpt.training.record import record_session
from twingpt.training.restart import RunningMark, is_supervised, marked, stop_with_supervisor
from twingpt.training.session import Session
from twingpt.training.trackers import followed
from twingpt.weights.checkpoint import CheckpointStore

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WORTH_A_WARM_UP = 50
"""Steps below which timing a few of them first would be a notable part of the run."""


def run_shown(
    session: Session,
    run_dir: Path,
    stop_at: int | None,
    console: Console,
    *,
    stop_after: float | None = None,
    estimate_time: bool = True,
    trackers: Sequence[str] = (),
) -> None:
    """Train up to `stop_at` (None: all steps) or for `stop_after` seconds, followed by the trackers of these names.

    Prints the estimated memory first, and the estimated time of a run of WORTH_A_WARM_UP steps or more. Raises
    StoppedError after an orderly stop by a signal, RestartError if only a fresh process can go on.
    """
    trainer, config = session.trainer, session.config
    # One of several ranks speaks, and marks the run as running.
    first = session.world.rank == 0
    console.quiet = console.quiet or not first
    last = min(stop_at or config.train.steps, config.train.steps)
    for note in session.notes:
        console.print(tr("note: {note}", note=note), markup=False, highlight=False, soft_wrap=True)
    if trainer.is_done(stop_at):
        if first:
            # Of a process that was killed after its last step.
            RunningMark.remove(run_dir)
        more = "--steps" if last == config.train.steps else "--stop-at"
        console.print(
            tr(
                "nothing is left to do: {run_dir} is at step {step} of {last}; to train on, add a larger {more}",
                run_dir=run_dir,
                step=trainer.step,
                last=last,
                more=more,
            ),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return
    ranks = tr("{size} ranks, ", size=session.world.size) if session.world.size > 1 else ""
    engine = tr("{title} on {device}", title=find_engine(session.backend.name).title, device=session.backend.device)
    console.print(
        tr(
            "{engine}: {ranks}{parameters:,} parameters, "
            "{batch_size} x {block_size} tokens an update, from step {step} to {last}",
            engine=engine,
            ranks=ranks,
            parameters=parameter_count(config.model),
            batch_size=config.train.batch_size,
            block_size=config.model.block_size,
            step=trainer.step,
            last=last,
        ),
        highlight=False,
    )
    console.print(memory_line(session.memory), markup=False, highlight=False, soft_wrap=True)
    if not session.memory.fits:
        console.print(
            tr("warning: that may be too much: {advice}", advice=tr(LESS_MEMORY)), markup=False, highlight=False
        )
    awake = keep_awake()
    if awake is not None:
        console.print(tr("caffeinate keeps this Mac awake until the training ends"))
    mark = RunningMark(os.getpid(), session.memory.micro_batch, config.train.batch_size)
    display = TrainDisplay(console, trainer.step, last)

    def warn(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with (
        marked(run_dir, mark) if first else nullcontext(),
        followed(trainer.metrics, trackers, run_dir, config, trainer.step, warn),
    ):
        stop_with_supervisor()
        if first:
            record_session(run_dir, trainer.step, session.backend, session.world.size, session.memory.micro_batch)
        if estimate_time and last - trainer.step >= WORTH_A_WARM_UP:
            console.print(time_line(trainer.warm_up(stop_at)), markup=False, highlight=False, soft_wrap=True)
        if stop_after is not None:
            console.print(
                tr("ends after {duration}, if not before", duration=timedelta(seconds=round(stop_after))),
                highlight=False,
            )
        with (
            stop_on_signals(trainer.request_stop) as received,
            stopping_after(stop_after, trainer.request_stop) as over,
            display.showing(trainer.run(stop_at)) as reports,
        ):
            for report in reports:
                if isinstance(report, MicroBatchReport):
                    replace(mark, micro_batch=report.after).write(run_dir)
            number = received()
    if number is None and trainer.step < last and not over.is_set():
        number = signal.SIGTERM  # which another rank was sent
    if number is not None:
        console.print(tr("stopped at step {step} and saved. Go on with:", step=trainer.step))
        console.print(
            f"  twingpt train --out {run_dir} --resume --backend {session.backend.name}",
            markup=False,
        )
        raise StoppedError(128 + number)
    console.print(
        tr("saved step {step} in {run_dir}", step=trainer.step, run_dir=run_dir), markup=False, highlight=False
    )
    if first and not is_supervised():
        say_next(run_dir, console)


def say_next(run_dir: Path, console: Console) -> None:
    """The commands that a training leads to."""
    step, steps = CheckpointStore(run_dir).steps()[-1], RunConfig.load(run_dir).train.steps
    shown = shlex.quote(str(run_dir))
    lines = (
        [tr("twingpt train --out {shown} --resume   (to step {steps})", shown=shown, steps=steps)]
        if step < steps
        else []
    )
    if (run_dir / LIBRARY_FILE).is_file():
        lines.append(f'twingpt ask {shown} "..."')
    for line in [*lines, f"twingpt serve {shown}"]:
        console.print(tr("next: {line}", line=line), markup=False, highlight=False, soft_wrap=True)


def memory_line(plan: MemoryPlan) -> str:
    need = plan.estimate
    parts = {
        mark("weights"): need.weights,
        mark("gradients"): need.gradients,
        mark("moments"): need.moments,
        mark("activations"): need.activations,
        mark("logits"): need.logits,
        mark("framework"): need.framework,
    }
    listed = ", ".join(f"{tr(name)} {size / GIB:.2f}" for name, size in parts.items())
    return tr(
        "estimated memory: {total:.2f} of {limit:.2f} GiB ({listed}), {micro_batch} sequences at a time",
        total=need.total / GIB,
        limit=plan.limit / GIB,
        listed=listed,
        micro_batch=plan.micro_batch,
    )


def time_line(estimate: TimeEstimate) -> str:
    total = timedelta(seconds=round(estimate.total))
    return tr(
        "estimated time: {total} ({steps:,} steps of {step:.3g} s, "
        "{evaluations} evaluations of {evaluation:.3g} s, "
        "{saves} saves of {save:.3g} s)",
        total=total,
        steps=estimate.steps,
        step=estimate.step,
        evaluations=estimate.evaluations,
        evaluation=estimate.evaluation,
        saves=estimate.saves,
        save=estimate.save,
    )


@contextmanager
def stopping_after(seconds: float | None, request_stop: Callable[[], None]) -> Iterator[Event]:
    """Asks for an orderly stop after so long; None: never. Yields what tells whether it has."""
    over = Event()

    def stop() -> None:
        over.set()
        request_stop()

    timer = Timer(seconds or 0.0, stop)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    try:
        yield over
    finally:
        timer.cancel()


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[Callable[[], int | None]]:
    """Ctrl-C, SIGTERM and a closed terminal ask for an orderly stop, a second one ends the process at once.

    Yields a function that returns the signal received, or None.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        request_stop()

    # nohup has a closed terminal ignored. A shell has Ctrl-C ignored by its background jobs, which we do hear.
    hears = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    numbers = [number for number in STOPPING if number != signal.SIGHUP or hears]
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
