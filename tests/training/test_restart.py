"""Processes that end without a word: supervised ones go on, others leave a mark; and the trial that avoids it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.training.test_memory import assert_same_run, started_small, train
from tests.training.test_trainer import final_state, run_to, session
from twingpt.core.backend import Backend, create_backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.training import session as session_module
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.foreground import run_shown
from twingpt.training.lock import RunLock
from twingpt.training.probe import ProbeResult, probe
from twingpt.training.restart import MARK_FILE, RunningMark
from twingpt.weights.checkpoint import CheckpointStore

# Imported at the start of every Python process: ends it, as Metal or the system would, in update 6 of a run with more
# than MOST sequences at a time. The model of the check before a run has one layer.
ENDING = """
import os
from twingpt.core.engines import find_engine

MLXBackend = find_engine("mlx").part("backend").MLXBackend
real = MLXBackend.train_step


def ending(self, inputs, targets, lr, step, *rest):
    if step >= 5 and self.spec.n_layer > 1 and inputs.shape[1] > int(os.environ["MOST"]):
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
    return real(self, inputs, targets, lr, step, *rest)


MLXBackend.train_step = ending
"""
# A first update that never ends.
STUCK = """
import time
from pathlib import Path
from twingpt.core.engines import find_engine

MLXBackend = find_engine("mlx").part("backend").MLXBackend
real = MLXBackend.train_step


def stuck(self, *args):
    if self.spec.n_layer > 1:
        Path(__file__).with_name("stuck").touch()
        time.sleep(3600)
    return real(self, *args)


MLXBackend.train_step = stuck
"""
ENDED_TRIAL = """
import os, sys

if "twingpt.training.probe" in sys.orig_argv:
    os.write(2, b"failed assertion\\n")
    os.kill(os.getpid(), int(os.environ["SIGNAL"]))
"""
FULL_TRIAL = """
from twingpt.core.engines import find_engine

backend = find_engine("mlx").part("backend")


def fail(*_):
    raise RuntimeError("Unable to allocate 9 bytes")


backend._to_mlx = fail
"""


@pytest.fixture
def ending(tmp_path: Path) -> dict[str, str]:
    """Environment of a process that ENDING is to end."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ENDING)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    return {"PYTHONPATH": path, "MOST": "2", "SIGNAL": str(int(signal.SIGABRT))}


