"""Does a run survive SIGKILL at any instant, and end as if nothing had happened?

    python benchmarks/kill_and_resume.py [--kills 200] [--backend mps|mlx|both] [--seed 0] [--out FILE.json]

Kills `twingpt train` of a tiny model (dropout on, a checkpoint every second step) at seeded random instants and resumes
it each time: half of the kills fall inside a save, some in the start-up, the rest between saves. After every kill each
checkpoint that has a name must read and verify, none that retention owes may be gone, and the newest may not go back.
A run that reaches its end must hold, bit for bit, the weights, moments and count of a run that nobody touched, and the
same lines of metrics; then the next one starts, until all kills are spent. Runs on the CPU, and exits with 1 on the
first difference. Writes results/kill_and_resume.json beside this file.
"""

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.training.log import MEASURED
from twingpt.weights.checkpoint import STATE_FILE, CheckpointStore, read_checkpoint

BACKENDS = ("mps", "mlx")
EXAMPLE = Path(__file__).parents[1] / "twingpt" / "examples" / "ph_life_ko.txt"
SAVE_EVERY, EVAL_EVERY, KEEP_LAST = 2, 4, 3
CONFIG = f"""
[model]
n_layer = 1
n_head = 2
n_embd = 32
block_size = 32
dropout = 0.1
[train]
batch_size = 4
micro_batch = 2
log_every = 1
eval_every = {EVAL_EVERY}
save_every = {SAVE_EVERY}
keep_last = {KEEP_LAST}
eval_windows = 4
sample_tokens = 4
"""
# A thread each: a model this small gains nothing from more, and the watcher needs a core.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
STARTUP_SHARE = 0.2
IDLE_LIMIT_S = 120.0


class BrokenError(Exception):
    """A promise that did not hold."""


@dataclass
class Tally:
    """Where the kills fell, told by what they left on the disk."""

    kills: int = 0
    where: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    seconds: float = 0.0

    @property
    def inside(self) -> int:
        """Kills inside a save, the deletion of old checkpoints that ends it included."""
        return sum(count for place, count in self.where.items() if place.startswith("save"))


@dataclass
class Job:
    """One engine, its untouched run to compare with, and the instants drawn so far."""

    backend: str
    data: Path
    folder: Path
    steps: int
    rng: random.Random
    startup_s: float = 1.0
    save_s: float = 0.005
    step_s: float = 0.05

    def command(self, run: Path, *, resume: bool) -> list[str]:
        args = ["train", "--out", run, "--data", self.data, "--backend", self.backend, "--device", "cpu"]
        args += ["--resume"] if resume else ["--preset", "tiny", "--config", self.folder / "c.toml"]
        args += [] if resume else ["--steps", self.steps]
        return [sys.executable, "-m", "twingpt", *map(str, args)]


def killed_runs(job: Job, kills: int) -> Tally:
    """Spend the kills, run after run. Raises BrokenError at the first promise that does not hold."""
    (job.folder / "c.toml").write_text(CONFIG, encoding="utf-8")
    whole = job.folder / "whole"
    to_the_end(job, whole)
    val_losses = {line["step"]: line["val_loss"] for line in metrics(whole) if "val_loss" in line}
    tally, started = Tally(), time.perf_counter()
    while tally.kills < kills:
        run = job.folder / f"killed-{tally.runs}"
        newest = 0
        while tally.kills < kills:
            before_first_step = kill_once(job, run, in_save=2 * tally.inside <= tally.kills)
            if before_first_step is None:
                break
            tally.kills += 1
            tally.where["start-up" if before_first_step else where_it_fell(run)] += 1
            newest = check_folder(run, newest, val_losses)
        if newest < job.steps:
            to_the_end(job, run)
        check_same(whole, run, job.steps)
        tally.runs += 1
    tally.seconds = time.perf_counter() - started
    return tally


def to_the_end(job: Job, run: Path) -> None:
    started = time.perf_counter()
    command = job.command(run, resume=bool(CheckpointStore(run).steps()))
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BrokenError(f"{' '.join(command)} exited with {result.returncode}: {result.stderr.strip()}")
    if run.name == "whole":
        job.startup_s = (time.perf_counter() - started) / 2


