"""Documents as samples need them: blocks merged and cut at sentence ends, and the units a document is made of."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from twingpt.data.contacts import Contact, standardise
from twingpt.data.contacts.labels import KIND_LABEL
from twingpt.data.text.code_lines import is_code
from twingpt.data.text.korean import Sentence, pre_split, sentences

Role = Literal["heading", "item", "sentence", "contact", "code"]

_SEPARATOR = re.compile(r"^\s*(?:[-=*_~#+•·]\s?){3,}\s*$|^\s*[━─—–═]{2,}\s*$")
_MARKDOWN_HEADING = re.compile(r"^#{1,6}\s+\S")
BULLET = re.compile(r"^\s*(?:[-•*·▶▷■□◆◇●○✓✔※→]\s*|\(?\d{1,2}[.)]\s+|[①-⑳]\s*)")
_SENTENCE_END = re.compile(r"(?:[.!?…~][\"'”’)\]]*|[가-힣](?:다|요|죠|까|음|함|됨)|[ㅋㅎㅠㅜ^]+)\s*$")

_TITLE_CHARS = 60
_HEADING_CHARS = 120
# "준비물: 사진 2장": a list of one line.
_LABELLED = re.compile(r"^\s*[가-힣 ]{1,8}[:：]\s*\S[^.!?]*$")
_ITEM_CHARS = 160
_NO_PROSE_CHARS = 20_000
_CLAIM_CHARS = 30
_PARAGRAPH_CHARS = 80
_HARD_END = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece that is never cut: a whole sentence, list line, heading line or line of contacts.

    text: as in the standardised document. line: its line there, the title being line 0 where there is one.
    """

    text: str
    nouns: tuple[str, ...]
    line: int
    role: Role

    @property
    def plain(self) -> str:
        """Without the bullet or number of a list."""
        return BULLET.sub("", self.text) if self.role == "item" else self.text


@dataclass(frozen=True, slots=True)
class Document:
    """title: "" where the first line is no title. contacts carry the line they stand on, in the same order."""

    text: str
    title: str
    title_nouns: tuple[str, ...]
    units: tuple[Unit, ...]
    contacts: tuple[tuple[int, Contact], ...]


def is_title(line: str) -> bool:
    """A heading of Markdown, whatever it ends in; else a short line without a sentence end, a bullet or a contact."""
    text = line.strip()
    if _MARKDOWN_HEADING.match(text):
        return len(text) <= _HEADING_CHARS and not standardise(text)[1]
    if (
        not 1 < len(text) <= _TITLE_CHARS
        or BULLET.match(text)
        or _SEPARATOR.match(text)
        or is_code(text)
        or text.endswith((",", ":", "："))
    ):
        return False
    return _SENTENCE_END.search(text) is None and not standardise(text)[1]


def plain_title(line: str) -> str:
    """A title without the marks of a heading."""
    return line.lstrip("# ").strip()


def merge_blocks(blocks: Iterable[str], *, min_size: int, max_size: int, count: Callable[[str], int]) -> Iterator[str]:
    """Blocks of a text (what stands between blank lines) as documents, one at a time.

    A Markdown heading starts a new document, and so does a separator line (----, ====, ****, ###) after min_size. A
    lone title joins what follows, a block of contacts what precedes; other blocks are joined until min_size unless the
    next brings its own title. What stands under a heading is joined until max_size, and each further document of it
    begins with the heading too, as nothing else says what it is about: where titles are marked, a short line is none. A
    document over max_size is cut at line ends and, within a line, at sentence ends. Sizes are what `count` says of a
    text.
    """
    pending = title = ""
    for block in blocks:
        for section in _sections(block):
            joined = f"{pending}\n{section}" if pending else section
            if pending and not (_belongs(pending, section, min_size, count) and count(joined) <= max_size):
                heading = _heading_of(pending)
                if heading and _goes_on_under_heading(section, count, max_size):
                    section = f"{heading}\n{section}"
                elif title and title != pending and not heading:
                    # A lone title at the end belongs to what comes now, and not to the document before.
                    pending, section = pending.removesuffix(f"\n{title}"), f"{title}\n{section}"
                yield from _cut_under_heading(pending, max_size, count)
                pending = section
            else:
                pending = joined
            title = section if "\n" not in section and is_title(section) else ""
    if pending:
        yield from _cut_under_heading(pending, max_size, count)


def _heading_of(document: str) -> str:
    """The innermost of the Markdown headings that a document begins with, "" if it begins with none."""
    found = ""
    for line in document.split("\n"):
        if not (_MARKDOWN_HEADING.match(line) and is_title(line)):
            break
        found = line
    return found


def _goes_on_under_heading(section: str, count: Callable[[str], int], max_size: int) -> bool:
    """Whether a section has no heading of its own, and leaves room for the one it stands under."""
    return not _MARKDOWN_HEADING.match(section) and count(section) <= max_size - _HEADING_CHARS


def _cut_under_heading(document: str, max_size: int, count: Callable[[str], int]) -> Iterator[str]:
    """A document cut as `cut` does, each further piece under the heading that the first begins with."""
    heading = _heading_of(document)
    if not heading or count(document) <= max_size:
        yield from cut(document, max_size, count)
        return
    for number, piece in enumerate(cut(document, max_size - count(heading) - 1, count)):
        yield f"{heading}\n{piece}" if number else piece


def _sections(block: str) -> Iterator[str]:
    lines: list[str] = []
    for line in block.split("\n"):
        separator = _SEPARATOR.match(line) is not None
        if (separator or _MARKDOWN_HEADING.match(line)) and lines:
            yield "\n".join(lines)
            lines = []
        if line.strip() and not separator:
            lines.append(line)
    if lines:
        yield "\n".join(lines)


