"""From a prompt to text, with whichever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.data.files import CONTACTS_FILE, TOKENIZER_FILE
from twingpt.data.tokens.template import END_ANSWER, END_SUMMARY, EOS
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Batcher, FinishReason, Request
from twingpt.generation.pieces import Piece, TextWriter
from twingpt.generation.prompts import trained_on_arrays

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


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """Raises TwinGPTError if the run has no tokenizer, or a damaged one."""
    path = run_dir / TOKENIZER_FILE
    if not path.is_file() and trained_on_arrays(run_dir):
        raise TwinGPTError(
            f"{run_dir} was trained on arrays of tokens, so it has no tokenizer to read or write text with: "
            f"put the {TOKENIZER_FILE} there that made the arrays, if twingpt made it"
        )
    if not path.is_file():
        raise TwinGPTError(f"{path} is missing: copy the tokenizer.json that the model was trained with there")
    # A prompt is encoded before the fast encoder is ready.
    return Tokenizer.load(path, fast=False)


def check_tokenizer(path: Path, sha256: str, fingerprint: dict[str, str]) -> None:
    """Raises TwinGPTError if a tokenizer is not the one that a checkpoint, with this fingerprint, was trained with.

    path: where it lies. A checkpoint that was trained on arrays of tokens does not say which it was.
    """
    recorded = fingerprint.get("tokenizer", sha256)
    if recorded != sha256:
        raise TwinGPTError(
            f"{path} is not the tokenizer that the model was trained with ({recorded[:12]}… there, {sha256[:12]}… "
            f"here): put the {TOKENIZER_FILE} of its own DATA in its place"
        )


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
            raise TwinGPTError(f"--fill-contacts needs the {CONTACTS_FILE} that `prepare` made beside the checkpoints")
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


def open_contacts(run_dir: Path) -> ContactStore | None:
    """The store that `train` copied from DATA, if there is one. Raises TwinGPTError if it is damaged."""
    from twingpt.data.library.contact_store import ContactStore

    path = run_dir / CONTACTS_FILE
    return ContactStore.open(path) if path.is_file() else None
