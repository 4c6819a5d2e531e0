"""Cleaned chunks on disk: all that is known of their documents, for what can only be done once all are known."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from twingpt.core.errors import TwinGPTError
from twingpt.data.changes import Changes
from twingpt.data.clean import CleanedChunk

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# Texts one after another, and of each document: its bytes (uint32), 16 bytes of digest, its signature, a hash of each
# of its lines, its contacts.
DOCUMENTS, SIZES, DIGESTS, SIGNATURES, LINES = "documents", "sizes", "digests", "signatures", "lines"
CONTACTS = "contacts.jsonl"
_OF_CHUNKS = (DOCUMENTS, SIZES, DIGESTS, SIGNATURES, LINES, CONTACTS)
# What each chunk has in the other files, in bytes, and what was changed in it.
CHUNKS = "chunks.jsonl"
SPOOL_FILES = (*_OF_CHUNKS, CHUNKS)

_COPIED = 4 << 20


class SpoolWriter:
    """The files of a spool. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def add(self, chunk: CleanedChunk) -> None:
        contents = {
            DOCUMENTS: chunk.documents,
            SIZES: [len(document).to_bytes(4, "little") for document in chunk.documents],
            DIGESTS: chunk.digests,
            SIGNATURES: [chunk.signatures.astype("<u4").tobytes()],
            LINES: [chunk.lines.astype("<u8").tobytes()],
            CONTACTS: [_line(astuple(contact)) for contact in chunk.contacts],
        }
        for name, pieces in contents.items():
            self._files[name].writelines(pieces)
        sizes = {name: sum(map(len, pieces)) for name, pieces in contents.items()}
        self._files[CHUNKS].write(_line({"bytes": sizes, "changes": chunk.changes.to_json()}))

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = {name: stack.enter_context((self._folder / name).open("wb")) for name in SPOOL_FILES}
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def merge_changes(folder: Path, changes: Changes) -> None:
    """Add what was changed in the chunks of a spool."""
    with (folder / CHUNKS).open("rb") as file:
        for line in file:
            changes.merge(Changes.from_json(json.loads(line)["changes"]))


def read_contacts(folder: Path) -> "Iterator[Contact]":
    from twingpt.data.contacts import Contact

    with (folder / CONTACTS).open("rb") as file:
        for line in file:
            yield Contact(*json.loads(line))


def interleave(folders: Sequence[Path], target: Path, advance: Callable[[int], None] = lambda size: None) -> None:
    """One spool of several, a chunk of each in turn, as they were dealt out: the first chunk is the first folder's.

    advance gets the bytes that were written.
    """
    with contextlib.ExitStack() as stack:

        def opened(folder: Path, name: str, mode: str) -> IO[bytes]:
            file: IO[bytes] = stack.enter_context((folder / name).open(mode))
            return file

        sources = [{name: opened(folder, name, "rb") for name in SPOOL_FILES} for folder in folders]
        written = {name: opened(target, name, "wb") for name in SPOOL_FILES}
        while True:
            for source in sources:
                line = source[CHUNKS].readline()
                if not line:
                    if any(other[CHUNKS].read(1) for other in sources):
                        raise TwinGPTError(
                            f"{folders[0]} and the others do not add up to the whole text: make the shares again"
                        )
                    return
                written[CHUNKS].write(line)
                for name, size in json.loads(line)["bytes"].items():
                    copy(source[name], written[name], size)
                    advance(size)


def copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    """The next `size` bytes."""
    while size > 0:
        data = source.read(min(size, _COPIED))
        if not data:
            raise EOFError(f"{size} bytes are missing")
        target.write(data)
        size -= len(data)
