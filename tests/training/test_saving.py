"""What a save looks at, what is saved when, and that nothing is lost beside the checkpoints."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.training.test_trainer import run_to, session
from twingpt.core.errors import NotFiniteError, TwinGPTError
from twingpt.core.schedule import Schedule
from twingpt.training import trainer as trainer_module
from twingpt.training.log import ASIDE_FILE, MEASURED, EvalReport, MetricsLog, SaveReport, read_metrics
from twingpt.training.validation import evaluate
from twingpt.weights.checkpoint import (
    CheckpointStore,
    Progress,
    find_checkpoint,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


def checkpoints(run: Path) -> dict[str, bytes]:
    """Every file of every checkpoint."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted((run / "checkpoints").rglob("*"))
        if path.is_file()
    }


def val_losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["val_loss"] for line in read_metrics(run) if "val_loss" in line}


def poison(run: Path, step: int, key: str = "model/ln_f.weight") -> None:
    """A checkpoint that is whole, and of which one number is none, as version 0.1 saved it."""
    whole = read_checkpoint(CheckpointStore(run).path(step))
    whole.state[key].reshape(-1)[0] = np.nan
    shutil.rmtree(whole.path)
    whole.path.mkdir()
    write_checkpoint(whole.path, whole.spec, whole.state, whole.progress)


# A save looks at what it saves


