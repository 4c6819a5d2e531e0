"""The form of an answer, its sections in their order, forced on a text while it is written.

A grammar says what may come next, however the tokenizer cuts heads and newlines into tokens. How much of the room each
section gets is decided here, since a grammar knows nothing of room.
"""

import codecs
import json

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.samples.summary import (
    ABSENT,
    BRING_HEAD,
    CAUTION_HEAD,
    CHECKLIST_HEAD,
    CONTACTS_HEAD,
    HEADS,
    SUMMARY_HEAD,
    TODO_HEAD,
)
from twingpt.data.tokens.marks import END_ANSWER
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.answer_sections import SECTION_HEADS
from twingpt.generation.grammar import UNFORCED, ByteTokens, Matcher, only

_HEADS = tuple(head.encode() for head in SECTION_HEADS)
_LAST = len(SECTION_HEADS) - 1
_GROUP_HEADS = (TODO_HEAD, BRING_HEAD, CAUTION_HEAD)
_ABSENT = ABSENT.encode()
_NEWLINE = ord("\n")

# How much of the room for text may be used up by the end of each section, and from which part of its own a section
# begins no further line.
_SHARES = (0.4, 0.75, 0.9, 1.0)
_SOFT = 0.7

_GRAMMAR = r"""
start: summary checklist contacts detail
summary: SUMMARY (ABSENT | point+)
checklist: CHECKLIST (ABSENT | todo bring? caution? | bring caution? | caution)
contacts: CONTACTS (ABSENT | point+)
detail: DETAIL (ABSENT | "\n" EXPLANATION)
todo: TODO TEXT
bring: BRING TEXT
caution: CAUTION TEXT
point: "\n- " TEXT
EXPLANATION: TEXT & ~BEGINS_WITH_A_HEAD
BEGINS_WITH_A_HEAD: HEAD /(?s:.*)/
// A line says something if it has a letter or a digit.
TEXT: CHARACTER* /[\p{L}\p{N}]/ CHARACTER*
CHARACTER: /[^\x00-\x08\x0a-\x1f\x7f]/
"""


def _grammar() -> str:
    heads = dict(zip(("SUMMARY", "CHECKLIST", "CONTACTS", "DETAIL"), SECTION_HEADS, strict=True))
    texts = {name: head if head == SUMMARY_HEAD else f"\n{head}" for name, head in heads.items()}
    texts |= {name: f"\n{head} " for name, head in zip(("TODO", "BRING", "CAUTION"), _GROUP_HEADS, strict=True)}
    texts["ABSENT"] = f" {ABSENT}"
    named = [f"{name}: {_quoted(text)}" for name, text in texts.items()]
    return "\n".join([_GRAMMAR, f"HEAD: {' | '.join(map(_quoted, HEADS))}", *named, UNFORCED])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


