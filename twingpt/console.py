"""What every command shares: how an error, a table and an answer for a program reach the terminal."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from twingpt.core.errors import TwinGPTError


def fail(error: TwinGPTError) -> NoReturn:
    """One line on stderr, and the exit code that goes with the error."""
    print(f"error: {error}", file=sys.stderr)  # noqa: T201
    raise SystemExit(error.exit_code)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=_plain))  # noqa: T201


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


class StoppedError(Exception):
    """Stopped by a signal, everything saved; exit_code is 128 + the signal's number."""

    def __init__(self, exit_code: int) -> None:
        self.exit_code = exit_code


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
