"""Is a run of several ranks the same run, and does it survive the death of one?

    python -m benchmarks.ranks [--steps 50] [--kills 20] [--seed 0] [--out FILE.json]

For each engine: the losses of 1, 2 and 4 processes on this machine, dropout off; a run of 2 that is gone on with by 1,
and by the other engine. Then runs of 2 ranks of which one, at a seeded random instant, gets SIGKILL: how long the other
takes to end, and whether the run, resumed each time, ends with the losses of an untouched one. Runs on the CPU, one
thread a process. Writes results/ranks.json beside this file.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.ranks import ranks
from twingpt.training.log import read_metrics
from twingpt.weights.checkpoint import CheckpointStore

ENGINES = ("mps", "mlx")
EXAMPLE = Path(__file__).parents[1] / "twingpt" / "examples" / "ph_life_ko.txt"
WAIT_S = 30.0
"""Within which every rank must have ended after one was killed."""
TIMEOUT = ["--rank-timeout", "20"]
"""A rank that dies before it has met the others is missed by nothing but the clock."""
OPTIONS = [*TIMEOUT, "--preset", "tiny", "--dropout", "0", "--batch-size", "8", "--device", "cpu", "--log-every", "1"]
SAVE_EVERY = 5


def train(engine: str, folder: Path, size: int, *options: str) -> None:
    with ranks(engine, folder, size, *options) as processes:
        said = [process.communicate() for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"{engine}, {size} ranks: {said}")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "run") if "loss" in line]


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b):
        raise SystemExit(f"{len(a)} losses against {len(b)}")
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def same_run(root: Path, fresh: list[str], steps: int) -> dict[str, Any]:
    """Largest difference of the losses, by what was compared with one process of the same engine."""
    result: dict[str, Any] = {}
    alone: dict[str, list[float]] = {}
    for engine in ENGINES:
        for size in (1, 2, 4):
            folder = root / f"{engine}-{size}"
            folder.mkdir()
            train(engine, folder, size, *fresh, "--steps", str(steps))
            if size == 1:
                alone[engine] = losses(folder)
            else:
                result[f"{engine}, {size} ranks"] = apart(losses(folder), alone[engine])
    result["mps against mlx, one process each"] = apart(alone["mps"], alone["mlx"])
    for engine, then in (("mps", "mps"), ("mlx", "mlx"), ("mps", "mlx"), ("mlx", "mps")):
        folder = root / f"{engine}-2-{then}-1"
        folder.mkdir()
        train(engine, folder, 2, *fresh, "--steps", str(steps), "--stop-at", str(steps // 2))
        train(then, folder, 1, "--resume", "--device", "cpu")
        result[f"2 ranks of {engine} for half of it, then 1 of {then}"] = apart(losses(folder), alone[engine])
    return result


def killed(root: Path, engine: str, fresh: list[str], steps: int, kills: int, rng: random.Random) -> dict[str, Any]:
    """What a run went through whose ranks are killed until all kills are spent."""
    whole = root / "whole"
    whole.mkdir()
    started = time.perf_counter()
    train(engine, whole, 2, *fresh, "--steps", str(steps))
    duration = time.perf_counter() - started
    ends: list[float] = []
    before_a_step = inside = 0
    differences: list[float] = []
    while len(ends) < kills:
        folder = root / f"run-{len(differences)}"
        folder.mkdir()
        while len(ends) < kills:
            saved = bool(CheckpointStore(folder / "run").steps())
            options = ["--resume", "--device", "cpu", *TIMEOUT] if saved else [*fresh, "--steps", str(steps)]
            size = 2 if len(ends) % 2 == 0 or not saved else rng.choice((2, 4))
            end = kill_one(engine, folder, size, options, rng, duration)
            if end is None:
                break
            ends.append(end)
            reached = bool(CheckpointStore(folder / "run").steps())
            before_a_step += not reached
            inside += reached
        else:
            saved = bool(CheckpointStore(folder / "run").steps())
            train(engine, folder, 1, *(["--resume", "--device", "cpu"] if saved else [*fresh, "--steps", str(steps)]))
        differences.append(apart(losses(folder), losses(whole)))
    return {
        "kills": len(ends),
        "before the first checkpoint": before_a_step,
        "after it": inside,
        "seconds until every rank had ended": {"median": sorted(ends)[len(ends) // 2], "largest": max(ends)},
        "finished runs": len(differences),
        "largest difference of their losses": max(differences),
    }


def kill_one(
    engine: str, folder: Path, size: int, options: list[str], rng: random.Random, duration: float
) -> float | None:
    """Seconds until the other ranks had ended after one was killed; None if the run ended before."""
    with ranks(engine, folder, size, *options) as processes:
        time.sleep(rng.uniform(0.0, duration))
        if all(process.poll() is not None for process in processes):
            if any(process.returncode for process in processes):
                raise SystemExit(f"{engine}: {[process.communicate() for process in processes]}")
            return None
        victim = rng.randrange(size)
        processes[victim].kill()
        killed_at = time.perf_counter()
        for process in processes:
            try:
                _, error = process.communicate(timeout=max(0.1, WAIT_S - (time.perf_counter() - killed_at)))
            except subprocess.TimeoutExpired:
                raise SystemExit(f"{engine}: a rank was still there {WAIT_S:.0f} s after another was killed") from None
            if process is not processes[victim] and process.returncode not in (0, 1):
                raise SystemExit(f"{engine}: a rank ended with {process.returncode}: {error}")
            if process is not processes[victim] and process.returncode == 1 and not said(error):
                raise SystemExit(f"{engine}: a rank ended without a clear line: {error}")
        return time.perf_counter() - killed_at


def said(error: str) -> bool:
    """Whether a rank told why it ended. MLX's cannot while it waits to join, and tells before that it will."""
    return "error: " in error or error.rstrip().endswith("this one ends")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--kills", type=int, default=20, help="of each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ranks.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = root / "data"
        prepare = [
            sys.executable,
            "-m",
            "twingpt",
            "prepare",
            str(EXAMPLE),
            "--out",
            str(data),
            "--template",
            "plain",
            "--separator",
            "blank-line",
        ]
        subprocess.run([*prepare, "--vocab-size", "1000"], check=True, capture_output=True)
        fresh = ["--data", str(data), *OPTIONS, "--eval-every", "0", "--save-every", str(SAVE_EVERY)]
        results: dict[str, Any] = {"machine": f"{platform.machine()}, {platform.system()}", "steps": options.steps}
        results["losses apart"] = same_run(root, fresh, options.steps)
        print(json.dumps(results, indent=2))
        for engine in ENGINES:
            (root / f"killed-{engine}").mkdir()
            rng = random.Random(f"{options.seed}/{engine}")
            results[f"killed, {engine}"] = killed(
                root / f"killed-{engine}", engine, fresh, options.steps, options.kills, rng
            )
            print(json.dumps(results[f"killed, {engine}"], indent=2))
    options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
