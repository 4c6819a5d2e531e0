"""What every command shares: how an error, a table and an answer for a program reach the terminal."""

import json
import sys
from pathlib import Path
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
