"""Text from standard input, which is read twice as files are."""

import os
import select
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import os_reason, tr
from twingpt.data.text.encodings import is_binary
from twingpt.data.text.unpacking import is_packed

LOOK_BYTES = 1 << 16
WAIT_S = 1.0
"""So long nothing may come before whoever watches is told that nothing came."""
ROOM = 4
"""What `prepare` makes of a text takes about this many times its bytes on the disk."""


def stdin_file(folder: Path) -> Path:
    return folder / ".stages" / "stdin"


class StdinAsFile:
    """stdin kept in a file while it is read twice, once for its hash and once for its text.

    It may have no end. So what has come is told while it comes, what is no text is refused by its first bytes, and no
    more is taken than there is room on the disk to prepare.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        folder: Path,
        start: Callable[[], None] = lambda: None,
        advance: Callable[[int], None] = lambda size: None,
    ) -> None:
        """start: is called before the first byte. advance: is told how many bytes came; 0 each second without any."""
        self._inputs = inputs
        self._path = stdin_file(folder)
        self._start = start
        self._advance = advance

    def __enter__(self) -> list[str]:
        if "-" not in self._inputs:
            return list(self._inputs)
        if list(self._inputs).count("-") > 1:
            raise UsageError(tr("- (stdin) can be given once"))
        try:
            self._copy()
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise TwinGPTError(
                tr("- (stdin) cannot be kept in {path}: {reason}", path=self._path, reason=os_reason(error))
            ) from None
        except BaseException:
            self._path.unlink(missing_ok=True)
            raise
        return [str(self._path) if given == "-" else given for given in self._inputs]

    def _copy(self) -> None:
        self._start()
        size, looked = 0, False
        head = b""
        with self._path.open("wb") as file:
            while block := self._next():
                size += len(block)
                if not looked:
                    head = (head + block)[:LOOK_BYTES]
                    looked = len(head) == LOOK_BYTES
                    if looked and is_binary(head) and not is_packed(head):
                        raise TwinGPTError(tr("- (stdin) looks like a binary file, not like text: give it text"))
                free = shutil.disk_usage(self._path.parent).free
                if free < (ROOM - 1) * size:
                    raise TwinGPTError(
                        tr(
                            "- (stdin) has given {size:,} bytes so far, and of what `prepare` needs for them the disk "
                            "of "
                            "{folder} has only {free:,} left: end the text sooner, or give another --out",
                            size=size,
                            folder=self._path.parent.parent,
                            free=free,
                        )
                    )
                file.write(block)
                self._advance(len(block))

    def _next(self) -> bytes:
        """The next bytes; b"" at the end."""
        try:
            descriptor = sys.stdin.buffer.fileno()
        except OSError:  # no real file, as when a program has put text in its place
            return sys.stdin.buffer.read(1 << 20)
        while not select.select([descriptor], [], [], WAIT_S)[0]:
            self._advance(0)
        return os.read(descriptor, 1 << 20)

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)
