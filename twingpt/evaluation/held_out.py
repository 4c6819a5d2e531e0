"""Answers to the questions of held-out documents, written side by side and measured."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.core.sampling import Sampling
from twingpt.data.files import SAMPLES_FILE
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.text.corpus import seeded_order
from twingpt.data.tokens.template import Sample
from twingpt.evaluation.metrics import Measures, measure, summarise, to_dict
from twingpt.generation.model import Model
from twingpt.generation.writing import with_contacts


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSettings:
    """How answers are written.

    sampling: its seed is of the first answer; each further one has the next. structured: the form is forced.
    fill_contacts: as in with_contacts. slots: answers written side by side.
    """

    sampling: Sampling
    max_new_tokens: int = 400
    structured: bool = False
    fill_contacts: bool = False
    slots: int = 8


@dataclass(frozen=True, slots=True)
class Answered:
    """One question of a held-out document with what the model made of it."""

    sample: Sample
    answer: str
    measures: Measures

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.sample.id,
            "kind": self.sample.kind,
            "question": self.sample.question,
            "doc": self.sample.doc,
            "answer": self.answer,
            "reference": self.sample.answer,
            "measures": to_dict(self.measures),
        }

    def to_text(self) -> str:
        """For reading."""
        doc = f"\n[문서]\n{self.sample.doc}" if self.sample.doc is not None else ""
        return (
            f"=== {self.sample.id}\n[질문] {self.sample.question}{doc}\n"
            f"[답변]\n{self.answer}\n[참조]\n{self.sample.answer}\n"
        )


def held_out_questions(data: Path, number: int, seed: int) -> list[Sample]:
    """`number` of the validation documents' questions, drawn by the seed, in their order; all if there are fewer.

    Empty where DATA has no samples (plain text), or none of a validation document.
    """
    path = data / SAMPLES_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        found = [s for s in map(Sample.from_json, file) if s.split == "val" and s.question is not None]
    chosen = seeded_order(len(found), seed)[:number] if len(found) > number else range(len(found))
    return [found[i] for i in sorted(int(i) for i in chosen)]


def answer_all(
    model: Model,
    samples: Sequence[Sample],
    store: ContactStore | None,
    settings: AnswerSettings,
    advance: Callable[[], None] = lambda: None,
) -> list[Answered]:
    """Write and measure an answer to each sample's question. Raises TwinGPTError if one does not fit the model."""
    requests = [
        model.request(
            question=sample.question,
            doc=sample.doc,
            sampling=replace(settings.sampling, seed=settings.sampling.seed + number),
            max_new_tokens=settings.max_new_tokens,
            structured=settings.structured,
        )
        for number, sample in enumerate(samples)
    ]
    found: dict[int, Answered] = {}
    for number, written in model.write(requests, settings.slots):
        sample, request, answer = samples[number], requests[number], written.text
        if settings.fill_contacts:
            answer = with_contacts(answer, request, store, fill_in=True)
        found[number] = Answered(
            sample,
            answer,
            measure(
                answer,
                written.tokens,
                sample.answer,
                request.sources,
                store,
                finished=written.reason == "stop",
                filled=settings.fill_contacts,
            ),
        )
        advance()
    return [found[number] for number in range(len(samples))]


def figures(answered: Sequence[Answered]) -> dict[str, dict[str, float | int | None]]:
    """`summarise` of all answers, and of those to each kind of question that there is."""
    kinds = {kind: [a.measures for a in answered if a.sample.kind == kind] for kind in ("closed", "open")}
    return {
        "all": summarise([a.measures for a in answered]),
        **{kind: summarise(measures) for kind, measures in kinds.items() if measures},
    }


def write_answers(path: Path, answered: Sequence[Answered]) -> None:
    """JSON lines for a name in .jsonl, else text for reading. Raises TwinGPTError if it cannot be written."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(one.to_dict(), ensure_ascii=False) for one in answered]
    else:
        lines = [one.to_text() for one in answered]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None
