"""`twingpt tune`: a trial that dies does not fit, the fastest wins, and `train` takes the file."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twingpt.cli import app
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.spec import GPTSpec
from twingpt.measure import tune as tune_module
from twingpt.measure.child import ChildError
from twingpt.measure.tune import Candidate, TuneRequest, best_of, candidates, write_config
from twingpt.training.config import TrainConfig, make_config
from twingpt.training.estimate import GIB
from twingpt.training.probe import ProbeResult


@pytest.fixture
def request_(spec: GPTSpec) -> TuneRequest:
    config = TrainConfig(batch_size=4, learning_rate=2e-3, schedule="cosine", micro_batch=4)
    return TuneRequest(spec=spec, config=config, backends=["mlx"], device="cpu", precisions=[])


def _framework_that(dies: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An mlx in front of the real one, for the processes started from here, that ends them when it is loaded."""
    package = folder / "mlx"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "core.py").write_text(f"import os\n{dies}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))


def _describe_as(device: str, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "in_fresh_process", lambda *_: {"device": device, "limit": limit})


@pytest.mark.parametrize(
    ("dies", "reason"),
    [("os.kill(os.getpid(), 9)", "ended by SIGKILL"), ("raise SystemExit('the driver is gone')", "the driver is gone")],
)
def test_a_trial_whose_process_dies_does_not_fit(
    dies: str, reason: str, request_: TuneRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _framework_that(dies, tmp_path, monkeypatch)
    _describe_as("cpu", 8 * int(GIB), monkeypatch)
    tried = list(candidates(request_, lambda _: None))
    assert [candidate.micro_batch for candidate in tried] == [4, 2, 1]
    assert not any(candidate.fits for candidate in tried)
    assert all(reason in candidate.reason for candidate in tried)
    with pytest.raises(TwinGPTError, match=f"nothing fits .*{reason}"):
        best_of(tried)


@pytest.mark.slow
def test_an_engine_that_cannot_start_is_reported_and_the_other_one_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _framework_that("os.kill(os.getpid(), 9)", tmp_path, monkeypatch)
    config, out = tmp_path / "small.toml", tmp_path / "tuned.toml"
    config.write_text("[model]\nn_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 16\n", encoding="utf-8")
    options = ["--config", str(config), "--out", str(out), "--vocab-size", "64", "--batch-size", "2"]
    answer = CliRunner().invoke(app, ["tune", *options, "--device", "cpu", "--json"])
    assert answer.exit_code == 0, answer.output

    result = json.loads(answer.stdout)
    dead = [candidate for candidate in result["tried"] if candidate["backend"] == "mlx"]
    assert len(dead) == 1 and not dead[0]["fits"] and "SIGKILL" in dead[0]["reason"]
    best = result["best"]
    assert (best["backend"], best["device"], best["precision"]) == ("mps", "cpu", "float32")
    assert best["tokens_per_second"] == max(candidate["tokens_per_second"] for candidate in result["tried"])
    assert best["tokens_per_second"] == pytest.approx(2 * 16 / best["seconds_per_step"])
    assert result["train"] == f"twingpt train --data DATA --out RUN --backend mps --device cpu --config {out}"
    tuned = make_config(preset="seed", config_file=out, model={"vocab_size": 300}, train={}, data="")
    assert tuned.train.micro_batch == best["micro_batch"]


def test_train_takes_the_file(request_: TuneRequest, tmp_path: Path) -> None:
    best = Candidate(backend="mlx", device="metal", precision="bfloat16", micro_batch=2, fits=True)
    path = tmp_path / "tuned.toml"
    write_config(path, request_, best)
    assert "vocab_size" not in tomllib.loads(path.read_text(encoding="utf-8"))["model"]
    wanted = make_config(preset="seed", config_file=path, model={"vocab_size": 300}, train={}, data="")
    assert wanted.model.to_dict() == {**request_.spec.to_dict(), "vocab_size": 300}
    expected = {"batch_size": 4, "micro_batch": 2, "precision": "bfloat16", "schedule": "cosine", "learning_rate": 2e-3}
    assert wanted.train == TrainConfig(**expected)  # type: ignore[arg-type]


def test_smaller_ones_are_tried_until_they_are_slower(request_: TuneRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    _describe_as("metal", 8 * int(GIB), monkeypatch)
    seconds = {"float32": {4: 2.0, 2: 1.0, 1: 1.2}, "bfloat16": {4: 3.0, 2: 4.0, 1: 0.1}}

    def probed(_: GPTSpec, config: TrainConfig, *rest: Any) -> ProbeResult:
        return ProbeResult(True, seconds[config.precision][rest[2]], 1000)

    monkeypatch.setattr(tune_module, "probe", probed)
    tried = list(candidates(request_, lambda _: None))
    order = [(candidate.precision, candidate.micro_batch) for candidate in tried]
    assert order == [("float32", 4), ("float32", 2), ("float32", 1), ("bfloat16", 4), ("bfloat16", 2)]
    assert (best_of(tried).precision, best_of(tried).micro_batch) == ("float32", 2)


def test_the_memory_bounds_what_is_tried_and_what_is_taken(
    request_: TuneRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    _describe_as("cpu", 1 << 20, monkeypatch)
    monkeypatch.setattr(tune_module, "probe", lambda *_: ProbeResult(True, 1.0, 2 << 20))
    (only,) = candidates(request_, lambda _: None)
    assert (only.micro_batch, only.fits) == (1, False)
    assert only.reason == "it took 2 of 1 MiB"


def test_a_broken_engine_is_one_line(request_: TuneRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ChildError("its process was ended by SIGSEGV")

    monkeypatch.setattr(tune_module, "in_fresh_process", broken)
    (only,) = candidates(request_, lambda _: None)
    assert not only.fits and only.reason == "its process was ended by SIGSEGV"


def test_an_older_file_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune_module, "candidates", lambda *_: [])
    path = tmp_path / "tuned.toml"
    path.write_text("mine", encoding="utf-8")
    answer = CliRunner().invoke(app, ["tune", "--out", str(path)])
    assert isinstance(answer.exception, UsageError)
    assert path.read_text(encoding="utf-8") == "mine"
