"""The form of an answer, its sections in their order: read from a text, or forced on one while it is written.

The form is a regular language over bytes. Every line begins with one of a few fixed beginnings and goes on freely, so
an automaton that knows the beginnings forces it, however the tokenizer cuts heads and newlines into tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.data.samples.summary import (
    ABSENT,
    BRING_HEAD,
    CAUTION_HEAD,
    CHECKLIST_HEAD,
    CONTACTS_HEAD,
    DETAIL_HEAD,
    HEADS,
    SUMMARY_HEAD,
    TODO_HEAD,
)
from twingpt.data.tokens.template import END_ANSWER, SPECIAL_TOKENS
from twingpt.data.tokens.tokenizer import Tokenizer

SECTION_HEADS = (SUMMARY_HEAD, CHECKLIST_HEAD, CONTACTS_HEAD, DETAIL_HEAD)
REQUIRED_HEADS = (SUMMARY_HEAD,)
_LAST = len(SECTION_HEADS) - 1
_GROUP_HEADS = (TODO_HEAD, BRING_HEAD, CAUTION_HEAD)

# How much of the room for text may be used up by the end of each section, and from which part of its own a section
# begins no further line.
_SHARES = (0.4, 0.75, 0.9, 1.0)
_SOFT = 0.7


# -- reading -----------------------------------------------------------------------------------------------------------


def split_sections(answer: str) -> list[tuple[str, str]]:
    """(head, body) of each section in the order of the text; what stands before the first has head ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in answer.split("\n"):
        head = next((h for h in SECTION_HEADS if line == h or line.startswith(h + " ")), None)
        if head is None:
            found[-1][1].append(line)
        else:
            found.append((head, [line[len(head) :].strip()]))
    sections = [(head, "\n".join(lines).strip()) for head, lines in found]
    return sections if sections[0][1] else sections[1:]


def section(answer: str, head: str) -> str | None:
    """The body of a section; None if the answer has none."""
    return next((body for found, body in split_sections(answer) if found == head), None)


def in_order(answer: str, required: Sequence[str] = REQUIRED_HEADS) -> bool:
    """Whether the sections stand in their order, none twice, each with content, nothing before, and none missing.

    required: the default is what every training answer has; SECTION_HEADS asks for all four.
    """
    sections = split_sections(answer)
    heads = [head for head, _ in sections]
    places = [SECTION_HEADS.index(head) if head else -1 for head in heads]
    return (
        all(0 <= before < after for before, after in pairwise(places))
        and places[:1] == [0]
        and set(required) <= set(heads)
        and all(any(c.isalnum() for c in body) for _, body in sections)
    )


# -- the automaton -----------------------------------------------------------------------------------------------------


class _Text(NamedTuple):
    """In free text. utf8: bounds of the bytes that the unfinished character still needs, next first.

    content: whether the line says something yet. start: the line so far while it could still become a head.
    closing: the line is the section's last.
    """

    section: int
    group: int = -1
    utf8: tuple[tuple[int, int], ...] = ()
    content: bool = False
    start: bytes | None = None
    closing: bool = False


class _Fixed(NamedTuple):
    """In one of several fixed texts, none the beginning of another: what is left of each, and where it leads."""

    section: int
    options: tuple[tuple[bytes, "_State"], ...]


class _End(NamedTuple):
    """Only the end of the answer may follow."""

    section: int = _LAST


_State = _Text | _Fixed | _End

_NEWLINE = ord("\n")
_TAIL = (0x80, 0xBF)
_HEAD_BYTES = tuple(head.encode() for head in HEADS)


def _lead(byte: int) -> tuple[tuple[int, int], ...] | None:
    """The bytes that must follow a first byte in UTF-8 (Unicode 15, table 3-7); None for no first byte."""
    if byte < 0x80:
        return ()
    second = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}.get(byte, _TAIL)
    if 0xC2 <= byte <= 0xDF:
        return (second,)
    if 0xE0 <= byte <= 0xEF:
        return (second, _TAIL)
    return (second, _TAIL, _TAIL) if 0xF0 <= byte <= 0xF4 else None


