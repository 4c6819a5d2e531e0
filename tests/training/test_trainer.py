"""The training loop: exact resume, the other engine, reports, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.schedule import Schedule
from twingpt.training.config import RunConfig, TrainConfig, make_config
from twingpt.training.log import EvalReport, MetricsLog, read_metrics
from twingpt.training.session import Session, TrainRequest, open_session
from twingpt.weights.checkpoint import CheckpointStore, read_checkpoint

MODEL: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64}
TRAIN: dict[str, Any] = {
    "steps": 8,
    "batch_size": 4,
    "log_every": 1,
    "eval_every": 0,
    "save_every": 0,
    "warmup_steps": 2,
}
TRAIN |= {"schedule": "cosine", "learning_rate": 5e-3, "sample_tokens": 0}


def session(
    run: Path,
    data: Path | None,
    backend: str,
    *,
    resume: bool = False,
    memory_limit: float | None = None,
    probe_memory: bool | None = None,
    model: Any = (),
    **train: Any,
) -> Session:
    return open_session(
        TrainRequest(
            run_dir=run,
            data_dir=data,
            backend=backend,
            device="cpu",
            preset=None if resume else "tiny",
            resume=resume,
            memory_limit=memory_limit,
            probe_memory=probe_memory,
            model={} if resume else {**MODEL, **dict(model)},
            train=train if resume else {**TRAIN, **train},
        )
    )


def run_to(run: Path, data: Path, backend: str, stop_at: int | None = None, **options: Any) -> Session:
    opened = session(run, data, backend, **options)
    for _ in opened.trainer.run(stop_at):
        pass
    return opened


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run) if "loss" in line]


def final_state(run: Path) -> dict[str, Any]:
    return read_checkpoint(CheckpointStore(run).path(8)).state


@pytest.mark.parametrize("stop_at", [1, 5])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    tmp_path: Path, plain_data: Path, backend_name: str, stop_at: int
) -> None:
    """Dropout on, two micro-batches, a warm-up and a cosine under way."""
    options: dict[str, Any] = {"model": {"dropout": 0.2}, "micro_batch": 2}
    run_to(tmp_path / "whole", plain_data, backend_name, **options)
    run_to(tmp_path / "cut", plain_data, backend_name, stop_at, **options)
    run_to(tmp_path / "cut", plain_data, backend_name, resume=True)
    whole, cut = final_state(tmp_path / "whole"), final_state(tmp_path / "cut")
    assert all(np.array_equal(whole[key], cut[key]) for key in whole)
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_the_engines_follow_each_other_and_hand_over(tmp_path: Path, plain_data: Path) -> None:
    for name in compared():
        run_to(tmp_path / name, plain_data, name, model={"dropout": 0.0})
        run_to(tmp_path / f"from-{name}", plain_data, name, 4, model={"dropout": 0.0})
    for name, other in (compared(), compared()[::-1]):
        run_to(tmp_path / f"from-{name}", plain_data, other, resume=True)
    curves = [np.array(losses(tmp_path / run)) for run in (*compared(), *(f"from-{name}" for name in compared()))]
    for curve in curves[1:]:
        # Measured over 8 steps: 3.8e-6.
        assert np.abs(curve - curves[0]).max() < 2e-5
    assert curves[0][-1] < curves[0][0] - 0.1
    assert final_state(tmp_path / "from-mlx")["adamw.count"] == 8


def test_a_stop_brings_no_evaluation_of_its_own(tmp_path: Path, plain_data: Path) -> None:
    """A run in two parts has the lines of one that was not stopped, and the time told beforehand counts the same."""
    told: dict[str, list[tuple[int, float]]] = {}
    parts: dict[str, list[int | None]] = {"whole": [None], "cut": [3, 5, 6, None]}
    for name, stops in parts.items():
        for part, stop_at in enumerate(stops):
            opened = session(tmp_path / name, plain_data, "reference", resume=part > 0, eval_every=3)
            estimate = opened.trainer.warm_up(stop_at)
            evaluations = [report for report in opened.trainer.run(stop_at) if isinstance(report, EvalReport)]
            assert estimate.evaluations == len(evaluations)
            assert opened.lock is not None
            opened.lock.release()
        told[name] = [(line["step"], line["val_loss"]) for line in read_metrics(tmp_path / name) if "val_loss" in line]
    assert [step for step, _ in told["whole"]] == [3, 6, 8]
    assert told["cut"] == told["whole"]


def test_the_metrics_tell_what_happened(tmp_path: Path, plain_data: Path, backend_name: str) -> None:
    run_to(tmp_path, plain_data, backend_name, log_every=3, eval_every=4, sample_tokens=5)
    lines = read_metrics(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == [1, 3, 6, 8]
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [4, 8]
    for line in evaluations:
        assert line["perplexity"] == pytest.approx(math.exp(line["val_loss"]))
        assert 0.5 < line["bits_per_byte"] / line["val_loss"] < 1.5
        assert isinstance(line["sample"], str)
    steps = [line for line in lines if "loss" in line]
    assert [line["samples"] for line in steps] == [4, 12, 24, 32]
    assert all(line["tokens_per_second"] > 0 and line["grad_norm"] > 0 for line in steps)
    assert all(line["seconds_left"] > 0 for line in steps[:-1])
    assert steps[-1]["seconds_left"] == 0
    assert steps[0]["lr"] == pytest.approx(2.5e-3)


def test_metrics_beyond_the_checkpoint_are_cut_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    MetricsLog(tmp_path, 2).write({"step": 3, "again": True})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "again": True},
    ]


def test_a_stop_asked_for_saves_the_step_it_came_in(tmp_path: Path, plain_data: Path) -> None:
    opened = session(tmp_path, plain_data, "mlx")
    for report in opened.trainer.run():
        if report.step == 3:
            opened.trainer.request_stop()
    assert CheckpointStore(tmp_path).steps() == [3]


def test_a_loss_that_stays_non_finite_ends_the_run_with_a_clear_line(tmp_path: Path, plain_data: Path) -> None:
    opened = session(tmp_path, plain_data, "mps", steps=30, grad_clip=0.0)
    opened.trainer._schedule = Schedule(kind="constant", peak=1e30, floor=0.0, warmup_steps=0, steps=30)
    with pytest.raises(TwinGPTError, match=r"10 steps in a row.*--learning-rate"):
        for _ in opened.trainer.run():
            pass


def test_other_data_tokenizer_or_shape_are_refused_with_the_difference(tmp_path: Path, plain_data: Path) -> None:
    run = tmp_path / "run"
    run_to(run, plain_data, "mlx", 2)
    with pytest.raises(UsageError, match=r"step 2: add --resume"):
        session(run, plain_data, "mlx")
    with pytest.raises(TwinGPTError, match=r"n_layer 3 / 2"):
        open_session(TrainRequest(run_dir=run, data_dir=plain_data, backend="mlx", resume=True, model={"n_layer": 3}))
    other = tmp_path / "data"
    other.mkdir()
    for path in plain_data.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["train"]["sha256"] = "0" * 64
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TwinGPTError, match="trained with other data"):
        session(run, other, "mlx", resume=True)
    (other / "tokenizer.json").write_text((plain_data / "tokenizer.json").read_text() + " ")
    with pytest.raises(TwinGPTError, match=r"tokenizer\.json is not what"):
        session(run, other, "mlx", resume=True)
    with pytest.raises(TwinGPTError, match="cannot be resumed"):
        session(tmp_path / "nothing", plain_data, "mlx", resume=True)


def test_preset_then_file_then_options(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[model]\nn_layer = 3\nn_head = 2\n[train]\nlearning_rate = 1e-4\nsteps = 7\n")
    config = make_config(
        preset="tiny", config_file=file, model={"vocab_size": 100, "n_head": 8}, train={"steps": 9}, data="d"
    )
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (3, 8, 128)
    assert (config.train.learning_rate, config.train.steps, config.train.schedule) == (1e-4, 9, "cosine")
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[train]\nlearningrate = 1\n", "train.learningrate"),
        ("[model]\nlayers = 1\n", "model.layers"),
        ("[training]\nsteps = 1\n", "unknown setting training"),
        ("[train]\nsteps = 'many'\n", "train.steps"),
        ("[train]\nschedule = 'linear'\n", "choose one of constant, cosine"),
        ("train = 3\n", "must be a table"),
        ("[train]\nmicro_batch = 3\n", "does not divide"),
        ("[train]\nlearning_rate = 0.0\n", "learning_rate"),
    ],
)
def test_an_unknown_or_impossible_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=named):
        make_config(preset="tiny", config_file=file, model={"vocab_size": 100}, train={}, data="")


def test_train_defaults_are_the_users_recipe() -> None:
    config = TrainConfig()
    assert (config.learning_rate, config.schedule, config.batch_size, config.grad_clip) == (3e-4, "constant", 16, 1.0)
