"""A session run to its end in front of the user: progress, Ctrl-C, and what to do next."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from twingpt.core.errors import StoppedError
from twingpt.core.params import parameter_count
from twingpt.train.log import TrainDisplay
from twingpt.train.session import Session


def run_shown(session: Session, run_dir: Path, stop_at: int | None, console: Console) -> None:
    """Train up to `stop_at` (None: all steps). Raises StoppedError after an orderly stop by a signal."""
    trainer, config = session.trainer, session.config
    last = min(stop_at or config.train.steps, config.train.steps)
    for note in session.notes:
        console.print(f"note: {note}", markup=False)
    console.print(
        f"{session.backend.name} on {session.backend.device}: {parameter_count(config.model):,} parameters, "
        f"{config.train.batch_size} x {config.model.block_size} tokens an update, from step {trainer.step} to {last}",
        highlight=False,
    )
    display = TrainDisplay(console, trainer.step, last)
    with stop_on_signals(trainer.request_stop) as received, display.showing(trainer.run(stop_at)) as reports:
        for _ in reports:
            pass
        number = received()
    if number is not None:
        console.print(f"stopped at step {trainer.step} and saved. Go on with:")
        console.print(f"  twingpt train --out {run_dir} --resume --backend {session.backend.name}", markup=False)
        raise StoppedError(128 + number)
    console.print(f"saved step {trainer.step} in {run_dir}", markup=False, highlight=False)


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[Callable[[], int | None]]:
    """Ctrl-C and SIGTERM ask for an orderly stop, a second one ends the process at once.

    Yields a function that returns the signal received, or None.
    """
    received: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        received.append(number)
        request_stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