class AnswerForm:
    """The form of an answer over one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.id(END_ANSWER)
        self.bytes = ByteTokens(tokenizer)
        self.start = Matcher.of(tokenizer, _grammar())
        self.opening = len(self.bytes.encode(_HEADS[0]))
        self.reserves = [self._reserve(index) for index in range(len(SECTION_HEADS))]
        self.least = self.opening + sum(self.reserves)

    def _reserve(self, index: int) -> int:
        """Tokens that closing a section takes at the most, wherever in its fixed texts the model stands.

        At worst a line has just begun, has nothing to say, and the next head or [/ANSWER] follows; in free text a
        character may want three bytes more.
        """
        ways = [b"\n" + beginning + _ABSENT + _following(index) for beginning in _beginnings(index)]
        cut = max(len(self.bytes.encode(way[start:])) for way in ways for start in range(len(way)))
        return cut + 3 + (index == _LAST)

    def constraint(self, max_new_tokens: int) -> "FormConstraint":
        """For one answer of at most so many tokens, [/ANSWER] included. Raises TwinGPTError if the form needs more."""
        return FormConstraint(self, max_new_tokens)


def _beginnings(section: int) -> list[bytes]:
    """What a line of a section may begin with, the next head aside."""
    if SECTION_HEADS[section] == CHECKLIST_HEAD:
        return [f"{head} ".encode() for head in _GROUP_HEADS]
    return [b"" if section == _LAST else b"- "]


def _following(section: int) -> bytes:
    """The next head, on a line of its own; nothing after the last section."""
    return b"" if section == _LAST else b"\n" + _HEADS[section + 1]


class _Place:
    """Where in the form a text stands: its section, and what its newest line says so far."""

    def __init__(self) -> None:
        self.section = -1
        self._line = b""
        self._on_head = False
        self._lines = 0
        self._next = 0

    def push(self, byte: int) -> None:
        if byte == _NEWLINE:
            if not self._on_head:
                self._lines += 1
                # A point may follow a point; a group of the checklist comes once, after those before it.
                self._next = self._beginning() + 1 if SECTION_HEADS[self.section] == CHECKLIST_HEAD else 0
            elif self._line != _HEADS[self.section]:
                # The section said that it has nothing to say.
                self._lines, self._next = 1, len(_GROUP_HEADS)
            self._line, self._on_head = b"", False
            return
        self._line += bytes([byte])
        if self.section < _LAST and self._line == _HEADS[self.section + 1]:
            self.section += 1
            self._on_head, self._lines, self._next = True, 0, 0

    @property
    def between_lines(self) -> bool:
        return self._line == b"" and self._lines > 0

    @property
    def text(self) -> bytes | None:
        """What stands behind the beginning of the line; None within fixed text."""
        if self.section < 0 or self._on_head or (found := self._beginning()) < 0:
            return None
        return self._line[len(_beginnings(self.section)[found]) :]

    def _beginning(self) -> int:
        places = enumerate(_beginnings(self.section))
        return next((place for place, beginning in places if self._line.startswith(beginning)), -1)

    def closing(self) -> bytes:
        """The shortest text that ends the section, and the head of the next with it."""
        if self.section < 0:
            return _HEADS[0][len(self._line) :] + b" " + _ABSENT + _following(0)
        following = _following(self.section)
        if self._on_head:
            return (b" " + _ABSENT)[len(self._line) - len(_HEADS[self.section]) :] + following
        if self.text is not None:
            return following if says_something(self.text) else _ABSENT + following
        possible = [b for b in _beginnings(self.section)[self._next :] if b.startswith(self._line)]
        ways = [beginning[len(self._line) :] + _ABSENT + following for beginning in possible]
        if self._lines and _HEADS[self.section + 1].startswith(self._line):
            ways.append(_HEADS[self.section + 1][len(self._line) :])
        return min(ways, key=len)


def says_something(text: bytes) -> bool:
    """Whether a line, whole or cut within a character, has content: a letter or a digit."""
    return any(character.isalnum() for character in text.decode("utf-8", errors="ignore"))


class FormConstraint:
    """The form of one answer while it is written: a batching.Constraint.

    Each section has a share of the room for text. Towards its end no further line of it begins, and at its end the next
    head is written whatever the model would say, so that every head finds its place.
    """

    def __init__(self, form: AnswerForm, max_new_tokens: int) -> None:
        self._form = form
        self._matcher = form.start.copy()
        self._place = _Place()
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._used = 0
        self._forced: list[int] = []
        self._last = b"\n"
        self._closing = False
        if max_new_tokens < form.least:
            raise TwinGPTError(
                tr(
                    "the form of an answer needs {least} tokens, there is room for {max_new_tokens}",
                    least=form.least,
                    max_new_tokens=max_new_tokens,
                ),
                command_line=tr(": give a larger --max-new-tokens"),
            )
        room = max_new_tokens - form.least
        begin = float(form.opening)
        self._soft: list[float] = []
        self._hard: list[float] = []
        for index, reserve in enumerate(form.reserves):
            share = _SHARES[index] - (_SHARES[index - 1] if index else 0.0)
            self._soft.append(begin + _SOFT * share * room)
            self._hard.append(begin + share * room)
            begin += share * room + reserve

    def allowed(self) -> NDArray[np.bool_]:
        if not self._forced:
            index = max(0, self._place.section)
            if self._used >= self._hard[index]:
                if self._decoder.getstate()[0]:
                    return self._matcher.mask() & self._form.bytes.within_a_character
                self._force(self._place.closing())
            elif self._place.text is not None and self._used >= self._soft[index]:
                self._close_softly(self._place.text)
        if self._forced:
            return only(self._forced[:1], self._form.tokenizer.vocab_size)
        return self._matcher.mask()

    def _close_softly(self, text: bytes) -> None:
        self._closing = True
        index = self._place.section
        if self._last in b".!?" and says_something(text) and SECTION_HEADS[index] != CONTACTS_HEAD:
            # The section is long enough: better its end here than within the next sentence.
            self._force(_following(index))

    def _force(self, text: bytes) -> None:
        self._forced = self._form.bytes.encode(text)
        if self._place.section == _LAST:
            self._forced.append(self._form.end)

    def push(self, token: int) -> None:
        self._used += 1
        if self._forced:
            self._forced.pop(0)
        self._matcher.push(token)
        text = self._form.tokenizer.token_text(token)
        self._decoder.decode(text)
        self._last = text[-1:]
        section = self._place.section
        for byte in text:
            self._place.push(byte)
        if self._place.section != section:
            self._closing = False
        elif self._closing and self._place.between_lines and not self._forced:
            self._force(_following(section)[1:])
