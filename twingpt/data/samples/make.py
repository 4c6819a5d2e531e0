"""Training samples of a document: open-book, closed-book and the summary form, each within block_size."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.data.contacts import Contact
from twingpt.data.samples import questions as q
from twingpt.data.samples import summary as s
from twingpt.data.samples.questions import Topic
from twingpt.data.samples.summary import Group, SampleAnswer
from twingpt.data.text.documents import Document, Unit, joined, read_document
from twingpt.data.tokens.template import Kind, Sample, SplitName, sample_segments

TITLE_LABEL = "제목: "
CONTENT_LABEL = "내용: "

# Ranking compares every sentence with every other one; longer documents are taken in windows of this many units.
WINDOW_UNITS = 64
_ESTIMATED_QUESTION = 28
_MARKS = 8
# Share of a text's sentences that its checklist must have for the text to be a guide.
GUIDE_SHARE = 0.3
# Share of the answers that say of a section that the document has nothing for it; the others leave it out. A model must
# meet the words to learn when they are true, but in most texts they would be the sentence it meets most often.
SAYS_ABSENT = 0.25
# Least share of the room, or of a text shorter than that, that parts may take when it is cut once more.
_SMALLEST_PART = 0.4


@dataclass(frozen=True)
class SampleSettings:
    """What samples a document gives.

    block_size: tokens of a row of the model; a sample has at most block_size + 1 tokens, its marks included.
    samples_per_doc: question samples of a document (0 = each part once in each form). Beyond its parts a document is
        cut once more, elsewhere, unless allow_long keeps it whole.
    closed_share: the part of them that is closed-book, 0-1 (0.5 with samples_per_doc 0: every part in both forms).
    summaries: also the form [DOC] title and content [SUMMARY], once for each part.
    min_tokens: a document of fewer tokens gives no sample.
    allow_long: do not shorten or split; a sample may then be longer than block_size + 1.
    seed: chooses the questions, together with the document's text.
    """

    block_size: int = 256
    samples_per_doc: int = 0
    closed_share: float = 0.5
    summaries: bool = True
    min_tokens: int = 12
    allow_long: bool = False
    seed: int = 1337

    def __post_init__(self) -> None:
        if self.block_size < 96:
            raise UsageError(
                tr("block_size {block_size} is too short for a sample: use 96 or more", block_size=self.block_size)
            )
        if not 0 <= self.closed_share <= 1:
            raise UsageError(
                tr("closed share {closed_share} is no share: use a number from 0 to 1", closed_share=self.closed_share)
            )
        if self.samples_per_doc < 0 or self.min_tokens < 0:
            raise UsageError(tr("samples per document and minimum tokens cannot be negative: use 0 or more"))


Count = Callable[[str], int]
_Asked = Literal["closed", "open"]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some units of a document with their scores; whole: they are all that the document (or window) has."""

    units: tuple[Unit, ...]
    scores: tuple[float, ...]
    whole: bool

    def contacts(self, document: Document) -> list[Contact]:
        lines = {unit.line for unit in self.units}
        shown = " ".join(unit.text for unit in self.units)
        return [c for line, c in document.contacts if line in lines and c.value in shown]


def make_samples(document: str, index: int, split: SplitName, settings: SampleSettings, count: Count) -> list[Sample]:
    """The samples of one document, in a fixed order.

    count: tokens of a text without marks. Answers hold whole sentences of the document only, so every number in an
    answer occurs in the document. A sentence too long for any sample of block_size is left out.
    """
    return list(_Maker(document, index, split, settings, count).samples())


