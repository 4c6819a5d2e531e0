"""From a prompt to text, with whichever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling
from twingpt.data.files import CONTACTS_FILE, TOKENIZER_FILE
from twingpt.data.tokens.template import END_ANSWER, END_SUMMARY, EOS
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Batcher, Constraint, FinishReason

if TYPE_CHECKING:
    from twingpt.data.library.contact_store import ContactStore
    from twingpt.generation.answer_form import AnswerForm

UNVERIFIED = " (확인되지 않은 번호)"


def stream_tokens(
    backend: Backend,
    prompt: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    stop: frozenset[int],
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Token ids one by one, the stop token left out; past block_size the window slides, as Batcher says."""
    batcher = Batcher(backend, slots=1)
    batcher.add(prompt, sampling, max_new_tokens, stop, constraint)
    while batcher:
        for event in batcher.step():
            if event.token is not None:
                yield event.token


def stream_text(
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    *,
    stop: frozenset[int] | None = None,
    constraint: Constraint | None = None,
) -> Iterator[str]:
    """Text in whole characters as it comes; by default it stops at [/ANSWER], [/SUMMARY] or [EOS]."""
    decoder = tokenizer.stream()
    ends = stop_tokens(tokenizer) if stop is None else stop
    for token in stream_tokens(backend, prompt, sampling, max_new_tokens, ends, constraint):
        if text := decoder.push(token):
            yield text
    if text := decoder.flush():
        yield text


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write. structured: an answer with all its sections, in their order (answer_form)."""

    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    structured: bool = False

    def constraint(self, form: AnswerForm | None, block_size: int) -> Constraint | None:
        """What holds it to its form, within what the context has left unless the form needs more than that.

        Raises TwinGPTError if max_new_tokens is too few for the form.
        """
        if not self.structured or form is None:
            return None
        left = block_size - len(self.prompt) + 1
        return form.constraint(min(self.max_new_tokens, max(left, form.least)))


def write_side_by_side(
    backend: Backend, tokenizer: Tokenizer, requests: Sequence[Request], slots: int
) -> Iterator[tuple[int, list[int], FinishReason]]:
    """(number of the request, its tokens, why it ended), each as soon as it is complete; `slots` are written at a time.

    Raises TwinGPTError if a structured answer has no room for its form.
    """
    form = answer_form(tokenizer) if any(request.structured for request in requests) else None
    batcher = Batcher(backend, min(slots, max(1, len(requests))))
    stop = stop_tokens(tokenizer)
    numbers: dict[int, int] = {}
    for number, request in enumerate(requests):
        constraint = request.constraint(form, backend.spec.block_size)
        handle = batcher.add(request.prompt, request.sampling, request.max_new_tokens, stop, constraint)
        numbers[handle] = number
    tokens: dict[int, list[int]] = {handle: [] for handle in numbers}
    while batcher:
        for event in batcher.step():
            if event.token is not None:
                tokens[event.handle].append(event.token)
            if event.finish_reason is not None:
                yield numbers[event.handle], tokens.pop(event.handle), event.finish_reason


def answer_form(tokenizer: Tokenizer) -> AnswerForm:
    # Not before it is asked for: the sections and contacts of the data take a third of a second to import.
    from twingpt.generation.answer_form import AnswerForm

    return AnswerForm(tokenizer)


def stop_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.id(mark) for mark in (END_ANSWER, END_SUMMARY, EOS))


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """Raises TwinGPTError if the run has no tokenizer, or a damaged one."""
    path = run_dir / TOKENIZER_FILE
    if not path.is_file():
        raise TwinGPTError(f"{path} is missing: copy the tokenizer.json that the model was trained with there")
    # A prompt is encoded before the fast encoder is ready.
    return Tokenizer.load(path, fast=False)


def with_contacts(
    text: str,
    sources: Iterable[str],
    store: ContactStore | None,
    *,
    fill_in: bool,
    question: str | None = None,
    doc: str | None = None,
) -> str:
    """An answer whose telephone numbers can be trusted, or are marked.

    sources: the question and the document that the answer was made from. fill_in: where it is known whose contacts are
    asked for, the section of contacts holds exactly those: the document's (doc), else those that the store has of the
    question's topic. Elsewhere placeholders become the store's values by the name before them. A number that stands in
    neither the sources nor the store is taken out; without fill_in it is only marked.
    Raises TwinGPTError if there is nothing to fill in from.
    """
    from twingpt.data.library.contact_store import UNRESOLVED, fill
    from twingpt.data.library.verify import verify_numbers

    if fill_in:
        if store is None and doc is None:
            raise TwinGPTError(f"--fill-contacts needs the {CONTACTS_FILE} that `prepare` made beside the checkpoints")
        from twingpt.generation.answer_contacts import known_contacts, with_contact_section

        known = known_contacts(question, doc, store)
        if known is not None:
            text = with_contact_section(text, known)
        if store is not None:
            text = fill(text, store)
    # Digits that ran on behind a number that is taken out are a number of their own then: until none is left.
    while spans := verify_numbers(text, sources, store):
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