def _after_head(index: int) -> _Fixed:
    """What may follow a section's head: nothing to say, or the first line."""
    absent = f" {ABSENT}"
    if index == _LAST:
        return _Fixed(index, ((absent.encode(), _End()), (b"\n", _Text(index, start=b""))))
    following = (f"{absent}\n{SECTION_HEADS[index + 1]}".encode(), _after_head(index + 1))
    if SECTION_HEADS[index] != CHECKLIST_HEAD:
        return _Fixed(index, (following, (b"\n- ", _Text(index))))
    groups = ((f"\n{head} ".encode(), _Text(index, group)) for group, head in enumerate(_GROUP_HEADS))
    return _Fixed(index, (following, *groups))


def _after_line(text: _Text) -> _Fixed:
    """What may begin the line after one of text: another of the section, or the next head."""
    following: tuple[bytes, _State] = (SECTION_HEADS[text.section + 1].encode(), _after_head(text.section + 1))
    if text.closing:
        return _Fixed(text.section, (following,))
    if SECTION_HEADS[text.section] != CHECKLIST_HEAD:
        return _Fixed(text.section, (following, (b"- ", _Text(text.section))))
    later = range(text.group + 1, len(_GROUP_HEADS))
    groups = ((f"{_GROUP_HEADS[group]} ".encode(), _Text(text.section, group)) for group in later)
    return _Fixed(text.section, (following, *groups))


def _next(state: _State, byte: int) -> _State | None:
    """Where a byte leads; None if it may not stand there."""
    if isinstance(state, _End):
        return None
    if isinstance(state, _Fixed):
        left = tuple((text[1:], target) for text, target in state.options if text[0] == byte)
        if not left:
            return None
        return left[0][1] if not left[0][0] else _Fixed(state.section, left)
    if state.utf8:
        (low, high), *rest = state.utf8
        return _with_byte(state, tuple(rest), byte) if low <= byte <= high else None
    if byte == _NEWLINE:
        return _after_line(state) if state.content and state.section != _LAST else None
    needed = _lead(byte)
    if needed is None or (byte < 0x20 and byte != 0x09) or byte == 0x7F:
        return None
    content = state.content or byte >= 0x80 or chr(byte).isalnum()
    return _with_byte(state._replace(content=content), needed, byte)


def _with_byte(state: _Text, needed: tuple[tuple[int, int], ...], byte: int) -> _Text | None:
    """The text with one more byte; None where that would make the start of a line a head."""
    start = state.start
    if start is not None:
        start += bytes([byte])
        if start in _HEAD_BYTES:
            return None
        if not any(head.startswith(start) for head in _HEAD_BYTES):
            start = None
    return state._replace(utf8=needed, start=start)


def _ended(text: _Text) -> _State:
    """After a section's last line: nothing but the next head, or the end."""
    if text.section == _LAST:
        return _End()
    following = text.section + 1
    return _Fixed(text.section, ((f"\n{SECTION_HEADS[following]}".encode(), _after_head(following)),))


_START = _Fixed(0, ((SUMMARY_HEAD.encode(), _after_head(0)),))


def _shortest(state: _State) -> bytes:
    """The shortest text that ends the section of a state, and the head of the next with it."""
    if isinstance(state, _Fixed):
        ways = [(text + (_shortest(to) if to.section == state.section else b"")) for text, to in state.options]
        return min(ways, key=len)
    if isinstance(state, _End):
        return b""
    said = b"" if state.content else ABSENT.encode()
    return said if state.section == _LAST else said + f"\n{SECTION_HEADS[state.section + 1]}".encode()


# -- tokens ------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Node:
    """Tokens by their bytes."""

    tokens: list[int] = field(default_factory=list)
    children: "dict[int, _Node]" = field(default_factory=dict)


