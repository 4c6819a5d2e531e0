"""The sentences of the passages found that fit a question best."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from twingpt.data.library.search import NEAR, B, Passage, bm25
from twingpt.data.library.terms import question_terms, terms
from twingpt.data.text.code_lines import is_code
from twingpt.data.text.korean import cut_at_marks

K1 = 0.4
"""BM25's saturation among sentences: which terms a sentence has says more than how often."""
ALIKE = 0.5
"""Weight of the runs of three characters that a sentence shares with the question, beside its terms: they see words
that stand together, and endings."""
SHARPNESS = 3
"""Power of a passage's score, as part of the best one's, in the score of its sentences."""

CENTRAL = 0.5
"""Weight of how much of its passages a sentence shares, as part of the most that one shares: where the question says
little, the sentence most like the rest stands for them."""

_NO_LETTER = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class FoundSentence:
    """A sentence of passages[passage], as it stands there, and how well it fits."""

    passage: int
    text: str
    score: float


def sentences(text: str) -> list[str]:
    """The sentences of a passage, each as it stands there: cut at closing marks and at line ends. Code has none."""
    told = (line for line in text.split("\n") if not is_code(line))
    return [sentence for line in told for part in cut_at_marks(line) if (sentence := part.strip())]


def best_sentences(question: str, passages: Sequence[Passage], limit: int = 3) -> list[FoundSentence]:
    """The sentences of these passages that fit the question best, the best first.

    A term weighs by how few of these sentences hold it, as one that nearly all have, like the subject of the passages,
    tells none apart. A sentence of a passage that fits better counts for far more, and one of a passage that is not
    NEAR the best does not count: otherwise a stray sentence with the question's words stands beside the answer.
    """
    best = max((passage.score for passage in passages), default=0.0)
    if passages and _names_only(question, passages[0]):
        passages = passages[:1]
    found = [
        (i, sentence)
        for i, passage in enumerate(passages)
        if passage.score >= NEAR * best
        for sentence in sentences(passage.text)
    ]
    texts = [sentence for _, sentence in found]
    words = [terms(text) for text in texts]
    by_terms = _by_terms(question, words, [passages[i].title for i, _ in found])
    by_runs = _by_runs(question, texts)
    scored = [
        FoundSentence(i, sentence, (fit + ALIKE * runs + CENTRAL * central) * (passages[i].score / best) ** SHARPNESS)
        for (i, sentence), fit, runs, central in zip(found, by_terms, by_runs, _central(words), strict=True)
    ]
    return sorted(scored, key=lambda one: -one.score)[:limit]


def _names_only(question: str, passage: Passage) -> bool:
    """Whether a question asks for no more than the passage's title says: then another's sentences are beside the point.

    A word of one syllable does not count: it is mostly what is left of a verb.
    """
    asked = {term for term in question_terms(question) if len(term) > 1}
    return bool(asked) and asked <= set(terms(passage.title))


def _by_terms(question: str, words: Sequence[Sequence[str]], titles: Sequence[str]) -> list[float]:
    """BM25 of each sentence, given by its terms, among all of them. titles: of their passages, the best one's first.

    The best passage's title says what it is about, not which sentence of it is asked for: its terms tell its sentences
    from those of other documents, each of which has them if its title does, and not from each other.
    """
    asked, named = set(question_terms(question)), [set(terms(title)) for title in titles]
    subject = asked & named[0] if named else set()
    weights = _rarity(asked - subject or asked, [set(each) for each in words])
    mean = sum(map(len, words)) / max(1, len(words)) or 1.0
    under = [subject & (title | set(each)) for title, each in zip(named, words, strict=True)]
    credits = _rarity(subject, under)
    return [
        bm25(each, weights, mean, k1=K1, b=B) + sum(credits[term] for term in sorted(about))
        for each, about in zip(words, under, strict=True)
    ]


def _central(words: Sequence[Sequence[str]]) -> list[float]:
    """How many of its terms each sentence shares with others, for its length, from 0 to 1 (after PEGASUS's choice of
    gap sentences, Zhang and others, arXiv 1912.08777)."""
    once = [set(each) for each in words]
    holders = Counter(term for each in once for term in each)
    shared = [sum(holders[term] > 1 for term in each) / math.sqrt(len(each) + 1) for each in once]
    most = max(shared, default=0.0) or 1.0
    return [one / most for one in shared]


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
