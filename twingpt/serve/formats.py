"""What a request may ask its answer to look like: OpenAI's response_format, and the same as vLLM names it."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from twingpt.generation.structure import Structure

MAX_CHOICES = 1_000
MAX_PATTERN_LENGTH = 10_000

Pattern = Annotated[str, Field(max_length=MAX_PATTERN_LENGTH)]
Grammar = Annotated[str, Field(max_length=100_000)]
Choices = Annotated[list[Annotated[str, Field(max_length=1_000)]], Field(min_length=1, max_length=MAX_CHOICES)]
JsonSchema = dict[str, Any] | Grammar
"""A schema, or its text."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TextFormat(_Strict):
    type: Literal["text"]


class JsonObjectFormat(_Strict):
    type: Literal["json_object"]


class NamedSchema(_Strict):
    """strict: whether or not it is asked for, the answer always follows the schema."""

    name: Annotated[str, Field(max_length=200)]
    description: Annotated[str | None, Field(max_length=10_000)] = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JsonSchemaFormat(_Strict):
    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputs(_Strict):
    """vLLM's field: one of these. disable_any_whitespace: JSON has no blanks here anyway."""

    json_: Annotated[JsonSchema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Grammar | None = None
    disable_any_whitespace: bool | None = None


Kind = Literal["json", "regex", "choice", "grammar"]
Form = dict[str, Any] | list[str] | str
_ANY_OBJECT: dict[str, Any] = {"type": "object"}


class FormFields(_Strict):
    """The fields of a request that say what its answer looks like.

    guided_*: vLLM's names before structured_outputs. json_schema, grammar: llama.cpp's.
    """

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchema | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Grammar | None = None
    json_schema: JsonSchema | None = None
    grammar: Grammar | None = None

    @property
    def forms(self) -> list[tuple[Kind, Form]]:
        """Each form that is asked for; for JSON its schema, or the text of one."""
        asked, outputs = self.response_format, self.structured_outputs or StructuredOutputs()
        given: list[tuple[Kind, Form | None]] = [
            ("json", asked.json_schema.schema_ if isinstance(asked, JsonSchemaFormat) else None),
            ("json", _ANY_OBJECT if isinstance(asked, JsonObjectFormat) or outputs.json_object else None),
            ("json", outputs.json_),
            ("regex", outputs.regex),
            ("choice", outputs.choice),
            ("grammar", outputs.grammar),
            ("json", self.guided_json),
            ("regex", self.guided_regex),
            ("choice", self.guided_choice),
            ("grammar", self.guided_grammar),
            ("json", self.json_schema),
            ("grammar", self.grammar),
        ]
        return [(kind, form) for kind, form in given if form is not None]


def structure_of(kind: Kind, form: Form) -> "Structure":
    """Raises GrammarError if the form is none."""
    # Not before it is asked for: the library of grammars takes a tenth of a second to import.
    from twingpt.generation.structure import choice_structure, grammar_structure, json_structure, regex_structure

    if isinstance(form, list):
        return choice_structure(form)
    if isinstance(form, dict) or kind == "json":
        return json_structure(form)
    return regex_structure(form) if kind == "regex" else grammar_structure(form)