class _Maker:
    """One document's way from text to samples."""

    def __init__(self, document: str, index: int, split: SplitName, settings: SampleSettings, count: Count) -> None:
        self._document = read_document(document)
        self._index, self._split, self._settings, self._count = index, split, settings, count
        self._limit = settings.block_size + 1 if not settings.allow_long else 1 << 60
        self._numbers: dict[Kind, int] = dict.fromkeys(get_args(Kind), 0)
        self._costs: dict[str, int] = {}
        self._noun_weights: dict[str, float] = {}

    def samples(self) -> Iterator[Sample]:
        if self._count(self._document.text) < self._settings.min_tokens:
            return
        windows = [*self._windows()]
        for window in windows:
            for noun, weight in _noun_weights(window.units, window.scores).items():
                self._noun_weights[noun] = self._noun_weights.get(noun, 0.0) + weight
        opened, closed = self._cut(windows, "open"), self._cut(windows, "closed")
        yield from self._question_samples(windows, opened, closed)
        if self._settings.summaries:
            for part in opened:
                yield from self._summary_sample(part)

    def _cut(self, windows: list[_Part], kind: _Asked, turn: int = 0) -> list[_Part]:
        """The parts that samples of a kind are made of, the first time (0) or a later one.

        The first time they are as large as fits. Later they are smaller by a draw, so that most begin or end elsewhere
        and answers have other sentences: the same answers once more would only be learned by heart. The whole is asked
        about without the document each time.
        """
        room = self._limit - _MARKS - _ESTIMATED_QUESTION - self._cost("\n".join(s.HEADS))
        if kind == "open":
            # An answer repeats what its document says, so document and answer share the room evenly.
            room = (room - (self._cost(self._document.title) if self._document.title else 0)) // 2
        share = 1.0 if self._settings.allow_long or not turn else 1 - (1 - _SMALLEST_PART) * self._draw(turn)
        made: list[_Part] = []
        for window in windows:
            size = self._size(window, [i for i, unit in enumerate(window.units) if self._cost(unit.text) <= room])
            parts = self._parts(window, int(min(room, size) * share), room)
            made += [window, *parts] if kind == "closed" and len(parts) > 1 else parts
        return made

    def _draw(self, turn: int) -> float:
        """A number from 0 to below 1, keyed by the seed, the document and `turn`."""
        return _draw(self._settings.seed, self._document.text, *([turn] if turn else []))

    def _cost(self, text: str) -> int:
        """Tokens of a text and the line end after it; counted once a text."""
        cost = self._costs.get(text)
        if cost is None:
            cost = self._costs[text] = self._count(text) + 1
        return cost

    def _windows(self) -> Iterator[_Part]:
        units = self._document.units
        for start in range(0, len(units), WINDOW_UNITS):
            window = units[start : start + WINDOW_UNITS]
            scores = s.rank(window, self._document.title_nouns)
            yield _Part(window, tuple(scores), len(units) <= WINDOW_UNITS)

    def _parts(self, window: _Part, room: int, fits: int) -> list[_Part]:
        """The window in parts of at most `room` tokens: contacts stay with their place, headings with what follows.

        What belongs together and is longer is a part of its own; a unit longer than `fits` is left out.
        """
        parts: list[list[int]] = [[]]
        size = 0
        for bunch in self._bunches(window, fits):
            cost = self._size(window, bunch)
            if parts[-1] and size + cost > room:
                parts.append([])
                size = 0
            parts[-1] += bunch
            size += cost
        if len(parts) > 1 and size < room // 4:
            # A short rest is no subject of its own: it shares evenly with the part before.
            halves = self._balanced(window, parts[-2] + parts[-1])
            if all(side and self._size(window, side) <= room for side in halves):
                parts[-2:] = halves
        made = [_part(window, indices) for indices in parts if indices]
        return [part for part in made if any(unit.role != "heading" for unit in part.units)] or made[:1]

    def _size(self, window: _Part, indices: Sequence[int]) -> int:
        return sum(self._cost(window.units[i].text) for i in indices)

    def _balanced(self, window: _Part, indices: list[int]) -> tuple[list[int], list[int]]:
        """Cut in two about the middle, not before a contact nor after a heading."""
        total = self._size(window, indices)
        size = 0
        for position, i in enumerate(indices):
            cost = self._cost(window.units[i].text)
            before = window.units[indices[position - 1]].role if position else "heading"
            if before != "heading" and window.units[i].role != "contact" and size + cost / 2 > total / 2:
                return indices[:position], indices[position:]
            size += cost
        return indices, []

    def _bunches(self, window: _Part, fits: int) -> Iterator[list[int]]:
        """Indices that belong together, as far as `fits` allows: a heading and the next, contacts and the one before.

        A unit longer than `fits` is left out.
        """
        bunch: list[int] = []
        size = 0
        for i, unit in enumerate(window.units):
            cost = self._cost(unit.text)
            if cost > fits:
                continue
            before = window.units[bunch[-1]] if bunch else None
            together = before is not None and (before.role == "heading" or unit.role == "contact")
            if bunch and (not together or size + cost > fits):
                yield bunch
                bunch, size = [], 0
            bunch.append(i)
            size += cost
        if bunch:
            yield bunch

    def _question_samples(self, windows: list[_Part], opened: list[_Part], closed: list[_Part]) -> Iterator[Sample]:
        """opened, closed: the windows cut the first time."""
        first: dict[_Asked, list[_Part]] = {"closed": closed, "open": opened}
        numbers = self._numbers_of(len(opened), len(closed))
        asked: dict[tuple[Unit, ...], int] = {}
        for kind in first:
            if not first[kind]:
                continue
            cuts = ((turn, self._cut(windows, kind, turn) if turn else first[kind]) for turn in itertools.count())
            parts = ((turn, part) for turn, cut in cuts for part in cut)
            for turn, part in itertools.islice(parts, numbers[kind]):
                # Parts that begin alike share one order of questions, of which each turn takes the next.
                use = max(asked.get(part.units, 0), turn)
                asked[part.units] = use + 1
                yield from self._question_sample(kind, part, use)

    def _numbers_of(self, opened: int, closed: int) -> dict[Kind, int]:
        """How many open-book and closed-book samples the settings ask for, of as many parts."""
        share = self._settings.closed_share
        total = self._settings.samples_per_doc
        if total == 0:
            if share == 0.5:
                return {"open": opened, "closed": closed}
            # The rarer form gives way: the other keeps each of its parts once.
            if share > 0.5:
                return {"open": round(closed * (1 - share) / share), "closed": closed}
            return {"open": opened, "closed": round(opened * share / (1 - share))}
        # Rounded by a draw keyed by the document, so that many documents keep the ratio that one cannot.
        n_closed = int(total * share + self._draw(0))
        return {"open": total - n_closed, "closed": n_closed}

    def _question_sample(self, kind: _Asked, part: _Part, use: int) -> Iterator[Sample]:
        topic = self._topic(part)
        if topic is None:
            return
        own = part.contacts(self._document)
        # Closed-book, the document has contacts that this part has not: saying that there are none would be untrue.
        untold = kind == "closed" and not own and bool(self._document.contacts)
        answer = s.make_answer(part.units, part.scores, None if untold else own)
        answer.says_absent = _draw("absent", self._document.text, use, part.units[0].text) < SAYS_ABSENT
        key = self._document.text + part.units[0].text
        question = q.questions(topic, self._settings.seed, key, use + 1, guide=_is_guide(part.units, answer))[use]
        doc = self._shown(part) if kind == "open" else None
        sample = self._fitted(kind, question, doc, answer, dict(zip(part.units, part.scores, strict=True)))
        if sample is not None:
            yield sample
        elif len(part.units) > 1 and kind == "open":
            half = len(part.units) // 2
            for piece in (slice(None, half), slice(half, None)):
                yield from self._question_sample(kind, _Part(part.units[piece], part.scores[piece], False), use)

    def _shown(self, part: _Part) -> str:
        return "\n".join(text for text in (self._document.title, joined(part.units)) if text)

    def _topic(self, part: _Part) -> Topic | None:
        here = _noun_weights(part.units, part.scores)
        everywhere = self._noun_weights
        # What tells the part apart comes first: its own share of a noun's weight counts as well as the weight.
        nouns = sorted(here, key=lambda noun: -round(here[noun] ** 2 / max(everywhere.get(noun, 0.0), here[noun]), 9))
        if not self._document.title:
            # A mere list of contacts is asked about by its places.
            return q.noun_topic(nouns or dict.fromkeys(c.entity for c in part.contacts(self._document) if c.entity))
        topic = q.title_topic(self._document.title)
        return topic if part.units == self._document.units or part.whole else q.focused(topic, nouns)

    def _summary_sample(self, part: _Part) -> Iterator[Sample]:
        title = f"{TITLE_LABEL}{self._document.title}\n" if self._document.title else ""
        chosen = s.make_answer(part.units, part.scores, None).summary
        while chosen:
            text = "\n".join(f"- {unit.plain}" for unit in chosen)
            sample = self._sample("summary", None, f"{title}{CONTENT_LABEL}{joined(part.units)}", text)
            if self._length(sample) <= self._limit:
                self._numbers["summary"] += 1
                yield sample
                return
            scores = dict(zip(part.units, part.scores, strict=True))
            chosen.remove(min(reversed(chosen), key=lambda unit: scores[unit]))

    def _sample(self, kind: Kind, question: str | None, doc: str | None, answer: str) -> Sample:
        name = f"{self._index:06d}/{kind}/{self._numbers[kind]}"
        return Sample(name, self._index, kind, self._split, question, doc, answer)

    def _length(self, sample: Sample) -> int:
        """Tokens of a sample, marks included."""
        return sum(1 if part.mark else self._count(part.text) for part in sample_segments(sample))

    def _fitted(
        self, kind: Kind, question: str, doc: str | None, answer: SampleAnswer, scores: dict[Unit, float]
    ) -> Sample | None:
        """The sample within the limit: whole items leave the answer, least important first. None if none fits."""
        drops = _drops(answer, scores)
        while True:
            sample = self._sample(kind, question, doc, answer.render())
            excess = self._length(sample) - self._limit
            if excess <= 0:
                self._numbers[kind] += 1
                return sample
            while excess > 0:
                dropped = next(drops, None)
                if dropped is None:
                    return None
                excess -= self._cost(dropped)


