"""Many epochs of a text that does not grow: which recipe ends with the fewest bits a byte?

    python benchmarks/fixed_text.py TEXT --out FOLDER [--only NAME ...]

Takes the first 3 MB of TEXT's documents (parted by blank lines), a twentieth of them held out to choose epochs and
checkpoints by, another to report; a vocabulary of 4,000; 4 layers x 128, context 256: about as many tokens a parameter
as 100 MB give preset `modern`. Trains each of RUNS, one after another, in FOLDER. A run that stands there already is
gone on with, or taken as it is, and its result is written as soon as it is known, so that the search can be interrupted
at any time. Writes results/fixed_text.json and fixed_text.png beside this file.
"""

import argparse
import hashlib
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import twingpt
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.data.tokens.arrays import ArrayBatches
from twingpt.data.tokens.tokenizer import train_tokenizer
from twingpt.training.log import EvalReport
from twingpt.training.validation import evaluate
from twingpt.weights.checkpoint import load_checkpoint

TEXT_BYTES = 3_000_000
VOCAB_SIZE = 4000
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 256, "vocab_size": VOCAB_SIZE}
PARTS = {"choose": {0}, "report": {1}, "train": set(range(2, 20))}
"""Which twentieths of the documents, drawn by a hash of their number, are for what."""


@dataclass(frozen=True)
class Run:
    """model, train: what differs from preset `modern`."""

    name: str
    epochs: float
    seed: int = 0
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.epochs:g}-epochs-seed-{self.seed}"


BASE: dict[str, Any] = {"cut": "fixed"}
RECIPE: dict[str, Any] = {"cut": "anew", "weight_decay": 0.5, "average": 0.1}
RUNS = [
    *(Run("base", epochs, train=BASE) for epochs in (2, 3, 4, 5)),
    Run("base", 3, 1, train=BASE),
    *(Run("recipe", 12, seed, {"dropout": 0.1}, RECIPE) for seed in (0, 1)),
]


def data(text: Path, folder: Path) -> dict[str, NDArray[np.int32]]:
    """The tokens of each part, and how many bytes each token stands for, made once."""
    path = folder / "tokens.npz"
    if path.is_file():
        return dict(np.load(path))
    documents, size = [], 0
    for document in text.read_text(encoding="utf-8").split("\n\n"):
        size += len(document.strip().encode())
        if size > TEXT_BYTES:
            break
        if document.strip():
            documents.append(document.strip())
    twentieth = [int(hashlib.sha256(f"film {n}".encode()).hexdigest(), 16) % 20 for n in range(len(documents))]
    chosen = {
        name: [document for document, part in zip(documents, twentieth, strict=True) if part in parts]
        for name, parts in PARTS.items()
    }
    tokenizer = train_tokenizer(iter(chosen["train"]), VOCAB_SIZE)
    found = {}
    for name, some in chosen.items():
        encoded = [[tokenizer.bos_id, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(some)]
        found[name] = np.concatenate([np.array(ids, dtype=np.int32) for ids in encoded])
    found["token_bytes"] = tokenizer.token_bytes()
    np.savez(path, allow_pickle=False, **found)
    return found


def measured(run: Run, tokens: dict[str, NDArray[np.int32]], folder: Path, backend: str) -> dict[str, Any]:
    """Train a run to its end, and evaluate the weights that it calls its best on the documents to report."""
    path, windows = folder / run.folder, tokens["train"].size / MODEL["block_size"]
    settings = {"eval_every": max(1, round(windows / 16)), "save_every": 0, "eval_windows": 0, "sample_tokens": 0}
    training = twingpt.train(
        path,
        data=(tokens["train"], tokens["choose"]),
        token_bytes=tokens["token_bytes"],
        backend=backend,
        device="cpu",
        preset=None if (path / "checkpoints").is_dir() else "modern",
        resume=(path / "checkpoints").is_dir(),
        model={**MODEL, **run.model},
        steps=round(run.epochs * windows / 16),
        seed=run.seed,
        **{**settings, **run.train},
    )
    for report in training:
        if isinstance(report, EvalReport):
            print(f"{run.folder}: step {report.step}, {report.best.bits_per_byte:.4f} bits a byte", flush=True)
    best = load_checkpoint(path / "best", optimizer=False)
    engine = create_backend(backend, best.spec, EngineConfig(device="cpu"))
    engine.load_state(best.state)
    bits = {
        part: evaluate(engine, ArrayBatches(tokens[part], MODEL["block_size"]), tokens["token_bytes"], 16).bits_per_byte
        for part in ("choose", "report")
    }
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [
        [line["step"] * 16 / windows, min(line["val_loss"], line.get("average_val_loss", line["val_loss"]))]
        for line in lines
        if "val_loss" in line
    ]
    return {
        **asdict(run),
        "best_step": best.progress.step,
        "averaged": best.progress.average_is_better,
        **bits,
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", default="mps")
    parser.add_argument("--only", nargs="+", help="names of runs", default=None)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tokens = data(options.text, options.out)
    path = Path(__file__).parent / "results" / "fixed_text.json"
    for run in RUNS:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": {}}
        if run.folder in known["runs"] or (options.only is not None and run.name not in options.only):
            continue
        found = measured(run, tokens, options.out, options.backend)
        known["machine"] = platform.platform()
        known["runs"][run.folder] = found
        path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{run.folder}: choose {found['choose']:.4f}, report {found['report']:.4f} bits a byte", flush=True)


if __name__ == "__main__":
    main()
