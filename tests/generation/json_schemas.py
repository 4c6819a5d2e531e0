"""Schemas at random, of the kinds that people write."""

from typing import Any

from hypothesis import strategies as st

_NAMES = st.sampled_from(["name", "age", "이름", "연락처", "tags", "is_open", "price", "kind", 'a"b', "due date"])


def _strings() -> st.SearchStrategy[dict[str, Any]]:
    lengths = st.tuples(st.integers(0, 6), st.integers(0, 20)).map(
        lambda pair: {"type": "string", "minLength": pair[0], "maxLength": pair[0] + pair[1]}
    )
    patterns = st.sampled_from(["^[a-z]{2,8}$", "^[0-9]+-[0-9]{4}$", "^가+나$", "[.]com$", "^(ab|c)*d$", "^[^x]{3}$"])
    formats = st.sampled_from(["date", "time", "date-time", "email", "uuid", "ipv4"])
    return st.one_of(
        st.just({"type": "string"}),
        lengths,
        patterns.map(lambda pattern: {"type": "string", "pattern": pattern}),
        formats.map(lambda name: {"type": "string", "format": name}),
        st.lists(st.text(max_size=8), min_size=1, max_size=4, unique=True).map(lambda texts: {"enum": texts}),
    )


def _numbers() -> st.SearchStrategy[dict[str, Any]]:
    kinds = st.sampled_from(["integer", "number"])
    bounds = st.tuples(kinds, st.integers(-1000, 1000), st.integers(0, 5000)).map(
        lambda made: {"type": made[0], "minimum": made[1], "maximum": made[1] + made[2]}
    )
    above = st.tuples(kinds, st.integers(-5, 5)).map(lambda made: {"type": made[0], "exclusiveMinimum": made[1]})
    multiples = st.integers(1, 50).map(lambda factor: {"type": "integer", "multipleOf": factor})
    return st.one_of(kinds.map(lambda kind: {"type": kind}), bounds, above, multiples)


def _leaves() -> st.SearchStrategy[dict[str, Any]]:
    constants = st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=12), st.just("[/ANSWER]"))
    others = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.just({"type": ["string", "null"]}),
        constants.map(lambda value: {"const": value}),
    )
    return st.one_of(_strings(), _numbers(), others)


@st.composite
def _objects(draw: st.DrawFn, parts: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    names = draw(st.lists(_NAMES, min_size=1, max_size=5, unique=True))
    made: dict[str, Any] = {"type": "object", "properties": {name: draw(parts) for name in names}}
    made["required"] = draw(st.lists(st.sampled_from(names), unique=True))
    if draw(st.integers(0, 2)):
        made["additionalProperties"] = False
    return made


@st.composite
def _arrays(draw: st.DrawFn, parts: st.SearchStrategy[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "array", "items": draw(parts)}
    least = draw(st.integers(0, 2))
    if least:
        made["minItems"] = least
    if draw(st.booleans()):
        made["maxItems"] = least + draw(st.integers(0, 3))
    return made


def _nested(parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    either = st.lists(parts, min_size=1, max_size=3).map(lambda made: {"anyOf": made})
    return st.one_of(_objects(parts), _arrays(parts), either)


@st.composite
def schemas(draw: st.DrawFn) -> dict[str, Any]:
    """An object of values, lists and objects, sometimes one that may hold itself."""
    made = draw(_objects(st.recursive(_leaves(), _nested, max_leaves=6)))
    if draw(st.integers(0, 3)) == 0:
        made["properties"]["next"] = {"anyOf": [{"$ref": "#"}, {"type": "null"}]}
    return made
