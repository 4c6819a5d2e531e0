"""Links in a line: web addresses whole, with Hangul in them, and links that dial a number (tel:, wa.me, viber:)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from twingpt.data.contacts import labels as L


@dataclass(frozen=True, slots=True)
class Link:
    """line[start:end] is a link; number: where it dials one, its place, with a + to be put before it or not."""

    start: int
    end: int
    number: tuple[int, int] | None = None
    plus: bool = False


# A link dials in one run of digits; what is parted by hyphens must stand in the brackets or quotes of a link.
_DIALLED = r"(?P<code>\+|%2[Bb])?(?P<digits>\d{7,15}|\[TEL_\d+\])(?!\d)"
_DIALS = (
    re.compile(rf"(?<![A-Za-z0-9])(?:tel|sms|smsto|callto):(?://)?{_DIALLED}(?![-.]\d)"),
    re.compile(r"(?<=[(\"'=<])(?:tel|sms|smsto|callto):(?://)?(?P<code>\+)?(?P<digits>\d[\d(). -]{5,22}\d)(?=[)\"'>])"),
    re.compile(
        r"(?<![A-Za-z0-9.@])(?P<international>(?:https?://)?(?:www\.)?(?:wa\.me/|viber\.me/|(?:api|web)\.whatsapp\.com/send/?\?(?:[^\s&]*&)*phone=)"
        rf"|(?:viber|whatsapp)://[a-z/]*\?(?:[^\s&]*&)*?(?:number|phone)=){_DIALLED}"
    ),
)
_GLUED = re.compile(
    r"(?:을|를|은|는|이|가|에|의|와|과|도|만|로|으로|에서|에서는|에서도|으로도|으로는|로는|에는|에도|까지|부터|이나|나|입니다|이다|이에요|예요"
    r"|라고|이라고|라는|이라는|이며|이고|처럼|보다)"
)
# What follows a name in Korean: cut from a Hangul path only where no noun ends so.
_AFTER_NAME = re.compile(
    r"(?<=[가-힣]{2})(?:에서는|에서도|에서|에는|에도|으로도|으로|까지|부터|입니다|이라고|이라는|이에요|에)$"
)
_OBJECT = re.compile(r"(?<=[가-힣])([가-힣])([을를은는])$")


def web_end(text: str, start: int, end: int) -> int:
    """Where the address that a pattern of `labels` found in text[start:end] ends: the sentence's own marks left out."""
    found = text[start:end]
    while True:
        shorter = re.sub(r"[.,;:!?'*~]+$", "", found)
        joined = re.search(r"[,;|](?=https?://|www\.)", shorter)
        if joined is not None:
            shorter = shorter[: joined.start()]
        shorter = _without_particle(shorter)
        if shorter == found:
            return start + len(found)
        found = shorter


def _without_particle(found: str) -> str:
    run = re.search(r"[가-힣]+$", found)
    if run is None:
        return found
    before = found[: run.start()]
    if (before[-1:].isalnum() or before[-1:] in tuple(")%_=")) and _GLUED.fullmatch(run[0]):
        return before
    if before[-1:] == "/" and re.fullmatch("에서는?|에는?|을|를|으로|로|은|는|입니다|이다", run[0]):
        return before
    if (after := _AFTER_NAME.search(run[0])) is not None:
        return before + run[0][: after.start()]
    if (particle := _OBJECT.search(run[0])) is not None:
        closed = (ord(particle[1]) - 0xAC00) % 28 != 0
        if closed == (particle[2] in "을은"):
            return before + run[0][:-1]
    return found


def web_at(text: str, position: int) -> int | None:
    """Where the web address ends that a label at `position` announces, or None."""
    match = L.URL.match(text, position)
    return None if match is None else web_end(text, match.start(), match.end())


@lru_cache(maxsize=64)
def find_links(text: str) -> tuple[Link, ...]:
    """The links of a line from left to right, none inside another."""
    found: list[Link] = []
    if ":" not in text and "." not in text:
        return ()
    for pattern in _DIALS:
        for match in pattern.finditer(text):
            international = match["code"] != "+" and ("international" in match.groupdict() or match["code"] is not None)
            start = match.start("digits") - (match["code"] == "+")
            found.append(Link(match.start(), match.end(), (start, match.end("digits")), international))
    found += [Link(start, end) for start, end in _web_addresses(text)]
    kept: list[Link] = []
    for link in sorted(found, key=lambda link: (link.start, link.number is None)):
        if not kept or link.start >= kept[-1].end:
            kept.append(link)
    return tuple(kept)


def _web_addresses(text: str) -> Iterator[tuple[int, int]]:
    position = 0
    while (match := L.BARE_URL.search(text, position)) is not None:
        end = web_end(text, match.start(), match.end())
        yield match.start(), end
        position = max(end, match.start() + 1)
