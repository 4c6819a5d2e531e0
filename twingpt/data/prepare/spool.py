"""Cleaned chunks on disk: all that is known of their documents, for what can only be done once all are known."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from twingpt.data.text.changes import Changes
from twingpt.data.text.clean import CleanedChunk

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# Texts one after another, and of each document: its bytes (uint32), the number of the file that it came from (uint32),
# 16 bytes of digest, its signature, a hash of each of its lines, its contacts.
DOCUMENTS, SIZES, DIGESTS, SIGNATURES, LINES = "documents", "sizes", "digests", "signatures", "lines"
SOURCES = "sources"
CONTACTS = "contacts.jsonl"
# What was changed in each chunk.
CHANGES = "changes.jsonl"
SPOOL_FILES = (DOCUMENTS, SIZES, SOURCES, DIGESTS, SIGNATURES, LINES, CONTACTS, CHANGES)


class SpoolWriter:
    """The files of a spool. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()

    def add(self, chunk: CleanedChunk) -> None:
        contents = {
            DOCUMENTS: chunk.documents,
            SIZES: [len(document).to_bytes(4, "little") for document in chunk.documents],
            SOURCES: [chunk.source.to_bytes(4, "little")] * len(chunk.documents),
            DIGESTS: chunk.digests,
            SIGNATURES: [chunk.signatures.astype("<u4").tobytes()],
            LINES: [chunk.lines.astype("<u8").tobytes()],
            CONTACTS: [_line(astuple(contact)) for contact in chunk.contacts],
            CHANGES: [_line(chunk.changes.to_json())],
        }
        for name, pieces in contents.items():
            self._files[name].writelines(pieces)

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
    with (folder / CHANGES).open("rb") as file:
        for line in file:
            changes.merge(Changes.from_json(json.loads(line)))


def read_contacts(folder: Path) -> "Iterator[Contact]":
    from twingpt.data.contacts import Contact

    with (folder / CONTACTS).open("rb") as file:
        for line in file:
            yield Contact(*json.loads(line))
