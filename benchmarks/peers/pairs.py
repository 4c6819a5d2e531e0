"""What the comparisons share: fresh processes in turn, medians, ratios taken round by round, a results file.

Nothing here imports a framework: the process that starts the others must stay small and idle.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from twingpt.checks.machine import machine, versions
from twingpt.core.errors import UsageError
from twingpt.core.presets import find_preset
from twingpt.core.spec import GPTSpec

RESULTS = Path(__file__).parents[1] / "results"
VOCABULARY = 16_000
LEARNING_RATE = 3e-4

Row = dict[str, Any]
Rounds = list[dict[str, Row]]
"""Of each round, one row a candidate."""


def compared_spec(**changes: Any) -> GPTSpec:
    """Preset seed as nanoGPT has it: a tied head, no dropout."""
    return GPTSpec(
        **{**find_preset("seed").model, "vocab_size": VOCABULARY, "tie_embeddings": True, "dropout": 0.0, **changes}
    )


def parser(doc: str | None, name: str, rounds: int) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds, help=f"of fresh processes in turn (default {rounds})")
    made.add_argument(
        "--quick", action="store_true", help="one short round: does it run? Written nowhere without --out"
    )
    made.add_argument("--out", type=Path, help=f"results file (default results/{name}.json beside this folder)")
    made.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto")
    made.add_argument("--worker", help=argparse.SUPPRESS)
    return made


def in_turn(script: str, candidates: Sequence[str], rounds: int, arguments: Iterable[object]) -> Rounds:
    """Run `script --worker NAME ARGUMENTS` for every candidate in turn, every second round backwards.

    What else the machine does then falls on all of them. A worker's last line is its row, as JSON.
    """
    done: Rounds = []
    for number in range(rounds):
        row: dict[str, Row] = {}
        for name in candidates if number % 2 == 0 else candidates[::-1]:
            command = [sys.executable, script, "--worker", name, *map(str, arguments)]
            result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if result.returncode:
                raise SystemExit(f"{name} failed (exit code {result.returncode}): {' '.join(command)}")
            row[name] = json.loads(result.stdout.splitlines()[-1])
            print(f"round {number + 1} of {rounds}, {name}: {row[name]}", flush=True)
        done.append(row)
    return done


def median(rounds: Rounds, name: str, key: str) -> float:
    return float(statistics.median(row[name][key] for row in rounds))


def ratio(rounds: Rounds, key: str, first: str, second: str) -> Row:
    """first / second of each round: the median, the least and the greatest."""
    return spread([row[first][key] / row[second][key] for row in rounds])


def spread(values: Sequence[float]) -> Row:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def target(what: str, measured: Row, *, at_least: float | None = None, at_most: float | None = None) -> Row:
    """A promise with what came of it: the median counts."""
    value = measured["median"]
    met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    return {"what": what, **measured, "at_least": at_least, "at_most": at_most, "met": met}


def started() -> Row:
    """What a results file says of the machine and of the moment. load: processes wanting a core, before the start."""
    return {
        "machine": machine(),
        "versions": versions(),
        "threads": os.environ.get("OMP_NUM_THREADS", "one a core"),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def finish(name: str, options: argparse.Namespace, result: Row) -> None:
    """Show each target, and write the results file."""
    for line in result["targets"]:
        goal = f"at least {line['at_least']}" if line["at_least"] is not None else f"at most {line['at_most']}"
        numbers = f"{line['median']:.3g} ({line['least']:.3g} to {line['greatest']:.3g})"
        print(f"{'met' if line['met'] else 'NOT MET':7} {line['what']}: {numbers}, wanted {goal}")
    path = options.out or (None if options.quick else RESULTS / f"{name}.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_file(path: Path, name: str) -> ModuleType:
    """A module from a file that is no package's. Raises UsageError if there is none."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"{path} is no Python file: give the path of the peer's own source")
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the module that defines them.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
