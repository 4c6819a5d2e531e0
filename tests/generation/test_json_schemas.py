"""Texts of a structure, written by a model that says anything."""

import json
import re
from typing import Any

import jsonschema_rs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings

from tests.generation.json_schemas import schemas
from twingpt.core.errors import GrammarError
from twingpt.core.sampling import Sampling, sample
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.structure import (
    Structure,
    choice_structure,
    grammar_structure,
    json_structure,
    regex_structure,
)
from twingpt.generation.writing import stop_tokens

ROOM = 200


def write(structure: Structure, tokenizer: Tokenizer, room: int, number: int) -> tuple[str, bool]:
    """(a text by random logits, whether it came to its end)."""
    ends = stop_tokens(tokenizer)
    constraint = structure.constraint(tokenizer, ends, room)
    rng = np.random.default_rng(number)
    text = b""
    for position in range(room):
        allowed = constraint.allowed()
        if not allowed.any():
            break
        assert set(np.flatnonzero(allowed[:12])) in (set(), set(ends))  # special tokens are never made of text
        logits = rng.normal(size=tokenizer.vocab_size).astype(np.float32)
        token = sample(logits, Sampling(temperature=1.0, top_k=0, seed=number), position, None, allowed)
        if token in ends:
            return text.decode(), True
        constraint.push(token)
        text += tokenizer.token_text(token)
    return text.decode(errors="replace"), False


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_whatever_the_model_says_the_schema_holds_and_the_text_ends(tokenizer: Tokenizer, count: int) -> None:
    ended: list[bool] = []

    @seed(count)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(schemas())
    def check(schema: dict[str, Any]) -> None:
        text, whole = write(json_structure(schema), tokenizer, ROOM, len(ended))
        ended.append(whole)
        if whole:
            jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(text))

    check()
    assert len(ended) >= count
    assert sum(ended) / len(ended) >= 0.95


@pytest.mark.parametrize("room", [12, 40, ROOM])
def test_any_object_ends_in_time(tokenizer: Tokenizer, room: int) -> None:
    longest = 0
    for number in range(4):
        text, whole = write(json_structure({"type": "object"}), tokenizer, room, number)
        assert whole
        assert isinstance(json.loads(text), dict)
        longest = max(longest, len(tokenizer.encode(text)))
    assert longest > room // 4  # the room is used


def test_every_value_gets_its_part_of_the_room(tokenizer: Tokenizer) -> None:
    """A model that never ends a string by itself leaves room for those that follow."""
    names = ["a", "b", "c"]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}, "required": names}
    structure = json_structure({**schema, "additionalProperties": False})
    constraint = structure.constraint(tokenizer, stop_tokens(tokenizer), ROOM)
    text = b""
    for _ in range(ROOM):
        allowed = constraint.allowed()
        plain = tokenizer.encode("가")[0]
        token = plain if allowed[plain] else int(np.flatnonzero(allowed)[0])
        if token in stop_tokens(tokenizer):
            break
        constraint.push(token)
        text += tokenizer.token_text(token)
    lengths = [len(json.loads(text)[name]) for name in names]
    assert lengths[0] > ROOM // 4
    assert min(lengths) > ROOM // 10


def test_numbers_are_ones_that_programs_can_read(tokenizer: Tokenizer) -> None:
    schema = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
    for number in range(10):
        text, whole = write(json_structure(schema), tokenizer, ROOM, number)
        assert whole
        assert all(abs(value) < 1e25 for value in json.loads(text))
        assert "e" not in text.lower()


@pytest.mark.parametrize(
    "pattern", ["[a-z]+@[a-z]+[.]com", "[0-9]{3,}-[0-9]{4}", "(예|아니요)", "가[^나]*나", ".{12}x"]
)
def test_a_regular_expression_is_matched_from_end_to_end(tokenizer: Tokenizer, pattern: str) -> None:
    for number in range(2):
        text, whole = write(regex_structure(pattern), tokenizer, 50, number)
        assert whole
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    "grammar",
    ['start: "가" | start "+" start', 'root ::= term ("+" term)*\nterm ::= "가"', 'start: x\nx: "가" ("+" "가")*'],
)
def test_a_grammar_is_followed_in_either_syntax(tokenizer: Tokenizer, grammar: str) -> None:
    text, whole = write(grammar_structure(grammar), tokenizer, 40, 1)
    assert whole
    assert set(text.split("+")) == {"가"}


