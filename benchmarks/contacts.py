"""How right the contacts are that `prepare` finds: precision and recall by kind of case, and on the example text.

    python benchmarks/contacts.py

Precision: of the numbers and links stored, the share that should be. Recall: of those that should be, the share that
is. Whole: cases of which everything is right. The cases are those of the tests.
"""

import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.data.contacts import standardise
from twingpt.data.text.clean import CleanSettings, clean_chunk

ROOT = Path(__file__).parents[1]
CASES = ROOT / "tests" / "data"
EXAMPLE = ROOT / "twingpt" / "examples" / "ph_life_ko.txt"


@dataclass
class Score:
    cases: int = 0
    whole: int = 0
    right: int = 0
    found: int = 0
    gold: int = 0

    def add(self, found: Counter[Any], gold: Counter[Any]) -> None:
        self.cases += 1
        self.whole += found == gold
        self.right += sum((found & gold).values())
        self.found += sum(found.values())
        self.gold += sum(gold.values())

    def __str__(self) -> str:
        precision = self.right / self.found if self.found else 1.0
        recall = self.right / self.gold if self.gold else 1.0
        return f"{self.whole:>4} of {self.cases:<4} whole   precision {precision:.3f}   recall {recall:.3f}"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CASES / name).read_text(encoding="utf-8").splitlines()]


def cleaned(case: dict[str, Any], contacts: Any = "keep") -> tuple[str, list[Any]]:
    """cleaned.txt of a case's text, and what is stored with it."""
    settings = CleanSettings(contacts=contacts, country=case.get("country", "PH"))
    chunk = clean_chunk(case["text"], settings)
    return "\n\n".join(document.decode() for document in chunk.documents), chunk.contacts


def by_kind() -> dict[str, Score]:
    scores: dict[str, Score] = defaultdict(Score)
    for case in read("any_text_contacts.jsonl"):
        # Which line is a fax is not what these cases are about.
        found = {(contact.kind, contact.value) for contact in cleaned(case)[1] if contact.kind != "FAX"}
        scores[case["kind"]].add(Counter(found), Counter({(kind, value) for kind, value in case["contacts"]}))
    for case in read("any_text_names.jsonl"):
        stored = Counter({(one.entity, one.value) for one in cleaned(case)[1] if one.kind == "TEL"})
        scores["name"].add(stored, Counter(case["belongs_to"].items()))
    return scores


def of_example() -> Score:
    """The gold list was written by reading the text."""
    gold = Counter((g["document"], g["kind"], g["value"]) for g in read("ph_life_contacts.jsonl"))
    documents = re.split("\n\n", EXAMPLE.read_text(encoding="utf-8").strip("\n"))
    score = Score()
    for index, document in enumerate(documents):
        found = Counter((index, contact.kind, contact.value) for contact in standardise(document)[1])
        score.add(found, Counter({key: number for key, number in gold.items() if key[0] == index}))
    return score


if __name__ == "__main__":
    for kind, score in [*by_kind().items(), ("example text", of_example())]:
        print(f"{kind:<14}{score}")
