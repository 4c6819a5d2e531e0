"""Training within a time: the rest is planned by the speed seen, and what the user has decided stays decided."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.test_cli import Cli, assert_one_line, cli  # noqa: F401 - the fixture
from twingpt import timed
from twingpt.core.errors import UsageError
from twingpt.measure import sizing
from twingpt.measure.sizing import SHAPES, Given, plan_training, recipe_for
from twingpt.timed import State, TimedTraining
from twingpt.training.config import RunConfig
from twingpt.weights.checkpoint import CheckpointStore


def training(folder: Path, data: Path | None = None, **given: Any) -> TimedTraining:
    return TimedTraining(
        folder=folder,
        run=folder,
        data=data or folder,
        backend="mlx",
        device="cpu",
        console=Console(quiet=True),
        given=Given(**given),
    )


def state(**settings: Any) -> State:
    planned = {"seconds": 100.0, "backend": "mlx", "steps": 100, "most": 1000, "turn": 50, "step_seconds": 1.0}
    return State(**{**planned, **settings})


@pytest.mark.parametrize(("slower", "steps"), [(1.0, 100), (1.25, 80), (0.5, 200), (2.0, 55)])
def test_the_second_half_takes_the_time_that_the_first_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: float, steps: int
) -> None:
    """Planned as 100 updates of a second; half of them took `slower` seconds each, and the rate must fall."""
    monkeypatch.setattr(TimedTraining, "step", 50)
    monkeypatch.setattr(timed, "seconds_per_step", lambda _: slower)
    monkeypatch.setattr(timed, "affordable", lambda left, a_step: round(left / a_step))
    again = training(tmp_path).replan(state(), 0, 50 * slower)
    assert (again.steps, again.turn, again.step_seconds) == (steps, None, slower)
    assert State.load(tmp_path) == again


def test_a_small_text_gets_no_more_updates_on_a_fast_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TimedTraining, "step", 50)
    monkeypatch.setattr(timed, "seconds_per_step", lambda _: 0.1)
    assert training(tmp_path).replan(state(most=100), 0, 5.0).steps == 100


def plan(monkeypatch: pytest.MonkeyPatch, *, text_tokens: int, seconds: float, **given: Any) -> sizing.Plan:
    """On a machine of 10 GFLOP/s."""
    monkeypatch.setattr(sizing, "_timed", lambda config, *_: sizing._work(config) / 1e10)
    return plan_training(
        text_tokens=text_tokens,
        vocab_size=4000,
        block_size=256,
        seconds=seconds,
        backends=["mlx"],
        device="cpu",
        given=Given(**given),
    )


def test_more_time_and_text_make_a_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    small = plan(monkeypatch, text_tokens=100_000, seconds=3600)
    large = plan(monkeypatch, text_tokens=10_000_000, seconds=40 * 3600)
    assert small.parameters < large.parameters
    assert small.short_of == "text" and large.short_of == "time"
    assert large.steps * large.step_seconds == pytest.approx(40 * 3600, rel=0.05)


def test_what_the_user_has_decided_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": {"n_layer": 3, "n_head": 2, "n_embd": 32}, "train": {"batch_size": 5, "average": 0.0}}
    found = plan(monkeypatch, text_tokens=100_000, seconds=600, **given)
    assert found.model["n_layer"] == 3 and found.model["n_embd"] == 32
    assert found.train["batch_size"] == 5 and found.train["average"] == 0.0
    preset = plan(monkeypatch, text_tokens=100_000, seconds=600, preset="tiny")
    assert (preset.model["n_layer"], preset.model["n_embd"]) == (4, 128) and "average" not in preset.train
    many = plan(monkeypatch, text_tokens=100_000, seconds=3600, train={"weight_decay": 0.3}).train
    assert many["weight_decay"] == 0.3 and "decay_epochs" not in many


def test_many_rounds_get_what_keeps_from_learning_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recipe_for(1.0)[0] == {} and recipe_for(8.0)[0]["dropout"] > 0
    many = plan(monkeypatch, text_tokens=100_000, seconds=3600)
    assert many.rounds > sizing.FEW_ROUNDS and many.model["dropout"] > 0 and many.train["decay_epochs"] > 0
    assert len(timed.told(many)) <= 5


def test_train_within_a_time(cli: Cli, plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shapes = ((1, 2, 16),)
    monkeypatch.setattr(sizing, "SHAPES", shapes)
    monkeypatch.setattr(sizing, "_timed", lambda *_: 1.0)

    def here(options: Any, run: Path, _: Console) -> None:
        cli("train", "--out", run, "--no-supervise", *options)

    monkeypatch.setattr(timed, "train_supervised", here)
    run = tmp_path / "run"
    code, out, err = cli(
        *("train", "--data", plain_data, "--out", run, "--time", "20s", "--backend", "mlx", "--device", "cpu"),
        *("--batch-size", 2, "--dropout", "0.3"),
    )
    assert code == 0, err
    config = RunConfig.load(run)
    assert config.train.batch_size == 2 and config.model.dropout == 0.3 and config.model.n_embd == 16
    assert 5 <= config.train.steps <= 20
    assert CheckpointStore(run).steps()[-1] == config.train.steps
    # The same command once more has nothing left to do.
    code, out, err = cli("train", "--data", plain_data, "--out", run, "--time", "20s", "--backend", "mlx")
    assert code == 0 and "done before" in out


def test_what_cannot_go_with_a_time_is_one_line(cli: Cli, plain_data: Path, tmp_path: Path) -> None:  # noqa: F811
    base = ("train", "--data", plain_data, "--out", tmp_path / "run", "--time", "20s")
    assert_one_line(cli(*base, "--steps", 5), 2, "leave out --steps")
    assert_one_line(cli(*base, "--resume"), 2, "--resume and --time")
    assert_one_line(cli(*base[:1], "--out", tmp_path / "run", "--time", "20s"), 2, "--data is missing")
    with pytest.raises(UsageError, match="unknown preset"):
        Given(preset="nothing").config(SHAPES[0], 100, 32, 1)
