"""What the API accepts and answers, in the shapes of the OpenAI API; what this model cannot do is refused by name."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from twingpt.core.sampling import Sampling
from twingpt.serve.client_fields import ALIASES, IGNORED
from twingpt.serve.formats import FormFields

MAX_STOPS = 16
MAX_STOP_LENGTH = 200
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 128

_DOCUMENT = re.compile(r"\[DOC\](.*?)\[/DOC\]", re.DOTALL)

Text = Annotated[str, Field(max_length=200_000)]
Tokens = Annotated[
    list[Annotated[int, Field(ge=0, le=10_000_000, strict=True)]], Field(min_length=1, max_length=200_000)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Generation(FormFields):
    """What both kinds of request share. Beyond OpenAI's: top_k, min_p,
    repetition_penalty, and how contacts are treated.

    What other local servers mean by a number that can be no amount is meant here too: max_tokens and top_k of -1 are
    without an end, a penalty of 0 is none, a seed of -1 is one of the server's.
    """

    # Those of IGNORED alone; `_only_known_fields` refuses the rest.
    model_config = ConfigDict(extra="allow")

    model: Annotated[str | None, Field(max_length=200)] = None
    temperature: Annotated[float, Field(ge=0, le=5, description="0: always the likeliest token.")] = 0.8
    top_p: Annotated[float, Field(ge=0, le=1, description="Choose among tokens of this probability together.")] = 1.0
    top_k: Annotated[
        int, Field(ge=-1, le=1_000_000, description="Choose among the K likeliest tokens. 0, -1: off.")
    ] = 50
    min_p: Annotated[float, Field(ge=0, le=1, description="Drop tokens below this share of the likeliest.")] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0, le=10, description="Above 1 discourages repeating.")] = 1.0
    seed: Annotated[int | None, Field(ge=-(2**63), le=2**63 - 1, description="The same seed, the same text.")] = None
    max_tokens: Annotated[
        int | None, Field(ge=-2, le=1_000_000, description="Below 0: all that there is room for.")
    ] = None
    stop: (
        Annotated[str, Field(max_length=MAX_STOP_LENGTH)]
        | list[Annotated[str, Field(max_length=MAX_STOP_LENGTH)]]
        | None
    ) = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: Annotated[int | None, Field(description="Only 1.")] = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, Any] | None = None
    fill_contacts: Annotated[
        bool, Field(description="Put real contacts for placeholders; take out numbers that nobody gave.")
    ] = False
    verify_contacts: Annotated[bool, Field(description="Mark numbers that neither prompt nor store holds.")] = False
    annotate_contacts: Annotated[
        bool, Field(description="Leave the text alone; say in `twingpt.contacts` where numbers stand.")
    ] = False
    # Accepted, since clients send them of their own accord, and without effect on one model on one machine.
    user: Annotated[str | None, Field(max_length=200)] = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        given = {key: value for key, value in values.items() if value is not None}
        for other, ours in ALIASES.items():
            if other in given:
                value = given.pop(other)
                if given.setdefault(ours, value) != value:
                    raise ValueError(f"{other}: {ours} is given too, and says something else")
        return given

    @model_validator(mode="after")
    def _only_known_fields(self) -> "_Generation":
        for name in self.model_extra or ():
            if name not in IGNORED:
                raise ValueError(f"{name[:100]}: there is no such field")
        return self

    @model_validator(mode="after")
    def _only_what_exists(self) -> "_Generation":
        if self.n not in (None, 1):
            raise ValueError("n: this server gives one answer a request; send n=1, or several requests")
        if self.frequency_penalty or self.presence_penalty:
            raise ValueError("frequency_penalty and presence_penalty are not supported; use repetition_penalty")
        if self.logit_bias:
            raise ValueError("logit_bias is not supported")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options goes with stream=true")
        if len(self.stops) > MAX_STOPS:
            raise ValueError(f"stop: at most {MAX_STOPS} sequences")
        if self.fill_contacts and self.verify_contacts:
            raise ValueError("give either fill_contacts or verify_contacts")
        self._one_form()
        return self

    def _one_form(self) -> None:
        forms = self.forms
        if len(forms) > 1:
            raise ValueError("give one of response_format, structured_outputs and guided_*, with one form in it")
        if forms and self.rewrites_contacts:
            raise ValueError("fill_contacts and verify_contacts would change the form that is asked for")
        if forms and forms[0][0] == "json" and self.stops:
            raise ValueError("stop could end JSON before its end: leave it out")

    @property
    def stops(self) -> tuple[str, ...]:
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def rewrites_contacts(self) -> bool:
        return self.fill_contacts or self.verify_contacts

    @property
    def not_used(self) -> list[str]:
        """What the request gave and nothing is made of, for the header that tells it."""
        return sorted(self.model_extra or ())

    def sampling(self, seed: int) -> Sampling:
        """seed: what is used where the request gives none."""
        return Sampling(
            # No probability at all leaves the likeliest token.
            temperature=self.temperature if self.top_p else 0.0,
            top_k=max(0, self.top_k),
            top_p=self.top_p or 1.0,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=(seed if self.seed in (None, -1) else self.seed or 0) % 2**64,
        )


class CompletionRequest(_Generation):
    """POST /v1/completions: a text that the model writes on from, or several, each as it is or as its tokens.

    Tokens are read as they are; before a text the server puts [BOS], which `echo` does not show. max_tokens 0: nothing
    is written, so that only the prompt's own log-probabilities are asked for.
    """

    prompt: (
        Text
        | Tokens
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[Tokens], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _completion_only(self) -> "CompletionRequest":
        contacts = self.rewrites_contacts or self.annotate_contacts
        if self.echo and contacts:
            raise ValueError("echo: contacts are told of what is written, not of the prompt; leave one of them out")
        if len(self.prompts) > 1 and contacts:
            raise ValueError("prompt: contacts are looked after for one prompt at a time")
        if self.suffix:
            raise ValueError("suffix is not supported")
        if self.best_of not in (None, 1):
            raise ValueError("best_of: only 1")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]

    @property
    def limit(self) -> int | None:
        return self.max_tokens

    @property
    def top_logprobs_wanted(self) -> int | None:
        """Alternatives a token; None: no log-probabilities."""
        return self.logprobs


class Part(BaseModel):
    """A part of a message. Those that are no text (pictures, sounds, refusals) stand in turns that are not read."""

    model_config = ConfigDict(extra="ignore")

    type: Annotated[str, Field(max_length=100)]
    text: Text | None = None

    @model_validator(mode="after")
    def _text_has_text(self) -> "Part":
        if self.is_text and self.text is None:
            raise ValueError("a part of type text needs its text")
        return self

    @property
    def is_text(self) -> bool:
        return self.type in ("text", "input_text")


class Message(BaseModel):
    """content: none where an assistant called a tool."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    name: Annotated[str | None, Field(max_length=200)] = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content or () if part.is_text)

    @property
    def all_text(self) -> bool:
        return not isinstance(self.content, list) or all(part.is_text for part in self.content)


