"""Answers in OpenAI's shapes, whole or in pieces, for both kinds of request."""

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twingpt.data.library.contact_store import ContactStore
from twingpt.data.library.verify import verify_numbers
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Logprobs
from twingpt.generation.pieces import TokenLogprob


@dataclass(slots=True)
class Choice:
    """One text of an answer, as far as it has come; there are several where a request has several prompts."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: str = "stop"
    tokens: int = 0


@dataclass(slots=True)
class Shape:
    """One answer's envelope. chat: /v1/chat/completions, else /v1/completions. logprobs: they were asked for."""

    chat: bool
    model: str
    tokenizer: Tokenizer
    logprobs: bool
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.chat else 'cmpl'}-{uuid.uuid4().hex}"

    def whole(self, choices: Sequence[Choice], usage: dict[str, int], extra: dict[str, Any]) -> dict[str, Any]:
        kind = "chat.completion" if self.chat else "text_completion"
        bodies = [self._choice(index, choice) for index, choice in enumerate(choices)]
        return {**self._envelope(kind), "choices": bodies, "usage": usage, "twingpt": extra}

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        logprobs = self._logprobs(choice.logprobs)
        body: dict[str, Any] = {"index": index, "finish_reason": choice.finish, "logprobs": logprobs}
        if self.chat:
            body["message"] = {"role": "assistant", "content": choice.text, "refusal": None}
        else:
            body["text"] = choice.text
        return body

    def opening(self) -> dict[str, Any] | None:
        """What a stream starts with, before the first text."""
        return self._chunk({"role": "assistant", "content": ""}, (), None) if self.chat else None

    def piece(self, text: str, logprobs: Sequence[TokenLogprob], index: int = 0) -> dict[str, Any]:
        return self._chunk({"content": text} if self.chat else text, logprobs, None, index)

    def closing(self, finish: str, extra: dict[str, Any], index: int = 0) -> dict[str, Any]:
        return {**self._chunk({} if self.chat else "", (), finish, index), "twingpt": extra}

    def usage(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last chunk, if stream_options asked for it."""
        return {**self._envelope(self._chunk_kind), "choices": [], "usage": usage}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(
        self, content: Any, logprobs: Sequence[TokenLogprob], finish: str | None, index: int = 0
    ) -> dict[str, Any]:
        name = "delta" if self.chat else "text"
        choice = {"index": index, name: content, "logprobs": self._logprobs(logprobs), "finish_reason": finish}
        return {**self._envelope(self._chunk_kind), "choices": [choice]}

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.logprobs or not tokens:
            return None
        return self._chat_logprobs(tokens) if self.chat else self._completion_logprobs(tokens)

    def _chat_logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            raw = self.tokenizer.token_text(token)
            return {"token": _name(raw), "logprob": logprob, "bytes": list(raw)}

        content = [
            {
                **entry(one.token, one.logprobs.chosen),
                "top_logprobs": [entry(token, logprob) for token, logprob in one.logprobs.top],
            }
            for one in tokens
            if one.logprobs is not None
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "tokens": [_name(self.tokenizer.token_text(one.token)) for one in tokens],
            "token_logprobs": [one.logprobs and one.logprobs.chosen for one in tokens],
            "top_logprobs": [one.logprobs and self._top(one.logprobs) for one in tokens],
            "text_offset": [one.offset for one in tokens],
        }

    def _top(self, logprobs: Logprobs) -> Mapping[str, float]:
        return {_name(self.tokenizer.token_text(token)): logprob for token, logprob in logprobs.top}


def _name(raw: bytes) -> str:
    """A token's text; OpenAI's way of writing one that is no whole character."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def contact_spans(text: str, sources: Iterable[str], store: ContactStore | None) -> list[dict[str, Any]]:
    """Every number of an answer, in code points, and whether the sources or the store hold it."""
    unknown = {span.start for span in verify_numbers(text, sources, store)}
    return [
        {"start": span.start, "end": span.end, "text": span.text, "verified": span.start not in unknown}
        for span in verify_numbers(text, (), None)
    ]
