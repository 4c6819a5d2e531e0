"""From a prompt to text, with whichever engine holds the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling, sample
from twingpt.data.template import END_ANSWER, END_SUMMARY, EOS, prompt_segments
from twingpt.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from twingpt.data.contacts import ContactStore

TOKENIZER_FILE = "tokenizer.json"
CONTACTS_FILE = "contacts.sqlite"
UNVERIFIED = " (확인되지 않은 번호)"


def stream_tokens(
    backend: Backend, prompt: list[int], sampling: Sampling, max_new_tokens: int, stop: frozenset[int]
) -> Iterator[int]:
    """Token ids one by one, the stop token left out.

    Past block_size the window slides: the older half of the context is dropped and the rest read again, which costs
    one pass over half a block every half block. A prompt that is too long is cut at its start.
    """
    capacity = backend.spec.block_size
    context = list(prompt[-(capacity - 1) :]) if capacity > 1 else list(prompt[-1:])
    cache = backend.new_cache(1, capacity)
    seen = list(prompt)
    logits = backend.prefill(cache, 0, np.array(context, dtype=np.int32))
    for _ in range(max_new_tokens):
        token = sample(logits, sampling, len(seen), np.array(seen))
        if token in stop:
            return
        yield token
        seen.append(token)
        if len(context) < capacity:
            logits = backend.decode(cache, [0], np.array([token], dtype=np.int32))[0]
            context.append(token)
        else:
            context = [*context[-(capacity // 2) :], token]
            backend.free(cache, 0)
            logits = backend.prefill(cache, 0, np.array(context[-capacity:], dtype=np.int32))


def stream_text(
    backend: Backend,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    *,
    stop: frozenset[int] | None = None,
) -> Iterator[str]:
    """Text in whole characters as it comes; by default it stops at [/ANSWER], [/SUMMARY] or [EOS]."""
    decoder = tokenizer.stream()
    tokens = stream_tokens(backend, prompt, sampling, max_new_tokens, stop_tokens(tokenizer) if stop is None else stop)
    for token in tokens:
        if text := decoder.push(token):
            yield text
    if text := decoder.flush():
        yield text


def stop_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    return frozenset(tokenizer.id(mark) for mark in (END_ANSWER, END_SUMMARY, EOS))


def question_prompt(tokenizer: Tokenizer, question: str, doc: str | None, block_size: int) -> list[int]:
    """The template that the model was trained on, up to [ANSWER].

    Raises TwinGPTError if it leaves no room for an answer: cutting it would lose the question.
    """
    ids, _ = tokenizer.encode_segments(prompt_segments(question, doc))
    if len(ids) >= block_size:
        what = "question" if doc is None else "question and document"
        raise TwinGPTError(
            f"the {what} take {len(ids)} tokens, the model's context is {block_size}: shorten them, "
            "or train with a larger --block-size"
        )
    return ids


def text_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """[BOS] and the text, which the model is to continue."""
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """Raises TwinGPTError if the run has no tokenizer, or a damaged one."""
    path = run_dir / TOKENIZER_FILE
    if not path.is_file():
        raise TwinGPTError(f"{path} is missing: copy the tokenizer.json that the model was trained with there")
    return Tokenizer.load(path)


def with_contacts(text: str, sources: Iterable[str], store: ContactStore | None, *, fill_in: bool) -> str:
    """An answer whose telephone numbers can be trusted, or are marked.

    sources: the question and the document that the answer was made from. fill_in: placeholders become the store's
    values, and a number that stands in neither the sources nor the store is taken out; otherwise it is only marked.
    Raises TwinGPTError if there is nothing to fill in from.
    """
    from twingpt.data.contacts import fill, verify_numbers
    from twingpt.data.contacts.store import UNRESOLVED

    if fill_in:
        if store is None:
            raise TwinGPTError(f"--fill-contacts needs the {CONTACTS_FILE} that `prepare` made beside the checkpoints")
        text = fill(text, store)
    for span in reversed(verify_numbers(text, sources, store)):
        replacement = UNRESOLVED if fill_in else span.text + UNVERIFIED
        text = text[: span.start] + replacement + text[span.end :]
    return text


def open_contacts(run_dir: Path) -> ContactStore | None:
    """The store that `train` copied from DATA, if there is one. Raises TwinGPTError if it is damaged."""
    from twingpt.data.contacts import ContactStore

    path = run_dir / CONTACTS_FILE
    return ContactStore.open(path) if path.is_file() else None