def _draw(*key: object) -> float:
    """A number from 0 to below 1 by its key, the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, key)).encode()).digest()[:4]) / 2**32


def _is_guide(units: Sequence[Unit], answer: SampleAnswer) -> bool:
    """Whether a text tells what to do, to bring or to avoid, more than here and there a sentence by its sound."""
    told = sum(map(len, answer.checklist.values()))
    return told >= 2 and told >= GUIDE_SHARE * sum(unit.role in ("sentence", "item") for unit in units)


def _noun_weights(units: Sequence[Unit], scores: Sequence[float]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for unit, score in zip(units, scores, strict=True):
        for noun in dict.fromkeys(unit.nouns):
            weights[noun] = weights.get(noun, 0.0) + score + 1e-3
    return weights


def _part(window: _Part, indices: Sequence[int]) -> _Part:
    units = tuple(window.units[i] for i in indices)
    return _Part(units, tuple(window.scores[i] for i in indices), window.whole and len(units) == len(window.units))


def _drops(answer: SampleAnswer, scores: dict[Unit, float]) -> Iterator[str]:
    """Drops items from `answer` one by one, least important first, and yields the text of each.

    Order: the detailed explanation from its end; checklist items that the summary tells already; checklist items
    beyond the first of each group; summary points beyond three; the rest of the checklist; contacts from the last;
    summary points beyond the first.
    """
    groups: tuple[Group, ...] = ("todo", "bring", "caution")
    while answer.detail:
        yield answer.detail.pop().text
    told = set(answer.summary)
    for only_told in (True, False):
        for group in groups:
            units = answer.checklist[group]
            for n in reversed(range(1, len(units))):
                if not only_told or units[n] in told:
                    yield units.pop(n).text
    yield from _drop_points(answer, scores, s.MIN_POINTS)
    for group in groups:
        while answer.checklist[group]:
            yield answer.checklist[group].pop().text
    while answer.contacts:
        text = answer.contacts.pop()
        if not answer.contacts:
            answer.contacts = None
        yield text
    yield from _drop_points(answer, scores, 1)


def _drop_points(answer: SampleAnswer, scores: dict[Unit, float], keep: int) -> Iterator[str]:
    while len(answer.summary) > keep:
        worst = min(reversed(answer.summary), key=lambda unit: scores[unit])
        answer.summary.remove(worst)
        yield worst.text


def fixed_texts() -> list[str]:
    """Every constant string that samples can contain, for the tokenizer to have seen."""
    skeleton = "\n".join(
        [s.SUMMARY_HEAD, "- ", f"{s.CHECKLIST_HEAD} {s.ABSENT}", f"{s.CONTACTS_HEAD} {s.ABSENT}", s.DETAIL_HEAD, ""]
    )
    labels = [f"{place}: " for place in ("TEL", "FAX", "KAKAO", "ADDR", "WEB", "EMAIL")]
    return [*s.HEADS, s.ABSENT, skeleton, TITLE_LABEL, CONTENT_LABEL, *labels, *q.pattern_texts()]
