"""Measures of one answer, and of many."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from twingpt.data.contacts import standardise
from twingpt.data.contacts.labels import PLACEHOLDER
from twingpt.data.library.contact_store import UNRESOLVED, ContactStore, fill
from twingpt.data.library.verify import verify_numbers
from twingpt.data.samples.summary import CONTACTS_HEAD, SUMMARY_HEAD
from twingpt.generation.answer_sections import SECTION_HEADS, in_order, section

NGRAM = 4
_UNITS = re.compile(r"[A-Za-z0-9]+|[^\W_]")


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one answer.

    in_order: what every training answer has stands in its order, once, with content (answer_sections.in_order).
    all_sections: the same of all four sections. finished: it ended by itself, not at the token limit.
    rouge_l: F-measure of the summary, 0-1.
    contacts_*: contacts of its section of contacts, by kind and value; None where the reference leaves the section out,
    since it then says nothing of contacts.
    numbers, invented: telephone-like numbers, and those that stand in neither prompt nor store.
    repetition: share of its token 4-grams that occurred in it before, 0-1.
    """

    in_order: bool
    all_sections: bool
    finished: bool
    rouge_l: float
    contacts_right: int | None
    contacts_given: int | None
    contacts_wanted: int | None
    numbers: int
    invented: int
    repetition: float


def measure(
    answer: str,
    tokens: Sequence[int],
    reference: str,
    sources: Iterable[str],
    store: ContactStore | None,
    *,
    finished: bool,
    filled: bool,
) -> Measures:
    """Measure an answer.

    tokens: as the model wrote them. sources: the question and the document that it was given. filled: contacts were
    filled in, so that the reference's placeholders mean the store's values.
    """
    right = given = wanted = None
    gold = _contacts(reference, store if filled else None)
    if gold is not None:
        own = _contacts(answer, None) or set()
        right, given, wanted = len(own & gold), len(own), len(gold)
    return Measures(
        in_order=in_order(answer),
        all_sections=in_order(answer, SECTION_HEADS),
        finished=finished,
        rouge_l=rouge_l(section(answer, SUMMARY_HEAD) or "", section(reference, SUMMARY_HEAD) or ""),
        contacts_right=right,
        contacts_given=given,
        contacts_wanted=wanted,
        numbers=len(verify_numbers(answer, [], None)),
        invented=len(verify_numbers(answer, sources, store)),
        repetition=repetition(tokens),
    )


def _contacts(answer: str, store: ContactStore | None) -> set[tuple[str, str]] | None:
    """(kind, value) of the section of contacts; None without such a section.

    With a store, placeholders become its values; one that it cannot place stays wanted, so that it counts as missed.
    """
    body = section(answer, CONTACTS_HEAD)
    if body is None:
        return None
    found: set[tuple[str, str]] = {(contact.kind, contact.value) for contact in standardise(body)[1]}
    if store is None or not any(PLACEHOLDER.fullmatch(value) for _, value in found):
        return found
    resolved: set[tuple[str, str]] = set()
    for line in body.split("\n"):
        filled = fill(line, store)
        resolved |= {(contact.kind, contact.value) for contact in standardise(filled)[1]}
        resolved |= {("?", f"{line}{n}") for n in range(filled.count(UNRESOLVED) - line.count(UNRESOLVED))}
    return resolved


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Units(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return _UNITS.findall(text.lower())

    return RougeScorer(["rougeL"], tokenizer=Units())


def rouge_l(text: str, reference: str) -> float:
    """F-measure of the longest common subsequence (Lin 2004, by the package rouge-score), 0-1.

    Units are syllables, and whole runs of Latin letters or digits: rouge-score's own tokenizer drops Hangul, words
    between blanks carry particles that change from sentence to sentence, and morphemes would tie the figure to one
    version of an analyser. Two texts without any unit are equal.
    """
    if not _UNITS.search(reference):
        return float(not _UNITS.search(text))
    return float(_scorer().score(reference, text)["rougeL"].fmeasure)


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that stand in the sequence before; 0 for one too short to have any."""
    grams = [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def summarise(measures: Sequence[Measures]) -> dict[str, float | int | None]:
    """Shares and means over answers, 0-1; contacts and numbers are pooled. None where there is nothing to divide by."""

    def total(of: Callable[[Measures], float | None]) -> float:
        return sum(value for one in measures if (value := of(one)) is not None)

    def share(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    n = len(measures)
    right = total(lambda m: m.contacts_right)
    return {
        "answers": n,
        "in_order": share(total(lambda m: m.in_order), n),
        "all_sections": share(total(lambda m: m.all_sections), n),
        "finished": share(total(lambda m: m.finished), n),
        "summary_rouge_l": share(total(lambda m: m.rouge_l), n),
        "contact_precision": share(right, total(lambda m: m.contacts_given)),
        "contact_recall": share(right, total(lambda m: m.contacts_wanted)),
        "contacts_wanted": int(total(lambda m: m.contacts_wanted)),
        "numbers": int(total(lambda m: m.numbers)),
        "invented_numbers": int(total(lambda m: m.invented)),
        "invented_share": share(total(lambda m: m.invented), total(lambda m: m.numbers)),
        "repeated_4grams": share(total(lambda m: m.repetition), n),
    }


def to_dict(measures: Measures) -> dict[str, Any]:
    return dataclasses.asdict(measures)
