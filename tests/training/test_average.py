"""The average of the weights: one rule for every engine, exact on resume, and taken where it is the better."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from twingpt.generation.model import load
from twingpt.training.average import EVERY, WeightAverage
from twingpt.training.log import EvalReport
from twingpt.training.session import TrainRequest, open_session
from twingpt.weights.checkpoint import (
    AVERAGE_FILE,
    MODEL_FILE,
    CheckpointStore,
    Progress,
    read_checkpoint,
    write_checkpoint,
)

SMALL = {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}


def trained(run: Path, data: Path, backend: str, stop_at: int | None = None, **train: object) -> list[EvalReport]:
    resume = (run / "config.toml").exists()
    settings = {"steps": 60, "batch_size": 2, "sample_tokens": 0, "eval_every": 30, "average": 0.3, **train}
    session = open_session(
        TrainRequest(
            run_dir=run,
            data_dir=data,
            backend=backend,
            device="cpu",
            resume=resume,
            preset=None if resume else "tiny",
            model={} if resume else SMALL,
            train={} if resume else settings,
        )
    )
    return [report for report in session.trainer.run(stop_at) if isinstance(report, EvalReport)]


def test_until_it_has_seen_enough_it_is_the_plain_mean() -> None:
    average = WeightAverage(1.0, steps=10_000)
    looks = [np.full(3, float(n), dtype=np.float32) for n in range(1, 6)]
    for n, look in enumerate(looks, 1):
        average.take(n * EVERY, {"model/w": look.copy()})
    assert average.state is not None
    assert average.state["model/w"] == pytest.approx(np.mean(looks, axis=0))


def test_later_it_forgets_at_the_stated_rate() -> None:
    average = WeightAverage(0.1, steps=1000, state={"model/w": np.zeros(1, dtype=np.float32)})
    for n in range(101, 111):
        average.take(n * EVERY, {"model/w": np.ones(1, dtype=np.float32)})
    assert average.state is not None
    # After as many updates as it reaches back, what was there before has fallen to 1 / e.
    assert average.state["model/w"][0] == pytest.approx(1 - math.exp(-1), abs=1e-5)


@pytest.mark.parametrize("backend", ["mps", "mlx", "reference"])
def test_a_run_that_is_stopped_has_the_same_average_in_the_end(backend: str, plain_data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reports = trained(whole, plain_data, backend)
    assert [report.average is not None for report in reports] == [True, True]
    trained(parts, plain_data, backend, stop_at=37)
    trained(parts, plain_data, backend)
    for name in (MODEL_FILE, AVERAGE_FILE):
        first, second = (CheckpointStore(run).path(60) / name for run in (whole, parts))
        assert first.read_bytes() == second.read_bytes()


def test_the_engines_average_alike(plain_data: Path, tmp_path: Path) -> None:
    found = []
    for backend in ("mps", "mlx", "reference"):
        trained(tmp_path / backend, plain_data, backend)
        checkpoint, _ = CheckpointStore(tmp_path / backend).load_latest()
        assert checkpoint is not None and checkpoint.average is not None
        found.append(checkpoint.average)
        assert any(not np.array_equal(checkpoint.average[key], checkpoint.state[key]) for key in checkpoint.average)
    for other in found[1:]:
        for key, array in found[0].items():
            # The weights themselves are at most 1.4e-5 apart after as many updates.
            assert np.abs(array - other[key]).max() < 5e-5, key


def test_the_better_weights_are_those_that_answer(plain_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(run, plain_data, "reference")
    newest, _ = CheckpointStore(run).load_latest()
    assert newest is not None and newest.average is not None
    path = newest.path
    for average_loss, expected in ((1.0, newest.average), (9.0, newest.state)):
        progress = dataclasses.replace(newest.progress, val_loss=2.0, average_loss=average_loss)
        write_checkpoint(path, newest.spec, newest.state, progress, newest.average)
        read = read_checkpoint(path, optimizer=False)
        assert all(np.array_equal(read.state[key], expected[key]) for key in read.state)
        answering = load(run, "reference").engine.export_state(optimizer=False)
        assert all(np.array_equal(answering[key], expected[key]) for key in answering)
        # Training goes on from the weights of the step.
        going_on = read_checkpoint(path)
        assert all(np.array_equal(going_on.state[key], newest.state[key]) for key in newest.state)


def test_the_best_step_is_the_one_of_the_best_weights(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    losses = {10: (2.0, None), 20: (2.5, 1.5), 30: (1.9, 1.9)}
    for step, (loss, average) in losses.items():
        folder = store.path(step)
        folder.mkdir(parents=True)
        (folder / "state.json").write_bytes(b"")
        from twingpt.weights.checkpoint import _state_content

        content = _state_content({}, Progress(step=step, val_loss=loss, average_loss=average))
        (folder / "state.json").write_bytes(content)
    assert store.best_step() == 20
    assert store.best_loss(30) == 1.5
