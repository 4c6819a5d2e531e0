"""How long does the whole way take, from raw text to an answer, in each engine?

    python benchmarks/end_to_end.py RAW.txt [--steps 20] [--batch-size 4] [--preset seed] [--template plain]

Runs the commands a user runs, each in a process of its own, and prints the wall time of each; with equal seeds and
dropout 0 it also tells how far the two engines' losses lie apart. Writes results/end_to_end.json beside this file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BACKENDS = ("mps", "mlx")


def twingpt(*args: object) -> float:
    """Run one command; returns its wall time in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, args)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--preset", default="seed")
    parser.add_argument("--template", default="plain")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    options = parser.parse_args()

    result: dict[str, Any] = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "settings": vars(options) | {"raw": options.raw.name},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = work / "data"
        vocabulary = ("--vocab-size", options.vocab_size)
        prepared = twingpt("prepare", options.raw, "--out", data, "--template", options.template, *vocabulary)
        result["prepare_seconds"] = prepared
        result["raw_megabytes"] = options.raw.stat().st_size / 1e6
        for backend in BACKENDS:
            run = work / backend
            train = ("train", "--data", data, "--out", run, "--backend", backend, "--preset", options.preset)
            size = ("--steps", options.steps, "--batch-size", options.batch_size, "--dropout", 0, "--log-every", 1)
            seconds = twingpt(*train, *size)
            answer = twingpt("generate", run, "--prompt", "한국", "--backend", backend, "--max-new-tokens", 100)
            lines = metrics(run)
            rates = sorted(line["tokens_per_second"] for line in lines[1:])
            result[backend] = {
                "train_seconds": seconds,
                "tokens_per_second": rates[len(rates) // 2],
                "generate_seconds": answer,
                "losses": [line["loss"] for line in lines],
            }
    differences = [abs(a - b) for a, b in zip(*(result[name]["losses"] for name in BACKENDS), strict=True)]
    result["loss_difference"] = {"first": differences[0], "last": differences[-1], "largest": max(differences)}
    report(result)
    path = Path(__file__).parent / "results" / "end_to_end.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def report(result: dict[str, Any]) -> None:
    print(f"prepare {result['raw_megabytes']:.1f} MB: {result['prepare_seconds']:.1f} s")
    for backend in BACKENDS:
        row = result[backend]
        print(
            f"{backend}: train {row['train_seconds']:.1f} s, median {row['tokens_per_second']:,.0f} tokens/s, "
            f"loss {row['losses'][0]:.5f} -> {row['losses'][-1]:.5f}, generate {row['generate_seconds']:.1f} s"
        )
    print("losses of the two engines apart:", {k: f"{v:.2g}" for k, v in result["loss_difference"].items()})


if __name__ == "__main__":
    main()