@pytest.mark.parametrize("grammar", ['start: "가" <[4]>', 'start: <[0-11]> "가"'])
def test_a_grammar_gets_no_special_token(tokenizer: Tokenizer, grammar: str) -> None:
    text, whole = write(grammar_structure(grammar), tokenizer, 40, 1)
    assert text in ("", "가")
    assert not whole


def test_one_of_several_texts_is_written(tokenizer: Tokenizer) -> None:
    choices = ["예", "아니요", 'a"b\n', "[/ANSWER]", "😀"]
    written = {write(choice_structure(choices), tokenizer, 30, number) for number in range(25)}
    assert {text for text, _ in written} == set(choices)
    assert all(whole for _, whole in written)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "text"}, "Invalid type: text"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "greater than maximum"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}, "no text that ends within"),
        ({"type": "object", "properties": {f"k{i}": {} for i in range(900)}}, "too complex"),
        ("[]", "a JSON schema is an object"),
        ("{", "cannot be read"),
    ],
)
def test_a_schema_that_cannot_be_held_to_is_refused_in_one_line(
    tokenizer: Tokenizer, schema: dict[str, Any] | str, said: str
) -> None:
    with pytest.raises(GrammarError, match=said) as refusal:
        json_structure(schema).constraint(tokenizer, stop_tokens(tokenizer), ROOM)
    assert "\n" not in str(refusal.value)


def test_a_schema_of_any_depth_is_refused_or_held_to(tokenizer: Tokenizer) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(100_000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="nested too deeply"):
        json_structure(schema)


@pytest.mark.parametrize("pattern", ["(", "a{2,", "(?=a)b"])
def test_a_pattern_that_is_none_is_refused_in_one_line(tokenizer: Tokenizer, pattern: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        regex_structure(pattern).constraint(tokenizer, stop_tokens(tokenizer), ROOM)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("grammar", ["foo: 1", 'start: "a', "start: missing"])
def test_a_grammar_that_is_none_is_refused_in_one_line(tokenizer: Tokenizer, grammar: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        grammar_structure(grammar).constraint(tokenizer, stop_tokens(tokenizer), ROOM)
    assert "\n" not in str(refusal.value)


def way(schema: dict[str, Any], begun: bytes = b"") -> bytes | None:
    end = json_structure(schema).shortest_end()
    end.push(begun)
    return end.way


def test_the_shortest_end_closes_what_is_open() -> None:
    either = {
        "anyOf": [{"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}, {"type": "null"}]
    }
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "n": either}, "required": ["n"]}
    assert way(schema) == b'{"n":null}'
    assert way(schema, '{"n":{"x":"가\\'.encode()[:-1]) == b'"}}'
    assert way(schema, b'{"n":{"x":"' + "가".encode()[:1]) is not None
    multiple = b"6" + (way({"type": "integer", "multipleOf": 97}, b"6") or b"")
    assert len(multiple) < 9
    assert int(multiple) % 97 == 0
    assert way({"type": "string", "pattern": "[.]com$"}, b'"abc') == b'.com"'
    assert way({"type": "string", "minLength": 3}, b'"ab') == b' "'


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [
        ("email", "a" * 65 + "@b.com", "a@b.com"),
        ("hostname", "a" * 64, "a" * 63),
        ("date", "2023-02-29", "2023-02-28"),
        ("time", "12:00:60Z", "12:00:59Z"),
        ("date-time", "2023-02-29T00:00:00Z", "2023-03-29T00:00:00+09:00"),
    ],
)
def test_a_format_is_what_validators_take_it_for(name: str, wrong: str, right: str) -> None:
    schema = {"type": "string", "format": name}
    assert jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(right)
    assert not jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(wrong)
    assert way(schema, f'"{right}"'.encode()) == b""
    with pytest.raises(GrammarError):
        way(schema, f'"{wrong}"'.encode())


def test_a_constant_that_looks_like_a_schema_is_written_as_it_stands(tokenizer: Tokenizer) -> None:
    constant = {"format": "date", "required": ["b"], "properties": {"a": 1, "b": 2}}
    text, whole = write(json_structure({"const": constant}), tokenizer, ROOM, 0)
    assert whole
    assert json.loads(text) == constant
