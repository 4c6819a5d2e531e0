"""Is the right passage found? Questions of a file in SQuAD's form, whose paragraphs lie among other documents.

    python benchmarks/retrieval.py QUESTIONS.json OTHERS.txt --others 3000 --out FILE

Each paragraph of the questions' file is a passage under its article's title; each block of OTHERS.txt is a document.
Prints how often the right paragraph is first and among five, how often the answer's text stands in the first passage
and in the best sentences, and how long a question takes.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from twingpt.data.library.build import LibraryDocument, build_library, split_passages
from twingpt.data.library.search import Library
from twingpt.data.library.sentences import best_sentences


def articles(path: Path) -> tuple[list[LibraryDocument], list[tuple[str, str, tuple[str, ...]]]]:
    """(a document an article, (question, its paragraph, accepted answers))."""
    documents, questions = [], []
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        paragraphs = [paragraph["context"] for paragraph in article["paragraphs"]]
        documents.append(LibraryDocument(article["title"].replace("_", " "), tuple(paragraphs)))
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in qa["answers"])
                questions.append((qa["question"], paragraph["context"], answers))
    return documents, questions


def blocks(path: Path) -> Iterator[LibraryDocument]:
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        yield LibraryDocument("", tuple(split_passages(block.split("\n"))))


def measure(library: Library, questions: list[tuple[str, str, tuple[str, ...]]]) -> dict[str, Any]:
    hits = dict.fromkeys(("paragraph first", "paragraph among five", "answer in first"), 0)
    sentences = {1: 0, 3: 0}
    seconds = []
    for question, paragraph, answers in questions:
        started = time.perf_counter()
        found = library.search(question, 5)
        seconds.append(time.perf_counter() - started)
        texts = [passage.text for passage in found]
        hits["paragraph first"] += texts[:1] == [paragraph]
        hits["paragraph among five"] += paragraph in texts
        hits["answer in first"] += any(answer in text for text in texts[:1] for answer in answers)
        best = best_sentences(question, found, max(sentences))
        for n in sentences:
            shown = "\n".join(one.text for one in best[:n])
            sentences[n] += any(answer in shown for answer in answers)
    hits |= {f"answer in the best {n}": number for n, number in sentences.items()}
    figures: dict[str, Any] = {name: round(number / len(questions), 4) for name, number in hits.items()}
    return figures | {"questions": len(questions), "median ms": round(1000 * statistics.median(seconds), 2)}


def read_options(description: str | None, out: str) -> argparse.Namespace:
    """The command line of the scripts that ask a file of questions. out: the name of the result's file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("others", type=Path)
    parser.add_argument("--others", dest="number", type=int, default=3000, help="documents of OTHERS.txt")
    parser.add_argument("--limit", type=int, default=None, help="questions, spread over the file; default: all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / out)
    return parser.parse_args()


def main() -> None:
    options = read_options(__doc__, "retrieval.json")
    documents, questions = articles(options.questions)
    if options.limit is not None:
        questions = questions[:: max(1, len(questions) // options.limit)][: options.limit]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.sqlite"
        started = time.perf_counter()
        passages = build_library(path, [*documents, *islice(blocks(options.others), options.number)])
        built = {"passages": passages, "seconds to build": round(time.perf_counter() - started, 2)}
        with Library(path) as library:
            figures = measure(library, questions) | built
    options.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    json.dump(figures, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
