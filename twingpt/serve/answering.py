"""A request at work: its jobs for the engine, and the answer that comes of them, whole or as a stream."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.generation.batching import Request as TextRequest
from twingpt.generation.pieces import Piece, TokenLogprob
from twingpt.generation.writing import with_contacts
from twingpt.serve.headers import told
from twingpt.serve.refusals import RefusalError
from twingpt.serve.request_log import current_request
from twingpt.serve.responses import Choice, Shape, contact_spans, usage
from twingpt.serve.schemas import ChatRequest, CompletionRequest
from twingpt.serve.security import error_body
from twingpt.serve.service import Service
from twingpt.serve.wanted import Wanted
from twingpt.serve.worker import Finished, Job, Prompt, QueueFullError, Update


class Generation:
    """One HTTP request under way: a job for each of its prompts."""

    def __init__(
        self, service: Service, body: CompletionRequest | ChatRequest, wanted: Sequence[Wanted], client: str
    ) -> None:
        self._service, self._body, self._wanted = service, body, wanted
        first = wanted[0].request
        if body.fill_contacts and first.doc is None and not service.has_contacts:
            raise RefusalError(400, tr("fill_contacts needs the contacts.sqlite that `prepare` makes"), "no_contacts")
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        logprobs = first.top_logprobs is not None
        self.shape = Shape(isinstance(body, ChatRequest), service.name, service.tokenizer, logprobs)
        self._echo = isinstance(body, CompletionRequest) and bool(body.echo)
        # What is echoed of each prompt moves what is written behind it.
        self._echoed = [0] * len(wanted)
        deadline = time.monotonic() + service.limits.seconds
        self._jobs = [
            Job(
                one.request,
                service.tokenizer,
                client=client,
                deadline=deadline,
                emit=self._emitter(index),
                echo=self._echo,
                prompt_only=one.prompt_only,
                id=current_request(),
            )
            for index, one in enumerate(wanted)
        ]
        try:
            service.worker.submit(*self._jobs)
        except QueueFullError:
            raise RefusalError(
                429, tr("too many requests are waiting; try again"), "queue_full", retry_after=1
            ) from None

    @property
    def headers(self) -> dict[str, str]:
        cut = [one.cut_to for one in self._wanted if one.cut_to is not None]
        return told(self._body.not_used, min(cut, default=None))

    def _emitter(self, index: int) -> Callable[[Update], None]:
        loop, put = asyncio.get_running_loop(), self._updates.put_nowait

        def emit(update: Update) -> None:
            # The loop is closed only when the server ends, and then nobody reads on.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(put, (index, update))

        return emit

    def cancel(self) -> None:
        """Free the slots; harmless after the end."""
        for job in self._jobs:
            self._service.worker.cancel(job)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices = await self._collect()
        choices[0].text, extra = await self._with_contacts(choices[0].text)
        return self.shape.whole(choices, self._usage(choices), extra)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes; in one piece where its contacts are to be rewritten, since that needs all of it."""
        if (opening := self.shape.opening()) is not None:
            yield opening
        if self._body.rewrites_contacts:
            choices = await self._collect()
            text, extra = await self._with_contacts(choices[0].text)
            yield self.shape.piece(text, choices[0].logprobs)
            yield self.shape.closing(choices[0].finish, extra)
        else:
            choices = [Choice() for _ in self._wanted]
            async for index, update in self._each():
                if isinstance(update, Finished):
                    self._close(choices[index], update)
                    _, extra = await self._with_contacts(choices[index].text)
                    yield self.shape.closing(choices[index].finish, extra, index)
                else:
                    choices[index].text += update.text
                    yield self.shape.piece(update.text, update.logprobs, index)
        if self._body.stream_options is not None and self._body.stream_options.include_usage:
            yield self.shape.usage(self._usage(choices))

    async def _each(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """(number of the prompt, what comes of it) until all are complete; with `echo` the prompt comes first."""
        logprobs = self._wanted[0].request.top_logprobs is not None
        if self._echo and not logprobs:
            for index in range(len(self._wanted)):
                yield index, self._echo_of(index, None)
        left = len(self._wanted)
        while left:
            index, update = await self._updates.get()
            if isinstance(update, Prompt):
                yield index, self._echo_of(index, update)
            elif isinstance(update, Piece):
                yield index, self._behind_echo(index, update)
            elif update.problem is not None:
                raise RefusalError(503, update.problem, "generation_failed", retry_after=1)
            else:
                left -= 1
                yield index, update

    def _echo_of(self, index: int, scored: Prompt | None) -> Piece:
        """The prompt as it was read, without the [BOS] that the server put before it."""
        wanted, stream = self._wanted[index], self._service.tokenizer.stream()
        tokens = wanted.request.prompt[wanted.hidden :]
        entries: list[TokenLogprob] = []
        text = ""
        for place, token in enumerate(tokens, wanted.hidden):
            if scored is not None:
                entries.append(TokenLogprob(token, scored.logprobs[place], len(text)))
            text += stream.push(token)
        text += stream.flush()
        self._echoed[index] = len(text)
        return Piece(text, tuple(entries))

    def _behind_echo(self, index: int, piece: Piece) -> Piece:
        by = self._echoed[index]
        if not by:
            return piece
        return Piece(piece.text, tuple(TokenLogprob(t.token, t.logprobs, t.offset + by) for t in piece.logprobs))

    async def _collect(self) -> list[Choice]:
        choices = [Choice() for _ in self._wanted]
        parts: list[list[str]] = [[] for _ in self._wanted]
        async for index, update in self._each():
            if isinstance(update, Finished):
                self._close(choices[index], update)
            else:
                parts[index].append(update.text)
                choices[index].logprobs.extend(update.logprobs)
        for choice, texts in zip(choices, parts, strict=True):
            choice.text = "".join(texts)
        return choices

    def _close(self, choice: Choice, finished: Finished) -> None:
        choice.finish, choice.tokens = finished.reason or "stop", finished.tokens

    async def _with_contacts(self, text: str) -> tuple[str, dict[str, Any]]:
        """The text as the request wants its contacts, and what is told beside OpenAI's fields."""
        body, request = self._body, self._wanted[0].request
        extra: dict[str, Any] = {"seed": request.sampling.seed}
        if isinstance(body, ChatRequest):
            extra["messages_not_read"] = body.messages_not_read
        if body.rewrites_contacts or body.annotate_contacts:
            text, extra["contacts"] = await asyncio.to_thread(self._contacts, text, request)
        return text, extra

    def _contacts(self, text: str, request: TextRequest) -> tuple[str, list[dict[str, Any]]]:
        store = self._service.contacts()
        # Not `store or`: one without contacts has the length 0.
        with contextlib.nullcontext() if store is None else store:
            if self._body.rewrites_contacts:
                text = with_contacts(text, request, store, fill_in=self._body.fill_contacts)
            return text, contact_spans(text, request.sources, store)

    def _usage(self, choices: Sequence[Choice]) -> dict[str, int]:
        prompts = sum(len(one.request.prompt) for one in self._wanted)
        return usage(prompts, sum(choice.tokens for choice in choices))


class EventStream(Response):
    """Server-sent events that stop the generation as soon as the client is gone, even between two tokens."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _unless_gone(self._send_all(send), receive, self._generation)

    async def _send_all(self, send: Send) -> None:
        async def event(data: str) -> None:
            await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})

        try:
            async for chunk in self._generation.chunks():
                await event(json.dumps(chunk, ensure_ascii=False))
        except RefusalError as refusal:
            await event(json.dumps(error_body(str(refusal), "server_error", refusal.code)))
        except TwinGPTError as error:
            await event(json.dumps(error_body(error.problem, "server_error", "generation_failed")))
        await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def respond(generation: Generation, request: Request, stream: bool) -> Response:
    headers = generation.headers
    if stream:
        return EventStream(generation, headers)
    answer = await _unless_gone(generation.whole(), request.receive, generation)
    # Nobody reads this one: 499 is what proxies log for a client that went away.
    return Response(status_code=499) if answer is None else JSONResponse(answer, headers=headers)


async def _unless_gone(work: Coroutine[Any, Any, Any], receive: Receive, generation: Generation) -> Any:
    """Await `work`; if the client goes away first, stop it. Either way the slot is free afterwards."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        generation.cancel()
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
