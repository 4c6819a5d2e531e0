"""The OpenAI routes: from a request to a job for the engine, and from its text to an answer."""

import asyncio
import contextlib
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from twingpt.core.errors import GrammarError, TwinGPTError
from twingpt.generation.batching import Request as TextRequest
from twingpt.generation.model import Model
from twingpt.generation.pieces import Piece, TokenLogprob
from twingpt.generation.writing import with_contacts
from twingpt.serve.asking import Asking
from twingpt.serve.formats import structure_of
from twingpt.serve.responses import Shape, contact_spans, usage
from twingpt.serve.schemas import ChatRequest, CompletionRequest, ErrorResponse
from twingpt.serve.security import error_body
from twingpt.serve.service import Service, new_seed
from twingpt.serve.worker import Finished, Job, QueueFullError, Update

DEFAULT_TOKENS = 400
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 413, 429, 503)
}
GENERATION: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}},
    **REFUSALS,
}


class RefusalError(Exception):
    """A request that ends in an error of OpenAI's shape."""

    def __init__(self, status: int, message: str, code: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self.headers = {} if retry_after is None else {"retry-after": str(retry_after)}

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        return JSONResponse(error_body(str(self), kind, self.code), self.status, headers=self.headers)


class Generation:
    """One request under way."""

    def __init__(
        self, service: Service, body: CompletionRequest | ChatRequest, request: TextRequest, client: str
    ) -> None:
        self._service, self._body, self._request = service, body, request
        if body.fill_contacts and request.doc is None and not service.has_contacts:
            raise RefusalError(400, "fill_contacts needs the contacts.sqlite that `prepare` makes", "no_contacts")
        self._updates: asyncio.Queue[Update] = asyncio.Queue()
        logprobs = request.top_logprobs is not None
        self.shape = Shape(isinstance(body, ChatRequest), service.name, service.tokenizer, logprobs)
        self._job = Job(
            request,
            service.tokenizer,
            client=client,
            deadline=time.monotonic() + service.limits.seconds,
            emit=self._emitter(),
        )
        try:
            service.worker.submit(self._job)
        except QueueFullError:
            raise RefusalError(429, "too many requests are waiting; try again", "queue_full", retry_after=1) from None

    def _emitter(self) -> Any:
        loop, put = asyncio.get_running_loop(), self._updates.put_nowait

        def emit(update: Update) -> None:
            # The loop is closed only when the server ends, and then nobody reads on.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(put, update)

        return emit

    def cancel(self) -> None:
        """Free the slot; harmless after the end."""
        self._service.worker.cancel(self._job)

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        text, logprobs, finished = await self._collect()
        text, extra = await self._with_contacts(text)
        return self.shape.whole(text, logprobs, finished.reason or "stop", self._usage(finished), extra)

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it comes; in one piece where its contacts are to be rewritten, since that needs all of it."""
        if (opening := self.shape.opening()) is not None:
            yield opening
        if self._body.rewrites_contacts:
            text, logprobs, finished = await self._collect()
            text, extra = await self._with_contacts(text)
            yield self.shape.piece(text, logprobs)
        else:
            parts = []
            while isinstance(update := await self._updates.get(), Piece):
                parts.append(update.text)
                yield self.shape.piece(update.text, update.logprobs)
            finished = _checked(update)
            _, extra = await self._with_contacts("".join(parts))
        yield self.shape.closing(finished.reason or "stop", extra)
        if self._body.stream_options is not None and self._body.stream_options.include_usage:
            yield self.shape.usage(self._usage(finished))

    async def _collect(self) -> tuple[str, list[TokenLogprob], Finished]:
        parts: list[str] = []
        logprobs: list[TokenLogprob] = []
        while isinstance(update := await self._updates.get(), Piece):
            parts.append(update.text)
            logprobs.extend(update.logprobs)
        return "".join(parts), logprobs, _checked(update)

    async def _with_contacts(self, text: str) -> tuple[str, dict[str, Any]]:
        """The text as the request wants its contacts, and what is told beside OpenAI's fields."""
        body = self._body
        extra: dict[str, Any] = {"seed": self._request.sampling.seed}
        if isinstance(body, ChatRequest):
            extra["messages_not_read"] = body.messages_not_read
        if body.rewrites_contacts or body.annotate_contacts:
            text, extra["contacts"] = await asyncio.to_thread(self._contacts, text)
        return text, extra

    def _contacts(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        request, store = self._request, self._service.contacts()
        # Not `store or`: one without contacts has the length 0.
        with contextlib.nullcontext() if store is None else store:
            if self._body.rewrites_contacts:
                text = with_contacts(text, request, store, fill_in=self._body.fill_contacts)
            return text, contact_spans(text, request.sources, store)

    def _usage(self, finished: Finished) -> dict[str, int]:
        return usage(len(self._request.prompt), finished.tokens)


def _checked(finished: Finished) -> Finished:
    if finished.problem is not None:
        raise RefusalError(503, finished.problem, "generation_failed", retry_after=1)
    return finished


class EventStream(Response):
    """Server-sent events that stop the generation as soon as the client is gone, even between two tokens."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
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
            await event(json.dumps(error_body(str(error), "server_error", "generation_failed")))
        await event("[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _unless_gone(work: Any, receive: Receive, generation: Generation) -> Any:
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


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    # Bringing a document's contacts into form takes a while, as does a schema: not in the loop, and one at a time.
    encoding = asyncio.Lock()
    asking = Asking(service)

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": service.created, "owned_by": "twingpt"}

    @router.get("/models", responses={s: REFUSALS[s] for s in (401, 403)})
    async def models() -> dict[str, Any]:
        """The run, which answers from its text, and its model, which writes freely."""
        return {"object": "list", "data": [card(service.name), card(service.free_name)]}

    @router.get("/models/{model:path}", responses={s: REFUSALS[s] for s in (401, 403, 404)})
    async def model(model: str) -> dict[str, Any]:
        """The model of this name."""
        _check_model(service, model)
        return card(model)

    @router.post("/completions", responses=GENERATION)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Write on from a text."""
        _check_model(service, body.model)
        model, options = _model(service), _options(service, body)
        if body.forms:
            async with encoding:
                wanted = await asyncio.to_thread(_request, model, body, options, text=body.text)
        else:
            wanted = _request(model, body, options, text=body.text)
        # What of a long text the model sees; to look for contacts in the rest would only take time.
        seen = service.tokenizer.decode(wanted.prompt[-model.spec.block_size :])
        generation = Generation(service, body, dataclasses.replace(wanted, text=seen), _client(request, body.user))
        return await _respond(generation, request, bool(body.stream))

    @router.post("/chat/completions", responses=GENERATION)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a question: the run's name from its text, with sources; NAME:free as the model writes.

        A run without a library answers as its model writes, as does one that is asked for a form of the answer.
        """
        _check_model(service, body.model)
        free = body.model == service.free_name or body.format is not None or body.forms
        if not free and service.library.is_file():
            return await asking.respond(body)
        if service.template == "plain":
            raise RefusalError(400, "this model was trained on plain text: use /v1/completions", "no_chat_template")
        model = _model(service)
        async with encoding:
            wanted = await asyncio.to_thread(_chat_request, service, model, body)
        generation = Generation(service, body, wanted, _client(request, body.user))
        return await _respond(generation, request, bool(body.stream))

    return router


async def _respond(generation: Generation, request: Request, stream: bool) -> Response:
    if stream:
        return EventStream(generation)
    answer = await _unless_gone(generation.whole(), request.receive, generation)
    # Nobody reads this one: 499 is what proxies log for a client that went away.
    return Response(status_code=499) if answer is None else JSONResponse(answer)


def _model(service: Service) -> Model:
    model = service.model.loaded
    if model is None or not service.worker.ready:
        raise RefusalError(503, service.worker.problem, "no_model", retry_after=10)
    return model


def _options(service: Service, body: CompletionRequest | ChatRequest) -> dict[str, Any]:
    """What both kinds of request ask of the model."""
    limit = service.limits.max_tokens
    if (body.limit or 0) > limit:
        raise RefusalError(400, f"max_tokens: this server gives {limit} at the most", "max_tokens_too_large")
    return {
        "sampling": body.sampling(new_seed()),
        "max_new_tokens": body.limit or min(DEFAULT_TOKENS, limit),
        "stops": body.stops,
        "top_logprobs": body.top_logprobs_wanted,
    }


def _chat_request(service: Service, model: Model, body: ChatRequest) -> TextRequest:
    block_size = model.spec.block_size
    # Its contacts are brought into form before it is counted, which for a text of any length would take any time.
    if body.doc is not None and service.tokenizer.count(body.doc) > 2 * block_size:
        message = f"the document is longer than the model's context of {block_size} tokens: give the part that matters"
        raise RefusalError(400, message, "context_length_exceeded")
    structured = body.format == "answer"
    options = _options(service, body)
    return _request(model, body, options, question=body.question, doc=body.doc, structured=structured)


def _request(
    model: Model, body: CompletionRequest | ChatRequest, options: dict[str, Any], **prompt: Any
) -> TextRequest:
    """The job for the engine, with its form worked out, which may take a while."""
    structure = None
    try:
        for kind, form in body.forms:
            structure = structure_of(kind, form)
        return model.request(**prompt, **options, structure=structure)
    except GrammarError as error:
        raise RefusalError(400, f"{body.forms[0][0]}: {error}", "invalid_response_format") from None


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.name, service.free_name, "twingpt"):
        raise RefusalError(404, f"there is no model {name!r} here; this server has {service.name!r}", "model_not_found")


def _client(request: Request, user: str | None) -> str:
    """Whose turn it is in the queue: an address, and the user it names, if any."""
    return f"{request.client.host if request.client else ''}/{user or ''}"


def refuse(error: TwinGPTError) -> JSONResponse:
    """A prompt that the tokenizer or the template refuses is the request's mistake."""
    return JSONResponse(error_body(str(error), "invalid_request_error", "invalid_prompt"), 400)