def shown(run: Path, data: Path | None, **options: Any) -> str:
    """What `train` prints of a session in this process."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=300, file=nowhere)
        run_shown(session(run, data, "mlx", **options), run, None, console, estimate_time=False)
    return console.export_text()


@pytest.mark.parametrize(
    ("number", "save_every"), [(signal.SIGABRT, 4), pytest.param(signal.SIGKILL, 0, marks=pytest.mark.slow)]
)
def test_a_supervised_run_goes_on_after_memory_ended_it(
    tmp_path: Path, plain_data: Path, ending: dict[str, str], number: signal.Signals, save_every: int
) -> None:
    """From the last checkpoint, or from the start where there is none; halved until it lives."""
    environment = {**ending, "SIGNAL": str(int(number))}
    out = train(
        tmp_path / "run", plain_data, "mlx", "--save-every", save_every, "--supervise", program=None, **environment
    )
    started_small(tmp_path / "small", plain_data, "mlx", 2)
    for before, after in ((8, 4), (4, 2)):
        assert f"ended by {number.name} at micro-batch {before}; going on from the last checkpoint with {after}" in out
    assert out.count("from step 4 to 20" if save_every else "from step 0 to 20") == (2 if save_every else 3)
    assert "without a word" not in out
    assert_same_run(tmp_path / "run", tmp_path / "small")
    assert not (tmp_path / "run" / MARK_FILE).exists()


def supervised(run: Path, data: Path, *options: object, **environment: str) -> subprocess.Popen[str]:
    args = ["train", "--out", run, "--data", data, "--backend", "mlx", "--supervise", "--preset", "tiny"]
    args += ["--block-size", 64, "--dropout", 0, "--device", "cpu", "--log-every", 1, "--eval-every", 0, *options]
    return subprocess.Popen(
        [sys.executable, "-m", "twingpt", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (("--batch-size", 1), {"MOST": "0"}, "ended by SIGABRT, with one sequence at a time"),
        (("--batch-size", 8), {"SIGNAL": str(int(signal.SIGSEGV))}, "ended by SIGSEGV: `twingpt doctor`"),
    ],
)
def test_what_less_memory_does_not_help_is_one_line(
    tmp_path: Path,
    plain_data: Path,
    ending: dict[str, str],
    options: tuple[object, ...],
    environment: dict[str, str],
    says: str,
) -> None:
    process = supervised(tmp_path / "run", plain_data, "--steps", 20, *options, **{**ending, **environment})
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert says in err


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def logged(run: Path) -> str:
    path = run / "metrics.jsonl"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_supervised_process(tmp_path: Path, plain_data: Path, number: signal.Signals) -> None:
    run = tmp_path / "run"
    with supervised(run, plain_data, "--steps", 100_000, "--batch-size", 2, "--json") as process:
        wait_for(lambda: logged(run))
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + number
    assert out == ""
    assert "Go on with" in err
    assert len(CheckpointStore(run).steps()) == 1
    assert not (run / MARK_FILE).exists()


@pytest.mark.parametrize("option", ["--supervise", "--no-supervise"])
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, plain_data: Path, ending: dict[str, str], option: str) -> None:
    site = tmp_path / "site"
    (site / "sitecustomize.py").write_text(STUCK)
    run = tmp_path / "run"
    # Fewer steps than are timed first, which a first Ctrl-C ends.
    with supervised(run, plain_data, "--steps", 20, "--batch-size", 2, option, **ending) as process:
        wait_for((site / "stuck").exists)
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=300)
    assert process.returncode in (130, -signal.SIGINT)
    assert CheckpointStore(run).steps() == []
    assert is_free(run)


def test_json_passes_through(tmp_path: Path, plain_data: Path) -> None:
    with supervised(tmp_path / "run", plain_data, "--steps", 1, "--batch-size", 2, "--json") as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out)["step"] == 1


def test_a_supervisor_that_is_killed_does_not_leave_its_process_training(tmp_path: Path, plain_data: Path) -> None:
    run = tmp_path / "run"
    with supervised(run, plain_data, "--steps", 100_000, "--batch-size", 2) as process:
        wait_for(lambda: logged(run))
        process.kill()
        process.wait()
        wait_for(lambda: not (run / MARK_FILE).exists())
    assert len(CheckpointStore(run).steps()) == 1
    wait_for(lambda: is_free(run))


def is_free(run: Path) -> bool:
    try:
        RunLock(run).release()
    except TwinGPTError:
        return False
    return True


@pytest.mark.slow
def test_a_process_that_died_is_told_of_at_the_next_resume(
    tmp_path: Path, plain_data: Path, ending: dict[str, str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(AssertionError):
        train(run, plain_data, "mlx", "--save-every", 4, program=None, **ending)
    mark = RunningMark.read(run)
    assert mark is not None and (mark.micro_batch, mark.batch_size) == (8, 8)
    (tmp_path / "site" / "sitecustomize.py").unlink()
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=300, file=nowhere)
        run_shown(session(run, None, "mlx", resume=True), run, 6, console)
    out = console.export_text()
    assert "note: the last process ended without a word at micro-batch 8" in out
    assert "add --micro-batch 4" in out
    assert not (run / MARK_FILE).exists()
    assert "without a word" not in shown(run, None, resume=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"pid": "x", "micro_batch": 1, "batch_size": 2}', "\xff"])
def test_a_mark_that_cannot_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / MARK_FILE).write_text(content, encoding="latin-1")
    assert RunningMark.read(tmp_path) is None


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, plain_data: Path) -> None:
    run = tmp_path / "run"
    run_to(tmp_path / "whole", plain_data, "mlx")
    session(run, plain_data, "mlx").lock.release()  # type: ignore[union-attr]
    out = shown(run, None, resume=True)
    assert "ended before its first checkpoint: starting from step 0" in out
    whole, again = final_state(tmp_path / "whole"), final_state(run)
    assert all(np.array_equal(whole[key], again[key]) for key in whole)
    damaged = CheckpointStore(run).path(8) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(TwinGPTError, match=r"cannot be resumed: .*step-00000008"):
        session(run, None, "mlx", resume=True)


@pytest.mark.parametrize(("steps", "option"), [(8, "--steps"), (5, "--steps")])
def test_nothing_left_to_do_is_said_and_changes_nothing(
    tmp_path: Path, plain_data: Path, steps: int, option: str
) -> None:
    run_to(tmp_path, plain_data, "mlx").lock.release()  # type: ignore[union-attr]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = shown(tmp_path, None, resume=True, steps=steps)
    assert f"nothing is left to do: {tmp_path} is at step 8 of {steps}; to train on, add a larger {option}" in out
    assert "saved" not in out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# The trial before a run

SMALL = TrainConfig(batch_size=4)


def test_a_trial_measures_what_fits(backend_name: str, spec: GPTSpec) -> None:
    result = probe(spec, SMALL, backend_name, "cpu", 2, 2)
    assert result.fits, result.reason
    assert 0 < result.seconds_per_step < 60
    assert 2**20 < result.peak_bytes < 2**34


def started_with(program: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Python process from now on runs this program first."""
    (Path(environment["PYTHONPATH"].split(os.pathsep)[0]) / "sitecustomize.py").write_text(program)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL])
