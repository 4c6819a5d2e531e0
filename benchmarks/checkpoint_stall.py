"""For how long does a checkpoint hold up training, beside a step?

    python benchmarks/checkpoint_stall.py [--rounds 3] [--saves 4] [--every 3] [--quick]

Trains preset seed (vocabulary 16,000: 276 MB of weights and moments) with the trainer itself, batch 16 (the preset's)
and 4, in fresh processes, the engines in turn. A save holds up the loop for what passes between the last update before
it and the first one after it, less a step. What a save takes from the steps until the next one (it may go on writing
beside them) is in `whole`: all the time from save to save, less as many undisturbed steps. Writes
results/checkpoint_stall.json.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from estimates import make_data

from twingpt.checks.machine import machine, versions
from twingpt.training.log import SaveReport, StepReport
from twingpt.training.session import TrainRequest, open_session

BACKENDS = ("mps", "mlx")
BATCHES = (16, 4)
VOCABULARY = 16_000


def measure(options: argparse.Namespace, data: Path, run: Path) -> dict[str, Any]:
    """One run in this process: a save every `every` steps, the last one with nothing to hold up."""
    every = options.every
    total = (options.saves + 1) * every
    session = open_session(
        TrainRequest(
            run_dir=run,
            data_dir=data,
            backend=options.backend,
            device=options.device,
            model={"vocab_size": VOCABULARY},
            train={
                "steps": 10 * total,
                "batch_size": options.batch,
                "micro_batch": options.batch,
                "log_every": 1,
                "eval_every": 0,
                "save_every": every,
            },
        )
    )
    updates: list[float] = []
    saved_after: list[int] = []
    for report in session.trainer.run(stop_at=total):
        if isinstance(report, StepReport):
            updates.append(time.perf_counter())
        elif isinstance(report, SaveReport):
            saved_after.append(len(updates))
    # gaps[i] lies between update i + 1 and update i + 2.
    gaps = [later - earlier for earlier, later in itertools.pairwise(updates)]
    holding = [index for index in range(len(gaps)) if index + 1 in saved_after]
    # The last step before a save is the one that what is still being written disturbs the least.
    step = statistics.median(gaps[index - 1] for index in [*holding, len(gaps)])
    stalls = [gaps[index] - step for index in holding]
    whole = [sum(gaps[index : index + every]) - every * step for index in holding if index + every <= len(gaps)]
    return {"step_seconds": step, "stall_seconds": stalls, "whole_seconds": whole}


def in_a_fresh_process(options: argparse.Namespace, work: Path, backend: str, batch: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=work) as run:
        command = [sys.executable, __file__, "--one", str(work / "data"), run, "--backend", backend]
        command += ["--batch", str(batch), "--saves", str(options.saves), "--every", str(options.every)]
        command += ["--device", options.device]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(output.splitlines()[-1])
    print(f"{backend}, batch {batch}: {row}", flush=True)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over all saves of all processes; stall_in_steps is of each process's own step."""
    ratios = [stall / row["step_seconds"] for row in rows for stall in row["stall_seconds"]]
    whole = [cost / row["step_seconds"] for row in rows for cost in row["whole_seconds"]]
    return {
        "step_seconds": statistics.median(row["step_seconds"] for row in rows),
        "stall_seconds": statistics.median(stall for row in rows for stall in row["stall_seconds"]),
        "stall_in_steps": {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)},
        "whole_in_steps": {"median": statistics.median(whole), "least": min(whole), "greatest": max(whole)},
        "rows": rows,
    }


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=3, help="of fresh processes in turn (default 3)")
    made.add_argument("--saves", type=int, default=4, help="in each process (default 4)")
    made.add_argument("--every", type=int, default=3, help="steps between two saves (default 3)")
    made.add_argument("--device", choices=("auto", "gpu", "cpu"), default="auto")
    made.add_argument(
        "--quick", action="store_true", help="one short round: does it run? Written nowhere without --out"
    )
    made.add_argument("--out", type=Path, help="results file (default results/checkpoint_stall.json beside this file)")
    made.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    made.add_argument("--backend", help=argparse.SUPPRESS)
    made.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.one:
        print(json.dumps(measure(options, *options.one)))
        return
    if options.quick:
        options.rounds, options.saves = 1, 2

    result: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "load": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "rows": {},
        "targets": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_data(work / "data", VOCABULARY)
        for batch in BATCHES[1:] if options.quick else BATCHES:
            rows: dict[str, list[dict[str, Any]]] = {backend: [] for backend in BACKENDS}
            for number in range(options.rounds):
                for backend in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
                    rows[backend].append(in_a_fresh_process(options, work, backend, batch))
            for backend in BACKENDS:
                measured = summary(rows[backend])
                stall = measured["stall_in_steps"]
                result["rows"][f"{backend}, batch {batch}"] = measured
                result["targets"].append(
                    {
                        "what": f"steps that a checkpoint holds up, {backend}, batch {batch}",
                        **stall,
                        "at_least": None,
                        "at_most": 1.0,
                        "met": stall["median"] <= 1.0,
                    }
                )
    for line in result["targets"]:
        print(f"{'met' if line['met'] else 'NOT MET':7} {line['what']}: {line['median']:.2f}")
    path = options.out or (None if options.quick else Path(__file__).parent / "results" / "checkpoint_stall.json")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
