"""The page that walks through the reference engine: its code is the engine's, and what it says is printed is."""

import contextlib
import io
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.pages import DOCS, LANGUAGES, ROOT, Block, blocks

PAGE = Path("how") / "by-hand.md"
ENGINE = "twingpt/backends/reference/"


def stands_in(code: str, source: str) -> bool:
    """Whole lines of the source, one after another; a method stands one step further to the left on the page."""
    lines = source.splitlines()
    for indented in (code, textwrap.indent(code, "    ")):
        wanted = indented.splitlines()
        if any(lines[at : at + len(wanted)] == wanted for at in range(len(lines))):
            return True
    return False


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_code_that_the_page_shows_is_the_engines(language: str) -> None:
    shown = [block for block in blocks(DOCS / language / PAGE) if block.title.startswith("twingpt/")]
    for block in shown:
        assert block.title.startswith(ENGINE)
        assert stands_in(block.text, (ROOT / block.title).read_text(encoding="utf-8")), block.text
    firsts = [block.text.splitlines()[0] for block in shown]
    assert sum(line.startswith("def forward") for line in firsts) >= 5
    assert sum("backward" in line for line in firsts) >= 4
    assert {"cross_entropy", "clip_and_update", "adamw"} <= {line[4:].split("(")[0] for line in firsts}


def test_code_that_is_not_the_engines_any_more_is_seen() -> None:
    source = (ROOT / ENGINE / "model.py").read_text(encoding="utf-8")
    shown = next(block.text for block in blocks(DOCS / "en" / PAGE) if block.text.startswith("def backward"))
    assert stands_in(shown, source)
    assert not stands_in(shown, source.replace("grad_rows.T @ rows", "rows.T @ grad_rows"))
    assert not stands_in(shown.replace("grad_rows.T", "rows.T"), source)


def differences(page: list[Block]) -> list[str]:
    """Runs the boxes that are for the reader, in one interpreter, and names those that print something else."""
    names: dict[str, Any] = {}
    printed, found = "", []
    for block in page:
        if block.language == "python" and not block.title:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, "page", "exec"), names)
            printed = out.getvalue()
        elif block.title == "printed" and block.text != printed:
            found.append(f"the page says\n{block.text}and the code prints\n{printed}")
    return found


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_small_run_of_the_page_prints_what_the_page_says(language: str) -> None:
    page = blocks(DOCS / language / PAGE)
    assert len([block for block in page if block.title == "printed"]) >= 6
    assert differences(page) == []


def test_a_run_that_prints_something_else_is_seen() -> None:
    page = [Block("python", "", "x = 1\n"), Block("python", "", "print(x + 1)\n"), Block("text", "printed", "3\n")]
    assert differences(page) == ["the page says\n3\nand the code prints\n2\n"]
