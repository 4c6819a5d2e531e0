"""Numbers in an output that nobody gave: a small model invents them, which in an emergency is dangerous."""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from twingpt.data.contacts.forms import standardise
from twingpt.data.contacts.labels import PLACEHOLDER
from twingpt.data.contacts.numbers import SHORT_CODES, digits
from twingpt.data.library.contact_store import ContactStore

# Whatever looks as if someone could dial it, valid or not: an invented number is often no valid one.
_DIALABLE = re.compile(
    r"(?<![\w.,₱$€¥￦])(?:\(?\+\d{1,3}\)?|\(\d{2,4}\)|\d{1,12})"
    r"(?:[ ]?[-–.·]?[ ]?\(?\d{1,12}\)?){0,5}(?![\w%]*[A-Za-z_])"
)
_AMOUNT = re.compile(r"[ ]?(?:원|페소|달러|만|천|억|명|개|kg|km|%|pesos?\b|PHP\b|USD\b|KRW\b)|,\d{3}")
_DATE = re.compile(
    r"(?:19|20)\d\d[-. ]{1,2}\d{1,2}([-. ]{1,2}\d{1,2})?\.?$|\d{1,2}[-.]\d{1,2}[-.](?:19|20)\d\d$"
    r"|(?:19|20)\d\d ?[-–~] ?(?:19|20)\d\d$"
)
_LABELLED_SHORT = re.compile(
    r"(?:TEL|FAX|KAKAO|전화(?:번호)?|연락처|☎️?|[Tt]el)[ .:：)]{0,3}(\d{2,6})(?!\d|[ ]?[-–.]\d)"
)
# What follows a known short code that is a number to call, not an amount: "911에 신고", "117로 전화".
_CALLED = re.compile(r"(?:번)?(?:으로|로|에)\s*(?:전화|신고|연락|문의)")
_LOCAL_DIGITS = 7


@dataclass(frozen=True, slots=True)
class Span:
    """text[start:end], as it stands there."""

    start: int
    end: int
    text: str


def verify_numbers(text: str, sources: Iterable[str], store: ContactStore | None) -> list[Span]:
    """The numbers of `text` that occur in none of `sources` (the document, the prompt) nor in `store`.

    Numbers are telephone-like runs of seven digits or more, and the short ones that follow a TEL label or are known
    emergency codes. They are compared on the digits of their written form; a number without its area code counts
    as known when a known number ends with it. A placeholder such as [TEL_1] is no number: nobody can dial it, and under
    `--contacts mask` it is what a right answer holds.
    """
    known: set[str] = set(store.numbers()) if store is not None else set()
    for source in sources:
        known.update(key for _, key in _numbers(source))
    tails = {key[-n:] for key in known for n in (_LOCAL_DIGITS, _LOCAL_DIGITS + 1) if len(key) > n}
    return [
        span
        for span, key in _numbers(text)
        if key not in known and not (len(key) in (_LOCAL_DIGITS, _LOCAL_DIGITS + 1) and key in tails)
    ]


class _Taken:
    """Spans of a text that overlap nowhere, in order."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        insort(self._spans, (start, end))

    def overlaps(self, start: int, end: int) -> bool:
        before = bisect_left(self._spans, (end,)) - 1
        return before >= 0 and self._spans[before][1] > start


def _numbers(text: str) -> list[tuple[Span, str]]:
    """Each number of a text with its key, the digits of its written form, from left to right."""
    taken = _Taken()
    found: list[tuple[Span, str]] = []
    position = 0
    for contact in standardise(text)[1]:
        if contact.kind not in ("TEL", "FAX", "KAKAO") or not digits(contact.original):
            continue
        # Spans of contacts lie in the standardised text; the original stands in the text in the same order.
        start = text.find(contact.original, position)
        if start < 0:
            continue
        position = start + len(contact.original)
        if PLACEHOLDER.fullmatch(contact.value):
            continue
        if contact.kind == "KAKAO" and not contact.value.startswith("+"):
            taken.add(start, position)
            continue
        found.append((Span(start, position, contact.original), digits(contact.value)))
        taken.add(start, position)
    for match in _DIALABLE.finditer(text):
        key = digits(match[0])
        long_enough = len(key) >= _LOCAL_DIGITS or (key in SHORT_CODES and len(match[0]) == len(key))
        start, end = match.start(), match.start() + len(match[0].rstrip())
        if not long_enough or _AMOUNT.match(text, end) or _DATE.match(match[0]):
            continue
        if len(key) < _LOCAL_DIGITS and not _CALLED.match(text, end):
            continue
        if not taken.overlaps(start, end):
            found.append((Span(start, end, text[start:end]), key))
            taken.add(start, end)
    for match in _LABELLED_SHORT.finditer(text):
        start, end = match.span(1)
        if not taken.overlaps(start, end):
            found.append((Span(start, end, match[1]), match[1]))
    return sorted(found, key=lambda item: item[0].start)
