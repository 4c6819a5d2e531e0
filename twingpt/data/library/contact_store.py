"""`contacts.sqlite`: the real values behind the placeholders, searchable by the name of the place."""

import re
import sqlite3
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.contacts.forms import Contact
from twingpt.data.contacts.labels import KINDS, PLACEHOLDER, Kind
from twingpt.data.contacts.numbers import digits
from twingpt.data.contacts.places import PlaceFinder
from twingpt.data.library.damage import damage_told
from twingpt.data.samples.questions import general_patterns, ways_to_ask

UNRESOLVED = "(확인 필요)"

_SCHEMA = """
CREATE TABLE contact (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, value TEXT NOT NULL, original TEXT NOT NULL,
    entity TEXT NOT NULL, name TEXT NOT NULL, ordinal INTEGER NOT NULL, topic TEXT NOT NULL
);
CREATE UNIQUE INDEX contact_once ON contact (kind, value, entity, original, ordinal, topic);
CREATE INDEX contact_name ON contact (name);
CREATE INDEX contact_topic ON contact (topic);
CREATE VIRTUAL TABLE topic USING fts5(title UNINDEXED, asked, tokenize='trigram');
CREATE VIRTUAL TABLE place USING fts5(name, content='contact', content_rowid='id', tokenize='trigram');
"""
_COLUMNS = "kind, value, original, entity, name, ordinal, topic"
# The trigram index answers no query of fewer characters; two-syllable Korean words need a scan.
_TRIGRAM = 3
# How much of a topic a question has to name, and among how many topics that share words with it the one is looked for.
_NAMED = 0.8
_TOPICS = 200


