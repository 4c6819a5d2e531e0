"""Does a model that is trained on the text choose the sentence that answers better than retrieval does?

    python benchmarks/choosing.py QUESTIONS.json OTHERS.txt --others 3000 --steps 2600 --seeds 0 --out FILE

The model learns, without a label, to ask for a sentence: questions are made of the text's own sentences (a word is
asked for, some others are kept, endings change), and it is trained on "title, sentence, question". A sentence then fits
a question of QUESTIONS.json as well as the question is likely after it (query likelihood). Prints how often the gold
answer stands in the first sentence and in the first three: retrieval alone, the model alone among the sentences that
retrieval put first, and both, for several weights of the model.
"""

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from retrieval import articles, blocks

import twingpt
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.data.library.build import LibraryDocument, build_library
from twingpt.data.library.search import Library
from twingpt.data.library.sentences import best_sentences, sentences
from twingpt.data.tokens.marks import BOS, DOC, END_DOC, END_QUESTION, QUESTION
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer
from twingpt.weights.checkpoint import load_checkpoint

CANDIDATES = 8
BLOCK_SIZE, VOCAB_SIZE = 256, 4000
ROUNDS = 24
"""Questions that are made of each sentence."""
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Of the model's share of the candidates, from 0 to 1, beside the score as part of the best one's."""

PARTICLES = ("은", "는", "이", "가", "을", "를", "의", "에", "에서", "로", "와", "과", "")
_PARTICLE = re.compile(r"(?<=..)(?:에서는|이라는|으로는|에서|에게|까지|부터|으로|라는|[은는이가을를의에로와과도만])$")
ENDS = {
    "year": ("몇 년인가?", "언제인가?", "몇 년도인가?", "해는?", "연도는?", "언제야?"),
    "date": ("언제인가?", "날짜는?", "몇 월인가?", "며칠인가?", "언제야?"),
    "number": ("얼마인가?", "몇 개인가?", "수는?", "얼마나 되는가?"),
    "place": ("어디인가?", "곳은?", "장소는?", "어디야?", "지역은?"),
    "name": ("누구인가?", "무엇인가?", "것은?", "이름은?", "사람은?", "누구야?", "뭐야?"),
}
WITHIN = {
    "year": ("몇 년에", "언제", "어느 해에"),
    "date": ("언제", "몇 월", "며칠에"),
    "number": ("얼마", "얼마나", "몇"),
    "place": ("어디에서", "어디로", "어느 곳에"),
    "name": ("누가", "무엇이", "무엇을", "어떤 것이", "누구를"),
}


def kind_of(word: str) -> str:
    """What a word is the answer to, by how it looks."""
    if re.search(r"\d년", word):
        return "year"
    if re.search(r"\d[월일]", word):
        return "date"
    if re.search(r"\d", word):
        return "number"
    return "place" if re.search(r"(?:에서|에서는|에|로)$", word) else "name"


def made_question(title: str, sentence: str, elsewhere: Sequence[str], rng: random.Random) -> str | None:
    """A question that the sentence answers; None if it is too short. elsewhere: words that some are replaced by."""
    words = sentence.rstrip(".!?").split()
    if len(words) < 4:
        return None
    weights = [3 if re.search(r"\d", word) else 2 if _PARTICLE.search(word) else 1 for word in words]
    asked = rng.choices(range(len(words)), weights)[0]
    keep, near, last = rng.uniform(0.25, 0.8), rng.random() < 0.6, rng.random() < 0.65
    kept: list[str] = []
    for i, word in enumerate(words):
        if i == asked:
            kept += [] if last else [rng.choice(WITHIN[kind_of(word)])]
        elif rng.random() <= keep * ((1.25 if abs(i - asked) <= 4 else 0.6) if near else 1.0):
            draw = rng.random()
            if draw < 0.12:
                kept.append(rng.choice(elsewhere))
            elif draw < 0.5 and _PARTICLE.search(word):
                kept.append(_PARTICLE.sub("", word) + rng.choice(PARTICLES))
            else:
                kept.append(word)
    if len(kept) < 3:
        return None
    if title and rng.random() < 0.5:
        kept.insert(rng.choice([0, 0, rng.randrange(len(kept) + 1)]), title + rng.choice(PARTICLES))
    if last:
        kept.append(rng.choice(ENDS[kind_of(words[asked])]))
    return " ".join(kept)


def tokens_of(tokenizer: Tokenizer, title: str, sentence: str, question: str) -> tuple[list[int], list[int]]:
    """(title and sentence up to [QUESTION], the question), together no longer than a row of the model."""
    asked = [*tokenizer.encode(" " + question), tokenizer.id(END_QUESTION)]
    shown = tokenizer.encode(f"{title}\n{sentence}" if title else sentence)[: BLOCK_SIZE - len(asked) - 4]
    return [
        tokenizer.id(BOS),
        tokenizer.id(DOC),
        *shown,
        tokenizer.id(END_DOC),
        tokenizer.id(QUESTION),
    ], asked


def training_tokens(documents: Sequence[LibraryDocument], tokenizer: Tokenizer) -> NDArray[np.uint16]:
    """Every sentence under a title with ROUNDS questions, and as many sentences of documents without a title."""
    rng = random.Random(0)
    found = [(one.title, s) for one in documents for p in one.passages for s in sentences(p) if 15 <= len(s) <= 260]
    titled, others = ([pair for pair in found if bool(pair[0]) is wanted] for wanted in (True, False))
    words = [word for _, sentence in found for word in sentence.split()]

    def ids() -> Iterator[int]:
        for _ in range(ROUNDS):
            chosen = [*titled, *rng.sample(others, min(len(others), len(titled)))]
            rng.shuffle(chosen)
            for title, sentence in chosen:
                question = made_question(title, sentence, words, rng)
                if question is not None:
                    shown, asked = tokens_of(tokenizer, title, sentence, question)
                    yield from (*shown, *asked)

    return np.fromiter(ids(), dtype=np.uint16)


def likelihoods(run: Path, tokenizer: Tokenizer, asked: list[tuple[str, list[tuple[str, str]]]]) -> list[list[float]]:
    """log P(question | title, sentence) in nats, for each question and each of its candidates."""
    checkpoint = load_checkpoint(run, optimizer=False)
    engine = create_backend("mps", checkpoint.spec, EngineConfig(device="cpu"))
    engine.load_state(checkpoint.state)
    rows = [(i, tokens_of(tokenizer, *one, question)) for i, (question, some) in enumerate(asked) for one in some]
    order = sorted(range(len(rows)), key=lambda n: len(rows[n][1][0]) + len(rows[n][1][1]))
    scores = np.zeros(len(rows))
    for start in range(0, len(order), 32):
        some = order[start : start + 32]
        inputs = np.zeros((len(some), max(len(rows[n][1][0]) + len(rows[n][1][1]) for n in some)), dtype=np.int32)
        for row, n in enumerate(some):
            both = [*rows[n][1][0], *rows[n][1][1]]
            inputs[row, : len(both)] = both
        logits = engine.logits(inputs)
        for row, n in enumerate(some):
            shown, question = rows[n][1]
            part = logits[row, len(shown) - 1 : len(shown) + len(question) - 1].astype(np.float64)
            part -= part.max(-1, keepdims=True)
            part -= np.log(np.exp(part).sum(-1, keepdims=True))
            scores[n] = part[np.arange(len(question)), question].sum()
    found: list[list[float]] = [[] for _ in asked]
    for n, (i, _) in enumerate(rows):
        found[i].append(float(scores[n]))
    return found


def table(candidates: list[tuple[NDArray[np.float64], NDArray[np.bool_]]], nats: list[list[float]]) -> dict[str, Any]:
    """How often the answer stands in the first and in the first three, by who chooses."""
    figures: dict[str, Any] = {}
    for name, weight in [
        *((f"both, {weight:g}", weight) for weight in WEIGHTS[1:]),
        ("retrieval", 0.0),
        ("model", 1e9),
    ]:
        hits = np.zeros(2)
        for (scores, right), likely in zip(candidates, nats, strict=True):
            if len(scores):
                share = np.exp(np.array(likely) - max(likely))
                order = np.argsort(-(scores / scores[0] + weight * share / share.sum()), kind="stable")
                hits += right[order[0]], right[order[:3]].any()
        figures[name] = [round(float(hit) / len(candidates), 4) for hit in hits]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path)
    parser.add_argument("others", type=Path)
    parser.add_argument("--others", dest="number", type=int, default=3000, help="documents of OTHERS.txt")
    parser.add_argument("--every", type=int, default=2, help="take every so manieth question")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "choosing.json")
    options = parser.parse_args()
    documents, asked = articles(options.questions)
    documents += islice(blocks(options.others), options.number)
    asked = asked[:: options.every]
    figures: dict[str, Any] = {"questions": len(asked), "steps": options.steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_library(folder / "library.sqlite", documents)
        with Library(folder / "library.sqlite") as library:
            found = [(library.search(question), question, answers) for question, _, answers in asked]
        best = [(best_sentences(question, some, CANDIDATES), some, answers) for some, question, answers in found]
        candidates = [
            (np.array([s.score for s in chosen]), np.array([any(a in s.text for a in answers) for s in chosen]))
            for chosen, _, answers in best
        ]
        shown = [
            (question, [(some[s.passage].title, s.text) for s in chosen])
            for (_, question, _), (chosen, some, _) in zip(found, best, strict=True)
        ]
        tokenizer = train_tokenizer((" " + s for d in documents for p in d.passages for s in sentences(p)), VOCAB_SIZE)
        tokens = training_tokens(documents, tokenizer)
        for seed in options.seeds:
            run = folder / f"run-{seed}"
            twingpt.train(
                run,
                data=(tokens[20_000:], tokens[:20_000]),
                backend="mps",
                device="cpu",
                preset="modern",
                model={"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": BLOCK_SIZE, "vocab_size": VOCAB_SIZE},
                steps=options.steps,
                seed=seed,
                eval_every=0,
                sample_tokens=0,
            ).finish()
            figures[f"seed {seed}"] = table(candidates, likelihoods(run, tokenizer, shown))
            options.out.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    json.dump(figures, sys.stdout, indent=2, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()
