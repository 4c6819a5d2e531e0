"""From raw files to cleaned.txt and contacts.sqlite: chunks are cleaned in parallel, then seen as a whole."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.files import CLEANED_FILE, CONTACTS_FILE
from twingpt.data.prepare import spool
from twingpt.data.prepare.parallel import ordered_map, workers_for
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.prepare.stages import Report
from twingpt.data.text import clean, dedup, reading
from twingpt.data.text.changes import Changes
from twingpt.data.text.corpus import BEGIN, Documents, Table, WholeDocuments
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
    work = _CleanWork(clean_settings(settings))
    read = [ReadAs(source.name, prose=settings.template == "qa") for source in sources]
    text = _chunks(sources, read, settings, changes, advance)
    with spool.SpoolWriter(folder) as writer:
        for chunk in ordered_map(work, text, workers=workers_for(size, workers)):
            writer.add(chunk)
    return changes, read


def clean_settings(settings: PrepareSettings) -> clean.CleanSettings:
    """Plain text keeps what it says in the way it says it; only placeholders, where they are asked for, change it."""
    qa = settings.template == "qa"
    return clean.CleanSettings(
        contacts=settings.contacts,
        country=settings.country,
        merge=qa,
        separator=settings.separator,
        contact_forms=qa or settings.contacts == "mask",
        keep_layout=settings.keep_layout and not qa,
        break_lines=qa,
        drop_junk=settings.drop_junk,
        boilerplate=settings.boilerplate and qa,
    )


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
        others = tr(" and {number} more", number=len(sources) - 1) if len(sources) > 1 else ""
        raise TwinGPTError(
            tr(
                "{name}{others}: no text is left after cleaning: give a file with text in it",
                name=sources[0].name,
                others=others,
            )
        )
    kept = _write_kept(folder, target / CLEANED_FILE, settings, changes, len(sources))
    contacts = _Counted(spool.read_contacts(folder))
    ContactStore.create(target / CONTACTS_FILE, contacts).close()
    return {
        "files": len(sources),
        "raw_bytes": size,
        **kept.report,
        FROM_FILES: [[one.name, count] for one, count in zip(sources, kept.parts, strict=True) if count],
        "read_as": _read_as(sources, kept.documents),
        "contacts": contacts.number,
        "country": settings.country,
        "masked": settings.contacts == "mask",
        "changes": changes.to_json(),
        "dropped_shares": _dropped_shares(changes, kept.report["cleaned_bytes"]),
    }


def _dropped_shares(changes: Changes, left: int) -> dict[str, float]:
    """What each kind of change took away, as a share of the text that there was before all of them; the most first."""
    whole = left + sum(changes.dropped.values())
    shares = {kind: size / whole for kind, size in changes.dropped.items() if size}
    return dict(sorted(shares.items(), key=lambda pair: (-pair[1], pair[0])))


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
            # A record of a table or of JSON is a document, whatever blank lines stand in its text.
            yield f"{text}{clean.END_MARK}\n\n" if settings.template == "plain" and read_as.records else text

    for number, (source, read_as) in enumerate(zip(sources, read, strict=True)):
        yield from ((number, chunk) for chunk in clean.chunks(pieces(source, read_as)))


@dataclass(frozen=True)
class _CleanWork:
    settings: clean.CleanSettings

    def __call__(self, chunk: tuple[int, str]) -> clean.CleanedChunk:
        source, text = chunk
        return replace(clean.clean_chunk(text, self.settings), source=source)


@dataclass(frozen=True)
class _Kept:
    """What stands in cleaned.txt. parts, documents: how many of each source; questions are asked about documents of one
    part.
    """

    report: Report
    parts: list[int]
    documents: list[int]


def _write_kept(folder: Path, cleaned: Path, settings: PrepareSettings, changes: Changes, sources: int) -> _Kept:
    """The spooled documents without duplicates and boilerplate, into cleaned.txt."""
    starts, first = _starts(folder), _first_parts(folder)
    count = len(first) - 1
    qa = settings.template == "qa"
    with (
        (folder / spool.DOCUMENTS).open("rb") as texts,
        (folder / spool.DIGESTS).open("rb") as digests,
        (folder / spool.SIGNATURES).open("rb") as signatures,
        (folder / spool.LINES).open("rb") as lines,
        cleaned.open("wb") as file,
    ):

        def fetch(index: int) -> str:
            """The first MB of a document, which is all of it but for the longest; what two are compared by."""
            start, end = int(starts[first[index]]), int(starts[first[index + 1]])
            size = min(end - start, WholeDocuments.LOOKED_AT)
            return os.pread(texts.fileno(), size, start).decode(errors="ignore")

        boilerplate: frozenset[int] = frozenset()
        if settings.boilerplate and qa:
            boilerplate = clean.boilerplate_hashes(Table(lines, "<u8"), count)
        duplicates = dedup.find_duplicates(dedup.digest_table(digests), dedup.signature_table(signatures), fetch)
        # A second version of a novel, of which only the beginning was compared, may hold another end.
        compared = _lengths(duplicates.near[:, 1], starts, first) <= WholeDocuments.LOOKED_AT
        duplicates = replace(duplicates, near=duplicates.near[compared])
        dropped = np.zeros(count, dtype=np.bool_)
        if settings.dedup:
            for kind, pairs in (("exact", duplicates.exact), ("near", duplicates.near)):
                size = int(_lengths(pairs[:, 1], starts, first).sum())
                _note_duplicates(f"{kind} duplicates dropped", pairs, size, fetch, changes)
            dropped[duplicates.exact[:, 1]] = dropped[duplicates.near[:, 1]] = True
        separator = b""
        for index in range(count):
            if dropped[index]:
                continue
            mark = b"" if qa else BEGIN
            for part in range(int(first[index]), int(first[index + 1])):
                text = os.pread(texts.fileno(), int(starts[part + 1] - starts[part]), int(starts[part]))
                if boilerplate:
                    text = clean.without_boilerplate(text.decode(), boilerplate, changes).encode()
                file.write(separator + mark + text + b"\n")
                separator, mark = b"\n", b""
        written = file.tell()
    if boilerplate or settings.contacts == "mask":
        # Masking and dropping lines make documents more alike than they were when they were compared.
        documents = Documents(cleaned)
        tied = dedup.ties(documents if qa else WholeDocuments(documents), folder).tolist()
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
    with (folder / spool.SOURCES).open("rb") as numbers:
        of = np.concatenate([part[:, 0] for _, part in Table(numbers, "<u4").parts()])[~dropped]
    parts = np.bincount(of, weights=np.diff(first)[~dropped], minlength=sources).astype(np.int64)
    return _Kept(report, parts.tolist(), np.bincount(of, minlength=sources).tolist())


def _read_as(sources: Sequence[ReadAs], documents: Sequence[int]) -> list[dict[str, object]]:
    """For the report: each file with its form, its documents in cleaned.txt and the fields of its text."""
    return [
        {"name": source.name, "form": source.form, "documents": count}
        | ({"fields": source.fields} if source.fields else {})
        for source, count in zip(sources, documents, strict=True)
    ]


def _starts(folder: Path) -> npt.NDArray[np.int64]:
    """Where each part starts in the spool, and where the last one ends."""
    with (folder / spool.SIZES).open("rb") as file:
        sizes = Table(file, "<u4")
        starts = np.zeros(len(sizes) + 1, dtype=np.int64)
        for first, part in sizes.parts():
            starts[first + 1 : first + 1 + len(part)] = part[:, 0]
    return np.cumsum(starts, out=starts)


def _first_parts(folder: Path) -> npt.NDArray[np.int64]:
    """int64 [documents + 1]: the number of the part that each document begins with, and how many parts there are."""
    with (folder / spool.BEGINS).open("rb") as file:
        table = Table(file, "u1")
        found = [np.flatnonzero(part[:, 0]) + start for start, part in table.parts()]
        return np.concatenate([*found, [len(table)]]).astype(np.int64)


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


def _lengths(
    documents: npt.NDArray[np.int64], starts: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Bytes of the documents of these numbers; starts, first: as `_starts` and `_first_parts` give them."""
    lengths: npt.NDArray[np.int64] = starts[first[documents + 1]] - starts[first[documents]]
    return lengths


def _note_duplicates(
    kind: str, pairs: npt.NDArray[np.int64], size: int, fetch: Callable[[int], str], changes: Changes
) -> None:
    """size: bytes of the later documents of the pairs."""
    if len(pairs):
        changes.drop(kind, size, len(pairs))
    for kept, later in pairs[:3].tolist():
        changes.example(kind, fetch(later)[:80], fetch(kept)[:80])
