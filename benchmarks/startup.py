"""How fast is the command there: its help beside that of a trivial Typer app, and a first token from MLX?

    python benchmarks/startup.py [--pairs 20] [--quick]

Whole processes, timed from outside, in turn. The trivial app is one command with one option. The first token is that of
`twingpt generate RUN --backend mlx --max-new-tokens 1` on a model of preset seed's shape: what it takes until the
process has ended is the most that the first token can have taken. Which modules were imported is asked of Python itself
(-X importtime), in runs that are not timed. Writes results/startup.json beside this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from twingpt.checks.machine import machine, versions

TRIVIAL = '''
import typer

app = typer.Typer()


@app.command()
def hello(name: str = "world") -> None:
    """Say hello."""
    typer.echo(f"hello {name}")


app()
'''
FRAMEWORKS = ("numpy", "torch", "mlx")
VOCABULARY = 16_000


def seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def imported(command: list[str]) -> set[str]:
    """Top-level packages that a command imports. command: without the interpreter."""
    traced = [sys.executable, "-X", "importtime", *command]
    log = subprocess.run(traced, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr
    lines = [line for line in log.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def make_run(folder: Path) -> None:
    """A run of preset seed that nobody trained, as `train` would have left it."""
    from estimates import make_data

    from twingpt.core.init import initial_weights
    from twingpt.core.spec import GPTSpec
    from twingpt.core.state import MODEL
    from twingpt.weights.checkpoint import CheckpointStore, Progress

    make_data(folder, VOCABULARY)
    spec = GPTSpec(vocab_size=VOCABULARY)
    state: dict[str, Any] = {MODEL + name: weight for name, weight in initial_weights(spec, 0).items()}
    CheckpointStore(folder).save(spec, state, Progress(step=1))


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--pairs", type=int, default=20, help="of runs in turn (default 20)")
    made.add_argument("--quick", action="store_true", help="three pairs: does it run? Written nowhere without --out")
    made.add_argument("--out", type=Path, help="results file (default results/startup.json beside this file)")
    options = made.parse_args()
    pairs = 3 if options.quick else options.pairs

    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }
    with tempfile.TemporaryDirectory() as folder:
        trivial = Path(folder) / "trivial.py"
        trivial.write_text(TRIVIAL, encoding="utf-8")
        run = Path(folder) / "run"
        make_run(run)
        ours, theirs = ["-m", "twingpt", "--help"], [str(trivial), "--help"]
        first = ["-m", "twingpt", "generate", str(run), "--backend", "mlx", "--prompt", "한국", "--max-new-tokens", "1"]
        by_help, by_first = imported(ours), imported(first)
        times: dict[str, list[float]] = {"twingpt": [], "trivial": [], "first token": []}
        commands = {"twingpt": ours, "trivial": theirs, "first token": first}
        for number in range(pairs):
            for name in commands if number % 2 == 0 else reversed(commands):
                times[name].append(seconds([sys.executable, *commands[name]]))
    ratio = spread([a / b for a, b in zip(times["twingpt"], times["trivial"], strict=True)])
    first_token = spread(times["first token"])
    result["seconds"] = {name: spread(values) for name, values in times.items()}
    result["imported"] = {
        "--help": sorted(by_help & set(FRAMEWORKS)),
        "generate --backend mlx": sorted(by_first & {"torch", "mlx"}),
    }
    result["targets"] = [
        {"what": "--help beside a trivial Typer app's", **ratio, "at_least": None, "at_most": 1.3}
        | {"met": ratio["median"] <= 1.3},
        {"what": "seconds to a first token from MLX", **first_token, "at_least": None, "at_most": 1.5}
        | {"met": first_token["median"] <= 1.5},
    ]
    for line in result["targets"]:
        print(f"{'met' if line['met'] else 'NOT MET':7} {line['what']}: {line['median']:.2f}")
    print(f"frameworks imported: {result['imported']}")
    path = options.out or (None if options.quick else Path(__file__).parent / "results" / "startup.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if by_help & set(FRAMEWORKS):
        raise SystemExit(f"twingpt --help imports {', '.join(sorted(by_help & set(FRAMEWORKS)))}")
    if "torch" in by_first or "mlx" not in by_first:
        raise SystemExit("twingpt generate --backend mlx must import mlx and not torch")


if __name__ == "__main__":
    main()
