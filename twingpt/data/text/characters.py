"""Characters as a model should read them: composed, visible, one blank between words, lines of bounded length."""

import re
import unicodedata
from collections.abc import Callable

from twingpt.core.language import mark
from twingpt.data.text.changes import Changes
from twingpt.data.text.private_use import HALF_WIDTH_CLASS, KNOWN, KNOWN_CLASS, PRIVATE_CLASS, whole_jamo

MAX_LINE = 1000
FEW_LINES = 10
"""Of a text with fewer lines nobody can tell that it was broken at one width."""

_BLANKS = "\t \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\u3164"
PICTOGRAPH = "\u2190-\u2bff\U0001f000-\U0001faff\ufe0f"
# One pattern for all that is odd, since most text holds little of it and is looked through once.
_ODD_KINDS: tuple[tuple[str, str, str | Callable[[str], str]], ...] = (
    (mark("terminal escape sequences removed"), r"\x1b\[[0-9;?]*[ -/]*[@-~]", ""),
    (mark("line separators made newlines"), "[\x0b\x0c\x85\u2028\u2029]", "\n"),
    (mark("control characters made blanks"), "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]", " "),
    (
        mark("zero-width characters removed"),
        "[\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffc]"
        # A joiner belongs to an emoji, or to nothing in Korean text.
        f"|(?<![{PICTOGRAPH}])\u200d|\u200d(?![{PICTOGRAPH}])",
        "",
    ),
    (mark("unreadable characters removed"), "\ufffd+", ""),
    (mark("private-use characters of HWP and Word mapped"), f"[{KNOWN_CLASS}]", lambda known: KNOWN[ord(known)]),
    (mark("private-use characters dropped"), f"[{PRIVATE_CLASS}]", ""),
    (mark("runs of half-width jamo made whole"), f"[{HALF_WIDTH_CLASS}]+", whole_jamo),
    (mark("Hangul fillers removed"), "[\u115f\u1160\uffa0]+", ""),
)
# Somebody may have seen a character there; nobody saw those of the other kinds.
_LOST = (mark("unreadable characters removed"), mark("private-use characters dropped"))
_ODD = re.compile("|".join(f"({pattern})" for _, pattern, _ in _ODD_KINDS))
# Any character that one of them begins with: a single class is looked for many times faster.
_MAYBE_ODD = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u2064\u2066-\u206f"
    f"\ufeff\uffa0\ufff9-\ufffd{HALF_WIDTH_CLASS}{PRIVATE_CLASS}]"
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# Neither ASCII nor Hangul: without such a character nothing was read in a wrong encoding.
_FOREIGN = re.compile("[^\u0000-\u007f\u3131-\u318e가-힣]")
_BLANK_RUN = re.compile(f"[{_BLANKS}]{{2,}}|[{_BLANKS.replace(' ', '')}]")
_BLANKS_AT_END = re.compile(rf"(?<![{_BLANKS}])[{_BLANKS}]+$", re.MULTILINE)
_LONG_LINE = re.compile(rf"[^\n]{{{MAX_LINE + 1},}}")
_SENTENCE_END = re.compile(r"[.!?。！？…]+[\"'”’)\]』」]*\s+|(?<=[가-힣](?:다|요|죠|음|함|임))\s+")


def clean_text(text: str, changes: Changes, *, keep_layout: bool = False, break_lines: bool = True) -> str:
    """One chunk cleaned: lines trimmed, at most one blank line between two, NFC, no line over 1,000 characters.

    keep_layout: blanks and tabs stay as they are but for those at line ends, and every line stays a line of its own.
    break_lines: False where a line may be as long as it is.
    What one step takes away can bring about what another one looks for (`&am\u200bp;`), so all are taken again until
    nothing changes: text that is cleaned twice stays as it is.
    """
    while (better := _cleaned_once(text, changes, keep_layout, break_lines)) != text:
        text = better
    return text


def _cleaned_once(text: str, changes: Changes, keep_layout: bool, break_lines: bool) -> str:
    # A prompt is cleaned as well, and seldom needs what takes a moment to import.
    if _FOREIGN.search(text):
        from twingpt.data.text.mojibake import repair_mojibake

        text = repair_mojibake(text, changes)
    text = _replace_odd(_without_entities(text, changes), changes)
    if not keep_layout:
        before = text
        text, number = _BLANK_RUN.subn(" ", text)
        if number:
            changes.count(mark("runs of blanks made one"), number)
            _note(changes, mark("runs of blanks made one"), before, _BLANK_RUN, " ")
    if not unicodedata.is_normalized("NFC", text):
        text = _composed(text, changes)
    text = _BLANKS_AT_END.sub("", text) if keep_layout else _trimmed(text, changes)
    text, number = re.subn(r"\n{3,}", "\n\n", text)
    if number:
        changes.count(mark("runs of blank lines made one"), number)
    if break_lines:
        text, number = _LONG_LINE.subn(lambda match: "\n".join(break_line(match.group())), text)
        if number:
            changes.count(mark("long lines broken at sentence ends"), number)
    return text


def _trimmed(text: str, changes: Changes) -> str:
    """Paragraphs that were broken at one width on one line each again, and no blank at either end of a line."""
    if text.count("\n") >= FEW_LINES:
        from twingpt.data.text.wrapped import join_wrapped

        # Blanks at the ends of lines tell where words end, so they go after that.
        text = join_wrapped(text, changes)
    return text.replace(" \n", "\n").replace("\n ", "\n").strip(" ")


def cleaned(text: str) -> str:
    """A question or a document as `prepare` leaves text: NFC, no invisible characters, one blank between words.

    A model reads, and a library knows, what the text became. A question typed on a Mac can arrive in NFD, where each
    syllable is two or three characters that neither of them has.
    """
    return clean_text(text.replace("\r\n", "\n").replace("\r", "\n"), Changes()).strip()


def _without_entities(text: str, changes: Changes) -> str:
    """Entities of HTML as the characters they stand for; what only looks like one stays."""
    if "&" not in text or not _ENTITY.search(text):
        return text
    import html

    def replace(match: re.Match[str]) -> str:
        character = html.unescape(match[0])
        if character != match[0]:
            changes.count(mark("entities of HTML undone"))
            changes.example(mark("entities of HTML undone"), match[0], visible(character))
        return character

    return _ENTITY.sub(replace, text)


def _replace_odd(text: str, changes: Changes) -> str:
    def replace(match: re.Match[str]) -> str:
        kind, _, by = _ODD_KINDS[(match.lastindex or 1) - 1]
        replacement = by if isinstance(by, str) else by(match[0])
        if kind in _LOST:
            changes.drop(kind, len(match[0].encode()))
        else:
            changes.count(kind)
        if changes.wants_example(kind):
            start, end, line = max(0, match.start() - 15), match.end() + 15, match.string
            shown = f"{line[start : match.start()]}{replacement}{line[match.end() : end]}"
            changes.example(kind, visible(line[start:end]), visible(shown))
        return replacement

    if not _MAYBE_ODD.search(text):
        return text
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if _MAYBE_ODD.search(line):
            lines[number] = _ODD.sub(replace, line)
    return "\n".join(lines)


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
    kind = mark("lines composed to NFC")
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
