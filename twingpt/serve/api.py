"""The OpenAI routes: who may ask which model what, and who answers."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from twingpt.core.language import tr
from twingpt.generation.model import Model
from twingpt.serve.answering import Generation, respond
from twingpt.serve.asking import Asking
from twingpt.serve.refusals import RefusalError
from twingpt.serve.schemas import ChatRequest, CompletionRequest, ErrorResponse
from twingpt.serve.service import Service, new_seed
from twingpt.serve.wanted import Wanted, chat_prompt, completion_prompts

REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 403, 404, 408, 413, 429, 503)
}
GENERATION: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}},
    **REFUSALS,
}

LONG_PROMPT = 10_000
"""Characters, or tokens, of a request's prompts that are cut into tokens within a few milliseconds."""


def routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["OpenAI"])
    # Neither in the loop nor side by side: bringing a document's contacts into form takes a while, as does a schema or
    # a long text. The short ones do not wait for those.
    slow, quick = asyncio.Lock(), asyncio.Lock()
    asking = Asking(service)

    async def prepared(work: Callable[..., Any], body: CompletionRequest | ChatRequest, *, long: bool) -> Any:
        model = await _model(service)
        sampling, limit = body.sampling(new_seed()), service.limits.max_tokens
        async with slow if long else quick:
            return await asyncio.to_thread(work, model, body, sampling, limit)

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
        """Write on from a text, or from several; with `echo` and `logprobs`, score them."""
        _check_model(service, body.model)
        places = service.limits.max_waiting + service.worker.slots
        if len(body.prompts) > places:
            raise RefusalError(
                400, tr("prompt: this server takes {places} at one time", places=places), "too_many_prompts"
            )
        long = bool(body.forms) or sum(map(len, body.prompts)) > LONG_PROMPT
        wanted: list[Wanted] = await prepared(completion_prompts, body, long=long)
        return await respond(Generation(service, body, wanted, _client(request, body.user)), request, bool(body.stream))

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
            raise RefusalError(400, tr("this model was trained on plain text: use /v1/completions"), "no_chat_template")
        wanted: Wanted = await prepared(chat_prompt, body, long=True)
        return await respond(
            Generation(service, body, [wanted], _client(request, body.user)), request, bool(body.stream)
        )

    return router


async def _model(service: Service) -> Model:
    """The model; one that is being loaded just now is waited for. Raises RefusalError where there is none."""
    worker = service.worker
    deadline = time.monotonic() + service.limits.seconds
    while (loading := worker.loading) is not None and time.monotonic() < deadline:
        # Shielded, since whoever gives up waiting must not call the loading off.
        await asyncio.wait([asyncio.shield(asyncio.wrap_future(loading))], timeout=deadline - time.monotonic())
    model = service.model.loaded
    if model is None or not worker.ready:
        if worker.loading is not None and time.monotonic() < deadline:
            # It began between the two looks.
            return await _model(service)
        raise RefusalError(503, worker.problem, "no_model", retry_after=10)
    return model


def _check_model(service: Service, name: str | None) -> None:
    if name not in (None, service.name, service.free_name, "twingpt"):
        raise RefusalError(
            404,
            tr("there is no model {name!r} here; this server has {service!r}", name=name, service=service.name),
            "model_not_found",
        )


def _client(request: Request, user: str | None) -> str:
    """Whose turn it is in the queue: an address, and the user it names, if any."""
    return f"{request.client.host if request.client else ''}/{user or ''}"