def name_key(entity: str) -> str:
    """The form in which names are compared: NFKC, lower case, without blanks and punctuation."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", entity).lower())


# Under such words many places give their contacts: that those differ says nothing.
_NO_NAME = re.compile(
    r"(?:문의|문의처|연락|연락처|전화|예약|상담|신고|담당|담당자|안내|주소|위치|홈페이지|도움말|물어볼|곳|및|의|하실|하는)*"
)


def is_no_name(entity: str) -> bool:
    """Whether a contact stands under words that name no place, or under none."""
    return _NO_NAME.fullmatch(re.sub(r"\W", "", entity)) is not None


class ContactStore:
    """Contacts of a data set. Use as a context manager, or `close()` it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._db = connection

    @classmethod
    def create(cls, path: Path, contacts: Iterable[Contact]) -> "ContactStore":
        """Write a store, replacing one at `path` only once the new one is whole.

        The same contacts in the same order give the same bytes. Raises TwinGPTError if the file cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        try:
            temporary.unlink(missing_ok=True)
            db = sqlite3.connect(temporary)
            try:
                db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = FULL;" + _SCHEMA)
                rows = (
                    (c.kind, c.value, c.original, c.entity, name_key(c.entity), c.ordinal, c.topic) for c in contacts
                )
                db.executemany(f"INSERT OR IGNORE INTO contact ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                titles = db.execute("SELECT topic FROM contact WHERE topic != '' GROUP BY topic ORDER BY min(id)")
                asked = ((title, " ".join(name_key(way) for way in ways_to_ask(title))) for (title,) in titles)
                db.executemany("INSERT INTO topic (title, asked) VALUES (?, ?)", asked)
                db.execute("INSERT INTO place(place) VALUES ('rebuild')")
                db.commit()
            finally:
                db.close()
            temporary.replace(path)
        except (OSError, sqlite3.Error) as error:
            temporary.unlink(missing_ok=True)
            raise TwinGPTError(
                tr("{path} cannot be written ({error}): check the folder and the free space", path=path, error=error)
            ) from None
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> "ContactStore":
        """Open a store for reading. Raises TwinGPTError if it is missing or damaged."""
        path = Path(path)
        if not path.is_file():
            raise TwinGPTError(tr("{path} does not exist: make it with `twingpt prepare`", path=path))
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            db.execute(f"SELECT {_COLUMNS} FROM contact LIMIT 1").fetchall()
            db.execute("SELECT rowid FROM place LIMIT 1").fetchall()
            db.execute("SELECT title FROM topic LIMIT 1").fetchall()
        except (sqlite3.Error, ValueError) as error:
            db.close()
            raise TwinGPTError(
                tr("{path} is no contact store ({error}): run `twingpt prepare` again", path=path, error=error)
            ) from None
        return cls(db, path)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @damage_told("run `twingpt prepare` again")
    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM contact").fetchone()[0])

    @damage_told("run `twingpt prepare` again")
    def search(self, name: str, kind: Kind | None = None, limit: int = 20) -> list[Contact]:
        """Contacts of places whose name holds every word of `name`, in whole or in part; the closest names first."""
        words = [word for word in (name_key(part) for part in name.split()) if word]
        if not words:
            return []
        if kind is not None and kind not in KINDS:
            raise TwinGPTError(
                tr("contact kind {kind!r} is not known: use one of {choices}", kind=kind, choices=", ".join(KINDS))
            )
        conditions: list[str] = []
        values: list[str | int] = []
        long = [word for word in words if len(word) >= _TRIGRAM]
        if long:
            conditions.append("id IN (SELECT rowid FROM place WHERE place MATCH ?)")
            values.append(" AND ".join(f'"{word}"' for word in long))
        for word in words:
            if len(word) < _TRIGRAM:
                conditions.append("instr(name, ?) > 0")
                values.append(word)
        if kind is not None:
            conditions.append("kind = ?")
            values.append(kind)
        return self._select(" AND ".join(conditions), [*values, limit])

    @damage_told("run `twingpt prepare` again")
    def of_place(self, name: str, kind: Kind) -> list[Contact]:
        """Contacts of the one place that `name` means: the same name, else the only name that holds it or is in it.

        Empty where several places could be meant, since a wrong number is worse than none.
        """
        key = name_key(name)
        if len(key) < 2:
            return []
        exact = self._select("name = ? AND kind = ?", [key, kind, -1])
        if exact:
            return exact
        rows = self._select(
            "kind = ? AND name != '' AND (instr(name, ?) > 0 OR instr(?, name) > 0)", [kind, key, key, -1]
        )
        return rows if len({name_key(row.entity) for row in rows}) == 1 else []

    @damage_told("run `twingpt prepare` again")
    def of_topic(self, question: str) -> list[Contact]:
        """Contacts of the document that a question is about, in the document's order.

        It is the one whose topic the question names most of, and nearly all of. Empty where there is none or where
        several fit equally, since a wrong number is worse than none.
        """
        key = name_key(question)
        grams = {key[i : i + _TRIGRAM] for i in range(len(key) - _TRIGRAM + 1)}
        if not grams:
            return []
        rows = self._db.execute(
            "SELECT title FROM topic WHERE asked MATCH ? ORDER BY rank LIMIT ?",
            [" OR ".join(f'"{gram}"' for gram in sorted(grams)), _TOPICS],
        )
        fitting = [(*likeness, title) for (title,) in rows if (likeness := _likeness(key, title))[1] >= _NAMED]
        fitting.sort(reverse=True)
        if not fitting or (len(fitting) > 1 and fitting[0][:2] == fitting[1][:2]):
            return []
        return self.of_document(fitting[0][2])

    @damage_told("run `twingpt prepare` again")
    def of_document(self, title: str) -> list[Contact]:
        """Contacts of the documents of this very title, in their order."""
        return self._contacts(f"SELECT {_COLUMNS} FROM contact WHERE topic = ? ORDER BY id", [title])

    @damage_told("run `twingpt prepare` again")
    def numbers(self) -> frozenset[str]:
        """The digits of every telephone number, as written."""
        rows = self._db.execute("SELECT DISTINCT value FROM contact WHERE kind IN ('TEL', 'FAX', 'KAKAO')")
        return frozenset(digits(value) for (value,) in rows if not re.search("[A-Za-z]", value) and digits(value))

    def _select(self, where: str, values: Sequence[str | int]) -> list[Contact]:
        # The same contact in several documents is one here.
        once = "GROUP BY kind, value, entity, original, ordinal"
        return self._contacts(
            f"SELECT {_COLUMNS} FROM contact WHERE {where} {once} ORDER BY length(name), min(id) LIMIT ?", values
        )

    def _contacts(self, query: str, values: Sequence[str | int]) -> list[Contact]:
        return [
            Contact(kind, value, original, -1, -1, entity, ordinal, topic)
            for kind, value, original, entity, _, ordinal, topic in self._db.execute(query, values)
        ]


def _likeness(key: str, title: str) -> tuple[int, float]:
    """How many pairs of characters a question shares with what is asked about a title, and what part of them that is.

    Pairs that questions about anything have are left out.
    """
    asked = _pairs(key)
    ways = [pairs for way in ways_to_ask(title) if (pairs := _pairs(name_key(way)) - _common_pairs())]
    return max(((len(pairs & asked), len(pairs & asked) / len(pairs)) for pairs in ways), default=(0, 0.0))


def _pairs(key: str) -> set[str]:
    return {key[i : i + 2] for i in range(len(key) - 1)}


@cache
def _common_pairs() -> frozenset[str]:
    return frozenset(
        pair for text in general_patterns() for part in re.split(r"\{\w+\}", text) for pair in _pairs(name_key(part))
    )


def fill(text: str, store: ContactStore) -> str:
    """The text with each placeholder replaced by a value from the store, found by the place's name before it.

    Of several values of a place, the one with the placeholder's own number is taken, else the first not used yet. A
    placeholder without a name, with an unknown name or with one that several places share becomes UNRESOLVED.
    """
    lines = text.split("\n")
    places = PlaceFinder(lines)
    used: set[tuple[str, str, str]] = set()
    given: dict[tuple[str, str], str] = {}
    filled = []
    for index, line in enumerate(lines):
        pieces, position = [], 0
        for match in PLACEHOLDER.finditer(line):
            entity = places.name(index, match.start(), match.end())
            kind = next(k for k in KINDS if k == match[1])
            key = (name_key(entity), match[0])
            if key not in given:
                rows = [c for c in store.of_place(entity, kind) if (key[0], kind, c.value) not in used]
                rows.sort(key=lambda c: c.ordinal != int(match[2]))
                given[key] = rows[0].value if rows else UNRESOLVED
                used.add((key[0], kind, given[key]))
            pieces += [line[position : match.start()], given[key]]
            position = match.end()
        filled.append("".join([*pieces, line[position:]]))
    return "\n".join(filled)
