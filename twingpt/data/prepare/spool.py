"""Cleaned chunks on disk: all that is known of their documents, for what can only be done once all are known."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from twingpt.data.text.changes import Changes
from twingpt.data.text.clean import CleanedChunk

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# Texts one after another. Of each part of a document (where documents have parts): its bytes (uint32), and whether a
# document begins with it (uint8). Of each document: the number of the file that it came from (uint32), 16 bytes of
# digest, its signature, a hash of each of its lines, its contacts.
DOCUMENTS, SIZES, DIGESTS, SIGNATURES, LINES = "documents", "sizes", "digests", "signatures", "lines"
SOURCES, BEGINS = "sources", "begins"
CONTACTS = "contacts.jsonl"
# What was changed in each chunk.
CHANGES = "changes.jsonl"
SPOOL_FILES = (DOCUMENTS, SIZES, BEGINS, SOURCES, DIGESTS, SIGNATURES, LINES, CONTACTS, CHANGES)


class SpoolWriter:
    """The files of a spool. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = contextlib.ExitStack()
        # The document that may go on with the next chunk: its file, the digest of each part, its signature.
        self._open: tuple[int, list[bytes], npt.NDArray[np.uint32]] | None = None

    def add(self, chunk: CleanedChunk) -> None:
        begins = np.asarray(chunk.begins, dtype=np.uint8)
        if len(begins) and (self._open is None or self._open[0] != chunk.source):
            begins[0] = 1
        for begin, digest, signature in zip(begins, chunk.digests, chunk.signatures, strict=True):
            if begin or self._open is None:
                self._end_document()
                self._open = chunk.source, [digest], signature
            else:
                source, digests, so_far = self._open
                digests.append(digest)
                # The least values of two sets are those of the sets together: so MinHash is made.
                self._open = source, digests, np.minimum(so_far, signature)
        if chunk.ended:
            self._end_document()
        contents = {
            DOCUMENTS: chunk.documents,
            SIZES: [len(document).to_bytes(4, "little") for document in chunk.documents],
            BEGINS: [begins.tobytes()],
            LINES: [chunk.lines.astype("<u8").tobytes()],
            CONTACTS: [_line(astuple(contact)) for contact in chunk.contacts],
            CHANGES: [_line(chunk.changes.to_json())],
        }
        for name, pieces in contents.items():
            self._files[name].writelines(pieces)

    def _end_document(self) -> None:
        """Write what is known of the open document, now that all its parts are there."""
        if self._open is None:
            return
        source, digests, signature = self._open
        whole = digests[0] if len(digests) == 1 else hashlib.blake2b(b"".join(digests), digest_size=16).digest()
        self._files[SOURCES].write(source.to_bytes(4, "little"))
        self._files[DIGESTS].write(whole)
        self._files[SIGNATURES].write(signature.astype("<u4").tobytes())
        self._open = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._files = {name: stack.enter_context((self._folder / name).open("wb")) for name in SPOOL_FILES}
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._end_document()
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
