"""Answers from the run's own text, in the shapes of the OpenAI API: they need neither the engine nor its queue."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse, StreamingResponse

from twingpt.answers.answer import Answer
from twingpt.answers.ask import ask_document, ask_library
from twingpt.data.library.search import Library
from twingpt.serve.headers import told
from twingpt.serve.responses import Choice, Shape, usage
from twingpt.serve.schemas import ChatRequest
from twingpt.serve.service import Service

AT_ONCE = 4
"""Questions that are looked up at one time, each in a thread of its own."""


class Asking:
    """The library behind the chat route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._places = asyncio.Semaphore(AT_ONCE)

    async def respond(self, body: ChatRequest) -> Response:
        """The answer to the last message, whole or as a stream of its lines."""
        async with self._places:
            answer, tokens = await asyncio.to_thread(self._answer, body.question, body.doc)
        shape = Shape(True, self._service.name, self._service.tokenizer, logprobs=False)
        parts = answer.to_dict()
        extra: dict[str, Any] = {name: parts[name] for name in ("found", "sections", "sources", "suggestions")}
        extra["messages_not_read"] = body.messages_not_read
        headers = told(body.not_used)
        if not body.stream:
            return JSONResponse(shape.whole([Choice(answer.text)], tokens, extra), headers=headers)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = _chunks(shape, answer, extra, tokens if with_usage else None)
        headers |= {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)

    def _answer(self, question: str, doc: str | None) -> tuple[Answer, dict[str, int]]:
        """The answer and its usage."""
        if doc is not None:
            answer = ask_document(doc, question)
        else:
            # Opened anew for each answer, since SQLite ties a connection to its thread.
            with Library(self._service.library) as library:
                answer = ask_library(library, question)
        count = self._service.tokenizer.count
        return answer, usage(count(question), count(answer.text))


def _chunks(shape: Shape, answer: Answer, extra: dict[str, Any], tokens: dict[str, int] | None) -> Iterator[str]:
    event = partial(json.dumps, ensure_ascii=False)
    yield f"data: {event(shape.opening())}\n\n"
    for line in answer.text.splitlines(keepends=True):
        yield f"data: {event(shape.piece(line, []))}\n\n"
    yield f"data: {event(shape.closing('stop', extra))}\n\n"
    if tokens is not None:
        yield f"data: {event(shape.usage(tokens))}\n\n"
    yield "data: [DONE]\n\n"