def _belongs(before: str, section: str, min_size: int, count: Callable[[str], int]) -> bool:
    if "\n" not in before and is_title(before):
        return True
    lines = section.split("\n")
    if len(lines) <= 4 and all(is_contact_line(line, standardise(line)[1]) for line in lines):
        return True
    if _MARKDOWN_HEADING.match(lines[0]):
        return False
    if _heading_of(before):
        return True
    return count(before) < min_size and not (len(lines) > 1 and is_title(lines[0]))


def cut(text: str, max_size: int, count: Callable[[str], int]) -> Iterator[str]:
    """A text in pieces of at most max_size, cut at line ends, else at sentence ends; a longer sentence stays whole."""
    if count(text) <= max_size:
        yield text
        return
    piece, size = "", 0
    for line in text.split("\n"):
        for number, part in enumerate(_parts(line, max_size, count)):
            part_size = count(part) + 1
            if piece and size + part_size > max_size:
                yield piece
                piece, size = part, part_size
            else:
                piece = part if not piece else f"{piece}{' ' if number else chr(10)}{part}"
                size += part_size
    if piece:
        yield piece


def _parts(line: str, max_size: int, count: Callable[[str], int]) -> list[str]:
    """A line whole where it fits; else at closing marks; only what is still too long goes through Kiwi."""
    # No tokenizer here makes more than one token a byte, so four a character: short lines need no counting.
    if len(line) <= max_size // 4 or count(line) <= max_size:
        return [line]
    found: list[str] = []
    for part in _HARD_END.split(line):
        if not part.strip():
            continue
        if len(part) > _NO_PROSE_CHARS:
            # So much without one closing mark is a dump, not sentences: Kiwi would take minutes for nothing.
            found += [piece.strip() for piece in pre_split(part) if piece.strip()]
        elif count(part) <= max_size:
            found.append(part.strip())
        else:
            found += [sentence.text for sentence in sentences([part])[0]]
    return found


def is_contact_line(line: str, contacts: list[Contact]) -> bool:
    """Whether a standardised line is there for its contacts: without them no sentence is left."""
    if not contacts:
        return False
    rest = line
    for contact in sorted(contacts, key=lambda c: -c.start):
        rest = rest[: contact.start] + rest[contact.end :]
    rest = re.sub(r"\([^()]*\)", "", KIND_LABEL.sub("", rest))
    return re.search(r"[가-힣][.!?]|(?:다|요|세요|니다)\s*$", rest) is None


def read_document(document: str) -> Document:
    """Standardise a document and take it apart, with one Kiwi analysis."""
    text, contacts = standardise(document)
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    placed: list[tuple[int, Contact]] = []
    index = 0
    for contact in contacts:
        while contact.start >= starts[index + 1]:
            index += 1
        placed.append((index, contact))
    on_line: dict[int, list[Contact]] = {}
    # An address in an example of code is nobody's.
    placed = [(index, contact) for index, contact in placed if not is_code(lines[index])]
    for index, contact in placed:
        on_line.setdefault(index, []).append(contact)
    titled = _titled(lines)
    whole = {
        i
        for i, line in enumerate(lines)
        if i in on_line and is_contact_line(line, [_moved(c, starts[i]) for c in on_line[i]])
    }
    analysed = sentences(
        [
            line if i not in whole and not _SEPARATOR.match(line) and not is_code(line) else ""
            for i, line in enumerate(lines)
        ]
    )
    units: list[Unit] = []
    for i, line in enumerate(lines):
        if i == 0 and titled:
            continue
        if i in whole:
            units.append(Unit(line.strip(), (), i, "contact"))
        else:
            units += _units(line, i, analysed[i])
    title = plain_title(lines[0]) if titled else ""
    nouns = tuple(noun for s in analysed[0] for noun in s.nouns) if titled else ()
    return Document(text, title, nouns, tuple(units), tuple(placed))


def _titled(lines: list[str]) -> bool:
    if len(lines) < 2:
        return False
    first = lines[0].lstrip("# ").rstrip()
    if is_title(first):
        return True
    # A short claim or question over a paragraph ("마약, 호기심도 안 됩니다") is a title as well.
    claim = 1 < len(first) <= _CLAIM_CHARS and re.search(r"[가-힣]$", first) is not None and not standardise(first)[1]
    return claim and len(lines[1]) >= _PARAGRAPH_CHARS and re.search(r"[.!?]", lines[1]) is not None


def _moved(contact: Contact, offset: int) -> Contact:
    return Contact(contact.kind, contact.value, contact.original, contact.start - offset, contact.end - offset)


def _units(line: str, index: int, found: list[Sentence]) -> Iterator[Unit]:
    if is_code(line):
        yield Unit(line, (), index, "code")
        return
    if not found:
        return
    if BULLET.match(line) and (len(found) == 1 or len(line) <= _ITEM_CHARS):
        # A short list line stays whole: its sentences explain one point.
        yield Unit(line.strip(), tuple(noun for s in found for noun in s.nouns), index, "item")
        return
    if _LABELLED.match(line):
        yield Unit(line.strip(), tuple(noun for s in found for noun in s.nouns), index, "item")
        return
    if is_title(line) or line.rstrip().endswith((":", "：")):
        yield Unit(line.strip(), tuple(noun for s in found for noun in s.nouns), index, "heading")
        return
    for sentence in found:
        yield Unit(sentence.text, sentence.nouns, index, "sentence")


def joined(units: Iterable[Unit]) -> str:
    """Units as text: those of one line with a blank between them, others on lines of their own."""
    pieces: list[str] = []
    line = -1
    for unit in units:
        if pieces:
            pieces.append(" " if unit.line == line else "\n")
        pieces.append(unit.text)
        line = unit.line
    return "".join(pieces)
