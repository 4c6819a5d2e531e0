"""Finding the passages of a library that a question asks for, and the sentences of them that fit it best."""

import heapq
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, tr
from twingpt.data.library.build import FORMAT_VERSION, indexed_terms
from twingpt.data.library.contact_store import name_key
from twingpt.data.library.damage import damage_told
from twingpt.data.library.terms import question_terms

REMEDY = mark("make it again with `twingpt data library DATA`")
FREQUENT = 0.05
"""A term of more than this share of the passages says little and takes most of the time."""
FEW = 1000
"""Passages that take no time to look through: a term of so few is never left out."""
LEAST_TERMS = 3
"""That many rarer terms a question must have before its frequent ones are left out."""
K1, B = 0.9, 0.4
"""BM25's saturation and length normalisation."""
CANDIDATES = 15
"""Passages whose terms are counted, at the least: those with the most of the question in them."""
NEAR = 0.5
"""A passage counts beside the best one if its score is at least this part of the best score."""
LEAST_FIT = 0.6
"""Least fit of the best passage where the library does not have its own (see calibrate.py)."""
AS_IF_IN = 2
"""Passages that a term of a question counts as being in, at the least, when it is asked how well a passage fits: in a
small text an ending that it does not have would otherwise outweigh the words that it has."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage that was found.

    number: in the library. score: BM25, larger fits better. file: the one that its document came from, "" if unknown.
    """

    number: int
    document: int
    title: str
    text: str
    score: float
    file: str = ""


@dataclass(frozen=True, slots=True)
class FoundContact:
    """A contact under its name.

    passage: the number of the one that it stands in. date: of that one's document, "" where it names none.
    """

    passage: int
    kind: str
    value: str
    name: str
    date: str


