"""What the tests of the pages read them with."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
READMES = (ROOT / "README.md", ROOT / "README.ko.md")
LANGUAGES = ("en", "ko")
# A fence inside of a list is indented.
FENCE = re.compile(r'^ *```(\w+)(?: title="([^"]+)")?\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, the file that it is to be saved as, if any, and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*(part or "" for part in match)) for match in FENCE.findall(page.read_text(encoding="utf-8"))]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
