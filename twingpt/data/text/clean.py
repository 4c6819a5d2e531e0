"""Cleaning: what is no text goes, what is text stays, and documents come out one by one."""

import functools
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from twingpt.core.language import mark
from twingpt.data.text import dedup
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import PICTOGRAPH, clean_text, sentence_cut
from twingpt.data.text.code_lines import is_code
from twingpt.data.text.corpus import Table

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# Characters of raw text that one worker cleans at a time, and the most where no blank line comes.
CHUNK = 1 << 20
LARGEST_CHUNK = 4 * CHUNK
# Documents of the qa template are about as long as the notes that a question is asked about.
MERGE_MIN, MERGE_MAX = 300, 1800

Separator = str
"""What parts the documents of plain text: BY_FILE, BY_BLANK_LINE, BY_LINE, or a line that stands between two."""
BY_FILE, BY_BLANK_LINE, BY_LINE = "file", "blank-line", "line"
END_MARK = "<|endoftext|>"
"""Ends a document of plain text wherever it stands, as it does in the data sets of this field."""

BOILERPLATE_DOCUMENTS = 20
BOILERPLATE_SHARE = 0.05
_BOILERPLATE_LENGTH = 6
_BUCKETS = np.uint64(1 << 18)

_URL_LINE = re.compile(r"\W*(?:https?://|www\.)\S+\W*")
_LOG_LINE = re.compile(
    r"\W*(?:\d{4}[-/]\d\d[-/]\d\d[ T]\d\d:\d\d|\[?(?:INFO|WARN(?:ING)?|ERROR|DEBUG|TRACE)\b|Traceback )"
)
_CODE_LINE = re.compile(
    r"\s*(?:(?:import|from|def|class|return|const|let|var|function|public|private|#include|SELECT|INSERT)\b.*"
    r"|</?\w[^>]*>.*|[\w.\[\]]+\s*(?:=|\+=)\s*\S.*|.*[;{}]\s*|[)\]}]+[;,]?|@\w+.*|//.*|/\*.*|\$ .*)"
)
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
_SYMBOL = re.compile(f"[{PICTOGRAPH}]")
_CONTACT_LINE = re.compile(r"(?:TEL|FAX|KAKAO|ADDR|WEB|EMAIL):|(?:\d\D{0,2}){7}")


@dataclass(frozen=True, kw_only=True)
class CleanSettings:
    """merge: make documents of the length that questions are asked about, instead of parting them by `separator`.

    country: whose telephone numbers are meant where the text does not say. contact_forms: bring contacts into one form.
    keep_layout, break_lines: as in `clean_text`.
    """

    contacts: Literal["keep", "mask"] = "keep"
    country: str = "PH"
    merge: bool = True
    separator: Separator = BY_FILE
    contact_forms: bool = True
    keep_layout: bool = False
    break_lines: bool = True
    drop_junk: bool = False
    boilerplate: bool = True


@dataclass
class CleanedChunk:
    """What one worker makes of one chunk; the texts are UTF-8. source: the number of the file that it came from.

    documents: or parts of them, with `begins` telling of each whether a document begins with it; the first of a file
    always does. ended: whether the last document ends with the chunk, though the file may go on.
    """

    documents: list[bytes]
    begins: list[bool]
    ended: bool
    contacts: "list[Contact]"
    digests: list[bytes]
    signatures: dedup.Signatures
    lines: npt.NDArray[np.uint64]
    changes: Changes = field(default_factory=Changes)
    source: int = 0


def chunks(pieces: Iterable[str]) -> Iterator[str]:
    """Raw text in chunks that end at a blank line; where they end depends on the text alone, not on the pieces."""
    waiting = ""
    for piece in pieces:
        waiting += piece.replace("\r\n", "\n").replace("\r", "\n")
        while (cut := _chunk_end(waiting)) is not None:
            yield waiting[:cut]
            waiting = waiting[cut:]
    if waiting:
        yield waiting


def _chunk_end(text: str) -> int | None:
    if len(text) < CHUNK:
        return None
    blank = text.find("\n\n", CHUNK, LARGEST_CHUNK)
    if blank != -1:
        return blank + 2
    if len(text) < LARGEST_CHUNK:
        return None
    newline = text.rfind("\n", CHUNK, LARGEST_CHUNK)
    if newline != -1:
        return newline + 1
    return CHUNK + sentence_cut(text[CHUNK:LARGEST_CHUNK])


def is_junk(line: str) -> bool:
    """A line of nothing but a URL, emoji, log output or program code."""
    if _LOG_LINE.match(line):
        return True
    if not line or _CONTACT_LINE.search(line):
        return False
    if _URL_LINE.fullmatch(line):
        return True
    if _SYMBOL.search(line) and not any(c.isalnum() for c in line):
        return True
    return not _HANGUL.search(line) and _CODE_LINE.fullmatch(line) is not None


def _without_junk(text: str, changes: Changes) -> str:
    kept: list[str] = []
    for line in text.split("\n"):
        if is_junk(line):
            changes.drop(mark("lines of only code, log, URL or emoji dropped"), len(line.encode()) + 1)
            changes.example(mark("lines of only code, log, URL or emoji dropped"), line[:80], "")
        else:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept))


def merged_documents(text: str) -> list[str]:
    """The documents of cleaned text for questions to be asked about."""
    from twingpt.data.text.documents import merge_blocks

    blocks = [stripped for block in text.split("\n\n") if (stripped := block.strip("\n "))]
    return list(merge_blocks(blocks, min_size=MERGE_MIN, max_size=MERGE_MAX, count=len))