class ChatRequest(_Generation):
    """POST /v1/chat/completions: the last user message is the question.

    The document to answer from comes in `document`, or in a system message between [DOC] and [/DOC]: clients send
    system messages of their own, and "You are a helpful assistant." is no document. The model was trained on single
    questions: earlier turns are not read, and `twingpt.messages_not_read` says how many.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    document: Annotated[str | None, Field(max_length=200_000)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=-2, le=1_000_000)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP_LOGPROBS)] = None
    format: Annotated[Literal["answer"] | None, Field(description="Hold the answer to the trained form.")] = None
    tools: list[Any] | None = None
    tool_choice: Any | None = None
    functions: list[Any] | None = None
    function_call: Any | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    @model_validator(mode="after")
    def _chat_only(self) -> "ChatRequest":
        called = (self.tools or self.functions) and "none" not in (self.tool_choice, self.function_call)
        if called or self.tool_choice not in (None, "none", "auto"):
            raise ValueError("tools are not supported: the model was not trained to call any")
        if self.modalities not in (None, [], ["text"]):
            raise ValueError("modalities: only text")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("give either max_tokens or max_completion_tokens")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs=true")
        if self.messages[-1].role != "user":
            raise ValueError("messages: the last one must be the user's, it is the question")
        if not self.messages[-1].all_text:
            raise ValueError("messages: the last one holds what is no text, and this model reads nothing else")
        if not self.question.strip():
            raise ValueError("messages: the last one is empty")
        if self.format is not None and self.forms:
            raise ValueError("format: give either it or another form of the answer")
        if self.document is not None and self.system_text is not None:
            raise ValueError("the document comes either in `document` or as the system message, not both")
        return self

    @property
    def question(self) -> str:
        return self.messages[-1].text

    @property
    def system_text(self) -> str | None:
        """The document that system messages hold."""
        texts = [message.text for message in self.messages if message.role in ("system", "developer")]
        found = [part.strip() for text in texts for part in _DOCUMENT.findall(text)]
        return "\n\n".join(part for part in found if part) or None

    @property
    def doc(self) -> str | None:
        """The document to answer from."""
        return self.system_text if self.document is None else self.document.strip() or None

    @property
    def messages_not_read(self) -> int:
        return sum(message.role not in ("system", "developer") for message in self.messages[:-1])

    @property
    def not_used(self) -> list[str]:
        given = sorted(name for name in ("functions", "tools") if getattr(self, name)) + super().not_used
        # How many, and not what they hold: a header carries no text of a client's.
        if self.messages_not_read:
            given.append(f"messages ({self.messages_not_read} earlier)")
        if any(message.role in ("system", "developer") and not message.all_text for message in self.messages):
            given.append("messages (parts of a system message)")
        return given

    @property
    def limit(self) -> int | None:
        """None: as the server has it. 0 is no answer that a chat could want: clients mean that they set no limit."""
        return (self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens) or None

    @property
    def top_logprobs_wanted(self) -> int | None:
        """Alternatives a token; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Every refusal, in OpenAI's shape."""

    error: ErrorBody
