"""Is it one run, whichever engine trains it? 100 steps in one engine against equal shares in all, in every order.

    python benchmarks/cross_engine.py [--preset tiny|modern] [--engines mps,mlx] [--steps 100] [--batch-size 4]
        [--seed 0] [--out FILE.json]

A preset at the size of tiny, the example text, dropout 0, the CPU. Every run sees the same data in the same order, so
that only rounding tells them apart. Then the engines write text from one checkpoint, with the same seeds. Prints the
largest difference of a step's loss between each pair of runs and how many of the texts are the same, and writes them
with the losses to results/cross_engine.json, or cross_engine_modern.json, beside this file.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXTS, TOKENS = 5, 200
EXAMPLE = Path(__file__).parents[1] / "twingpt" / "examples" / "ph_life_ko.txt"


def twingpt(*args: object) -> str:
    command = [sys.executable, "-m", "twingpt", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def train(data: Path, run: Path, backends: tuple[str, ...], options: argparse.Namespace) -> list[float]:
    """The loss of each step of a run that changes engine after equal shares."""
    config, steps = data.parent / "size.toml", options.steps
    config.write_text("[model]\nn_layer = 4\nn_head = 4\nn_embd = 128\n", encoding="utf-8")
    first: tuple[object, ...] = ("--data", data, "--preset", options.preset, "--config", config, "--dropout", 0)
    first += ("--steps", steps, "--batch-size", options.batch_size, "--seed", options.seed)
    first += ("--log-every", 1, "--eval-every", 0)
    for index, backend in enumerate(backends):
        stop = steps * (index + 1) // len(backends)
        more = ("--resume",) if index else first
        twingpt("train", "--out", run, "--backend", backend, "--device", "cpu", "--stop-at", stop, *more)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().split(b"\n") if line]
    return [line["loss"] for line in lines if "loss" in line]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """losses of each run by its engines ("mps+mlx" changed over), and how far apart each pair comes at the most."""
    data = folder / "data"
    twingpt("prepare", EXAMPLE, "--out", data, "--template", "plain", "--separator", "blank-line", "--vocab-size", 2000)
    plans = [(name,) for name in options.engines] + list(itertools.permutations(options.engines))
    losses = {"+".join(plan): train(data, folder / "+".join(plan), plan, options) for plan in plans}
    differences = {
        f"{first} / {second}": max(abs(a - b) for a, b in zip(losses[first], losses[second], strict=True))
        for first, second in itertools.combinations(losses, 2)
    }
    written = [sampled(folder / "+".join(options.engines), options.engines, number) for number in range(TEXTS)]
    texts = {"same": sum(len(set(texts)) == 1 for texts in written), "of": TEXTS, "tokens_each": TOKENS}
    return {"largest_loss_difference": differences, "sampled_texts": texts, "losses": losses}


def sampled(run: Path, engines: list[str], seed: int) -> tuple[str, ...]:
    """Text from a checkpoint, by each engine, temperature 0.8."""
    args = ("generate", run, "--prompt", "한국", "--device", "cpu", "--max-new-tokens", TOKENS, "--seed", seed)
    return tuple(twingpt(*args, "--backend", backend) for backend in engines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=("tiny", "modern"), default="tiny")
    parser.add_argument("--engines", type=lambda names: names.split(","), default=["mps", "mlx"])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "cross_engine" if options.preset == "tiny" else f"cross_engine_{options.preset}"
    out = options.out or Path(__file__).parent / "results" / f"{name}.json"

    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    settings = {
        "preset": options.preset,
        "engines": options.engines,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "seed": options.seed,
    }
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "settings": settings}
    for name, losses in result["losses"].items():
        print(f"{name:18} loss {losses[0]:.6f} -> {losses[-1]:.6f}")
    for pair, difference in result["largest_loss_difference"].items():
        print(f"{pair:38} at most {difference:.2g} nats a token apart")
    texts = result["sampled_texts"]
    print(
        f"sampled text: {texts['same']} of {texts['of']} the same in every engine, {texts['tokens_each']} tokens each"
    )
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({**machine, **result}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