def split_plain(text: str, separator: Separator) -> tuple[list[tuple[str, bool]], bool]:
    """(the parts of cleaned text, each with whether a document begins with it, whether the last document has ended).

    A part is what stands between two blank lines. Nothing of the text is lost but separators and blank lines. The first
    part goes on with what stands before this text, unless a separator comes first.
    """
    parts: list[tuple[str, bool]] = []
    each_begins = separator in (BY_LINE, BY_BLANK_LINE)
    between = "\n" if separator == BY_LINE else "\n\n"
    begins = False
    for number, document in enumerate(_separators(separator).split(text)):
        begins = begins or number > 0
        for block in document.split(between):
            if part := block.strip("\n"):
                parts.append((part, begins or each_begins))
                begins = False
    return parts, begins


@functools.cache
def _separators(separator: Separator) -> re.Pattern[str]:
    """Every separator that a text is parted at; a line of its own but for END_MARK."""
    lines = {"[EOS]"} if separator in (BY_FILE, BY_LINE, BY_BLANK_LINE) else {"[EOS]", separator.strip()}
    own = "|".join(map(re.escape, sorted(lines)))
    return re.compile(rf"{re.escape(END_MARK)}|^[^\S\n]*(?:{own})[^\S\n]*$", re.MULTILINE)


def line_hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")


def clean_chunk(text: str, settings: CleanSettings) -> CleanedChunk:
    """Everything that can be done to a chunk without knowing the others."""
    from twingpt.data.contacts import mask, standardise

    changes = Changes()
    text = clean_text(text, changes, keep_layout=settings.keep_layout, break_lines=settings.break_lines)
    if settings.drop_junk:
        text = _without_junk(text, changes)
    documents: list[str] = []
    contacts: list[Contact] = []
    normals: list[str] = []
    if settings.merge:
        split, ended = [(document, True) for document in merged_documents(text)], True
    else:
        split, ended = split_plain(text, settings.separator)
    for document, _ in split:
        standard, found = standardise(document, settings.country)
        if not settings.contact_forms:
            standard = document
        if standard != document:
            _note_contacts(document, standard, changes)
        if found:
            changes.count(mark("contacts found"), len(found))
        contacts += found
        normals.append(dedup.normalised(standard))
        if settings.contacts == "mask":
            standard = mask(standard, found)
            _note_number_like(standard, changes)
        documents.append(standard)
    lines: list[int] = []
    if settings.boilerplate:
        for document in documents:
            lines += {line_hash(line) for line in document.split("\n") if len(line) >= _BOILERPLATE_LENGTH}
    return CleanedChunk(
        [document.encode() for document in documents],
        [begins for _, begins in split],
        ended,
        contacts,
        [dedup.digest(normal) for normal in normals],
        dedup.signatures(normals),
        np.asarray(lines, dtype=np.uint64),
        changes,
    )


# Seven digits or more in the groups of a telephone number: an account or a date can look so too.
_NUMBER_LIKE = re.compile(r"(?<![\w/])\+?(?:\d[ ().·\-–~]{0,2}){7,}")


def _note_number_like(text: str, changes: Changes) -> None:
    """Counts the lines of a masked text in which a reader may still see a telephone number."""
    kind = mark("lines that still hold digits like those of a telephone number")
    for line in text.split("\n"):
        if _NUMBER_LIKE.search(line):
            changes.count(kind)
            changes.example(kind, line[:80], line[:80])


def _note_contacts(document: str, standard: str, changes: Changes) -> None:
    kind = mark("documents with contacts brought into one form")
    changes.count(kind)
    if changes.wants_example(kind):
        pairs = zip(document.split("\n"), standard.split("\n"), strict=False)
        before, after = next((pair for pair in pairs if pair[0] != pair[1]), (document, standard))
        changes.example(kind, before[:80], after[:80])


def boilerplate_hashes(lines: Table, documents: int) -> frozenset[int]:
    """Hashes of the lines that stand in at least 20 documents and in 5 % of all.

    lines: a hash of every line, once for each document that it stands in. They are gone through twice: first to see
    which of a fixed number of buckets hold enough of them, then to count the lines of those.
    """
    least = max(BOILERPLATE_DOCUMENTS, int(np.ceil(BOILERPLATE_SHARE * documents)))
    buckets = np.zeros(_BUCKETS, dtype=np.int64)
    for _, part in lines.parts():
        buckets += np.bincount((part[:, 0] % _BUCKETS).astype(np.int64), minlength=_BUCKETS)
    counts: dict[int, int] = {}
    for _, part in lines.parts():
        frequent = part[buckets[(part[:, 0] % _BUCKETS).astype(np.int64)] >= least, 0]
        for line, number in zip(*np.unique(frequent, return_counts=True), strict=True):
            counts[int(line)] = counts.get(int(line), 0) + int(number)
    return frozenset(line for line, number in counts.items() if number >= least)


def without_boilerplate(document: str, hashes: frozenset[int], changes: Changes) -> str:
    """The document without the lines that repeat in many, contacts and code apart; it is never left empty by it."""
    kept: list[str] = []
    dropped: list[str] = []
    for line in document.split("\n"):
        # The end of one example of code is that of many.
        repeats = line_hash(line) in hashes and not _CONTACT_LINE.search(line) and not is_code(line)
        (dropped if repeats else kept).append(line)
    if not dropped or not any(kept):
        return document
    changes.drop(mark("boilerplate lines dropped"), sum(len(line.encode()) + 1 for line in dropped), len(dropped))
    shown = [before for before, _ in changes.examples.get(mark("boilerplate lines dropped"), [])]
    for line in dropped:
        if line[:80] not in shown:
            changes.example(mark("boilerplate lines dropped"), line[:80], "")
            shown.append(line[:80])
    return "\n".join(kept)
