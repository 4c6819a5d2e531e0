"""From a prompt to text, with whichever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.files import CONTACTS_FILE
from twingpt.data.tokens.marks import END_ANSWER, END_SUMMARY, EOS
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Batcher, FinishReason, Request
from twingpt.generation.pieces import Piece, TextWriter

if TYPE_CHECKING:
    from twingpt.data.library.contact_store import ContactStore
    from twingpt.generation.answer_form import AnswerForm

UNVERIFIED = " (확인되지 않은 번호)"


def stream_tokens(backend: Backend, request: Request) -> Iterator[int]:
    """Token ids one by one, one that ends the text left out; past block_size the window slides, as Batcher says."""
    batcher = Batcher(backend, slots=1)
    batcher.add(request)
    while batcher:
        for event in batcher.step():
            if event.token is not None:
                yield event.token


def stream_text(backend: Backend, tokenizer: Tokenizer, request: Request) -> Iterator[str]:
    """Text in whole characters as it comes."""
    writer = TextWriter(tokenizer, request.stops, request.contacts)
    for token in stream_tokens(backend, request):
        if (piece := writer.push(token)) is not None:
            yield piece.text
        if writer.stopped:
            return
    if (piece := writer.finish()) is not None:
        yield piece.text


@dataclass(frozen=True, slots=True)
class Written:
    """A whole text, its tokens, and why it ended."""

    text: str
    tokens: list[int]
    reason: FinishReason


@dataclass(slots=True)
class _Unfinished:
    number: int
    writer: TextWriter
    tokens: list[int] = field(default_factory=list)
    text: str = ""

    def add(self, piece: Piece | None) -> None:
        self.text += piece.text if piece is not None else ""


def write_side_by_side(
    backend: Backend, tokenizer: Tokenizer, requests: Sequence[Request], slots: int
) -> Iterator[tuple[int, Written]]:
    """(number of the request, its text), each as soon as it is complete; `slots` are written at a time."""
    batcher = Batcher(backend, min(slots, max(1, len(requests))))
    unfinished = {
        batcher.add(request): _Unfinished(number, TextWriter(tokenizer, request.stops, request.contacts))
        for number, request in enumerate(requests)
    }
    while batcher:
        for event in batcher.step():
            one = unfinished[event.handle]
            if event.token is not None:
                one.tokens.append(event.token)
                one.add(one.writer.push(event.token))
            if event.finish_reason is not None or one.writer.stopped:
                batcher.remove(event.handle)
                one.add(one.writer.finish())
                del unfinished[event.handle]
                yield one.number, Written(one.text, one.tokens, event.finish_reason or "stop")


@lru_cache(maxsize=1)
def answer_form(tokenizer: Tokenizer) -> AnswerForm:
    """The form of an answer over this tokenizer, which takes a moment to make."""
    # Not before it is asked for: the sections and contacts of the data take a third of a second to import.
    from twingpt.generation.answer_form import AnswerForm

    return AnswerForm(tokenizer)


def stop_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.id(mark) for mark in (END_ANSWER, END_SUMMARY, EOS))


def with_contacts(text: str, request: Request, store: ContactStore | None, *, fill_in: bool) -> str:
    """An answer whose telephone numbers can be trusted, or are marked.

    request: what the answer was made from. fill_in: where it is known whose contacts are asked for, the section of
    contacts holds exactly those: the document's, else those that the store has of the question's topic. Elsewhere
    placeholders become the store's values by the name before them. A number that stands in neither the request nor the
    store is taken out; without fill_in it is only marked.
    Raises TwinGPTError if there is nothing to fill in from.
    """
    from twingpt.data.library.contact_store import UNRESOLVED, fill
    from twingpt.data.library.verify import verify_numbers

    if fill_in:
        if store is None and request.doc is None:
            raise TwinGPTError(
                tr(
                    "filling in contacts needs the {contacts_file} that `prepare` made beside the checkpoints",
                    contacts_file=CONTACTS_FILE,
                )
            )
        from twingpt.generation.answer_contacts import known_contacts, with_contact_section

        known = known_contacts(request.question, request.doc, store)
        if known is not None:
            text = with_contact_section(text, known)
        if store is not None:
            text = fill(text, store)
    # Digits that ran on behind a number that is taken out are a number of their own then: until none is left.
    while spans := verify_numbers(text, request.sources, store):
        for span in reversed(spans):
            replacement = UNRESOLVED if fill_in else span.text + UNVERIFIED
            text = text[: span.start] + replacement + text[span.end :]
        if not fill_in:
            break
    return text
