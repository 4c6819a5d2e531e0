"""The shortest text that ends what a grammar has let someone begin, found byte by byte.

llguidance tells what may come next and not how far the end is. One step of its parser over single bytes takes about a
microsecond, so the way to the end is walked: in JSON by what closes the most, elsewhere by what leads somewhere new.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product

from llguidance import LLMatcher, LLTokenizer

from twingpt.generation.grammar import check, new_matcher

_BYTES = LLTokenizer("byte")
_END = _BYTES.eos_token
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_DIGITS = b"0123456789"

# Outside of strings in JSON: what closes or goes on before what begins something, the shortest values first.
_CLOSING_FIRST = {byte: rank for rank, byte in enumerate(b']},:0123456789ntf"[{-')}
# How far an end is looked for: bytes, and places where there is a choice.
FARTHEST, _MOST_CHOICES = 8192, 512
# After so many looks at the same choice, several digits are tried at once, up to so many.
_PATIENCE, _MOST_DIGITS = 4, 3
# With more bytes to choose from, nearly any may come.
_FEW = 64
# These stand for all others then.
_TYPICAL = b" a0.-_:/@"


class JsonPlace:
    """Whether a JSON text stands in a string, and the number that it is in, if any."""

    def __init__(self) -> None:
        self.in_string = False
        self._escaped = False
        self.number = 0
        """Bytes of the number so far; 0 elsewhere."""

    def copy(self) -> "JsonPlace":
        other = JsonPlace()
        other.in_string, other._escaped, other.number = self.in_string, self._escaped, self.number
        return other

    def push(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == _QUOTE:
            self.in_string = not self.in_string
        elif self.in_string:
            self._escaped = byte == _BACKSLASH
        self.number = (
            self.number + 1 if not self.in_string and byte in b"0123456789-+.eE" and self._in_number(byte) else 0
        )

    def _in_number(self, byte: int) -> bool:
        return self.number > 0 or byte in b"-0123456789"


class ShortestEnd:
    """What would end a text, kept while the text is written.

    way: bytes from here to the end; None if none was found. It may be longer than the shortest where several ways
    look alike for their first bytes. Where none was found once, none is looked for again: it takes too long.
    too_far: none was found within FARTHEST bytes.
    """

    def __init__(self, grammar: str, *, json: bool = False, examples: Sequence[bytes] = ()) -> None:
        """json: the grammar is that of a schema. examples: what may end the text or a string, as JSON writes it.

        Raises GrammarError if the grammar cannot be used.
        """
        self._matcher = new_matcher(_BYTES, grammar)
        self._examples = [list(example) for example in examples]
        self.place = JsonPlace() if json else None
        self.too_far = False
        self.way = self._walk()

    def copy(self) -> "ShortestEnd":
        other = object.__new__(ShortestEnd)
        other._matcher = self._matcher.deep_copy()
        other._examples = self._examples
        other.place = None if self.place is None else self.place.copy()
        other.way, other.too_far = self.way, self.too_far
        return other

    def push(self, text: bytes) -> None:
        """Raises GrammarError if the text may not stand here."""
        self._matcher.consume_tokens(list(text))
        check(self._matcher)
        if self.place is not None:
            for byte in text:
                self.place.push(byte)
        self.way = self._way_after(text)

    def after(self, text: bytes) -> bytes | None:
        """The way that would be left after a text that may stand here."""
        other = self.copy()
        other.push(text)
        return other.way

    def _way_after(self, text: bytes) -> bytes | None:
        if self.way is None:
            return None
        if self.way.startswith(text):
            return self.way[len(text) :]
        # Within a string that may end here, nothing is shorter than to end it.
        if self.place is not None and self.place.in_string and self.way.startswith(b'"'):
            left = [*self.way, _END]
            if self._matcher.validate_tokens(left) == len(left):
                return self.way
        return self._walk()

    def _walk(self) -> bytes | None:
        matcher, place = self._matcher, None if self.place is None else self.place.copy()
        path = bytearray()
        seen: Counter[bytes] = Counter()
        found = None
        while len(path) < FARTHEST and seen.total() < _MOST_CHOICES and not matcher.is_error():
            if matcher.is_accepting():
                found = bytes(path)
                break
            if not (following := self._next(place, seen)):
                break
            for byte in following:
                matcher.consume_token(byte)
                path.append(byte)
                if place is not None:
                    place.push(byte)
        self.too_far = len(path) >= FARTHEST
        check(matcher)
        if path:
            matcher.rollback(len(path))
            check(matcher)
        return found

    def _next(self, place: JsonPlace | None, seen: Counter[bytes]) -> list[int]:
        """One or more bytes that lead on; none where nothing does."""
        mask = self._matcher.compute_bitmask()
        possible = _bytes_of(mask)
        if len(possible) <= 1:
            return possible
        seen[mask] += 1
        closers = b""
        if place is not None and place.in_string:
            if _QUOTE in possible:
                return [_QUOTE]
            closers = b'"'
        elif place is not None:
            best = min(possible, key=lambda byte: _CLOSING_FIRST.get(byte, len(_CLOSING_FIRST)))
            # Which digit comes first makes a difference only to bounds and multiples.
            if best not in _DIGITS:
                return [best]
            possible = [byte for byte in possible if byte in _DIGITS]
            closers = b",]}"
            # The digits of a multiple say nothing one by one.
            if seen[mask] > _PATIENCE:
                return self._digits(closers)
        if len(possible) > _FEW and (example := self._example(_END if place is None else _QUOTE)):
            return example
        return [_most_promising(self._matcher, possible, closers, seen)]

    def _example(self, end: int) -> list[int]:
        """One of the examples that may stand here as a whole; none where there is none."""
        fitting = (one for one in self._examples if self._matcher.validate_tokens([*one, end]) > len(one))
        return next(fitting, [])

    def _digits(self, closers: bytes) -> list[int]:
        """The fewest digits after which a number may end; none where it takes more than are tried."""
        for count in range(2, _MOST_DIGITS + 1):
            for digits in product(_DIGITS, repeat=count):
                if any(self._matcher.validate_tokens([*digits, end]) > count for end in (*closers, _END)):
                    return list(digits)
        return []


def _bytes_of(mask: bytes) -> list[int]:
    bits = int.from_bytes(mask[:32], "little")
    if bits & (bits - 1) == 0:
        return [bits.bit_length() - 1] if bits else []
    return [byte for byte in range(256) if bits >> byte & 1]


def _most_promising(matcher: LLMatcher, possible: list[int], closers: bytes, seen: Counter[bytes]) -> int:
    """A byte after which the text may end or close; else one that leads where the text has not been often."""

    def promise(byte: int) -> tuple[bool, int, int]:
        matcher.consume_token(byte)
        mask = matcher.compute_bitmask()
        ends = matcher.is_accepting() or any(mask[closer >> 3] >> (closer & 7) & 1 for closer in closers)
        matcher.rollback(1)
        return not ends, seen[mask], _commonness(byte)

    if len(possible) > _FEW and (typical := [byte for byte in _TYPICAL if byte in possible]):
        possible = typical
    return possible[0] if len(possible) == 1 else min(possible, key=promise)


def _commonness(byte: int) -> int:
    """Letters last: a byte that few others could replace is more likely to lead on."""
    character = chr(byte)
    if byte == _BACKSLASH or byte >= 0x80:
        return 3
    return 2 if character.isalpha() else 1 if character.isdigit() else 0
