"""What a run survives: SIGKILL at any instant, a full disk, and folders that are not what they were."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import expected_shapes
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.lock import RunLock
from twingpt.training.log import MetricsLog, read_metrics
from twingpt.weights import format as format_module
from twingpt.weights.checkpoint import CheckpointStore, Progress, read_checkpoint
from twingpt.weights.format import fsync

KILL_AND_RESUME = Path(__file__).parents[1] / "benchmarks" / "kill_and_resume.py"
# A thread each: models this small gain nothing from more.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
CONFIG = """
[model]
n_layer = 1
n_head = 2
n_embd = 32
block_size = 32
dropout = 0.1
[train]
batch_size = 2
steps = 12
save_every = 4
eval_every = 0
log_every = 1
keep_last = 1
sample_tokens = 0
"""


def kill_and_resume(backend: str, kills: int, steps: int, out: Path) -> dict[str, object]:
    args = ["--backend", backend, "--kills", kills, "--steps", steps, "--out", out]
    command = [sys.executable, str(KILL_AND_RESUME), *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    figures: dict[str, object] = json.loads(out.read_text())[backend]
    return figures


def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path, backend_name: str) -> None:
    figures = kill_and_resume(backend_name, 2, 12, tmp_path / "figures.json")
    assert figures["kills"] == 2
    assert figures["runs_compared_bit_for_bit"]


@pytest.mark.slow
def test_fifty_kills_of_which_half_fall_inside_a_save(tmp_path: Path, backend_name: str) -> None:
    figures = kill_and_resume(backend_name, 50, 120, tmp_path / "figures.json")
    assert figures["kills"] == 50
    assert int(str(figures["inside_a_save"])) >= 20


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB; skips where a test may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs Linux")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


TRAIN = "from twingpt.cli import main; main()"
# The same command, beside a neighbour who fills the disk as soon as the first checkpoint stands.
TRAIN_AND_FILL = """
import os, shutil, sys
from pathlib import Path
from typing import Any
from twingpt.cli import main
from twingpt.weights.checkpoint import CheckpointStore

retain = CheckpointStore.retain
filler, leave = Path(os.environ["FILLER"]), int(os.environ["LEAVE"])

def retain_and_fill(store, last):
    retain(store, last)
    if not filler.exists():
        filler.write_bytes(bytes(shutil.disk_usage(filler.parent).free - leave))

