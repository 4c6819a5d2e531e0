"""From raw files to cleaned.txt and contacts.sqlite: chunks are cleaned in parallel, then seen as a whole."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.data import clean, dedup, reading
from twingpt.data.changes import Changes
from twingpt.data.parallel import ordered_map, workers_for
from twingpt.data.settings import PrepareSettings
from twingpt.data.stages import Report

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

CLEANED_FILE, CONTACTS_FILE = "cleaned.txt", "contacts.sqlite"
# In the report: pairs of documents that the split into training and validation must keep together.
TIED = "tied_documents"


def write_cleaned(
    sources: Sequence[reading.Source],
    size: int,
    folder: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda size: None,
) -> Report:
    """Writes both files into the folder. size: bytes of the sources on disk.

    Raises TwinGPTError for a source that cannot be read and if no text is left.
    """
    from twingpt.data.contacts import ContactStore

    changes = Changes()
    spool = folder / "documents"
    work = _CleanWork(
        clean.CleanSettings(
            contacts=settings.contacts,
            merge=settings.template == "qa",
            drop_junk=settings.drop_junk,
            boilerplate=settings.boilerplate,
        )
    )
    collected = _Collected()
    with spool.open("wb") as file:
        text = clean.chunks(_pieces(sources, settings, changes, advance))
        for chunk in ordered_map(work, text, workers=workers_for(size, workers)):
            file.writelines(chunk.documents)
            collected.add(chunk)
            changes.merge(chunk.changes)
    if not collected.sizes:
        others = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        raise TwinGPTError(f"{sources[0].name}{others}: no text is left after cleaning: give a file with text in it")
    summary = _write_kept(spool, folder / CLEANED_FILE, collected, settings, changes)
    spool.unlink()
    ContactStore.create(folder / CONTACTS_FILE, collected.contacts).close()
    return {
        "files": len(sources),
        "raw_bytes": size,
        **summary,
        "contacts": len(collected.contacts),
        "changes": changes.to_json(),
    }


def _pieces(
    sources: Sequence[reading.Source], settings: PrepareSettings, changes: Changes, advance: Callable[[int], None]
) -> Iterator[str]:
    """The text of all sources, with a blank line after each."""
    for source in sources:
        pieces = reading.read_source(
            source, changes, encoding=settings.encoding, max_undecodable=settings.max_undecodable
        )
        for text, size in pieces:
            advance(size)
            yield text
        yield "\n\n"


@dataclass(frozen=True)
class _CleanWork:
    settings: clean.CleanSettings

    def __call__(self, text: str) -> clean.CleanedChunk:
        return clean.clean_chunk(text, self.settings)


@dataclass
class _Collected:
    """What is known of all documents once the chunks are cleaned; their texts are on disk."""

    sizes: list[int] = field(default_factory=list)
    contacts: "list[Contact]" = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    signatures: list[dedup.Signatures] = field(default_factory=list)
    lines: list[npt.NDArray[np.uint64]] = field(default_factory=list)

    def add(self, chunk: clean.CleanedChunk) -> None:
        self.sizes += [len(document) for document in chunk.documents]
        self.contacts += chunk.contacts
        self.digests += chunk.digests
        self.signatures.append(chunk.signatures)
        self.lines.append(chunk.lines)


def _write_kept(
    spool: Path, cleaned: Path, collected: _Collected, settings: PrepareSettings, changes: Changes
) -> Report:
    """The spooled documents without duplicates and boilerplate, into cleaned.txt."""
    starts = np.concatenate([[0], np.cumsum(collected.sizes, dtype=np.int64)])
    boilerplate: frozenset[int] = frozenset()
    if settings.boilerplate:
        boilerplate = clean.boilerplate_hashes(np.concatenate(collected.lines), len(collected.sizes))
    with spool.open("rb") as texts, cleaned.open("wb") as file:

        def fetch(index: int) -> str:
            return os.pread(texts.fileno(), collected.sizes[index], int(starts[index])).decode()

        duplicates = dedup.find_duplicates(collected.digests, np.concatenate(collected.signatures), fetch)
        dropped = {**duplicates.exact, **duplicates.near} if settings.dedup else {}
        if settings.dedup:
            _note_duplicates(duplicates, fetch, changes)
        kept = [index for index in range(len(collected.sizes)) if index not in dropped]
        for index in kept:
            text = fetch(index)
            if boilerplate:
                text = clean.without_boilerplate(text, boilerplate, changes)
            file.write((b"\n" if index != kept[0] else b"") + text.encode() + b"\n")
        written = file.tell()
    return {
        "documents": len(kept),
        "cleaned_bytes": written,
        "exact_duplicates": len(duplicates.exact),
        "near_duplicates": len(duplicates.near),
        # Masking and dropping lines make documents more alike than they were when they were compared.
        TIED: None if boilerplate or settings.contacts == "mask" else _tied(duplicates.group, kept),
    }


def _tied(group: npt.NDArray[np.int64], kept: Sequence[int]) -> list[list[int]]:
    """Pairs of documents of cleaned.txt, by number, that belong to one group of duplicates."""
    first: dict[int, int] = {}
    return [
        [first[leader], number]
        for number, leader in enumerate(int(group[index]) for index in kept)
        if first.setdefault(leader, number) != number
    ]


def _note_duplicates(duplicates: dedup.Duplicates, fetch: Callable[[int], str], changes: Changes) -> None:
    for kind, pairs in (("exact", duplicates.exact), ("near", duplicates.near)):
        name = f"{kind} duplicates dropped"
        if pairs:
            changes.count(name, len(pairs))
        for later in sorted(pairs)[:3]:
            changes.example(name, fetch(later)[:80], fetch(pairs[later])[:80])