def kill_once(job: Job, run: Path, *, in_save: bool) -> bool | None:
    """Start or resume the run and kill it; whether that was before a step was seen, or None if it ended by itself."""
    store = CheckpointStore(run)
    # In a session of its own: whatever the process started dies with it.
    process = subprocess.Popen(
        job.command(run, resume=bool(store.steps())),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    started = time.perf_counter()
    in_startup = not in_save and job.rng.random() < STARTUP_SHARE
    try:
        if in_startup:
            time.sleep(job.rng.uniform(0, job.startup_s))
        else:
            while (line := process.stdout.readline()) and not line.startswith("step "):
                pass
            if line:
                job.startup_s = time.perf_counter() - started
            if in_save:
                wait_into_save(job, process, store.folder)
            else:
                time.sleep(job.rng.uniform(0, 4 * SAVE_EVERY * job.step_s))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        out, error = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise BrokenError(f"{run} exited with {process.returncode}: {error.strip()}")
    if process.returncode == 0:
        return None
    return in_startup and "\nstep " not in out


def wait_into_save(job: Job, process: "subprocess.Popen[str]", folder: Path) -> None:
    """Return at a random instant of one of the next saves; watch the ones before it to learn how long a save takes."""
    remaining, appeared, deadline = job.rng.randint(1, 3), 0.0, time.perf_counter() + IDLE_LIMIT_S
    while process.poll() is None:
        now = time.perf_counter()
        if now > deadline:
            raise BrokenError(f"{folder} saw no save in {IDLE_LIMIT_S:.0f} s")
        # Also were it written in place, under its own name.
        saving = any(name.startswith(".") or not (folder / name / STATE_FILE).exists() for name in listing(folder))
        if saving and not appeared:
            appeared, remaining = now, remaining - 1
            if remaining == 0:
                time.sleep(job.rng.uniform(0, job.save_s))
                return
        elif not saving and appeared:
            job.save_s, appeared = now - appeared, 0.0
        time.sleep(0.0001)


def listing(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:  # not there yet, or gone between two looks
        return []


def where_it_fell(run: Path) -> str:
    folder = run / "checkpoints"
    for name in listing(folder):
        if name.startswith(".writing-"):
            return f"save, {len(listing(folder / name))} of 3 files begun"
        if name.startswith(".deleting-"):
            return "save, deleting an old one"
    return "between saves" if listing(folder) else "before the first save"


def check_folder(run: Path, newest: int, val_losses: dict[int, float]) -> int:
    """The newest step. Raises BrokenError if a checkpoint is torn, or one that retention owes is gone."""
    store = CheckpointStore(run)
    steps = store.steps()
    for step in steps:
        try:
            checkpoint = read_checkpoint(store.path(step))
        except TwinGPTError as error:
            raise BrokenError(f"a torn checkpoint: {error}") from None
        if checkpoint.progress.step != step or int(checkpoint.state["adamw.count"]) != step:
            raise BrokenError(f"{store.path(step)} holds step {checkpoint.progress.step}")
    last = steps[-1] if steps else 0
    if last < newest:
        raise BrokenError(f"{run} went back from step {newest} to {last}")
    owed = set(range(last, 0, -SAVE_EVERY)[:KEEP_LAST])
    evaluated = {step: loss for step, loss in val_losses.items() if step <= last}
    if evaluated:
        owed.add(min(evaluated, key=lambda step: evaluated[step]))
    if not owed <= set(steps):
        raise BrokenError(f"{run} has lost step {sorted(owed - set(steps))}: it holds {steps}")
    return last


def check_same(whole: Path, run: Path, steps: int) -> None:
    first, second = (read_checkpoint(CheckpointStore(folder).path(steps)) for folder in (whole, run))
    if first.progress != second.progress or first.state.keys() != second.state.keys():
        raise BrokenError(f"{run} ended at {second.progress}, the untouched run at {first.progress}")
    for key, array in first.state.items():
        if array.tobytes() != second.state[key].tobytes():
            raise BrokenError(f"{run}: {key} differs by {np.abs(array - second.state[key]).max()}")
    if metrics(whole) != metrics(run):
        raise BrokenError(f"{run / 'metrics.jsonl'} differs from the untouched run's")


def metrics(run: Path) -> list[dict[str, Any]]:
    """Every line, the wall time left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().split(b"\n") if line]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def prepare(folder: Path) -> Path:
    data = folder / "data"
    args = ["prepare", EXAMPLE, "--out", data, "--template", "plain", "--separator", "blank-line", "--vocab-size", 600]
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, args)], check=True, capture_output=True)
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, shared out evenly over the engines")
    parser.add_argument("--backend", choices=(*BACKENDS, "both"), default="both")
    parser.add_argument("--steps", type=int, default=120, help="of one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "kill_and_resume.json")
    options = parser.parse_args()

    backends = BACKENDS if options.backend == "both" else (options.backend,)
    result: dict[str, Any] = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "settings": {"kills": options.kills, "steps": options.steps, "seed": options.seed},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder))
        for backend in backends:
            work = Path(folder) / backend
            work.mkdir()
            job = Job(backend, data, work, options.steps, random.Random(f"{options.seed}/{backend}"))
            try:
                tally = killed_runs(job, options.kills // len(backends))
            except BrokenError as broken:
                raise SystemExit(f"{backend}: broken promise: {broken}") from None
            result[backend] = {
                "kills": tally.kills,
                "inside_a_save": tally.inside,
                "where": dict(sorted(tally.where.items())),
                "runs_compared_bit_for_bit": tally.runs,
                "seconds": tally.seconds,
            }
            print(
                f"{backend}: {tally.kills} kills, {tally.inside} inside a save, {tally.seconds:.0f} s; every resume "
                f"worked, no checkpoint torn or lost, {tally.runs} runs equal to the untouched one bit for bit"
            )
            for place, count in sorted(tally.where.items()):
                print(f"  {count:4d}  {place}")
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
