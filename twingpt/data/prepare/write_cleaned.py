"""From raw files to cleaned.txt and contacts.sqlite: chunks are cleaned in parallel, then seen as a whole."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.data.files import CLEANED_FILE, CONTACTS_FILE
from twingpt.data.prepare import spool
from twingpt.data.prepare.parallel import ordered_map, workers_for
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.prepare.stages import Report
from twingpt.data.text import clean, dedup, reading
from twingpt.data.text.changes import Changes
from twingpt.data.text.corpus import Documents, Table
from twingpt.data.text.forms.form import ReadAs
from twingpt.data.text.inputs import Source

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# In the report: pairs of documents that the split into training and validation must keep together.
TIED = "tied_documents"
# In the report: [the name of a file, how many documents of cleaned.txt came from it], in the order of the text.
FROM_FILES = "documents_from_files"


def write_spool(
    sources: Sequence[Source],
    size: int,
    folder: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda size: None,
) -> tuple[Changes, list[ReadAs]]:
    """Cleans the sources into a spool in the folder; returns what was changed in reading them, and how each was read.

    size: bytes of the sources on disk.
    Raises TwinGPTError for a source that cannot be read.
    """
    changes = Changes()
    work = _CleanWork(
        clean.CleanSettings(
            contacts=settings.contacts,
            country=settings.country,
            merge=settings.template == "qa",
            drop_junk=settings.drop_junk,
            boilerplate=settings.boilerplate,
        )
    )
    read = [ReadAs(source.name) for source in sources]
    text = _chunks(sources, read, settings, changes, advance)
    with spool.SpoolWriter(folder) as writer:
        for chunk in ordered_map(work, text, workers=workers_for(size, workers)):
            writer.add(chunk)
    return changes, read


def write_cleaned(
    folder: Path, target: Path, settings: PrepareSettings, changes: Changes, sources: Sequence[ReadAs], size: int
) -> Report:
    """Makes both files in `target` of the spool of all chunks in `folder`; the report of the stage.

    changes: what was changed in reading. sources: how each was read; size: their bytes.
    Raises TwinGPTError if no text is left.
    """
    from twingpt.data.library.contact_store import ContactStore

    spool.merge_changes(folder, changes)
    if (folder / spool.SIZES).stat().st_size == 0:
        others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        raise TwinGPTError(f"{sources[0].name}{others}: no text is left after cleaning: give a file with text in it")
    summary, documents = _write_kept(folder, target / CLEANED_FILE, settings, changes, len(sources))
    contacts = _Counted(spool.read_contacts(folder))
    ContactStore.create(target / CONTACTS_FILE, contacts).close()
    return {
        "files": len(sources),
        "raw_bytes": size,
        **summary,
        FROM_FILES: [[one.name, count] for one, count in zip(sources, documents, strict=True) if count],
        "read_as": _read_as(sources, documents),
        "contacts": contacts.number,
        "country": settings.country,
        "masked": settings.contacts == "mask",
        "changes": changes.to_json(),
    }


class _Counted:
    def __init__(self, contacts: "Iterator[Contact]") -> None:
        self._contacts = contacts
        self.number = 0

    def __iter__(self) -> "Iterator[Contact]":
        for contact in self._contacts:
            self.number += 1
            yield contact


def _chunks(
    sources: Sequence[Source],
    read: Sequence[ReadAs],
    settings: PrepareSettings,
    changes: Changes,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, str]]:
    """(number of the source, some of its text): a chunk never holds the text of two files."""

    def pieces(source: Source, read_as: ReadAs) -> Iterator[str]:
        found = reading.read_source(
            source,
            changes,
            encoding=settings.encoding,
            max_undecodable=settings.max_undecodable,
            read_as=read_as,
        )
        for text, size in found:
            advance(size)
            yield text

    for number, (source, read_as) in enumerate(zip(sources, read, strict=True)):
        yield from ((number, chunk) for chunk in clean.chunks(pieces(source, read_as)))


@dataclass(frozen=True)
class _CleanWork:
    settings: clean.CleanSettings

    def __call__(self, chunk: tuple[int, str]) -> clean.CleanedChunk:
        source, text = chunk
        return replace(clean.clean_chunk(text, self.settings), source=source)


def _write_kept(
    folder: Path, cleaned: Path, settings: PrepareSettings, changes: Changes, sources: int
) -> tuple[Report, list[int]]:
    """The spooled documents without duplicates and boilerplate, into cleaned.txt; how many there are of each source."""
    starts = _starts(folder)
    count = len(starts) - 1
    with (
        (folder / spool.DOCUMENTS).open("rb") as texts,
        (folder / spool.DIGESTS).open("rb") as digests,
        (folder / spool.SIGNATURES).open("rb") as signatures,
        (folder / spool.LINES).open("rb") as lines,
        cleaned.open("wb") as file,
    ):

        def fetch(index: int) -> str:
            return os.pread(texts.fileno(), int(starts[index + 1] - starts[index]), int(starts[index])).decode()

        boilerplate: frozenset[int] = frozenset()
        if settings.boilerplate:
            boilerplate = clean.boilerplate_hashes(Table(lines, "<u8"), count)
        duplicates = dedup.find_duplicates(dedup.digest_table(digests), dedup.signature_table(signatures), fetch)
        dropped = np.zeros(count, dtype=np.bool_)
        if settings.dedup:
            _note_duplicates(duplicates, fetch, changes)
            dropped[duplicates.exact[:, 1]] = dropped[duplicates.near[:, 1]] = True
        separator = b""
        for index in range(count):
            if dropped[index]:
                continue
            text = fetch(index)
            if boilerplate:
                text = clean.without_boilerplate(text, boilerplate, changes)
            file.write(separator + text.encode() + b"\n")
            separator = b"\n"
        written = file.tell()
    if boilerplate or settings.contacts == "mask":
        # Masking and dropping lines make documents more alike than they were when they were compared.
        documents = Documents(cleaned)
        tied = dedup.ties(documents, folder).tolist()
        documents.close()
    else:
        tied = _tied(duplicates.tied, dropped)
    report: Report = {
        "documents": count - int(dropped.sum()),
        "cleaned_bytes": written,
        "exact_duplicates": len(duplicates.exact),
        "near_duplicates": len(duplicates.near),
        TIED: tied,
    }
    return report, _from_files(folder, sources, ~dropped)


def _from_files(folder: Path, sources: int, kept: npt.NDArray[np.bool_]) -> list[int]:
    """How many documents were kept of each source."""
    with (folder / spool.SOURCES).open("rb") as file:
        of = np.concatenate([part[:, 0] for _, part in Table(file, "<u4").parts()])
    return [int(count) for count in np.bincount(of[kept], minlength=sources)]


def _read_as(sources: Sequence[ReadAs], documents: Sequence[int]) -> list[dict[str, object]]:
    """For the report: each file with its form, its documents in cleaned.txt and the fields of its text."""
    return [
        {"name": source.name, "form": source.form, "documents": count}
        | ({"fields": source.fields} if source.fields else {})
        for source, count in zip(sources, documents, strict=True)
    ]


def _starts(folder: Path) -> npt.NDArray[np.int64]:
    """Where each document starts in the spool, and where the last one ends."""
    with (folder / spool.SIZES).open("rb") as file:
        sizes = Table(file, "<u4")
        starts = np.zeros(len(sizes) + 1, dtype=np.int64)
        for first, part in sizes.parts():
            starts[first + 1 : first + 1 + len(part)] = part[:, 0]
    return np.cumsum(starts, out=starts)


def _tied(tied: npt.NDArray[np.int64], dropped: npt.NDArray[np.bool_]) -> list[list[int]]:
    """`Duplicates.tied` among the documents of cleaned.txt, by their numbers there."""
    members = np.concatenate([tied, np.repeat(np.unique(tied[:, :1]), 2).reshape(-1, 2)])
    members = members[~dropped[members[:, 1]]]
    members = members[np.argsort(members[:, 1])]
    numbers = members[:, 1] - np.searchsorted(np.flatnonzero(dropped), members[:, 1])
    first: dict[int, int] = {}
    return [
        [first[leader], number]
        for leader, number in zip(members[:, 0].tolist(), numbers.tolist(), strict=True)
        if first.setdefault(leader, number) != number
    ]


def _note_duplicates(duplicates: dedup.Duplicates, fetch: Callable[[int], str], changes: Changes) -> None:
    for kind, pairs in (("exact", duplicates.exact), ("near", duplicates.near)):
        name = f"{kind} duplicates dropped"
        if len(pairs):
            changes.count(name, len(pairs))
        for kept, later in pairs[:3].tolist():
            changes.example(name, fetch(later)[:80], fetch(kept)[:80])
