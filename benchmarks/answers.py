"""Are the answers of `ask` right? Questions of a file in SQuAD's form, whose articles lie among other documents.

    python benchmarks/answers.py QUESTIONS.json OTHERS.txt --others 3000 --out FILE

Measures what a person gets: is an answer given, does the gold answer stand in the summary and in the whole answer, and
does every line stand in the passage that it cites. With every third article kept out of the library it measures how
often a question about those is told to have no answer, for every threshold, as a picture. Beside it stand what costs
nothing, at one sentence and at three: the first of the best passage, the most central by TextRank, and retrieval alone.
"""

import json
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from retrieval import articles, blocks, read_options

from twingpt.answers.answer import Answer
from twingpt.answers.ask import SUMMARY_SENTENCES, ask_library
from twingpt.data.contacts import standardise
from twingpt.data.library.build import build_library
from twingpt.data.library.calibrate import calibrate
from twingpt.data.library.search import Library
from twingpt.data.library.sentences import best_sentences, sentences
from twingpt.data.samples.summary import rank
from twingpt.data.text.documents import read_document

KEPT_OUT = 3
_CITED = re.compile(r"^\s*- (.*) \[(\d+)\]$")


@dataclass(frozen=True)
class Question:
    """paragraph: the one that it was asked about."""

    text: str
    paragraph: str
    answers: tuple[str, ...]

    def answered_in(self, text: str) -> bool:
        return any(answer in text for answer in self.answers)


def lines_astray(answer: Answer) -> int:
    """How many lines do not stand in the passage that they cite; of a contact, its value must."""
    passages = {source.number: source.passage for source in answer.sources}
    astray = 0
    for name, lines in answer.sections.items():
        for line in lines:
            if name == "체크리스트" and line.endswith(":"):
                continue
            cited = _CITED.match(line)
            if cited is None:
                astray += 1
            elif name == "연락처":
                astray += not all(one.value in passages[int(cited[2])] for one in standardise(cited[1])[1])
            else:
                astray += cited[1] not in passages[int(cited[2])]
    return astray


def measure(library: Library, questions: list[Question]) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("found", "right paragraph first", "in the summary", "in the whole answer", "lines astray"), 0
    )
    started = time.perf_counter()
    for question in questions:
        answer = ask_library(library, question.text)
        counts["found"] += answer.found
        counts["right paragraph first"] += bool(answer.sources) and answer.sources[0].passage == question.paragraph
        counts["in the summary"] += question.answered_in("\n".join(answer.sections["요약"]))
        counts["in the whole answer"] += question.answered_in("\n".join(chain(*answer.sections.values())))
        counts["lines astray"] += lines_astray(answer)
    seconds = time.perf_counter() - started
    astray = counts.pop("lines astray")
    figures: dict[str, Any] = {name: round(number / len(questions), 4) for name, number in counts.items()}
    figures |= {"lines astray": astray, "questions": len(questions), "seconds": round(seconds, 1)}
    return figures | {"answer among the chosen": chosen_by(library, questions)}


def chosen_by(library: Library, questions: list[Question]) -> dict[str, dict[str, float]]:
    """How often the gold answer stands in the sentences chosen, by who chooses, at one sentence and at three."""
    hits: dict[str, dict[str, float]] = {}
    for question in questions:
        found = library.search(question.text)
        if not found:
            continue
        first = sentences(found[0].text)
        chosen = {
            "first sentences": first,
            "TextRank": textrank(found[0].text),
            "retrieval": [one.text for one in best_sentences(question.text, found)],
        }
        for name, ordered in chosen.items():
            for number in (1, SUMMARY_SENTENCES):
                row = hits.setdefault(name, {})
                row[str(number)] = row.get(str(number), 0) + question.answered_in("\n".join(ordered[:number]))
    return {
        name: {number: round(count / len(questions), 4) for number, count in row.items()} for name, row in hits.items()
    }


@cache
def textrank(passage: str) -> list[str]:
    """The sentences of a passage, the most central first."""
    units = read_document(passage).units
    ranks = rank(units, ())
    return [units[i].text for i in sorted(range(len(units)), key=lambda i: -ranks[i])]


def fits(library: Library, questions: list[Question]) -> list[float]:
    """How well the best passage fits each question."""
    found = ((question.text, library.search(question.text, 1)) for question in questions)
    return [library.fit(text, passages[0]) if passages else 0.0 for text, passages in found]


def curve(answerable: list[float], unanswerable: list[float]) -> list[tuple[float, float, float]]:
    """(threshold, share answered, share told that there is no answer) for thresholds from 0 to 1.5."""
    return [
        (
            threshold / 100,
            sum(fit >= threshold / 100 for fit in answerable) / len(answerable),
            sum(fit < threshold / 100 for fit in unanswerable) / len(unanswerable),
        )
        for threshold in range(0, 151, 5)
    ]


def draw(points: list[tuple[float, float, float]], least_fit: float, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    axes.plot([answered for _, answered, _ in points], [told for _, _, told in points], marker="o", markersize=3)
    for threshold, answered, told in points[::4]:
        axes.annotate(f"{threshold:g}", (answered, told), textcoords="offset points", xytext=(4, 4), fontsize=8)
    chosen = min(points, key=lambda point: abs(point[0] - least_fit))
    axes.plot(chosen[1], chosen[2], marker="o", color="#d1495b")
    axes.set(xlabel="answered, of questions that the text can answer", ylabel="told, of those that it cannot")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    options = read_options(__doc__, "answers.json")
    documents, asked = articles(options.questions)
    questions = [Question(*one) for one in asked]
    if options.limit is not None:
        questions = questions[:: max(1, len(questions) // options.limit)][: options.limit]
    others = list(islice(blocks(options.others), options.number))
    with tempfile.TemporaryDirectory() as folder:
        build_library(Path(folder) / "all.sqlite", [*documents, *others])
        calibrate(Path(folder) / "all.sqlite")
        with Library(Path(folder) / "all.sqlite") as library:
            figures = measure(library, questions)
        kept = [document for number, document in enumerate(documents) if number % KEPT_OUT != KEPT_OUT - 1]
        there = {passage for document in kept for passage in document.passages}
        build_library(Path(folder) / "kept.sqlite", [*kept, *others])
        least_fit = calibrate(Path(folder) / "kept.sqlite")
        with Library(Path(folder) / "kept.sqlite") as library:
            answerable = fits(library, [question for question in questions if question.paragraph in there])
            missing = fits(library, [question for question in questions if question.paragraph not in there])
    points = curve(answerable, missing)
    draw(points, least_fit, options.out.with_suffix(".png"))
    figures["least fit"] = least_fit
    figures["answered"] = round(sum(fit >= least_fit for fit in answerable) / len(answerable), 4)
    figures["told"] = round(sum(fit < least_fit for fit in missing) / len(missing), 4)
    figures["threshold, answered, told"] = [[round(value, 4) for value in point] for point in points]
    options.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    json.dump(
        {name: value for name, value in figures.items() if name != "threshold, answered, told"}, sys.stdout, indent=2
    )
    print()


if __name__ == "__main__":
    main()
