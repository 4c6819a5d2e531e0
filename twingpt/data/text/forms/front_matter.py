"""Front matter: settings of the program that keeps the notes, over a note of Markdown, and the title of the note."""

import re

# Lines of `key: value`, with lists and further lines of a value indented or after a hyphen.
FRONT_MATTER = re.compile(
    r"\ufeff?---[ \t]*\r?\n((?:[\w가-힣][\w가-힣 .\-]*:.*\r?\n|[ \t]+\S.*\r?\n|- .*\r?\n|#.*\r?\n|[ \t]*\r?\n){1,200}?)"
    r"(?:---|\.\.\.)[ \t]*(?:\r?\n|$)"
)
_TITLE = re.compile(r"^(?:title|제목):[ \t]*(['\"]?)(.+?)\1[ \t]*\r?$", re.MULTILINE | re.IGNORECASE)


def title_of(front: str) -> str:
    """The title that front matter gives, "" if it gives none."""
    found = _TITLE.search(front)
    return found[2] if found is not None else ""
