"""A model that writes: the one way from a RUN, or a checkpoint, to its texts, scores and logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, create_backend
from twingpt.core.engines import how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.files import TOKENIZER_FILE
from twingpt.data.tokens.marks import Template
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Constraint, Request
from twingpt.generation.prompts import placeholder_values, question_prompt, text_prompt
from twingpt.generation.writing import Written, answer_form, stop_tokens, stream_text, write_side_by_side
from twingpt.weights.checkpoint import Checkpoint, load_checkpoint
from twingpt.weights.run_folder import (
    check_tokenizer,
    library_of,
    load_tokenizer,
    open_contacts,
    template_of,
    trained_on_placeholders,
)

if TYPE_CHECKING:
    from twingpt.answers.answer import Answer
    from twingpt.data.library.contact_store import ContactStore
    from twingpt.generation.structure import Structure


MOST_NEW_TOKENS = 10_000_000
"""A book of ten thousand pages, and as many numbers as are set aside for one without being felt."""


@dataclass(frozen=True)
class Model:
    """A trained model in an engine, with its tokenizer.

    checkpoint: the folder that the weights were read from; None while they are in training. step: how many updates they
    have been trained for. masked: it was trained on placeholders for contacts, so a document's become placeholders, and
    those that it writes become the document's contacts again. template: what its training text was made into; None
    where nothing says so.
    """

    engine: Backend
    tokenizer: Tokenizer
    checkpoint: Path | None = None
    step: int = 0
    masked: bool = False
    template: Template | None = None

    @property
    def spec(self) -> GPTSpec:
        return self.engine.spec

    @property
    def run_dir(self) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint.parent.parent

    def contacts(self) -> ContactStore | None:
        """The store of contacts beside its checkpoints, if there is one; whoever asks for it closes it."""
        return None if self.run_dir is None else open_contacts(self.run_dir)

    def request(
        self,
        text: str | None = None,
        *,
        tokens: Sequence[int] | None = None,
        question: str | None = None,
        doc: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 400,
        structured: bool = False,
        structure: Structure | None = None,
        stops: tuple[str, ...] = (),
        top_logprobs: int | None = None,
        within_context: bool = False,
    ) -> Request:
        """What to write: on from a text or its tokens, or an answer to a question, from a document if one is given.

        tokens: read as they are, with whatever stands before the text among them.
        structured: an answer with all its sections in their order. structure: another form that the text must have;
        then a document's placeholders stay as the model writes them. within_context: no more tokens than the context
        has left; else the window slides. Raises UsageError unless one of text, tokens and question is given,
        PromptTooLongError if a question leaves no room, TwinGPTError if the model knows no questions, max_new_tokens is
        too few for the sections, a token is none of the vocabulary, or the structure allows no text.
        """
        if sum(one is not None for one in (text, tokens, question)) != 1:
            raise UsageError(tr("give a text to write on from, or a question"))
        if question is not None and self.template == "plain":
            raise TwinGPTError(
                tr(
                    "the model was trained on plain text (prepare --template plain), which has no questions: give it a "
                    "text to write on from (--prompt), or let `twingpt ask` find the answer in its text"
                )
            )
        if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
            raise UsageError(
                tr(
                    "max_new_tokens = {max_new_tokens}: it must be 1 to {most_new_tokens:,}",
                    max_new_tokens=max_new_tokens,
                    most_new_tokens=MOST_NEW_TOKENS,
                )
            )
        if tokens is not None:
            prompt, text = list(tokens), self.tokenizer.decode(tokens)
        elif text is not None:
            prompt = text_prompt(self.tokenizer, text)
        else:
            prompt = question_prompt(self.tokenizer, question or "", doc, self.spec.block_size, masked=self.masked)
        if within_context:
            # The last token is not read any more, so that it needs no place.
            max_new_tokens = min(max_new_tokens, max(1, self.spec.block_size - len(prompt) + 1))
        ends = stop_tokens(self.tokenizer)
        constraint = self._form(len(prompt), max_new_tokens) if structured else None
        if structure is not None:
            constraint = structure.constraint(self.tokenizer, ends, max_new_tokens)
        return Request(
            prompt,
            sampling or Sampling(),
            max_new_tokens,
            ends=ends,
            constraint=constraint,
            top_logprobs=top_logprobs,
            stops=stops,
            contacts=placeholder_values(doc) if self.masked and doc is not None and structure is None else {},
            text=text,
            question=question,
            doc=doc,
        )

    def _form(self, prompt_length: int, max_new_tokens: int) -> Constraint:
        """Holds an answer to its form, within what the context has left unless the form needs more than that."""
        form = answer_form(self.tokenizer)
        left = self.spec.block_size - prompt_length + 1
        return form.constraint(min(max_new_tokens, max(left, form.least)))

    def stream(
        self,
        text: str | None = None,
        *,
        question: str | None = None,
        doc: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 400,
        structured: bool = False,
    ) -> Iterator[str]:
        """Write what `request` says: whole characters as they come."""
        request = self.request(
            text,
            question=question,
            doc=doc,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            structured=structured,
        )
        yield from self.pieces(request)

    def generate(
        self,
        text: str | None = None,
        *,
        question: str | None = None,
        doc: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 400,
        structured: bool = False,
    ) -> str:
        """What `stream` writes, whole."""
        pieces = self.stream(
            text,
            question=question,
            doc=doc,
            sampling=sampling,
            max_new_tokens=max_new_tokens,
            structured=structured,
        )
        return "".join(pieces)

    def ask(self, question: str, *, doc: str | None = None) -> Answer:
        """What the run's own text answers, or a document's, in sentences that stand there: nothing is written freely.

        Raises UsageError if the question is empty, TwinGPTError if the run has no library.
        """
        from twingpt.answers.ask import ask_document, ask_library
        from twingpt.data.library.search import Library

        if doc is not None:
            return ask_document(doc, question)
        if self.run_dir is None:
            raise TwinGPTError(tr("the model has no folder, so there is no library to answer from: give a document"))
        with Library(library_of(self.run_dir)) as library:
            return ask_library(library, question)

    def pieces(self, request: Request) -> Iterator[str]:
        """The text of one request in whole characters as they come."""
        return stream_text(self.engine, self.tokenizer, request)

    def write(self, requests: Sequence[Request], slots: int = 8) -> Iterator[tuple[int, Written]]:
        """(number of the request, its text), each as soon as it is complete; `slots` are written at a time."""
        return write_side_by_side(self.engine, self.tokenizer, requests, slots)

    def logits(self, text: str) -> NDArray[np.float32]:
        """[T, vocab_size]: after [BOS] and after each token of the text, the logits of what follows.

        Raises UsageError if the text is longer than the context.
        """
        tokens = text_prompt(self.tokenizer, text)
        if len(tokens) > self.spec.block_size:
            raise UsageError(
                tr(
                    "the text takes {tokens} tokens, the model's context is {block_size}",
                    tokens=len(tokens),
                    block_size=self.spec.block_size,
                )
            )
        logits: NDArray[np.float32] = self.engine.logits(np.array([tokens], dtype=np.int32))[0]
        return logits

    def score(self, text: str) -> tuple[float, int]:
        """(log-probability of the text in nats, how many tokens it is). Raises UsageError as `logits` does."""
        tokens = text_prompt(self.tokenizer, text)
        logits = self.logits(text)[:-1].astype(np.float64)
        peak = logits.max(axis=-1, keepdims=True)
        log_z = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=-1))
        return float((logits[np.arange(len(logits)), tokens[1:]] - log_z).sum()), len(tokens) - 1


def load(path: Path | str, backend: str | None = None, device: DeviceChoice = "auto") -> Model:
    """The model of a RUN (its newest checkpoint), of RUN/best or of one checkpoint.

    backend: the engine; by default the last one installed, MLX where it is, since it starts faster. The optimizer's
    state is not read. Raises TwinGPTError if there is no checkpoint, no tokenizer or no engine.
    """
    backend = backend or default_backend()
    checkpoint = load_checkpoint(Path(path), optimizer=False)
    tokenizer = load_tokenizer(checkpoint.path.parent.parent)
    return open_model(checkpoint, tokenizer, create_backend(backend, checkpoint.spec, EngineConfig(device=device)))


def default_backend() -> str:
    """Raises TwinGPTError if there is no engine."""
    installed = installed_backends()
    if not installed:
        raise TwinGPTError(tr("no engine is installed: {advice}", advice=how_to_install()))
    return installed[-1]


def open_model(checkpoint: Checkpoint, tokenizer: Tokenizer, engine: Backend) -> Model:
    """The model of a checkpoint in an engine that was made for its spec.

    Raises TwinGPTError if the tokenizer, which lay beside it, is another one than it was trained with.
    """
    run_dir = checkpoint.path.parent.parent
    check_tokenizer(run_dir / TOKENIZER_FILE, tokenizer.sha256, checkpoint.progress.fingerprint)
    engine.load_state(checkpoint.state)
    masked, template = trained_on_placeholders(run_dir), template_of(run_dir)
    return Model(engine, tokenizer, checkpoint.path, checkpoint.progress.step, masked, template)
