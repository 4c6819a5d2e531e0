"""CSV and TSV: the columns that hold text, row by row."""

import csv
from collections.abc import Iterator
from itertools import chain

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, tr
from twingpt.data.text.forms.fields import Record, is_known, texts
from twingpt.data.text.forms.form import ReadAs, TextForm, lines

_DELIMITERS = "\t,;"
_HEAD = 1 << 16
_ROWS = 50
_LONGEST_NAME = 40


def rows(pieces: Iterator[str], delimiter: str) -> Iterator[list[str]]:
    """The rows of a table of values between delimiters; a quoted value may hold line ends."""
    csv.field_size_limit(1 << 24)
    # A lone carriage return is a line end to `csv`, and an error outside of quotes.
    return csv.reader((line.replace("\r", " ") + "\n" for line in lines(pieces)), delimiter=delimiter)


def _delimiter(head: str) -> str | None:
    """What the values of a table stand between; None for what is no table."""
    for delimiter in _DELIMITERS:
        if delimiter not in head.split("\n", 1)[0]:
            continue
        found = _sample(head, delimiter)
        width = len(found[0]) if found else 0
        same = sum(len(row) == width for row in found)
        # A table of two rows is seldom one; sentences have commas too, but not under a row of names.
        if width > 1 and len(found) >= 3 and same >= 0.95 * len(found) and _is_header(found[0]):
            return delimiter
    return None


def _sample(head: str, delimiter: str) -> list[list[str]]:
    cut = head.lstrip("\ufeff")[:_HEAD]
    try:
        found = [row for row in rows(iter([cut]), delimiter) if row]
    except csv.Error:
        return []
    return (found[:-1] if len(head) > _HEAD else found)[:_ROWS]


def _is_header(row: list[str]) -> bool:
    names = [name.strip() for name in row]
    if any(len(name) > _LONGEST_NAME or name.endswith((".", "?", "!", "다", "요")) for name in names):
        return False
    return any(is_known(name) for name in names) and len(set(names)) == len(names)


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    first = next(pieces, "")
    delimiter = _delimiter(first)
    if delimiter is None:
        raise TwinGPTError(
            tr(
                "{name} begins with a row of {length:,} characters: give it as plain text",
                name=read_as.name,
                length=len(first),
            )
        )
    found = rows(chain([first.lstrip("\ufeff")], pieces), delimiter)
    names = [name.strip() for name in next(found)]

    def records() -> Iterator[Record]:
        for row in found:
            if len(row) > len(names):
                read_as.changes.count(mark("values beyond the last column of a table dropped"), len(row) - len(names))
            yield {name: value for name, value in zip(names, row, strict=False) if name}

    yield from texts(records(), read_as)


TABLE = TextForm("table (CSV, TSV)", lambda head: _delimiter(head) is not None, _read)
