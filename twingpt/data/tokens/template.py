"""The token template of a sample: which special token stands where, and what of it is trained on."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.tokens.marks import (
    ANSWER,
    BOS,
    DOC,
    END_ANSWER,
    END_DOC,
    END_QUESTION,
    END_SUMMARY,
    EOS,
    QUESTION,
    SUMMARY,
)

Kind = Literal["closed", "open", "summary"]
SplitName = Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a sample.

    mark: the text names one special token; otherwise it is ordinary text, whatever it looks like.
    counted: the loss counts its tokens as targets also under --mask-prompt.
    """

    text: str
    mark: bool
    counted: bool


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of samples.jsonl.

    id: "000012/closed/0" = document, kind, number within the kind.
    question is None for kind "summary"; doc is None for kind "closed".
    """

    id: str
    document: int
    kind: Kind
    split: SplitName
    question: str | None
    doc: str | None
    answer: str

    def to_json(self) -> str:
        """One line, without the line end."""
        return _ENCODER.encode({name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def from_json(cls, line: str) -> "Sample":
        """Raises TwinGPTError if the line is not a sample."""
        try:
            raw: dict[str, Any] = json.loads(line)
            sample = cls(**raw)
        except (TypeError, ValueError) as error:
            raise TwinGPTError(tr("not a sample ({error}): {line!r}", error=error, line=line[:80])) from None
        if sample.kind not in ("closed", "open", "summary") or sample.split not in ("train", "val"):
            raise TwinGPTError(
                tr(
                    "not a sample (kind {kind!r}, split {split!r}): {line!r}",
                    kind=sample.kind,
                    split=sample.split,
                    line=line[:80],
                )
            )
        return sample


_FIELDS = tuple(field.name for field in dataclasses.fields(Sample))
_ENCODER = json.JSONEncoder(ensure_ascii=False)


@cache
def _mark(name: str, counted: bool) -> Segment:
    return Segment(name, mark=True, counted=counted)


def _text(text: str, counted: bool) -> Segment:
    return Segment(text, mark=False, counted=counted)


def prompt_segments(question: str, doc: str | None) -> list[Segment]:
    """[BOS][QUESTION]q[/QUESTION] ([DOC]d[/DOC]) [ANSWER]: what a model is given to answer."""
    segments = [_mark(BOS, False), _mark(QUESTION, False), _text(question, False), _mark(END_QUESTION, False)]
    if doc is not None:
        segments += [_mark(DOC, False), _text(doc, False), _mark(END_DOC, False)]
    return [*segments, _mark(ANSWER, False)]


def sample_segments(sample: Sample) -> list[Segment]:
    """The whole sample, [BOS] ... [EOS]. Raises TwinGPTError if a field that its kind needs is missing."""
    if sample.kind == "summary":
        if sample.doc is None:
            raise TwinGPTError(tr("sample {id} of kind summary has no doc", id=sample.id))
        start = [_mark(BOS, False), _mark(DOC, False), _text(sample.doc, False), _mark(END_DOC, False)]
        opening, closing = _mark(SUMMARY, False), _mark(END_SUMMARY, True)
        return [*start, opening, _text(sample.answer, True), closing, _mark(EOS, True)]
    if sample.question is None:
        raise TwinGPTError(tr("sample {id} of kind {kind} has no question", id=sample.id, kind=sample.kind))
    if (sample.doc is None) != (sample.kind == "closed"):
        raise TwinGPTError(tr("sample {id} of kind {kind}: doc and kind disagree", id=sample.id, kind=sample.kind))
    prompt = prompt_segments(sample.question, sample.doc)
    return [*prompt, _text(sample.answer, True), _mark(END_ANSWER, True), _mark(EOS, True)]
