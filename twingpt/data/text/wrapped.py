"""Lines that a program broke at one width, joined again to the paragraphs that they were.

In such a text a line that ends within a sentence ends where the next word, or the next character, had no room. Lines
that somebody ended on purpose (verses, lists, addresses) end anywhere.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from twingpt.core.language import mark
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import FEW_LINES

# In columns, of which a Hangul syllable has two; a list of short names, or of long sentences, is not wrapped.
NARROWEST, WIDEST = 24, 120
# Of the lines that end within a sentence such a share has to be full.
_LEAST_SHARE = 0.75
# Nothing but a link or a table stands out of such a text.
_MOST_WITHIN = 0.95
# Pairs of neighbouring lines that a long text is judged by.
_SAMPLE = 2000
# Lines cut between any two characters all have the same width, but for half a syllable and a blank at either end.
_LEAST_EXACT, _ROOM = 0.9, 3
# Pairs that Kiwi looks at, and the share of them that has to be one word.
_SOME, _LEAST_CUT = 60, 0.3
# So many widths of the longest lines are tried.
_WIDTHS = 8

_ENDED = re.compile(
    r"(?:[.!?…。:：][\"'”’)\]」』]*|[가-힣](?:니다|세요|어요|아요|해요|예요|이다|었다|았다|한다|된다))\s*$"
)
_NO_CONTINUATION = re.compile(
    r"\s*(?:[-•*▶▷■□◆◇●○✓✔※→#>|☎✉=_~━─]|\(?\d{1,3}[.)](?:\s|$)|[①-⑳]|[^\s:：]{1,8}\s?[:：](?:\s|$))"
)
# Rules of dashes, table rows, and lines of nothing but a number end on purpose.
_NO_BEGINNING = re.compile(r"\s*(?:[-=*_~#━─|]{3,}.*|#{1,6} .*|.*\|\s*|[\d\W]+)\s*$")
_CUT_NUMBER = re.compile(r"\d[-–.]?$")
_NUMBER_GOES_ON = re.compile(r"[-–.]?\d")
_NO_BLANK_BEFORE = ")]}」』”’,.!?…·:;%"
_LINK_AT_END = re.compile(r"(?:https?://|www\.)\S*$")
_LINK_GOES_ON = re.compile(r"[\w/?#%&=.\-]*[/?#%&=.\-\w]", re.ASCII)


@dataclass(frozen=True)
class _Wrapping:
    """width: of a full line, as `measure` counts it. exact: cut between any two characters, not only between words.

    blanks: what stood between two words that a line end parts still stands at it.
    """

    width: int
    measure: Callable[[str], int]
    exact: bool
    blanks: bool


def columns(text: str) -> int:
    """The width of a text on a terminal: CP949 has two bytes for what is two columns wide."""
    return len(text.encode("cp949", "replace"))


def join_wrapped(text: str, changes: Changes) -> str:
    """A text that was broken at one width, with its paragraphs on one line each; any other text as it is."""
    lines = text.split("\n")
    wrapping = _wrapping(lines) if len(lines) > FEW_LINES else None
    if wrapping is None:
        return text
    joined = list(_joined(lines, wrapping))
    changes.count(mark("lines broken at one width joined"), len(lines) - len(joined))
    first = next((i for i in range(len(joined)) if joined[i] != lines[i]), None)
    if first is not None:
        before = f"{lines[first].strip()}\n{lines[first + 1].strip()}"
        changes.example(mark("lines broken at one width joined"), before[:80], joined[first].strip()[:80])
    return "\n".join(joined)


def _goes_on(line: str, following: str) -> bool:
    """Whether the next line may be the rest of this one's paragraph."""
    return bool(
        line.strip()
        and following.strip()
        and not _NO_CONTINUATION.match(following)
        and not _NO_BEGINNING.match(line)
        # A paragraph is set in, the lines after its first are not.
        and not (
            following[0] in " \t\u3000" and line[0] not in " \t\u3000" and following.startswith(("  ", "\t", "\u3000"))
        )
    )


