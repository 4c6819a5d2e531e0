"""Markdown: notes whose marks say what is a heading, a list, a table or code. `markdown-it-py` tells them apart."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain, islice
from typing import TYPE_CHECKING

from twingpt.data.text.code_lines import CODE
from twingpt.data.text.documents import is_title
from twingpt.data.text.forms.form import ReadAs, TextForm, lines
from twingpt.data.text.forms.front_matter import FRONT_MATTER, title_of
from twingpt.data.text.forms.web_page import is_page, laid_out

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

# Text is parsed so many characters at a time, up to a heading: a note is short, but an export may be 100 MB.
_PARSED_CHARS = 1 << 20
_TITLE_CHARS = 60
# A longer link carries the state of a page, such as a whole program to be tried.
_LONGEST_ADDRESS = 200

_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})(.*)")
_HEADING = re.compile(r"#{1,6}[ \t]+\S")
# What nobody writes but in Markdown. A line that begins with # may be a remark of any text.
_SIGNS = (
    re.compile(r"^ {0,3}(?:`{3,}|~{3,})[^`\n]*$", re.MULTILINE),
    re.compile(r"^#{1,6} \S", re.MULTILINE),
    re.compile(r"^#{1,6} \S.*(?:\{#[\w-]+\}|\{/\*.*\*/\})", re.MULTILINE),
    re.compile(r"\[[^\]\n]{1,200}\]\((?:<[^>\n]*>|[^()\s]+)(?: +\"[^\"\n]*\")?\)"),
    re.compile(r"(?<![*\w])\*\*[^\s*][^*\n]*\*\*"),
    re.compile(r"(?<!`)`[^`\n]+`(?!`)"),
    re.compile(r"^[ ]*\|?[ ]*:?-{2,}:?[ ]*(?:\|[ ]*:?-{2,}:?[ ]*)+\|?[ ]*$", re.MULTILINE),
)
_LEAST_SIGNS = 3

# {#id} of a heading, {/* a remark */} of MDX.
_ATTRIBUTES = re.compile(r"[ \t]*(?:\{[ \t]*[#.:][^{}\n]*\}|\{/\*.*?\*/\})[ \t]*")
_HEADING_REMARK = re.compile(r"^(#{1,6}[ \t].*?)[ \t]*\{/\*.*\*/\}[ \t]*$", re.MULTILINE)
_REMARK = re.compile(r"\{/\*.*?\*/\}", re.DOTALL)
# ":::tip 제목" and ":::" of VitePress and Docusaurus, "!!! note "제목"" of MkDocs, "> [!note] 제목" of Obsidian.
_ADMONITION = re.compile(
    r"^[ \t]*(?::{3,}[ \t]*(?:\{?[\w-]+\}?)?|[!?]{3}\+?[ \t]+[\w-]+|\[![\w-]+\][-+]?)[ \t]*"
    r"(?:\"(?P<quoted>.*)\"|(?P<title>.*))$",
    re.MULTILINE,
)
_TABLE_OF_CONTENTS = re.compile(r"^[ \t]*(?:\[\[_?toc_?\]\]|\[toc\])[ \t]*$\n?", re.MULTILINE | re.IGNORECASE)
_WIKI_IMAGE = re.compile(r"!\[\[[^\]\n]*\]\]")
_WIKI_LINK = re.compile(r"\[\[(?:[^\]|\n]*\|)?([^\]|\n]+)\]\]")
_TASK = re.compile(r"^\[[ xX]\][ \t]+")
_ADDRESS = re.compile(r"(?:https?|mailto|tel|sms):", re.IGNORECASE)


def _is_markdown(head: str) -> bool:
    front = FRONT_MATTER.match(head)
    if front is not None and ":" in front[1]:
        return True
    if is_page(head):
        return False
    counts = [sum(1 for _ in islice(sign.finditer(head), _LEAST_SIGNS)) for sign in _SIGNS]
    fences, headings, *_ = counts
    others = sum(counts) - headings
    if head.lstrip("\ufeff \n").startswith("<") and not headings and fences < 2:
        return False
    # A text that has headings alone is read as it stands.
    return others >= _LEAST_SIGNS or fences >= 2 or (headings > 0 and others > 0)


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    first = next(pieces, "").lstrip("\ufeff")
    front = FRONT_MATTER.match(first)
    title = ""
    if front is not None:
        read_as.changes.count("front matter dropped but for its title")
        title = title_of(front[1])
        first = first[front.end() :]
        if title and not _begins_with(first, title):
            first = f"# {title}\n{first}"
    if not read_as.prose:
        yield from chain([first], pieces)
        return
    writer = _Writer(read_as, title)
    for part in _parts(lines(chain([first], pieces))):
        yield writer.text_of(part)


def _begins_with(text: str, title: str) -> bool:
    """Whether the note gives its title itself, and does not only begin with a sentence about it."""
    first = text.lstrip().split("\n", 1)[0]
    return _ATTRIBUTES.sub("", first).strip("#* \t\r") == title


def _parts(found: Iterable[str]) -> Iterator[str]:
    """The lines of a text in parts that begin at a heading, never within a block of code."""
    part: list[str] = []
    size = 0
    fence = ""
    for line in found:
        opened = _FENCE.match(line)
        if not fence and size >= _PARSED_CHARS and _HEADING.match(line):
            yield "\n".join(part)
            part, size = [], 0
        if opened is not None and not fence:
            fence = opened[1]
        elif opened is not None and opened[1].startswith(fence) and not opened[2].strip():
            fence = ""
        part.append(line)
        size += len(line) + 1
    yield "\n".join(part)


@cache
def _parser() -> "MarkdownIt":
    from markdown_it import MarkdownIt

    # Korean notes are indented and underlined with ---- as a person likes it: neither is code or a heading.
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).disable(["code", "lheading"])


@dataclass
class _Writer:
    """Tokens to lines of text.

    title: of the note, which a heading below it is told with. numbers: of the next item of each list that the place
    is in, the innermost last; None where its items have none. mark: of the item that has just begun.
    """

    read_as: ReadAs
    title: str
    out: list[str] = field(default_factory=list)
    numbers: list[int | None] = field(default_factory=list)
    mark: str = ""

    def text_of(self, markdown: str) -> str:
        self.out, self.numbers, self.mark = [], [], ""
        # Later, a remark in a heading would be taken for emphasis. Code is left alone.
        markdown = _HEADING_REMARK.sub(r"\1", _TABLE_OF_CONTENTS.sub("", markdown))
        tokens = _parser().parse(markdown)
        position = 0
        while position < len(tokens):
            position = self._block(tokens, position)
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self.out)).strip("\n") + "\n"

    def _block(self, tokens: "Sequence[Token]", at: int) -> int:
        """Write the block that begins at tokens[at]; where the next one begins."""
        token = tokens[at]
        if token.type == "heading_open":
            self._heading(int(token.tag[1]), tokens[at + 1])
            return at + 3
        if token.type == "inline":
            text = self._inline(token)
            # tokens[at + 1] ends the paragraph; what does not end the item then belongs to this line.
            over = bool(self.mark) and tokens[at + 2].type != "list_item_close" and is_title(text)
            self._lines(f"{text}:" if over else text, apart=not self.numbers)
        elif token.type in ("fence", "code_block"):
            self._code(token.content)
        elif token.type == "html_block":
            self._lines(_without_tags(token.content), apart=True)
        elif token.type == "hr":
            self.out += ["", "---", ""]
        elif token.type in ("bullet_list_open", "ordered_list_open"):
            numbered = token.type == "ordered_list_open"
            self.numbers.append(int(token.attrGet("start") or 1) if numbered else None)
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            self.numbers.pop()
            if not self.numbers:
                self.out.append("")
        elif token.type == "list_item_open":
            self.mark = self._item_mark()
        elif token.type == "table_open":
            return self._table(tokens, at)
        return at + 1

    def _item_mark(self) -> str:
        number = self.numbers[-1]
        if number is None:
            return "- "
        self.numbers[-1] = number + 1
        return f"{number}. "

    def _heading(self, level: int, inline: "Token") -> None:
        text = " ".join(self._inline(inline).split())
        if not text:
            return
        marks = "#" * level
        if not self.title:
            self.title = text
        elif level > 1 and self.title not in text and len(f"{marks} {self.title} - {text}") <= _TITLE_CHARS:
            # Every page of a manual has its "사용법": only with the title of its page it says of what.
            text = f"{self.title} - {text}"
        if level == 1:
            self.title = text
        self.out += ["", f"{marks} {text}", ""]

    def _lines(self, text: str, *, apart: bool) -> None:
        found = [line.strip() for line in text.split("\n") if line.strip()]
        if not found:
            return
        if self.mark:
            found[0] = self.mark + _TASK.sub("", found[0])
            self.mark = ""
        self.out += [*found, ""] if apart else found

    def _code(self, content: str) -> None:
        # A blank line would end the document in the middle of the code.
        code = [f"{CODE}{line.rstrip()}" for line in content.split("\n") if line.strip()]
        self.read_as.changes.count(f"lines of code marked with {CODE.strip()}", len(code))
        self.out += code
        self.out.append("")
        self.mark = ""

    def _table(self, tokens: "Sequence[Token]", at: int) -> int:
        row: list[str] = []
        while tokens[at].type != "table_close":
            if tokens[at].type == "inline":
                row.append(" ".join(self._inline(tokens[at]).split()))
            elif tokens[at].type == "tr_close":
                self.out.append(" | ".join(row))
                row = []
            at += 1
        self.out.append("")
        return at + 1

    def _inline(self, token: "Token") -> str:
        written: list[str] = []
        targets: list[tuple[int, str]] = []
        for child in token.children or ():
            if child.type in ("text", "text_special"):
                written.append(child.content)
            elif child.type == "code_inline":
                written.append(f"{child.markup}{child.content}{child.markup}")
            elif child.type in ("softbreak", "hardbreak") or re.match(r"<br\b", child.content):
                written.append("\n")
            elif child.type == "html_inline":
                self.read_as.changes.count("tags in Markdown left out, but for what stands between them")
            elif child.type == "image":
                # The words in place of a picture are for who does not see it.
                self.read_as.changes.count("pictures of Markdown left out, but for their words")
                written.append(child.content)
            elif child.type == "link_open":
                targets.append((len(written), str(child.attrGet("href") or "")))
            elif child.type == "link_close" and targets:
                start, target = targets.pop()
                self._end_link(written, start, target)
        text = _REMARK.sub("", _ATTRIBUTES.sub(" ", "".join(written)))
        text = _WIKI_LINK.sub(r"\1", _WIKI_IMAGE.sub("", text))
        return _ADMONITION.sub(lambda found: found["quoted"] or found["title"] or "", text).strip()

    def _end_link(self, written: list[str], start: int, target: str) -> None:
        """An address stays behind its words; where in the folder of the notes a page lies says nothing in a text."""
        from urllib.parse import unquote

        if not _ADDRESS.match(target):
            self.read_as.changes.count("links within the notes left out, but for their words")
            return
        # What a mail shall begin with is no part of its address.
        shown = unquote(target.partition("?")[0].removeprefix("mailto:") if target.startswith("mailto:") else target)
        if len(shown) > _LONGEST_ADDRESS:
            self.read_as.changes.count("links too long for an address left out, but for their words")
            return
        text = "".join(written[start:]).strip()
        if text in (shown, target, shown.rstrip("/")):
            return
        written.append(f"({shown if ' ' not in shown else target})")


def _without_tags(html: str) -> str:
    """The text of a block of HTML; none of the components of a page, which are written like tags."""
    html = _REMARK.sub("", re.sub(r"<!--.*?-->", "", html, flags=re.DOTALL))
    if re.fullmatch(r"(?:\s*</?[A-Za-z][^<>]*>)*\s*", html):
        return ""
    return laid_out(html)


MARKDOWN = TextForm("Markdown", _is_markdown, _read)
