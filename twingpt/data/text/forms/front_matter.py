"""Markdown that begins with front matter: settings of the program that keeps the notes, and the title of the note."""

import re
from collections.abc import Iterator
from itertools import chain

from twingpt.core.language import mark
from twingpt.data.text.forms.form import ReadAs, TextForm

# Lines of `key: value`, with lists and further lines of a value indented or after a hyphen.
_BLOCK = re.compile(
    r"\ufeff?---[ \t]*\r?\n((?:[\w가-힣][\w가-힣 .\-]*:.*\r?\n|[ \t]+\S.*\r?\n|- .*\r?\n|#.*\r?\n|[ \t]*\r?\n){1,200}?)"
    r"(?:---|\.\.\.)[ \t]*(?:\r?\n|$)"
)
_TITLE = re.compile(r"^(?:title|제목):[ \t]*(['\"]?)(.+?)\1[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)


def _is_front_matter(head: str) -> bool:
    found = _BLOCK.match(head)
    return found is not None and ":" in found[1]


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    first = next(pieces, "")
    found = _BLOCK.match(first)
    if found is None:
        yield from chain([first], pieces)
        return
    read_as.changes.count(mark("front matter dropped but for its title"))
    body = first[found.end() :]
    title = _TITLE.search(found[1])
    if title and title[2] not in body[: len(title[2]) + 20]:
        yield f"# {title[2]}\n"
    yield body
    yield from pieces


MARKDOWN = TextForm(mark("Markdown with front matter"), _is_front_matter, _read)