def _wrapping(lines: list[str]) -> _Wrapping | None:
    """How a text was broken; None for one that was not."""
    step = 1 + len(lines) // _SAMPLE
    found = [
        (line, following)
        for line, following in zip(lines[::step], lines[1::step], strict=False)
        if _goes_on(line, following) and not _ENDED.search(line)
    ]
    if len(found) < FEW_LINES:
        return None
    pairs = [(line.strip(" "), following.strip(" ")) for line, following in found]
    blanks = 10 * sum(line.endswith(" ") or following.startswith(" ") for line, following in found) > len(found)
    all_lines = [stripped for line in lines[::step] if (stripped := line.strip(" "))]
    likely, most = None, _LEAST_SHARE * len(pairs)
    for measure in (columns, len):
        widths = sorted(measure(line) for line, _ in pairs)
        widest = sorted(map(measure, all_lines))[int(_MOST_WITHIN * (len(all_lines) - 1))]
        # The longest line is full, or is one word that stands out of the others.
        for width in sorted(set(widths[len(widths) * 9 // 10 :]))[:_WIDTHS]:
            narrow = (width if measure is columns else 2 * width) < NARROWEST
            if narrow or width > WIDEST or widest > width:
                continue
            exact = sum(width - _ROOM <= size <= width for size in widths) >= _LEAST_EXACT * len(pairs)
            wrapping = _Wrapping(width, measure, exact, exact and blanks)
            full = sum(_is_full(line, following, wrapping) for line, following in pairs)
            if full > most:
                likely, most = wrapping, full
    if likely is not None and likely.exact and not blanks and not _cuts_words(pairs):
        return None
    return likely


def _cuts_words(pairs: list[tuple[str, str]]) -> bool:
    """Whether lines of one width end within words, as they do in two of three places; entries of a list do not."""
    some = pairs[:: 1 + len(pairs) // _SOME]
    return sum("" in _blanks_between([*pair]) for pair in some) > _LEAST_CUT * len(some)


def _is_full(line: str, following: str, wrapping: _Wrapping) -> bool:
    """Whether what comes next had no room on a line; neither has blanks at its ends."""
    size = wrapping.measure(line)
    if wrapping.exact:
        return wrapping.width - _ROOM <= size <= wrapping.width
    return size <= wrapping.width < size + 1 + wrapping.measure(following.split(" ", 1)[0])


def _joined(lines: list[str], wrapping: _Wrapping) -> Iterator[str]:
    paragraph: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        paragraph.append(line)
        if not (_goes_on(line, following) and _is_full(line.strip(" "), following.strip(" "), wrapping)):
            yield _as_one(paragraph, wrapping)
            paragraph = []
    if paragraph:
        yield _as_one(paragraph, wrapping)


def _as_one(lines: list[str], wrapping: _Wrapping) -> str:
    if len(lines) == 1:
        return lines[0]
    if wrapping.blanks:
        return "".join(lines)
    between = [_between(line, following) for line, following in pairwise(lines)]
    if None in between:
        blanks = _blanks_between(lines) if wrapping.exact else [" "] * len(between)
        between = [blank if given is None else given for given, blank in zip(between, blanks, strict=True)]
    parts = [lines[0].rstrip(" ")]
    for line, given in zip(lines[1:], between, strict=True):
        parts += [given or "", line.strip(" ")]
    return "".join(parts)


def _between(line: str, following: str) -> str | None:
    """What stood between two lines, where that is plain; None where it is not."""
    if line.endswith(" ") or following.startswith(" "):
        return " "
    if _CUT_NUMBER.search(line) and _NUMBER_GOES_ON.match(following) and (line[-1] in "-–." or following[0] in "-–."):
        return ""
    return "" if _LINK_AT_END.search(line) and _LINK_GOES_ON.match(following) and len(line) > 20 else None


def _blanks_between(lines: list[str]) -> list[str]:
    """Where lines were cut between any two characters, Kiwi knows which of them are one word."""
    from twingpt.data.text.korean import kiwi

    _, blanks = kiwi().glue(lines, return_space_insertions=True)
    return [
        " " if blank and following[0] not in _NO_BLANK_BEFORE and not (line[-1] + following[0]).isdigit() else ""
        for (line, following), blank in zip(pairwise(lines), blanks, strict=True)
    ]
