"""How good a model is on the held-out part of its text: what `eval` shows, and `twingpt.evaluate` returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.data.files import SAMPLES_FILE
from twingpt.data.tokens.batches import Batches
from twingpt.data.tokens.manifest import Manifest
from twingpt.evaluation.held_out import Answered, AnswerSettings, answer_all, figures, held_out_questions
from twingpt.generation.model import Model
from twingpt.training.validation import evaluate as evaluate_loss
from twingpt.weights.run_files import check_file
from twingpt.weights.run_folder import open_contacts


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What was measured of one checkpoint, on the whole validation split.

    loss: nats a token. answers: those to questions of validation documents, in their order; none where none were asked
    for, or DATA has no question about such a document.
    """

    checkpoint: Path | None
    backend: str
    device: str
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    text_bytes: int
    answers: list[Answered] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, dict[str, float | int | None]]:
        """Of the answers: of all of them, and by kind of question. Empty where there is no answer."""
        return figures(self.answers) if self.answers else {}

    def loss_figures(self) -> dict[str, Any]:
        """All but the answers, by name."""
        names = ("backend", "device", "loss", "perplexity", "bits_per_byte", "tokens", "text_bytes")
        return {"checkpoint": self.checkpoint, **{name: getattr(self, name) for name in names}}


class Watcher:
    """Hears how many answers there will be, and each that is there; this one says nothing."""

    def start(self, total: int) -> None: ...

    def advance(self) -> None: ...


def evaluate_model(
    model: Model,
    data: Path,
    *,
    questions: int,
    seed: int,
    settings: AnswerSettings,
    batch_size: int = 8,
    named: str = "",
    watcher: Watcher | None = None,
) -> Evaluated:
    """questions: how many of the validation documents' to answer; the seed draws them. named: the model, in a refusal.

    Raises UsageError if DATA was not packed with the model's tokenizer, TwinGPTError if it cannot be read.
    """
    manifest, engine, watcher = Manifest.load(data), model.engine, watcher or Watcher()
    named = named or tr("the model")
    if model.spec.vocab_size != manifest.vocab_size:
        raise UsageError(
            tr(
                "{named} has vocabulary {vocab_size}, {data} has {data_vocab_size}",
                named=named,
                vocab_size=model.spec.vocab_size,
                data=data,
                data_vocab_size=manifest.vocab_size,
            )
        )
    if model.tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UsageError(
            tr(
                "{data} was packed with another tokenizer than {named} was trained with: name the DATA of that run",
                data=data,
                named=named,
            )
        )
    batches = Batches(data, manifest, manifest.validation_split, model.spec.block_size)
    result = evaluate_loss(engine, batches, model.tokenizer.token_bytes(), batch_size)
    return Evaluated(
        checkpoint=model.checkpoint,
        backend=engine.name,
        device=engine.device,
        loss=result.loss,
        perplexity=result.perplexity,
        bits_per_byte=result.bits_per_byte,
        tokens=result.tokens,
        text_bytes=result.text_bytes,
        answers=_answers(model, data, questions, seed, settings, watcher),
    )


def _answers(
    model: Model, data: Path, number: int, seed: int, settings: AnswerSettings, watcher: Watcher
) -> list[Answered]:
    check_file(data, SAMPLES_FILE)
    samples = held_out_questions(data, number, seed) if number else []
    if not samples:
        return []
    watcher.start(len(samples))
    store = open_contacts(data)
    try:
        return answer_all(model, samples, store, settings, watcher.advance)
    finally:
        if store is not None:
            store.close()
