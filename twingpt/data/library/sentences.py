"""The sentences of the passages found that fit a question best."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from twingpt.data.library.search import NEAR, B, Passage, bm25
from twingpt.data.library.terms import question_terms, terms
from twingpt.data.text.korean import cut_at_marks

K1 = 0.4
"""BM25's saturation among sentences: which terms a sentence has says more than how often."""
ALIKE = 0.5
"""Weight of the runs of three characters that a sentence shares with the question, beside its terms: they see words
that stand together, and endings."""
SHARPNESS = 3
"""Power of a passage's score, as part of the best one's, in the score of its sentences."""

_NO_LETTER = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class FoundSentence:
    """A sentence of passages[passage], as it stands there, and how well it fits."""

    passage: int
    text: str
    score: float


def sentences(text: str) -> list[str]:
    """The sentences of a passage, each as it stands there: cut at closing marks and at line ends."""
    return [sentence for line in text.split("\n") for part in cut_at_marks(line) if (sentence := part.strip())]


def best_sentences(question: str, passages: Sequence[Passage], limit: int = 3) -> list[FoundSentence]:
    """The sentences of these passages that fit the question best, the best first.

    A term weighs by how few of these sentences hold it, as one that nearly all have, like the subject of the passages,
    tells none apart. A sentence of a passage that fits better counts for far more, and one of a passage that is not
    NEAR the best does not count: otherwise a stray sentence with the question's words stands beside the answer.
    """
    best = max((passage.score for passage in passages), default=0.0)
    found = [
        (i, sentence)
        for i, passage in enumerate(passages)
        if passage.score >= NEAR * best
        for sentence in sentences(passage.text)
    ]
    by_terms = _by_terms(question, [sentence for _, sentence in found], passages[0].title if passages else "")
    by_runs = _by_runs(question, [sentence for _, sentence in found])
    scored = [
        FoundSentence(i, sentence, (words + ALIKE * runs) * (passages[i].score / best) ** SHARPNESS)
        for (i, sentence), words, runs in zip(found, by_terms, by_runs, strict=True)
    ]
    return sorted(scored, key=lambda one: -one.score)[:limit]


def _by_terms(question: str, texts: Sequence[str], title: str) -> list[float]:
    """BM25 of each sentence among all of them.

    The title's terms say what the passage is about, not which sentence of it is asked for: they count only where the
    question has no others.
    """
    words = [terms(text) for text in texts]
    asked = set(question_terms(question))
    weights = _rarity(asked - set(terms(title)) or asked, [set(each) for each in words])
    mean = sum(map(len, words)) / max(1, len(words)) or 1.0
    return [bm25(each, weights, mean, k1=K1, b=B) for each in words]


def _by_runs(question: str, texts: Sequence[str]) -> list[float]:
    """How much each sentence shares of the question's runs of three characters, the rare ones counting more."""
    asked = _runs(question)
    shared = [_runs(text) & asked for text in texts]
    weights = _rarity(asked, shared)
    # In the order of the question, so that the sum is the same each time to the last bit.
    return [sum(weight for run, weight in weights.items() if run in runs) for runs in shared]


def _rarity(features: set[str], holders: Sequence[set[str]]) -> dict[str, float]:
    """The inverse document frequency of each feature among the holders, never negative."""
    counts = Counter(feature for holder in holders for feature in holder & features)
    return {
        feature: math.log1p((len(holders) - counts[feature] + 0.5) / (counts[feature] + 0.5))
        for feature in sorted(features)
    }


def _runs(text: str) -> set[str]:
    plain = _NO_LETTER.sub(" ", text.lower())
    return {plain[i : i + 3] for i in range(len(plain) - 2)}
