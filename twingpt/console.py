"""What every command shares: how an error, a table and an answer for a program reach the terminal."""

import json
import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr


def fail(error: TwinGPTError) -> NoReturn:
    """One line on stderr, and the exit code that goes with the error."""
    print(tr("error: {error}", error=error), file=sys.stderr)  # noqa: T201
    raise SystemExit(error.exit_code)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: 1:30:00."""
    return str(timedelta(seconds=round(seconds)))


def print_json(value: Any) -> None:
    """NaN and infinities, which JSON lacks, are null."""
    print(json.dumps(_without_nan(value), ensure_ascii=False, indent=2, default=_plain, allow_nan=False))  # noqa: T201


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
