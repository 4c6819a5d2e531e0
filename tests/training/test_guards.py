"""What is said before a run and while it goes on: time, spikes, disk, sleep."""

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.training.test_trainer import final_state, losses, run_to, session
from twingpt.core.errors import TwinGPTError
from twingpt.core.state import state_bytes
from twingpt.training import guards, trainer
from twingpt.training.foreground import run_shown
from twingpt.training.guards import SpikeDetector, check_disk, free_bytes, keep_awake
from twingpt.training.log import DiskReport, SpikeReport, read_metrics
from twingpt.weights.checkpoint import CheckpointStore

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("resumed", [False, True])
def test_a_warm_up_leaves_no_trace(tmp_path: Path, plain_data: Path, backend_name: str, resumed: bool) -> None:
    """Dropout on: weights, moments, counts and losses are those of a run without one, bit for bit."""
    options: dict[str, Any] = {"model": {"dropout": 0.2}, "micro_batch": 2, "sample_tokens": 5}
    for name in ("plain", "warmed"):
        if resumed:
            run_to(tmp_path / name, plain_data, backend_name, 3, **options)
        opened = session(tmp_path / name, plain_data, backend_name, **({"resume": True} if resumed else options))
        if name == "warmed":
            estimate = opened.trainer.warm_up()
            assert (estimate.steps, estimate.evaluations, estimate.saves) == (5 if resumed else 8, 1, 1)
            assert estimate.step > 0 and estimate.evaluation > 0 and estimate.save > 0
            assert estimate.total == pytest.approx(
                estimate.steps * estimate.step + estimate.evaluation + estimate.save, rel=1e-9
            )
        for _ in opened.trainer.run():
            pass
    plain, warmed = final_state(tmp_path / "plain"), final_state(tmp_path / "warmed")
    assert all(np.array_equal(plain[key], warmed[key]) for key in plain)
    assert losses(tmp_path / "plain") == losses(tmp_path / "warmed")


def test_memory_and_time_are_said_before_the_first_step(tmp_path: Path, plain_data: Path) -> None:
    console = Console(record=True, width=200, file=(tmp_path / "out").open("w"))
    run_shown(session(tmp_path / "run", plain_data, "mlx", steps=60), tmp_path / "run", None, console)
    lines = console.export_text().splitlines()
    console.file.close()
    memory = next(i for i, line in enumerate(lines) if line.startswith("estimated memory: "))
    when = next(i for i, line in enumerate(lines) if line.startswith("estimated time: "))
    first = next(i for i, line in enumerate(lines) if line.startswith("step 1 "))
    assert memory < when < first
    assert "GiB (weights" in lines[memory] and "4 sequences at a time" in lines[memory]
    assert "(60 steps of" in lines[when]


def test_a_short_run_is_not_timed_first(tmp_path: Path, plain_data: Path) -> None:
    console = Console(record=True, file=(tmp_path / "out").open("w"))
    run_shown(session(tmp_path / "run", plain_data, "mlx"), tmp_path / "run", None, console)
    console.file.close()
    assert "estimated time" not in console.export_text()


def test_a_spike_is_a_jump_above_the_noise() -> None:
    detector = SpikeDetector()
    noise = np.random.default_rng(0).normal(0.0, 0.2, 300)
    assert [detector.check(4.0 + x) for x in noise] == [None] * 300
    assert detector.check(4.9) is None
    spike = detector.check(6.0)
    assert spike is not None and spike[0] == 6.0 and spike[1] == pytest.approx(4.0, abs=0.1)
    assert detector.check(float("nan")) is None
    quiet = SpikeDetector()
    assert [quiet.check(2.0) for _ in range(30)] == [None] * 30
    assert quiet.check(2.4) is None
    assert SpikeDetector().check(100.0) is None


def test_a_spike_is_reported_with_its_step(tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "SPIKE_HISTORY", 4)
    opened = session(tmp_path, plain_data, "mps", log_every=4)
    real = opened.backend.read_stats

    def read() -> Any:
        stats = real()
        if opened.trainer.step == 8 and stats.loss_sums:
            stats.loss_sums[1] += 50.0 * stats.tokens[1]
        return stats

    monkeypatch.setattr(opened.backend, "read_stats", read)
    spikes = [report for report in opened.trainer.run() if isinstance(report, SpikeReport)]
    assert [spike.step for spike in spikes] == [6]
    line = next(line for line in read_metrics(tmp_path) if "spike_loss" in line)
    assert line["step"] == 6 and line["spike_loss"] > 50 > line["running_mean"]


def test_a_disk_too_small_is_said_before_training(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = session(tmp_path / "run", plain_data, "mps", save_every=2, keep_last=2).config
    size = state_bytes(config.model, "adamw")
    store = CheckpointStore(tmp_path / "none" / "run")
    # Two newest, the best, and the one being written.
    for free, enough in ((4 * size, True), (4 * size - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(0, 0, free))
        if enough:
            check_disk(store, config.model, config.train)
        else:
            with pytest.raises(TwinGPTError, match=rf"none/run/checkpoints has {free:,} .* need {4 * size:,}:"):
                check_disk(store, config.model, config.train)
            with pytest.raises(TwinGPTError, match="bytes free"):
                session(tmp_path / "other", plain_data, "mps", save_every=2, keep_last=2)
    assert not (tmp_path / "other").exists()


def test_a_disk_that_fills_up_is_warned_of_at_the_save_before(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(tmp_path, plain_data, "mps", save_every=4)
    needed = state_bytes(opened.config.model, "adamw")
    monkeypatch.setattr(trainer, "free_bytes", lambda _: needed - 1)
    reports = [report for report in opened.trainer.run() if isinstance(report, DiskReport)]
    assert [(r.step, r.needed, r.free) for r in reports] == [(4, needed, needed - 1)]


def test_free_space_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.5)


def test_a_mac_is_kept_awake_for_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, told = tmp_path / "caffeinate", tmp_path / "told"
    fake.write_text(f'#!/bin/sh\necho "$@" > {told}.part && mv {told}.part {told}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "platform", "linux")
    assert keep_awake() is None
    monkeypatch.setattr(sys, "platform", "darwin")
    process = keep_awake()
    assert process is not None
    process.wait(10)
    assert told.read_text().split() == ["-i", "-w", str(os.getpid())]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert keep_awake() is None
