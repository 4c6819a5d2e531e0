"""Cleaning: what is no text goes, what is text stays, and documents come out one by one."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from twingpt.data.text import dedup
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import PICTOGRAPH, clean_text, sentence_cut
from twingpt.data.text.corpus import Table

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact

# Characters of raw text that one worker cleans at a time, and the most where no blank line comes.
CHUNK = 1 << 20
LARGEST_CHUNK = 4 * CHUNK
# Documents of the qa template are about as long as the notes that a question is asked about.
MERGE_MIN, MERGE_MAX = 300, 1800
# Plain documents are cut only so that validation can hold one without holding a large part of the text.
MAX_DOCUMENT = 20_000

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
    """merge: make documents of the length that questions are asked about, instead of one for each block of lines.

    country: whose telephone numbers are meant where the text does not say.
    """

    contacts: Literal["keep", "mask"] = "keep"
    country: str = "PH"
    merge: bool = True
    drop_junk: bool = False
    boilerplate: bool = True


@dataclass
class CleanedChunk:
    """What one worker makes of one chunk; the texts are UTF-8. source: the number of the file that it came from."""

    documents: list[bytes]
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
            changes.count("lines of only code, log, URL or emoji dropped")
            changes.example("lines of only code, log, URL or emoji dropped", line[:80], "")
        else:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept))


def split_documents(text: str, *, merge: bool) -> list[str]:
    """The documents of cleaned text."""
    blocks = [stripped for block in text.split("\n\n") if (stripped := block.strip("\n "))]
    if merge:
        from twingpt.data.text.documents import merge_blocks

        return list(merge_blocks(blocks, min_size=MERGE_MIN, max_size=MERGE_MAX, count=len))
    return [part for block in blocks for part in _cut_at_lines(block)]


def _cut_at_lines(block: str) -> Iterator[str]:
    start = 0
    while len(block) - start > MAX_DOCUMENT:
        cut = block.rfind("\n", start + 1, start + MAX_DOCUMENT)
        yield block[start:cut]
        start = cut + 1
    yield block[start:]


def line_hash(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")


def clean_chunk(text: str, settings: CleanSettings) -> CleanedChunk:
    """Everything that can be done to a chunk without knowing the others."""
    from twingpt.data.contacts import mask, standardise

    changes = Changes()
    text = clean_text(text, changes)
    if settings.drop_junk:
        text = _without_junk(text, changes)
    documents: list[str] = []
    contacts: list[Contact] = []
    normals: list[str] = []
    for document in split_documents(text, merge=settings.merge):
        standard, found = standardise(document, settings.country)
        if standard != document:
            _note_contacts(document, standard, changes)
        if found:
            changes.count("contacts found", len(found))
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
    kind = "lines that still hold digits like those of a telephone number"
    for line in text.split("\n"):
        if _NUMBER_LIKE.search(line):
            changes.count(kind)
            changes.example(kind, line[:80], line[:80])


def _note_contacts(document: str, standard: str, changes: Changes) -> None:
    kind = "documents with contacts brought into one form"
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
    """The document without the lines that repeat in many, contacts apart; a document is never left empty by it."""
    kept: list[str] = []
    dropped: list[str] = []
    for line in document.split("\n"):
        repeats = line_hash(line) in hashes and not _CONTACT_LINE.search(line)
        (dropped if repeats else kept).append(line)
    if not dropped or not any(kept):
        return document
    changes.count("boilerplate lines dropped", len(dropped))
    shown = [before for before, _ in changes.examples.get("boilerplate lines dropped", [])]
    for line in dropped:
        if line[:80] not in shown:
            changes.example("boilerplate lines dropped", line[:80], "")
            shown.append(line[:80])
    return "\n".join(kept)
