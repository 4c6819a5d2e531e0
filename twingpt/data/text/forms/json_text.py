"""JSON and JSON lines: the strings of the fields that hold text, with escapes undone, read a part at a time."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

from twingpt.core.language import mark
from twingpt.data.text.forms.fields import Record, texts
from twingpt.data.text.forms.form import ReadAs, TextForm, lines

_HEAD = 1 << 16


def _is_json(head: str) -> bool:
    return _begins_as_json(head.lstrip("\ufeff \t\r\n")[:_HEAD])


def _begins_as_json(text: str) -> bool:
    import ijson

    if not text.startswith(("{", "[")):
        return False
    strings = 0
    try:
        for event, _ in ijson.basic_parse(io.BytesIO(text.encode()), use_float=True):
            strings += event == "string"
    except ijson.IncompleteJSONError:
        # The rest of the file follows, if what there is of it reads as JSON.
        return strings > 0 and len(text) == _HEAD
    except (ijson.JSONError, ValueError):
        return False
    return strings > 0


def _is_json_lines(head: str) -> bool:
    found = [line for line in head.lstrip("\ufeff")[:_HEAD].split("\n")[:6] if line.strip()]
    if len(head) >= _HEAD:
        found = found[:-1] if len(found) > 1 else found
    return len(found) > 1 and sum(_begins_as_json(line.strip()) for line in found) * 2 > len(found)


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    import ijson

    stream = ijson.from_iter(piece.lstrip("\ufeff").encode() for piece in pieces)
    # Several values on lines longer than what a form is recognised by are read alike.
    events = ijson.parse(stream, use_float=True, multiple_values=True)
    try:
        yield from texts(_records(events), read_as)
    except ijson.JSONError as error:
        raise ValueError(str(error)) from None


def _read_lines(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    return texts(_records_of_lines(lines(pieces), read_as), read_as)


def _records_of_lines(found: Iterable[str], read_as: ReadAs) -> Iterator[Record]:
    import ijson

    kind = mark("lines that are no JSON dropped")
    for line in found:
        line = line.strip("\ufeff \t")
        if not line:
            continue
        try:
            records = list(_records(ijson.parse(io.BytesIO(line.encode()), use_float=True)))
        except (ijson.JSONError, ValueError):
            read_as.changes.count(kind)
            read_as.changes.example(kind, line[:60], "")
            continue
        yield from records


def _records(events: Iterable[tuple[str, str, Any]]) -> Iterator[dict[str, str]]:
    """What stands between two braces, as one record: an object's values, before and after the objects inside it."""
    record: dict[str, str] = {}
    for prefix, event, value in events:
        if event in ("start_map", "end_map"):
            if record:
                yield record
            record = {}
        elif event in ("string", "number"):
            name = ".".join(part for part in prefix.split(".") if part != "item") or "text"
            record[name] = f"{record[name]}\n{value}" if name in record else str(value)
            if prefix == "item":
                yield record
                record = {}
    if record:
        yield record


JSON = TextForm("JSON", _is_json, _read)
JSON_LINES = TextForm(mark("JSON lines"), _is_json_lines, _read_lines)