class AnswerForm:
    """Which tokens may come next in an answer, for one tokenizer. Masks are worked out once a state and kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.id(END_ANSWER)
        self._root = _Node()
        for token in range(len(SPECIAL_TOKENS), tokenizer.vocab_size):
            node = self._root
            for byte in tokenizer.token_text(token):
                node = node.children.setdefault(byte, _Node())
            node.tokens.append(token)
        self._masks: dict[_State, NDArray[np.bool_]] = {}
        self.single = {byte: node.tokens[0] for byte, node in self._root.children.items() if node.tokens}
        self.opening = len(self.ids(SUMMARY_HEAD.encode()))
        self.reserves = [self._reserve(index) for index in range(len(SECTION_HEADS))]
        self.least = self.opening + sum(self.reserves)

    def _reserve(self, index: int) -> int:
        """Tokens that closing a section takes at the most, wherever in its fixed texts the model stands.

        At worst a line has just begun, has nothing to say, and the next head or [/ANSWER] follows; in free text a
        character may want three bytes more.
        """
        following = f"{ABSENT}\n{SECTION_HEADS[index + 1]}" if index < _LAST else ABSENT
        beginnings = [f"\n{head} " for head in _GROUP_HEADS] if SECTION_HEADS[index] == CHECKLIST_HEAD else ["\n- "]
        ways = [(beginning + following).encode() for beginning in beginnings]
        return max(len(self.ids(way[cut:])) for way in ways for cut in range(len(way))) + 3 + (index == _LAST)

    def constraint(self, max_new_tokens: int) -> "FormConstraint":
        """For one answer of at most so many tokens, [/ANSWER] included. Raises TwinGPTError if the form needs more."""
        return FormConstraint(self, max_new_tokens)

    def mask(self, state: _State) -> NDArray[np.bool_]:
        """bool [V]: the tokens whose bytes the form takes from this state on. Not to be written to."""
        mask = self._masks.get(state)
        if mask is None:
            mask = np.zeros(self.tokenizer.vocab_size, dtype=np.bool_)
            mask[self._fitting(state)] = True
            if isinstance(state, _End) or (
                isinstance(state, _Text) and state.section == _LAST and state.content and not state.utf8
            ):
                mask[self.end] = True
            self._masks[state] = mask
        return mask

    def _fitting(self, state: _State) -> list[int]:
        found: list[int] = []
        pending: list[tuple[_Node, _State]] = [(self._root, state)]
        while pending:
            node, reached = pending.pop()
            found += node.tokens
            for byte, child in node.children.items():
                if (following := _next(reached, byte)) is not None:
                    pending.append((child, following))
        return found

    def ids(self, text: bytes) -> list[int]:
        """Tokens for bytes that may begin within a character: its rest goes byte by byte."""
        cut = next((i for i, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))
        return [self.single[byte] for byte in text[:cut]] + self.tokenizer.encode(text[cut:].decode())


class FormConstraint:
    """The form of one answer while it is written: a batching.Constraint.

    Each section has a share of the room for text. Towards its end no further line of it begins, and at its end the next
    head is written whatever the model would say, so that every head finds its place.
    """

    def __init__(self, form: AnswerForm, max_new_tokens: int) -> None:
        self._form = form
        self._state: _State = _START
        self._used = 0
        self._forced: list[int] = []
        self._last = b"\n"
        self._one = np.zeros(form.tokenizer.vocab_size, dtype=np.bool_)
        if max_new_tokens < form.least:
            raise TwinGPTError(
                f"the form of an answer needs {form.least} tokens, there is room for {max_new_tokens}: "
                "give a larger --max-new-tokens"
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
        state = self._state
        index = state.section
        if not self._forced and self._used >= self._hard[index]:
            if isinstance(state, _Text) and state.utf8:
                low, high = state.utf8[0]
                return self._only([self._form.single[byte] for byte in range(low, high + 1)])
            self._forced = [*self._form.ids(_shortest(state)), *([self._form.end] if index == _LAST else [])]
        if self._forced:
            return self._only(self._forced[:1])
        if isinstance(state, _Text) and self._used >= self._soft[index]:
            self._state = state = state._replace(closing=True)
            if self._last in b".!?" and state.content and SECTION_HEADS[index] != CONTACTS_HEAD:
                # The section is long enough: better its end here than within the next sentence.
                self._state = state = _ended(state)
        return self._form.mask(state)

    def _only(self, tokens: list[int]) -> NDArray[np.bool_]:
        self._one[:] = False
        self._one[tokens] = True
        return self._one

    def push(self, token: int) -> None:
        self._used += 1
        if self._forced:
            self._forced.pop(0)
        text = self._form.tokenizer.token_text(token)
        self._last = text[-1:]
        for byte in text:
            following = _next(self._state, byte)
            if following is None:
                raise ValueError(f"token {token} does not fit the form")
            self._state = following
