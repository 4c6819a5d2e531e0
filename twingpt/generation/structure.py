"""Texts held to a JSON schema, a regular expression, a grammar or a list, and brought to their end in time."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from twingpt.core.errors import GrammarError
from twingpt.core.language import tr
from twingpt.data.tokens.marks import END_ANSWER
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.grammar import UNFORCED, ByteTokens, Matcher, only
from twingpt.generation.shortest_end import FARTHEST, ShortestEnd

# A character that is cut within takes three bytes more, and one token may have begun it.
_SPARE = 4
# From so many tokens above the shortest end on, a token is looked at before it is let by.
_CAREFUL = 128
_MOST_LOOKED_AT = 16
# More digits than a double holds say nothing.
_LONGEST_NUMBER = 17
_BEGINS_OR_ENDS = set(b'"{}[]:,')
_MOST_EXAMPLES = 16
_EXPONENT = re.compile(rb"[-+.0-9]*[eE][-+0-9]*")

# How llguidance reads a schema. Anything else would let by what the schema does not allow.
_STRICT = {"whitespace_flexible": False, "lenient": False, "coerce_one_of": False}
_NO_SCHEMAS = ("const", "enum", "default", "examples")
# llguidance knows formats as regular expressions, which know no leap years and do not count the characters of a name.
# What these add leaves out a little more than what is wrong.
_DATE = "^[1-9][0-9]{3}-(0[13-9]|1[0-2]|02-[01]|02-2[0-8])"
_SURELY: dict[str, dict[str, Any]] = {
    "date": {"pattern": _DATE},
    "time": {"pattern": "^..:..:[0-5]"},
    "date-time": {"pattern": f"{_DATE}.*[tT]..:..:[0-5]"},
    "email": {"maxLength": 63},
    "hostname": {"maxLength": 63},
}


@dataclass(frozen=True, slots=True)
class Structure:
    """What a text has to look like, as a grammar in Lark's syntax.

    json: it is a schema's. examples: what may bring a string of it to an end, or the whole text.
    """

    grammar: str
    json: bool = False
    examples: tuple[bytes, ...] = ()

    def constraint(self, tokenizer: Tokenizer, ends: frozenset[int], max_new_tokens: int) -> "StructureConstraint":
        """For one text of at most so many tokens, the one that ends it included.

        ends: tokens that end a text. Raises GrammarError if the grammar cannot be used.
        """
        end = self.shortest_end()
        if end.too_far:
            raise GrammarError(tr("it allows no text that ends within {farthest} bytes", farthest=FARTHEST))
        return StructureConstraint(Matcher.of(tokenizer, self.grammar + UNFORCED), end, tokenizer, ends, max_new_tokens)

    def shortest_end(self) -> ShortestEnd:
        """Of a text that has not begun. Raises GrammarError if the grammar cannot be used."""
        return ShortestEnd(self.grammar + UNFORCED, json=self.json, examples=self.examples)


def json_structure(schema: dict[str, Any] | str) -> Structure:
    """JSON without blanks that a schema allows. Its required properties come before those that may be left out.

    Raises GrammarError if it is no schema, or has what cannot be held to.
    """
    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
        if not isinstance(read, dict):
            raise GrammarError(tr("a JSON schema is an object"))
        patterns: set[str] = set()
        text = json.dumps({**_simplest(read, patterns), "x-guidance": _STRICT})
        return Structure(f"start: %json {text}", json=True, examples=tuple(filter(None, _examples(sorted(patterns)))))
    except RecursionError:
        raise GrammarError(tr("the JSON schema is nested too deeply")) from None
    except (TypeError, ValueError) as error:
        raise GrammarError(tr("the JSON schema cannot be read: {error}", error=error)) from None


def regex_structure(pattern: str) -> Structure:
    """Texts that a regular expression (Rust's syntax, without look-around) matches from end to end.

    Raises GrammarError if it is no UTF-8.
    """
    try:
        # "d": a digit is one of ten, as in JSON schemas.
        return Structure(f"start: /{regex_to_lark(pattern, 'd')}/", examples=tuple(_literals(pattern)))
    except UnicodeEncodeError:
        raise GrammarError(tr("the pattern holds a lone surrogate")) from None


def grammar_structure(grammar: str) -> Structure:
    """Texts of a grammar in Lark's syntax or GBNF. Raises GrammarError if it is neither."""
    try:
        return Structure(any_to_lark(grammar))
    # Its reader of GBNF meets some mistakes with errors of its own and others with Python's.
    except Exception as error:
        raise GrammarError(tr("the grammar cannot be read: {error}", error=error)) from None


def choice_structure(choices: Sequence[str]) -> Structure:
    """One of several texts."""
    return Structure("start: " + " | ".join(json.dumps(choice) for choice in choices))


def _simplest(schema: dict[str, Any], patterns: set[str]) -> dict[str, Any]:
    """The schema in a form whose texts end sooner, each of which the given one allows too.

    In the order of `properties`, what may be left out could come before what must, and the way to the end would have
    to pass it. patterns: gets those of strings.
    """

    def simpler(value: Any) -> Any:
        if isinstance(value, list):
            return [simpler(one) for one in value]
        if not isinstance(value, dict):
            return value
        copied = {key: one if key in _NO_SCHEMAS else simpler(one) for key, one in value.items()}
        properties, required = copied.get("properties"), copied.get("required")
        if isinstance(properties, dict) and isinstance(required, list):
            first = [key for key in properties if key in required]
            copied["properties"] = {key: properties[key] for key in [*first, *properties]}
        if isinstance(name := copied.get("format"), str) and name in _SURELY:
            copied["allOf"] = [*copied.get("allOf", []), _SURELY[name]]
        if isinstance(pattern := copied.get("pattern"), str):
            patterns.add(pattern)
        return copied

    copied: dict[str, Any] = simpler(schema)
    return copied


def _examples(patterns: Sequence[str]) -> Iterator[bytes]:
    """Texts that may complete what a pattern wants, in JSON.

    A pattern may match anywhere in a string, and then nothing that may come next tells what it is waiting for.
    """
    for pattern in patterns[:_MOST_EXAMPLES]:
        found: list[bytes] = []
        with suppress(GrammarError):
            whole = regex_structure(pattern.removeprefix("^").removesuffix("$"))
            found += whole.examples
            found.insert(0, whole.shortest_end().way or b"")
        for text in found:
            yield json.dumps(text.decode(errors="replace"), ensure_ascii=False)[1:-1].encode()


def _literals(pattern: str) -> Iterator[bytes]:
    """Runs of a pattern that stand for themselves."""
    yield from (run.encode() for run in re.findall(r"[^\\^$.|?*+(){}\[\]]+", pattern)[:_MOST_EXAMPLES])


def _kind(text: bytes) -> object:
    """Digits are alike, as are capitals and characters beyond ASCII; a token that begins or ends something is not."""
    first = text[:1]
    if set(text[1:]) & _BEGINS_OR_ENDS or not (first.isalnum() or first >= b"\x80"):
        return text
    return first.isdigit(), first.isupper(), first.islower() and first


class _TokenKinds:
    """Tokens of one vocabulary by what they can do to a JSON text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
        self.bytes = ByteTokens(tokenizer)
        self.plain = np.array([not set(text) & {*_BEGINS_OR_ENDS, ord("\\")} for text in texts], dtype=np.bool_)
        """bool [V]: those that can neither end a string nor begin anything."""
        self.exponent = np.array([bool(_EXPONENT.fullmatch(text)) for text in texts], dtype=np.bool_)
        """bool [V]: those that give a number an exponent, which soon makes it larger than any double."""
        kinds: dict[object, int] = {}
        self.kind = np.array([kinds.setdefault(_kind(text), len(kinds)) for text in texts])
        """int [V]: equal for tokens that one of them can stand for."""


@lru_cache(maxsize=1)
def _kinds(tokenizer: Tokenizer) -> _TokenKinds:
    return _TokenKinds(tokenizer)


class StructureConstraint:
    """One text of a structure while it is written: a batching.Constraint.

    The model says what it wants as long as the shortest way to the end fits into the tokens that are left. When they
    become few, a token is let by only if there is still room for the end after it; and when nothing is to spare, the
    shortest end is written. A value takes at most half of what is to spare if others follow.
    """

    def __init__(
        self, matcher: Matcher, end: ShortestEnd, tokenizer: Tokenizer, ends: frozenset[int], max_new_tokens: int
    ) -> None:
        self._matcher, self._shortest, self._tokenizer = matcher, end, tokenizer
        self._kinds = _kinds(tokenizer)
        self._end, self._ends = tokenizer.id(END_ANSWER), list(ends)
        self._left = max_new_tokens
        self._forced: list[int] | None = None
        self._at_value = 0
        self._broken = False

    def allowed(self) -> NDArray[np.bool_]:
        size = self._tokenizer.vocab_size
        if self._broken:
            return only([], size)
        if self._forced is None and self._spare(self._shortest.way) <= _SPARE and self._shortest.way is not None:
            self._forced = self._kinds.bytes.encode(self._shortest.way)
        if self._forced is not None:
            return only(self._forced[:1] or self._ends, size)
        try:
            mask = self._matcher.mask()
            if self._shortest.way is not None:
                mask = self._steered(mask, self._shortest.way)
        except GrammarError:
            return self._give_up()
        mask[self._ends] = mask[self._end]
        return mask

    def push(self, token: int) -> None:
        self._left -= 1
        if self._forced:
            # It was found to fit, and nothing else follows.
            self._forced.pop(0)
            return
        place = self._shortest.place
        within_value = place is not None and (place.in_string or place.number > 0)
        text = self._tokenizer.token_text(token)
        try:
            self._matcher.push(token)
            self._shortest.push(text)
        except GrammarError:
            self._give_up()
            return
        if not within_value or b'"' in text:
            self._at_value = self._spare(self._shortest.way)

    def _give_up(self) -> NDArray[np.bool_]:
        """A grammar that is too complex for the parser's limits ends the text, and nobody else's."""
        self._broken = True
        return only([], self._tokenizer.vocab_size)

    def _spare(self, way: bytes | None) -> int:
        """Tokens left beyond a way to the end and the token that ends the text."""
        return self._left if way is None else self._left - len(self._kinds.bytes.encode(way)) - 1

    def _steered(self, mask: NDArray[np.bool_], way: bytes) -> NDArray[np.bool_]:
        """Of the tokens that may come, those that leave room for an end; way: the shortest."""
        place, spare = self._shortest.place, self._spare(way)
        if place is not None and not place.in_string:
            without = mask & ~self._kinds.exponent
            mask = without if without.any() else mask
        if np.count_nonzero(mask) <= 1:
            return mask
        nearest = self._kinds.bytes.encode(way)[:1] or self._ends
        if place is not None and (place.in_string or place.number):
            others_follow = b"," in way[1:]
            if place.number >= _LONGEST_NUMBER or (others_follow and 2 * spare < self._at_value):
                return only(nearest, len(mask))
        if spare > _CAREFUL:
            return mask
        if place is not None and place.in_string and way[:1] == b'"':
            plain = mask & self._kinds.plain
            plain[nearest] = True
            return plain
        return self._affordable(mask, nearest)

    def _affordable(self, mask: NDArray[np.bool_], nearest: list[int]) -> NDArray[np.bool_]:
        """The tokens after which the end still fits, among as many as can be looked at, and the nearest to the end."""
        found = np.flatnonzero(mask)
        kinds, places = np.unique(self._kinds.kind[found], return_index=True)
        affordable = []
        for kind, token in zip(kinds[:_MOST_LOOKED_AT], found[places].tolist(), strict=False):
            way = b"" if token == self._end else self._shortest.after(self._tokenizer.token_text(token))
            if token == self._end or (way is not None and self._spare(way) > _SPARE + 1):
                affordable.append(kind)
        kept: NDArray[np.bool_] = mask & np.isin(self._kinds.kind, affordable)
        kept[nearest] = True
        return kept