@pytest.mark.parametrize("key", ["model/ln_f.weight", "adamw.v/ln_f.weight"])
def test_what_is_not_finite_replaces_nothing_and_ends_the_run(
    tmp_path: Path, plain_data: Path, backend_name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(tmp_path, plain_data, backend_name, save_every=2, keep_last=1, log_every=5)
    real = opened.backend.export_state

    def export() -> Any:
        state = real()
        if opened.trainer.step > 4:
            state[key].reshape(-1)[-1] = np.inf
        return state

    monkeypatch.setattr(opened.backend, "export_state", export)
    with pytest.raises(TwinGPTError, match=rf"step 6 is not saved: {key} .*step-00000004.*--resume.*--learning-rate"):
        list(opened.trainer.run())
    assert CheckpointStore(tmp_path).steps() == [4]
    assert read_metrics(tmp_path)[-1]["step"] == 6


def test_a_learning_rate_that_breaks_the_weights_is_told_with_its_step(tmp_path: Path, plain_data: Path) -> None:
    opened = session(tmp_path, plain_data, "mps", save_every=2, keep_last=1, schedule="constant", warmup_steps=0)
    schedule = opened.trainer._schedule

    class Infinite:
        def learning_rate(self, step: int) -> float:
            return math.inf if step == 4 else schedule.learning_rate(step)

    opened.trainer._schedule = Infinite()  # type: ignore[assignment]
    with pytest.raises(TwinGPTError, match=r"step 6 is not saved: .* no loss has been finite since step 6: go on from"):
        list(opened.trainer.run())
    assert CheckpointStore(tmp_path).steps() == [4]


def test_while_no_loss_is_finite_older_checkpoints_stay(tmp_path: Path, plain_data: Path) -> None:
    """Finite weights may be of no use either: until a loss is a number again nothing is deleted."""
    options: dict[str, Any] = {"warmup_steps": 0, "schedule": "constant", "learning_rate": 1e-3}
    run_to(tmp_path, plain_data, "mps", 4, steps=30, save_every=2, keep_last=1, **options)
    opened = session(tmp_path, plain_data, "mps", resume=True, grad_clip=0.0)
    opened.trainer._schedule = Schedule(kind="constant", peak=1e30, floor=0.0, warmup_steps=0, steps=30)
    with pytest.raises(TwinGPTError, match=r"10 steps in a row, from step 6 on: go on from"):
        list(opened.trainer.run())
    assert 4 in CheckpointStore(tmp_path).steps()


def test_a_row_of_skipped_updates_is_counted_over_a_resume(tmp_path: Path, plain_data: Path) -> None:
    """Resumed every few steps, a run that has diverged ends all the same, and what was sound stays."""
    run_to(tmp_path, plain_data, "mps", 4, steps=40, save_every=2, keep_last=1, warmup_steps=0)
    with pytest.raises(TwinGPTError, match=r"10 steps in a row, from step 6 on"):
        for stop_at in (8, 11, 14, 17):
            opened = session(tmp_path, plain_data, "mps", resume=True, grad_clip=0.0)
            opened.trainer._schedule = Schedule(kind="constant", peak=1e30, floor=0.0, warmup_steps=0, steps=40)
            list(opened.trainer.run(stop_at))
            assert opened.lock is not None
            opened.lock.release()
    assert 4 in CheckpointStore(tmp_path).steps()


def test_a_store_refuses_what_is_not_finite(tmp_path: Path, plain_data: Path) -> None:
    opened = run_to(tmp_path / "run", plain_data, "mps", 1)
    state = opened.backend.export_state()
    state["model/ln_f.weight"][0] = np.nan
    store = CheckpointStore(tmp_path / "other")
    with pytest.raises(NotFiniteError, match=r"step 1 .*ln_f\.weight"):
        store.save(opened.config.model, state, Progress(step=1))
    assert not store.folder.exists()


def test_what_is_not_finite_is_used_by_nobody(tmp_path: Path, plain_data: Path) -> None:
    run_to(tmp_path, plain_data, "mps", save_every=4)
    poison(tmp_path, 8)
    with pytest.raises(NotFiniteError, match=r"step-00000008 is of no use: model/ln_f\.weight"):
        load_checkpoint(CheckpointStore(tmp_path).path(8))
    assert load_checkpoint(tmp_path).progress.step == 4
    opened = session(tmp_path, plain_data, "mps", resume=True)
    assert opened.trainer.step == 4
    assert any("step-00000008 is of no use" in note for note in opened.notes)
    assert opened.lock is not None
    opened.lock.release()
    poison(tmp_path, 4)
    with pytest.raises(TwinGPTError, match=r"cannot be resumed: .*not finite"):
        session(tmp_path, plain_data, "mps", resume=True)


# What is saved when


def test_a_failed_evaluation_costs_no_step(
    tmp_path: Path, plain_data: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TwinGPTError("no validation today")

    options: dict[str, Any] = {"save_every": 4, "eval_every": 3}
    run_to(tmp_path / "whole", plain_data, backend_name, **options)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "evaluate", fail)
        with pytest.raises(TwinGPTError, match="no validation today"):
            run_to(tmp_path / "cut", plain_data, backend_name, **options)
        assert CheckpointStore(tmp_path / "cut").steps() == [3]
        # Which is evaluated first when the run goes on.
        with pytest.raises(TwinGPTError, match="no validation today"):
            run_to(tmp_path / "cut", plain_data, backend_name, resume=True)
    run_to(tmp_path / "cut", plain_data, backend_name, resume=True)
    assert val_losses(tmp_path / "cut") == val_losses(tmp_path / "whole")
    assert checkpoints(tmp_path / "cut") == checkpoints(tmp_path / "whole")


def test_a_sample_that_fails_ends_nothing(tmp_path: Path, plain_data: Path) -> None:
    opened = session(tmp_path, plain_data, "mlx", eval_every=4, sample_tokens=5)

    def fail(_: int) -> str:
        raise TwinGPTError("the model's logits are not finite")

    opened.trainer._write_sample = fail
    reports = [report for report in opened.trainer.run() if isinstance(report, EvalReport)]
    assert [(each.step, each.sample) for each in reports] == [(4, None), (8, None)]
    assert all("logits" in str(each.problem) for each in reports)
    assert read_metrics(tmp_path)[-1]["sample_problem"] == "the model's logits are not finite"


@pytest.mark.parametrize("every", [(3, 5), (5, 3), (1, 0), (0, 3), (4, 4), (0, 0)])
def test_the_best_of_all_evaluations_is_run_best(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch, every: tuple[int, int]
) -> None:
    """Whatever is saved and evaluated when; with losses that fall and rise again."""
    real = evaluate
    opened = session(
        tmp_path, plain_data, "mlx", eval_every=every[0], save_every=every[1], keep_last=1, steps=12, log_every=4
    )

    def waved(*args: Any, **options: Any) -> Any:
        result = real(*args, **options)
        wanted = 5.0 + abs(opened.trainer.step - 4) / 10
        return type(result)(wanted * result.tokens, result.tokens, result.text_bytes)

    monkeypatch.setattr(trainer_module, "evaluate", waved)
    reports = list(opened.trainer.run())
    found = val_losses(tmp_path)
    best = min(found, key=lambda step: found[step])
    assert find_checkpoint(tmp_path / "best") == CheckpointStore(tmp_path).path(best)
    assert CheckpointStore(tmp_path).steps() == sorted({best, 12})
    saved = [report.step for report in reports if isinstance(report, SaveReport)]
    assert len(saved) == len(set(saved)) and 12 in saved


@pytest.mark.parametrize(("save_every", "eval_every"), [(4, 4), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_killed_at_any_report_the_run_ends_with_the_same_files(
    tmp_path: Path, plain_data: Path, save_every: int, eval_every: int
) -> None:
    """Left at each of its reports, between a save and its evaluation too, and gone on with."""
    options: dict[str, Any] = {"save_every": save_every, "eval_every": eval_every, "log_every": 3, "keep_last": 2}
    options |= {"model": {"dropout": 0.2}}
    whole = tmp_path / "whole"
    count = len(list(session(whole, plain_data, "mlx", **options).trainer.run()))
    for number in range(1, count):
        run = tmp_path / f"cut-{number}"
        opened = session(run, plain_data, "mlx", **options)
        with contextlib.closing(cast("Generator[Any, None, None]", opened.trainer.run())) as reports:
            for _ in range(number):
                next(reports)
        assert opened.lock is not None
        opened.lock.release()
        run_to(run, plain_data, "mlx", resume=True)
        assert checkpoints(run) == checkpoints(whole), number
        untimed = [
            [{k: v for k, v in line.items() if k not in MEASURED} for line in read_metrics(each)]
            for each in (run, whole)
        ]
        assert untimed[0] == untimed[1], number


def test_a_checkpoint_too_many_goes_with_the_next_command(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"save_every": 2, "keep_last": 1}
    run_to(tmp_path, plain_data, "mlx", 2, **options)
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "retain", lambda *_: None)
        run_to(tmp_path, plain_data, "mlx", 6, resume=True)
    assert CheckpointStore(tmp_path).steps() == [2, 4, 6]
    opened = session(tmp_path, plain_data, "mlx", resume=True)
    best = CheckpointStore(tmp_path).best_step()
    assert CheckpointStore(tmp_path).steps() == sorted({best or 6, 6})
    assert opened.lock is not None


# The metrics


def test_the_last_steps_before_a_stop_are_in_the_metrics_and_told_once(tmp_path: Path, plain_data: Path) -> None:
    """With the mean of all its updates a line is the one of a run that was not stopped, to the last digit."""
    lines = {}
    for name, stop_at in (("whole", None), ("cut", 5)):
        run_to(tmp_path / name, plain_data, "mps", stop_at, log_every=4)
        if stop_at is not None:
            stopped = [line for line in read_metrics(tmp_path / name) if "loss" in line]
            assert [line["step"] for line in stopped] == [1, 4, 5] and stopped[-1]["partial"]
            # A command that has nothing to do leaves it there.
            session(tmp_path / name, plain_data, "mps", resume=True)
            assert [line["step"] for line in read_metrics(tmp_path / name) if "loss" in line] == [1, 4, 5]
            run_to(tmp_path / name, plain_data, "mps", resume=True)
        lines[name] = [(line["step"], line["loss"]) for line in read_metrics(tmp_path / name) if "loss" in line]
    assert [step for step, _ in lines["whole"]] == [1, 4, 8]
    assert lines["cut"] == lines["whole"]


def test_a_stray_line_of_metrics_cuts_nothing_and_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\nby hand\n\n\xff\xfe\n{"step": Infinity}\n{"step": 2}\n{"step": 9}\n{"st')
    with caplog.at_level(logging.WARNING):
        MetricsLog(tmp_path, 2).write({"step": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert (tmp_path / ASIDE_FILE).read_bytes() == b'by hand\n\xff\xfe\n{"step": Infinity}\n'
    assert "3 lines are no metrics" in caplog.text
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_checkpoints_behind_a_link_to_a_disk_that_is_gone_are_missed(tmp_path: Path, plain_data: Path) -> None:
    disk = tmp_path / "disk"
    run_to(tmp_path / "run", plain_data, "mlx", 2)
    (tmp_path / "run" / "checkpoints").rename(disk)
    (tmp_path / "run" / "checkpoints").symlink_to(disk, target_is_directory=True)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    disk.rename(tmp_path / "unplugged")
    for resume in (True, False):
        with pytest.raises(TwinGPTError, match=r"is a link to .*disk, which is not there"):
            session(tmp_path / "run", plain_data, "mlx", resume=resume)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    (tmp_path / "unplugged").rename(disk)
    assert session(tmp_path / "run", plain_data, "mlx", resume=True).trainer.step == 2