CheckpointStore.retain = retain_and_fill
main()
"""


def train(program: str, *args: object, **environment: object) -> tuple[int, str]:
    """(exit code, stderr) of `twingpt train` in a process of its own."""
    command = [sys.executable, "-c", program, "train", "--device", "cpu", *map(str, args)]
    variables = {**ENVIRONMENT, **{name: str(value) for name, value in environment.items()}}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    return result.returncode, result.stderr


def assert_one_line(result: tuple[int, str], *words: str) -> None:
    code, err = result
    assert code == 1, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    assert [word for word in words if word not in err] == []


@pytest.mark.parametrize(
    ("backend", "leave"),
    # In the first tensors, and in the last ones. PyTorch takes seconds to start, and the store is the same.
    [("mlx", 12 << 10), ("mlx", 500 << 10), pytest.param("mps", 12 << 10, marks=pytest.mark.slow)],
)
def test_a_disk_that_fills_up_costs_no_checkpoint(
    small_disk: Path, tmp_path: Path, plain_data: Path, backend: str, leave: int
) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    new = ("--data", plain_data, "--backend", backend, "--preset", "tiny", "--config", config)
    run, whole, filler = small_disk / "run", tmp_path / "whole", small_disk / "filler"
    resume = ("--out", run, "--resume", "--backend", backend)
    store = CheckpointStore(run)

    failed = train(TRAIN_AND_FILL, "--out", run, *new, FILLER=filler, LEAVE=leave)
    first = read_checkpoint(store.path(4))
    needed = f"needs {sum(array.nbytes for array in first.state.values()):,} bytes"
    assert_one_line(failed, f"checkpoint {store.path(8)} ", "the disk is full", needed)
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000004"]
    assert_one_line(train(TRAIN, *resume), str(run), "make space")
    assert read_checkpoint(store.path(4)).progress == first.progress

    filler.unlink()
    assert train(TRAIN, *resume) == (0, "")
    assert train(TRAIN, "--out", whole, *new) == (0, "")
    ends = [read_checkpoint(CheckpointStore(folder).path(12)) for folder in (run, whole)]
    assert ends[0].progress == ends[1].progress
    assert all(ends[0].state[key].tobytes() == array.tobytes() for key, array in ends[1].state.items())
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (run, whole)]
    losses = [[json.loads(line)["loss"] for line in part if '"loss"' in line] for part in lines]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 12


# Folders that are not what they were


@pytest.fixture
def state(spec: GPTSpec) -> State:
    shapes = expected_shapes(spec, optimizer="adamw")
    state: State = {key: np.ones(shape, dtype=np.float32) for key, shape in shapes.items()}
    state["adamw.count"] = np.array(7, dtype=np.int64)
    return state


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run")


def damage(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_damaged_newest_one_does_not_count_as_kept(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    """Resumed before it with other save points, the run must not delete what it stands on in its favour."""
    store.save(spec, state, Progress(step=20))
    damage(store.save(spec, state, Progress(step=30, val_loss=0.5)))
    resumed = CheckpointStore(store.folder.parent)
    loaded, damaged = resumed.load_latest()
    assert loaded is not None
    assert (loaded.progress.step, len(damaged)) == (20, 1)
    resumed.save(spec, state, Progress(step=25, val_loss=1.0))
    resumed.retain(1)
    assert resumed.steps() == [25, 30]
    loaded, _ = resumed.load_latest()
    assert loaded is not None
    assert loaded.progress.step == 25


def test_an_evaluation_that_is_not_a_number_is_not_the_best(
    store: CheckpointStore, spec: GPTSpec, state: State
) -> None:
    for step, loss in enumerate((float("nan"), 2.0, float("inf"), 3.0), start=1):
        store.save(spec, state, Progress(step=step, val_loss=loss))
    assert store.best_step() == 2
    store.retain(1)
    assert store.steps() == [2, 4]


def test_a_copy_under_another_step_is_named_and_replaced(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    shutil.copytree(store.save(spec, state, Progress(step=1)), store.path(2))
    loaded, damaged = store.load_latest()
    assert loaded is not None
    assert loaded.progress.step == 1
    assert "step-00000002 is of step 1" in damaged[0]
    store.save(spec, state, Progress(step=2))
    assert read_checkpoint(store.path(2)).progress.step == 2


def test_a_link_is_followed_to_read_and_only_the_link_is_deleted(
    store: CheckpointStore, spec: GPTSpec, state: State, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    store.save(spec, state, Progress(step=1)).rename(elsewhere)
    store.path(1).symlink_to(elsewhere, target_is_directory=True)
    assert read_checkpoint(store.path(1)).progress.step == 1
    for step in (2, 3):
        store.save(spec, state, Progress(step=step))
        store.retain(1)
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000003"]
    assert read_checkpoint(elsewhere).progress.step == 1


def test_checkpoints_may_lie_behind_a_link(store: CheckpointStore, spec: GPTSpec, state: State, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    store.folder.parent.mkdir()
    store.folder.symlink_to(tmp_path / "large disk", target_is_directory=True)
    for step in (1, 2):
        store.save(spec, state, Progress(step=step))
        store.retain(1)
    assert store.steps() == [2]


def test_strange_names_among_the_checkpoints_are_no_checkpoints(
    store: CheckpointStore, spec: GPTSpec, state: State
) -> None:
    store.save(spec, state, Progress(step=1))
    for name in ("step-000000009", "step-٠٠٠٠٠٠٠٩", "step-9", "step-00000009.bak", "notes"):
        (store.folder / name).mkdir()
    store.path(8).write_text("a file")
    (store.folder / ".writing-step-00000007").write_text("a file")
    assert store.steps() == [1, 8]
    loaded, damaged = store.load_latest()
    assert loaded is not None
    assert loaded.progress.step == 1
    assert len(damaged) == 1
    for step in (7, 8, 9):
        store.save(spec, state, Progress(step=step))
        store.retain(1)
    assert store.steps() == [9]
    assert not list(store.folder.glob(".*"))


def test_a_place_that_cannot_be_written_is_one_clear_line(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    store.folder.parent.mkdir()
    store.folder.write_text("a file where the folder should be")
    assert store.steps() == []
    with pytest.raises(TwinGPTError, match=r"step-00000001 could not be written .*bytes"):
        store.save(spec, state, Progress(step=1))


@pytest.mark.parametrize("refused", [False, True])
def test_the_drive_is_asked_to_flush_where_fsync_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """macOS; and the plain fsync where its file system refuses."""
    calls: list[str] = []

    def full(_: int, command: int) -> int:
        calls.append(f"fcntl {command}")
        if refused:
            raise OSError(45, "Operation not supported")
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda _: calls.append("fsync"))
    fsync(tmp_path)
    assert calls == ["fcntl 51", "fsync"] if refused else calls == ["fcntl 51"]


# What lies beside the checkpoints, and who writes it


def small_run(run: Path, data: Path, tmp_path: Path) -> tuple[object, ...]:
    """A run of 12 steps at step 4; returns the arguments that resume it."""
    config = tmp_path / "c.toml"
    config.write_text(CONFIG)
    new = ("--data", data, "--backend", "mlx", "--preset", "tiny", "--config", config)
    assert train(TRAIN, "--out", run, *new, "--stop-at", 4) == (0, "")
    return ("--out", run, "--resume", "--backend", "mlx")


@pytest.mark.parametrize("torn", ['{"step": 4, "sample": "여'.encode()[:-1], b'{"st', b"7\n", b"null\n"])
def test_a_line_of_metrics_that_a_crash_cut_off_is_dropped(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 4, "loss": 1.0}\n' + torn)
    MetricsLog(tmp_path, 4)
    assert path.read_text() == '{"step": 4, "loss": 1.0}\n'


def test_metrics_hold_any_text_that_a_model_writes(tmp_path: Path) -> None:
    MetricsLog(tmp_path, 0).write({"step": 1, "sample": "\u2028\x85\x0c"})
    assert read_metrics(tmp_path) == [{"step": 1, "sample": "\u2028\x85\x0c"}]


def test_settings_are_written_whole_or_not_at_all(
    tmp_path: Path, spec: GPTSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(model=spec, train=TrainConfig(), data="d")
    config.save(tmp_path)

    def crash(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(format_module, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        RunConfig(model=spec, train=TrainConfig(steps=7), data="d").save(tmp_path)
    assert RunConfig.load(tmp_path) == config


def test_no_room_for_a_line_of_metrics_is_one_line(small_disk: Path, plain_data: Path, tmp_path: Path) -> None:
    resume = small_run(small_disk / "run", plain_data, tmp_path)
    environment = {"FILLER": small_disk / "filler", "LEAVE": 0}
    program = TRAIN_AND_FILL.replace("main()\n", "").replace("CheckpointStore.retain = ", "CheckpointStore.steps_ = ")
    program += "from twingpt.training.log import MetricsLog\nwrite = MetricsLog.write\n"
    program += "def full(log, values):\n    retain_and_fill(CheckpointStore(log.path.parent), 0)\n"
    program += "    write(log, {**values, 'long': 'x' * 5000})\nMetricsLog.write = full\nmain()\n"
    assert_one_line(train(program, *resume, **environment), "metrics.jsonl cannot be written", "No space left")
    (small_disk / "filler").unlink()
    assert train(TRAIN, *resume) == (0, "")


def test_a_run_that_may_only_be_read_is_one_line(small_disk: Path, plain_data: Path, tmp_path: Path) -> None:
    resume = small_run(small_disk / "run", plain_data, tmp_path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_one_line(train(TRAIN, *resume), f"{small_disk / 'run'} cannot be written to", "Read-only")


def test_a_second_train_on_the_same_run_is_refused(plain_data: Path, tmp_path: Path) -> None:
    resume = small_run(tmp_path / "run", plain_data, tmp_path)
    lock = RunLock(tmp_path / "run")
    assert_one_line(train(TRAIN, *resume), f"{tmp_path / 'run'} is being trained by another twingpt")
    lock.release()
    assert train(TRAIN, *resume) == (0, "")


def test_another_seed_is_refused(plain_data: Path, tmp_path: Path) -> None:
    resume = small_run(tmp_path / "run", plain_data, tmp_path)
    assert_one_line(train(TRAIN, *resume, "--seed", 5), "trained with other seed (0… there, 5… here)")
