"""The project's docstrings as Markdown: lines "name: what it is" become a list, and marks such as [BOS] stay text."""

import re
from typing import Any

import griffe

# "n_layer, n_head: depth and heads", and not a sentence that happens to hold a colon.
_FIELD = re.compile(r'^([a-z_][\w*"]*(?:(?:, | )[\w*"]+){0,3}): (?=\S)')
_SENTENCE = re.compile(r"^(?:Raises|Empty|None) ")


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        rewrite(pkg)


def rewrite(item: griffe.Object) -> None:
    """The docstrings of an object and of everything in it."""
    if item.docstring is not None:
        item.docstring.value = as_markdown(item.docstring.value)
    for member in item.members.values():
        if not member.is_alias:
            rewrite(member)  # type: ignore[arg-type]


def as_markdown(docstring: str) -> str:
    return "\n\n".join(_paragraph(part) for part in re.split(r"\n\s*\n", docstring))


def _paragraph(text: str) -> str:
    if text.startswith("    "):
        return text
    blocks: list[str] = []
    in_list = False
    for line in map(str.strip, text.split("\n")):
        field = _FIELD.match(line)
        if field:
            blank = "" if in_list or not blocks else "\n"
            blocks.append(f"{blank}- **{field[1]}**: {_plain(line[field.end() :])}")
            in_list = True
        elif in_list and _SENTENCE.match(line):
            blocks.append(f"\n{_plain(line)}")
            in_list = False
        else:
            blocks.append(f"  {_plain(line)}" if in_list else _plain(line))
    return "\n".join(blocks)


def _plain(line: str) -> str:
    """Outside of code: [A][B] is no link here."""
    parts = line.split("`")
    return "`".join(part if number % 2 else part.replace("][", "]\\[") for number, part in enumerate(parts))
