"""`library.sqlite`: the user's text as documents and passages, with an index to find a passage by a question."""

import hashlib
import itertools
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.contacts import Contact, standardise
from twingpt.data.contacts.labels import KIND_LABEL, PLACEHOLDER
from twingpt.data.contacts.numbers import DEFAULT_COUNTRY
from twingpt.data.library.contact_store import ContactStore, name_key
from twingpt.data.library.dates import date_of_name, newest_date
from twingpt.data.library.terms import terms
from twingpt.data.text.code_lines import is_code
from twingpt.data.text.corpus import Documents
from twingpt.data.text.documents import is_title, plain_title
from twingpt.data.text.korean import pre_split

FORMAT_VERSION = "3"
TITLE_WEIGHT = 3
"""How often a title's terms count in each of its passages: the subject of a question often stands there alone."""
PASSAGE_CHARS = 1000
"""A passage is cut at a sentence's end only above this length."""

# The index keeps which passages hold a term, and nothing else: no text (content=''), no places and no counts of terms
# (detail=none), a third of the size. FTS5's own bm25() needs them; the search counts in the few passages that matter.
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE document (
    id INTEGER PRIMARY KEY, title TEXT NOT NULL, date TEXT NOT NULL, file TEXT NOT NULL,
    place INTEGER NOT NULL  -- 1 for the first document of its file
);
CREATE TABLE passage (id INTEGER PRIMARY KEY, document INTEGER NOT NULL REFERENCES document, text TEXT NOT NULL);
CREATE VIRTUAL TABLE passage_terms USING fts5(terms, content='', detail=none, tokenize='unicode61 remove_diacritics 0');
CREATE TABLE contact (
    passage INTEGER NOT NULL REFERENCES passage, kind TEXT NOT NULL, value TEXT NOT NULL, name TEXT NOT NULL,
    key TEXT NOT NULL  -- the name as names are compared
);
CREATE INDEX contact_by_key ON contact (key, kind);
"""


# Characters of text that are indexed at a time.
_BATCH_CHARS = 64 << 10
Spread = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


@dataclass(frozen=True, slots=True)
class LibraryDocument:
    """title: "" where the document has none. passages: its text in order, without the title.

    file: the one that it came from, "" where that is not known. place: its number among the documents of its file.
    """

    title: str
    passages: tuple[str, ...]
    file: str = ""
    place: int = 0


def read_documents(
    documents: Documents,
    files: Iterable[tuple[str, int]] = (),
    contacts: Path | None = None,
    advance: Callable[[int], None] = lambda size: None,
) -> Iterator[LibraryDocument]:
    """The documents of cleaned.txt.

    files: (a file's name, how many of the documents came from it) in their order; empty where that is not known.
    contacts: the store of the same text. Where the text was masked for training, its contacts are put back: nobody is
    helped by a placeholder. advance gets the bytes of each document.
    """
    store = ContactStore.open(contacts) if contacts is not None and contacts.is_file() else None
    places = ((name, place) for name, count in files for place in range(1, count + 1))
    for text, size in zip(documents, documents.sizes(), strict=True):
        lines = text.split("\n")
        if store is not None and PLACEHOLDER.search(text):
            lines = _unmasked(lines, store)
        file, place = next(places, ("", 0))
        yield replace(split_document(lines), file=file, place=place)
        advance(int(size))
    if store is not None:
        store.close()


def split_document(lines: list[str]) -> LibraryDocument:
    """A document of these lines; the first is its title if it reads like one."""
    titled = len(lines) > 1 and is_title(lines[0])
    return LibraryDocument(
        plain_title(lines[0]) if titled else "", tuple(split_passages(lines[1:] if titled else lines))
    )


def _unmasked(lines: list[str], store: ContactStore) -> list[str]:
    """The lines of a document with its contacts in place of their placeholders."""
    values = {contact.placeholder: contact.value for contact in store.of_document(lines[0])}
    return [PLACEHOLDER.sub(lambda found: values.get(found[0], found[0]), line) for line in lines]


def split_passages(lines: Iterable[str]) -> Iterator[str]:
    """Neighbouring lines together up to PASSAGE_CHARS; a longer line is cut at its sentences' ends."""
    waiting: list[str] = []
    size = 0
    for line in lines:
        for piece in pre_split(line, PASSAGE_CHARS):
            if waiting and size + len(piece) > PASSAGE_CHARS:
                yield "\n".join(waiting)
                waiting, size = [], 0
            if piece.strip():
                waiting.append(piece.strip())
                size += len(piece) + 1
    if waiting:
        yield "\n".join(waiting)


def build_library(
    path: Path, documents: Iterable[LibraryDocument], spread: Spread = map, *, as_written: str | None = None
) -> int:
    """Write a library, replacing one at `path` only once the new one is whole; returns how many passages it holds.

    spread: a map that keeps the order and may spread the work over processes, as finding the terms takes most of the
    time. as_written: the country of the contacts in a text that keeps them as they were written; None where each is in
    its one form already. Some documents are in memory at a time. The same documents give the same bytes. Raises
    TwinGPTError if the file cannot be written, or if there is no text.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)
        db = sqlite3.connect(temporary)
        try:
            db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = FULL;" + _SCHEMA)
            passages, total, content = _insert(
                db, spread(partial(_indexed, as_written=as_written), _batches(documents))
            )
            db.execute("INSERT INTO passage_terms (passage_terms) VALUES ('optimize')")
            facts = {
                "format_version": FORMAT_VERSION,
                "passages": str(passages),
                "terms": str(total),
                "content": content,
            }
            db.executemany("INSERT INTO meta VALUES (?, ?)", sorted(facts.items()))
            db.commit()
        finally:
            db.close()
        if not passages:
            temporary.unlink()
            raise TwinGPTError(tr("{path}: there is no text to find anything in", path=path))
        temporary.replace(path)
    except (OSError, sqlite3.Error) as error:
        temporary.unlink(missing_ok=True)
        raise TwinGPTError(
            tr("{path} cannot be written ({error}): check the folder and the free space", path=path, error=error)
        ) from None
    return passages


def indexed_terms(title: str, text: str) -> list[str]:
    """What a passage is found by: its title's terms, TITLE_WEIGHT times, and its own."""
    return terms(title) * TITLE_WEIGHT + terms(text)


def passage_contacts(title: str, text: str, as_written: str | None = None) -> list[Contact]:
    """The contacts of a passage, each with the name it stands under, which may be the title. Code has none.

    as_written: as in build_library.
    """
    if as_written is None and not KIND_LABEL.search(text):
        return []
    whole, contacts = standardise(f"{title}\n{text}", as_written or DEFAULT_COUNTRY)
    return [
        contact
        for contact in contacts
        if contact.start > len(title) and not is_code(whole[whole.rfind("\n", 0, contact.start) + 1 :])
    ]


def _batches(documents: Iterable[LibraryDocument]) -> Iterator[list[tuple[int, LibraryDocument]]]:
    """Documents with their numbers, as many together as are worth handing to a process."""
    batch: list[tuple[int, LibraryDocument]] = []
    size = 0
    for number, document in enumerate(documents):
        batch.append((number, document))
        size += sum(map(len, document.passages))
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Passage:
    """text and how many terms it has; terms: each of them once. contacts: rows without the passage's number."""

    text: str
    count: int
    terms: str
    contacts: Sequence[tuple[str, str, str, str]]


@dataclass(frozen=True, slots=True)
class _Document:
    """row: of the table of documents. content: what tells this document from any other."""

    row: tuple[int, str, str, str, int]
    content: bytes
    passages: list[_Passage]


def _indexed(batch: Sequence[tuple[int, LibraryDocument]], as_written: str | None) -> list[_Document]:
    """What the library says of some documents."""
    return [_indexed_document(number, document, as_written) for number, document in batch]


def _indexed_document(number: int, document: LibraryDocument, as_written: str | None) -> _Document:
    date = newest_date("\n".join([document.title, *document.passages])) or date_of_name(document.file)
    parts = [document.title, document.file, document.place, *document.passages]
    passages: list[_Passage] = []
    for text in document.passages:
        found = indexed_terms(document.title, text)
        contacts = passage_contacts(document.title, text, as_written)
        rows = [(c.kind, c.value, c.entity, name_key(c.entity)) for c in contacts]
        passages.append(_Passage(text, len(found), " ".join(dict.fromkeys(found)), rows))
    row = (number, document.title, date, document.file, document.place)
    return _Document(row, json.dumps(parts, ensure_ascii=False).encode() + b"\n", passages)


def _insert(db: sqlite3.Connection, batches: Iterable[list[_Document]]) -> tuple[int, int, str]:
    """(how many passages, how many terms in all of them, sha256 of the documents)."""
    count = total = 0
    content = hashlib.sha256()
    for document in itertools.chain.from_iterable(batches):
        db.execute("INSERT INTO document VALUES (?, ?, ?, ?, ?)", document.row)
        content.update(document.content)
        for passage in document.passages:
            db.execute("INSERT INTO passage VALUES (?, ?, ?)", (count, document.row[0], passage.text))
            db.execute("INSERT INTO passage_terms (rowid, terms) VALUES (?, ?)", (count, passage.terms))
            rows = [(count, *contact) for contact in passage.contacts]
            db.executemany("INSERT INTO contact VALUES (?, ?, ?, ?, ?)", rows)
            count += 1
            total += passage.count
    return count, total, content.hexdigest()
