"""Text from standard input, which is read twice as files are."""

import sys
from collections.abc import Sequence
from pathlib import Path

from twingpt.core.errors import UsageError


def stdin_file(folder: Path) -> Path:
    return folder / ".stages" / "stdin"


class StdinAsFile:
    """stdin kept in a file while it is read twice, once for its hash and once for its text."""

    def __init__(self, inputs: Sequence[str], folder: Path) -> None:
        self._inputs = inputs
        self._path = stdin_file(folder)

    def __enter__(self) -> list[str]:
        if "-" not in self._inputs:
            return list(self._inputs)
        if list(self._inputs).count("-") > 1:
            raise UsageError("- (stdin) can be given once")
        with self._path.open("wb") as file:
            while block := sys.stdin.buffer.read(1 << 20):
                file.write(block)
        return [str(self._path) if given == "-" else given for given in self._inputs]

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