class Library:
    """A library to search in. Use as a context manager, or `close()` it."""

    def __init__(self, path: Path) -> None:
        """Raises TwinGPTError if the file is missing, damaged, or of another format."""
        if not path.is_file():
            raise TwinGPTError(tr("{path} does not exist: {remedy}", path=path, remedy=tr(REMEDY)))
        self.path = path
        self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        self._counted: tuple[str, dict[str, int]] = "", {}
        try:
            facts = dict(self._db.execute("SELECT name, value FROM meta"))
            if facts.get("format_version") != FORMAT_VERSION:
                raise TwinGPTError(
                    tr(
                        "{path} has format version {version}: {remedy}",
                        path=path,
                        version=facts.get("format_version"),
                        remedy=tr(REMEDY),
                    )
                )
            self.passages = int(facts["passages"])
            self._mean_length = max(1.0, int(facts["terms"]) / self.passages)
            self.least_fit = float(facts.get("least_fit", LEAST_FIT))
            self._db.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab('main', 'passage_terms', 'row')")
        except (sqlite3.Error, KeyError, ValueError, ZeroDivisionError) as error:
            self.close()
            raise TwinGPTError(
                tr("{path} cannot be read as a library ({error}): {remedy}", path=path, error=error, remedy=tr(REMEDY))
            ) from None
        except TwinGPTError:
            self.close()
            raise

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @damage_told(REMEDY)
    def search(self, question: str, limit: int = 5) -> list[Passage]:
        """The passages that fit a question, the best first; none where it shares no term with the text."""
        counts = {term: count for term, count in self._counts(question).items() if count}
        rare = {term: count for term, count in counts.items() if count <= max(FEW, FREQUENT * self.passages)}
        weights = {term: self._weight(count) for term, count in counts.items()}
        chosen = rare if len(rare) >= LEAST_TERMS else counts
        candidates = self._candidates(chosen, weights, max(CANDIDATES, 3 * limit))
        scored = [self._scored(number, weights) for number in candidates]
        return sorted(scored, key=lambda passage: (-passage.score, passage.number))[:limit]

    def _candidates(self, chosen: Iterable[str], weights: dict[str, float], number: int) -> list[int]:
        """The passages with the most of the question's weight in them, each term counted once."""
        sums: dict[int, float] = {}
        query = "SELECT rowid FROM passage_terms WHERE passage_terms MATCH ?"
        for term in chosen:
            weight = weights[term]
            for (passage,) in self._db.execute(query, (f'"{term}"',)):
                sums[passage] = sums.get(passage, 0.0) + weight
        return heapq.nsmallest(number, sums, key=lambda passage: (-sums[passage], passage))

    def _scored(self, number: int, weights: dict[str, float]) -> Passage:
        document, title, text, file = self._db.execute(
            "SELECT document.id, title, text, file FROM passage JOIN document ON document.id = document"
            " WHERE passage.id = ?",
            (number,),
        ).fetchone()
        score = bm25(indexed_terms(title, text), weights, self._mean_length)
        return Passage(number, document, title, text, score, file)

    @damage_told(REMEDY)
    def titles(self, number: int) -> list[str]:
        """Titles of as many documents, spread over the text."""
        titles = [title for (title,) in self._db.execute("SELECT title FROM document WHERE title != '' ORDER BY id")]
        step = max(1, len(titles) // max(1, number))
        return list(dict.fromkeys(titles[step // 2 :: step]))[:number]

    @damage_told(REMEDY)
    def passage(self, number: int) -> Passage:
        """The passage of this number, with a score of 0."""
        return self._scored(number, {})

    @damage_told(REMEDY)
    def contacts(self, passage: Passage) -> list[FoundContact]:
        """The contacts of a passage, in its order."""
        return self._contacts("passage = ?", (passage.number,))

    @damage_told(REMEDY)
    def contacts_named(self, name: str, kind: str | None = None) -> list[FoundContact]:
        """All contacts, of this kind if one is given, that stand under a name, wherever in the text, in its order."""
        if kind is None:
            return self._contacts("key = ?", (name_key(name),))
        return self._contacts("key = ? AND kind = ?", (name_key(name), kind))

    @damage_told(REMEDY)
    def weights(self, question: str) -> dict[str, float]:
        """How much each term of a question says, by how few passages hold it; one that none holds says most."""
        least = min(AS_IF_IN, self.passages)
        return {term: self._weight(max(count, least)) for term, count in self._counts(question).items()}

    def _contacts(self, where: str, values: tuple[object, ...]) -> list[FoundContact]:
        rows = self._db.execute(
            "SELECT passage, kind, value, name, date FROM contact JOIN passage ON passage.id = contact.passage"
            f" JOIN document ON document.id = passage.document WHERE {where} ORDER BY contact.rowid",
            values,
        )
        return [FoundContact(*row) for row in rows]

    @damage_told(REMEDY)
    def fit(self, question: str, passage: Passage) -> float:
        """How much of a question a passage answers to: its score beside the weight of all terms of the question.

        A term that the text does not have weighs most, so that a question about something else fits nothing even where
        its common words are found.
        """
        weight = sum(self.weights(question).values())
        return passage.score / weight if weight else 0.0

    def _counts(self, question: str) -> dict[str, int]:
        """How many passages hold each term of the question."""
        # Whoever asks how well a passage fits has searched for it just before.
        if self._counted[0] != question:
            counts = {}
            for term in dict.fromkeys(question_terms(question)):
                row = self._db.execute("SELECT doc FROM temp.vocabulary WHERE term = ?", (term,)).fetchone()
                counts[term] = 0 if row is None else int(row[0])
            self._counted = question, counts
        return self._counted[1]

    def _weight(self, count: int) -> float:
        """The inverse document frequency of a term, never negative."""
        return math.log1p((self.passages - count + 0.5) / (count + 0.5))


def bm25(words: Sequence[str], weights: dict[str, float], mean_length: float, *, k1: float = K1, b: float = B) -> float:
    """How well words fit the weighted terms of a question (Robertson and Zaragoza, 2009)."""
    counts = Counter(word for word in words if word in weights)
    norm = k1 * (1 - b + b * len(words) / mean_length)
    return sum(weights[term] * (k1 + 1) * count / (count + norm) for term, count in counts.items())
