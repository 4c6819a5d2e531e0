"""From the body of a request to what the engine is to write, in a thread of its own: a long text takes long to cut."""

from dataclasses import dataclass, replace
from typing import Any

from twingpt.core.errors import GrammarError
from twingpt.core.language import tr
from twingpt.core.sampling import Sampling
from twingpt.generation.batching import Request
from twingpt.generation.model import Model
from twingpt.serve.formats import structure_of
from twingpt.serve.refusals import TOO_LONG, RefusalError
from twingpt.serve.schemas import ChatRequest, CompletionRequest

DEFAULT_TOKENS = 400


@dataclass(frozen=True, slots=True)
class Wanted:
    """One text to write.

    hidden: tokens at the prompt's start that the server put there. prompt_only: nothing is to be written. cut_to: the
    tokens given where more were asked for.
    """

    request: Request
    hidden: int = 0
    prompt_only: bool = False
    cut_to: int | None = None


def completion_prompts(model: Model, body: CompletionRequest, sampling: Sampling, limit: int) -> list[Wanted]:
    """limit: tokens that one answer may have. Raises RefusalError, TwinGPTError for a token that is none."""
    return [_completion(model, body, prompt, sampling, limit) for prompt in body.prompts]


def chat_prompt(model: Model, body: ChatRequest, sampling: Sampling, limit: int) -> Wanted:
    """Raises RefusalError, PromptTooLongError, and what `Model.request` raises for a form that does not fit."""
    block_size = model.spec.block_size
    # Its contacts are brought into form before it is counted, which for a text of any length would take any time.
    if body.doc is not None and model.tokenizer.count(body.doc) > 2 * block_size:
        # Clients tell by these words of OpenAI's that it is the length, where they do not read the code.
        message = tr(
            "the document is too long, this model's maximum context length is {block_size}: give what matters of it",
            block_size=block_size,
        )
        raise RefusalError(400, message, TOO_LONG)
    structured = body.format == "answer"
    return _wanted(model, body, sampling, limit, question=body.question, doc=body.doc, structured=structured)


def _completion(
    model: Model, body: CompletionRequest, prompt: str | list[int], sampling: Sampling, limit: int
) -> Wanted:
    if isinstance(prompt, str):
        wanted = replace(_wanted(model, body, sampling, limit, text=prompt), hidden=1)
    else:
        wanted = _wanted(model, body, sampling, limit, tokens=prompt)
    read, block_size = len(wanted.request.prompt), model.spec.block_size
    prompt_only = body.max_tokens == 0
    # A prompt that fills the context can still be scored, but nothing can follow it.
    if read > block_size - (not prompt_only):
        message = tr(
            "the prompt takes {read} tokens, this model's maximum context length is {block_size}: shorten it",
            read=read,
            block_size=block_size,
        )
        raise RefusalError(400, message, TOO_LONG)
    return replace(wanted, prompt_only=prompt_only)


def _wanted(
    model: Model,
    body: CompletionRequest | ChatRequest,
    sampling: Sampling,
    limit: int,
    *,
    structured: bool = False,
    **prompt: Any,
) -> Wanted:
    """The text to write, as long as it was asked for or as there is room, and in its form, which may take a while."""
    asked = DEFAULT_TOKENS if body.limit is None else body.limit
    structure = None
    try:
        for kind, form in body.forms:
            structure = structure_of(kind, form)
        request = model.request(
            **prompt,
            sampling=sampling,
            max_new_tokens=min(asked, limit) if asked > 0 else limit,
            structured=structured,
            structure=structure,
            stops=body.stops,
            top_logprobs=body.top_logprobs_wanted,
            # The form of an answer keeps itself within the context, or needs more than that.
            within_context=not structured,
        )
    except GrammarError as error:
        raise RefusalError(400, f"{body.forms[0][0]}: {error.problem}", "invalid_response_format") from None
    cut = body.limit is not None and body.limit > request.max_new_tokens
    return Wanted(request, cut_to=request.max_new_tokens if cut else None)
