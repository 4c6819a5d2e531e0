"""Characters as a model should read them: composed, visible, one blank between words, lines of bounded length."""

import re
import unicodedata

from twingpt.data.text.changes import Changes

MAX_LINE = 1000

_BLANKS = "\t \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164"
PICTOGRAPH = "\u2190-\u2bff\U0001f000-\U0001faff\ufe0f"
# One pattern for all that is odd, since most text holds little of it and is looked through once.
_ODD_KINDS = (
    ("terminal escape sequences removed", r"\x1b\[[0-9;?]*[ -/]*[@-~]", ""),
    ("line separators made newlines", "[\x0b\x0c\x85\u2028\u2029]", "\n"),
    ("control characters made blanks", "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]", " "),
    (
        "zero-width characters removed",
        "[\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffc]"
        # A joiner belongs to an emoji, or to nothing in Korean text.
        f"|(?<![{PICTOGRAPH}])\u200d|\u200d(?![{PICTOGRAPH}])",
        "",
    ),
    ("unreadable characters removed", "\ufffd+", ""),
)
_ODD = re.compile("|".join(f"({pattern})" for _, pattern, _ in _ODD_KINDS))
_BLANK_RUN = re.compile(f"[{_BLANKS}]{{2,}}|[{_BLANKS.replace(' ', '')}]")
_LONG_LINE = re.compile(rf"[^\n]{{{MAX_LINE + 1},}}")
_SENTENCE_END = re.compile(r"[.!?。！？…]+[\"'”’)\]』」]*\s+|(?<=[가-힣](?:다|요|죠|음|함|임))\s+")


def clean_text(text: str, changes: Changes) -> str:
    """One chunk cleaned: lines trimmed, at most one blank line between two, NFC, no line over 1,000 characters."""
    text = _replace_odd(text, changes)
    before = text
    text, number = _BLANK_RUN.subn(" ", text)
    if number:
        changes.count("runs of blanks made one", number)
        _note(changes, "runs of blanks made one", before, _BLANK_RUN, " ")
    text = text.replace(" \n", "\n").replace("\n ", "\n").strip(" ")
    if not unicodedata.is_normalized("NFC", text):
        text = _composed(text, changes)
    text, number = re.subn(r"\n{3,}", "\n\n", text)
    if number:
        changes.count("runs of blank lines made one", number)
    text, number = _LONG_LINE.subn(lambda match: "\n".join(break_line(match.group())), text)
    if number:
        changes.count("long lines broken at sentence ends", number)
    return text


def cleaned(text: str) -> str:
    """A question or a document as `prepare` leaves text: NFC, no invisible characters, one blank between words.

    A model reads, and a library knows, what the text became. A question typed on a Mac can arrive in NFD, where each
    syllable is two or three characters that neither of them has.
    """
    return clean_text(text.replace("\r\n", "\n").replace("\r", "\n"), Changes()).strip()


def _replace_odd(text: str, changes: Changes) -> str:
    def replace(match: re.Match[str]) -> str:
        kind, _, replacement = _ODD_KINDS[(match.lastindex or 1) - 1]
        changes.count(kind)
        if changes.wants_example(kind):
            start, end = max(0, match.start() - 15), match.end() + 15
            shown = f"{text[start : match.start()]}{replacement}{text[match.end() : end]}"
            changes.example(kind, visible(text[start:end]), visible(shown))
        return replacement

    return _ODD.sub(replace, text)


def _note(changes: Changes, kind: str, text: str, pattern: re.Pattern[str], replacement: str) -> None:
    if changes.wants_example(kind) and (match := pattern.search(text)):
        shown = text[max(0, match.start() - 15) : match.end() + 15]
        changes.example(kind, visible(shown), visible(pattern.sub(replacement, shown)))


def visible(text: str) -> str:
    """The text with its invisible characters written out, for a report."""
    return "".join(
        c if c.isprintable() and c not in "\u00ad\u3164" else c.encode("unicode_escape").decode() for c in text
    )


def _composed(text: str, changes: Changes) -> str:
    """NFC never crosses a newline, so the lines of both forms are the same ones."""
    composed = unicodedata.normalize("NFC", text)
    kind = "lines composed to NFC"
    for before, after in zip(text.split("\n"), composed.split("\n"), strict=True):
        if before != after:
            changes.count(kind)
            if changes.wants_example(kind):
                changes.example(kind, f"{len(before)} characters", after[:60])
    return composed


def break_line(line: str, limit: int = MAX_LINE) -> list[str]:
    """The line in pieces of at most `limit` characters, cut after sentences, else at blanks, else anywhere."""
    pieces: list[str] = []
    start = 0
    while len(line) - start > limit:
        cut = start + sentence_cut(line[start : start + limit])
        pieces.append(line[start:cut].strip(" "))
        start = cut
    return [*pieces, line[start:].strip(" ")]


def sentence_cut(text: str) -> int:
    """Where the last sentence of a text ends, else its last blank, else its end."""
    tail = max(0, len(text) - MAX_LINE)
    end = 0
    for match in _SENTENCE_END.finditer(text, tail):
        end = match.end()
    return end or text.rfind(" ", tail) + 1 or len(text)