def test_a_trial_that_is_ended_does_not_fit(
    spec: GPTSpec, ending: dict[str, str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    started_with(ENDED_TRIAL, {**ending, "SIGNAL": str(int(number))}, monkeypatch)
    result = probe(spec, SMALL, "mlx", "cpu", 2, 2)
    assert result == ProbeResult(False, reason=f"its process was ended by {number.name}: failed assertion")


def test_a_trial_that_runs_out_of_memory_does_not_fit(
    spec: GPTSpec, ending: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started_with(FULL_TRIAL, ending, monkeypatch)
    result = probe(spec, SMALL, "mlx", "cpu", 2, 2)
    assert result == ProbeResult(False, reason="out of memory: Unable to allocate 9 bytes")


def test_a_trial_that_fails_otherwise_says_so(spec: GPTSpec) -> None:
    with pytest.raises(TwinGPTError, match=r"trial of 2 sequences at a time on jax failed: .*unknown backend 'jax'"):
        probe(spec, SMALL, "jax", "cpu", 2, 2)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The micro-batches tried; up to two sequences fit."""
    tried: list[int] = []

    def fake(*args: Any) -> ProbeResult:
        tried.append(args[4])
        return ProbeResult(args[4] <= 2, reason="" if args[4] <= 2 else "no room")

    monkeypatch.setattr(session_module, "probe", fake)
    return tried


def on_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*args: Any) -> Backend:
        backend = create_backend(*args)
        backend.device = "metal"
        monkeypatch.setattr(backend, "memory_limit", lambda: None)
        return backend

    monkeypatch.setattr(session_module, "create_backend", create)


def test_a_chosen_micro_batch_is_tried_and_halved_on_a_gpu(
    tmp_path: Path, plain_data: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    session(tmp_path / "cpu", plain_data, "mlx")
    assert trials == []
    on_metal(monkeypatch)
    session(tmp_path / "asked", plain_data, "mlx", micro_batch=4)
    assert trials == []
    opened = session(tmp_path / "gpu", plain_data, "mlx")
    assert trials == [4, 2]
    assert opened.memory.micro_batch == 2
    assert opened.notes == ["4 sequences at a time did not fit into memory in a trial (no room): 2 now"]
    assert RunConfig.load(tmp_path / "gpu").train.micro_batch == 0
    assert list(opened.trainer.run())


def test_the_trial_can_be_asked_for_and_declined(
    tmp_path: Path, plain_data: Path, trials: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(tmp_path / "asked", plain_data, "mlx", micro_batch=4, probe_memory=True)
    assert (trials, opened.memory.micro_batch) == ([4, 2], 2)
    trials.clear()
    on_metal(monkeypatch)
    session(tmp_path / "declined", plain_data, "mlx", probe_memory=False)
    assert trials == []


def test_not_even_one_sequence_in_a_trial_is_one_line(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "probe", lambda *_: ProbeResult(False, reason="no room"))
    with pytest.raises(TwinGPTError, match=r"^no room, with one sequence at a time: use --activation"):
        session(tmp_path / "run", plain_data, "mlx", probe_memory=True)
    assert not (tmp_path / "run").exists()
