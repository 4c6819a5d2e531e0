"""`twingpt bench`: every figure is there for both engines, and the shares are of the right limit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twingpt.cli import app
from twingpt.core.backend import BackendName
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.params import flops_per_token, matmul_weights
from twingpt.core.spec import GPTSpec
from twingpt.measure import bench as bench_run
from twingpt.measure.bench import BenchRequest, load_config, roofline, run_bench
from twingpt.measure.child import ChildError, in_fresh_process
from twingpt.measure.chips import Chip, describe
from twingpt.measure.throughput import SLOTS
from twingpt.training.config import RunConfig, TrainConfig

SPEED = {"tokens_per_second", "slowest", "fastest"}
ROW = {
    "backend",
    "device",
    "precision",
    "batch_size",
    "micro_batch",
    "start_seconds",
    "training",
    "peak_bytes",
    "first_token_seconds",
    "generation",
    "matmul_flops",
    "token_matmul_seconds",
    "roofline",
}
SMALL = ["--vocab-size", "64", "--block-size", "16", "--batch-size", "2", "--device", "cpu", "--seconds", "0.1"]


@pytest.fixture
def small_config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text("[model]\nn_layer = 1\nn_head = 2\nn_embd = 16\n", encoding="utf-8")
    return path


def test_every_figure_is_there_for_both_engines(small_config: Path, tmp_path: Path) -> None:
    saved, picture = tmp_path / "results.jsonl", tmp_path / "picture.png"
    saved.write_text('{"an": "earlier line"}\n', encoding="utf-8")
    options = ["--config", str(small_config), "--save", str(saved), "--picture", str(picture), "--json"]
    answer = CliRunner().invoke(app, ["bench", *SMALL, *options])
    assert answer.exit_code == 0, answer.output

    result = json.loads(answer.stdout)
    assert set(result) == {
        *("time", "machine", "versions", "model", "parameters", "flops_per_token", "train", "engines")
    }
    assert [row["backend"] for row in result["engines"]] == ["mps", "mlx"]
    for row in result["engines"]:
        assert set(row) == ROW
        assert (row["device"], row["precision"], row["micro_batch"]) == ("cpu", "float32", 2)
        assert set(row["training"]) == SPEED | {"step_seconds", "updates_a_block"}
        assert [generation["slots"] for generation in row["generation"]] == list(SLOTS)
        for speed in (row["training"], *row["generation"]):
            assert 0 < speed["slowest"] <= speed["tokens_per_second"] <= speed["fastest"]
        figures = [row[name] for name in ("start_seconds", "peak_bytes", "first_token_seconds", "matmul_flops")]
        shares = [row["roofline"]["training"], *row["roofline"]["generation"]]
        assert min(figures + row["token_matmul_seconds"] + shares) > 0
        assert row["training"]["step_seconds"] == pytest.approx(2 * 16 / row["training"]["tokens_per_second"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = saved.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert json.loads(lines[1]) == result


def test_the_table_shows_both_engines_and_what_failed(small_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "in_fresh_process", _fake("cpu", broken="mlx"))
    answer = CliRunner().invoke(app, ["bench", *SMALL, "--config", str(small_config)], env={"COLUMNS": "120"})
    assert answer.exit_code == 0, answer.output
    for shown in ("PyTorch", "MLX", "1,234", "its process was ended by SIGABRT"):
        assert shown in answer.stdout


@pytest.mark.parametrize(
    ("device", "asked", "measured"),
    [
        ("metal", [], ["float32", "bfloat16"]),
        ("cpu", [], ["float32"]),
        ("cpu", ["bfloat16"], ["bfloat16"]),
    ],
)
def test_bfloat16_is_measured_on_a_gpu_or_when_asked_for(
    device: str, asked: list[Any], measured: list[str], spec: GPTSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_run, "in_fresh_process", _fake(device))
    request = BenchRequest(spec=spec, config=TrainConfig(), backends=["mlx"], precisions=asked)
    rows = run_bench(request, lambda _: None)["engines"]
    assert [row["precision"] for row in rows] == measured


def test_nothing_measured_is_an_error(spec: GPTSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "in_fresh_process", _fake("cpu", broken="mlx"))
    request = BenchRequest(spec=spec, config=TrainConfig(), backends=["mlx"], precisions=[])
    with pytest.raises(TwinGPTError, match="mlx, float32: its process was ended by SIGABRT"):
        run_bench(request, lambda _: None)


def test_the_share_is_of_the_chip_on_its_gpu_and_of_measured_products_elsewhere(spec: GPTSpec) -> None:
    chip = Chip(name="Apple M4", gpu_cores=10, flops=2e12, bandwidth=1e11)
    on_gpu, on_cpu = (roofline(_row("mlx", device, "float32"), spec, chip) for device in ("metal", "cpu"))
    assert on_gpu["training"] == pytest.approx(1234.0 * flops_per_token(spec) / 2e12)
    assert on_cpu["training"] == pytest.approx(1234.0 * flops_per_token(spec) / 1e9)
    assert on_gpu["generation"][0] == pytest.approx(100.0 * 4 * matmul_weights(spec) / 1e11)
    assert on_cpu["generation"] == pytest.approx([100.0 * 0.001, 400.0 / 8 * 0.002])
    assert (on_gpu["training_limit"], on_cpu["training_limit"]) == ("Apple M4, FLOPs", "measured products")


def test_many_texts_at_once_are_limited_by_flops(spec: GPTSpec) -> None:
    chip = Chip(name="Apple M4", gpu_cores=10, flops=1e9, bandwidth=1e11)
    share = roofline(_row("mlx", "metal", "float32"), spec, chip)["generation"][1]
    assert share == pytest.approx(400.0 * 2 * matmul_weights(spec) / 1e9)


@pytest.mark.parametrize(
    ("name", "cores", "tflops", "gigabytes"),
    [
        ("Apple M4", 10, 3.76, 120),
        ("Apple M4 Max", 40, 17.18, 546),
        ("Apple M3 Max", 30, 10.74, 300),
        ("Apple M5", 10, None, 153),
        ("Apple M5 Max", 32, None, None),
        ("Apple M9", 10, None, None),
        ("Apple M4", None, None, None),
    ],
)
def test_the_chip_table(name: str, cores: int | None, tflops: float | None, gigabytes: float | None) -> None:
    chip = describe(name, cores)
    assert chip.flops == (None if tflops is None else pytest.approx(tflops * 1e12, rel=0.002))
    assert chip.bandwidth == (None if gigabytes is None else pytest.approx(gigabytes * 1e9))


def test_a_runs_own_config_is_measured(spec: GPTSpec, tmp_path: Path) -> None:
    stored = RunConfig(model=spec, train=TrainConfig(batch_size=6), data="")
    stored.save(tmp_path)
    wanted = load_config(preset="seed", config_file=None, run=tmp_path, model={"dropout": 0.2}, train={})
    assert (wanted.model.n_embd, wanted.model.vocab_size, wanted.model.dropout) == (spec.n_embd, spec.vocab_size, 0.2)
    assert wanted.train.batch_size == 6


def test_what_the_user_can_mend_is_not_a_crash(spec: GPTSpec) -> None:
    with pytest.raises(UsageError, match="--device gpu"):
        in_fresh_process("describe", spec, TrainConfig(), "mlx", "gpu")


@pytest.mark.parametrize(
    "options",
    [["--backend", "jax"], ["--precision", "float8"], ["--run", "x", "--config", "y"], ["--preset", "huge"]],
)
def test_a_mistake_is_a_usage_error(options: list[str]) -> None:
    answer = CliRunner().invoke(app, ["bench", *options])
    assert isinstance(answer.exception, UsageError)


def _row(backend: str, device: str, precision: str) -> dict[str, Any]:
    return {
        "backend": backend,
        "device": device,
        "precision": precision,
        "batch_size": 2,
        "micro_batch": 2,
        "start_seconds": 0.1,
        "training": {
            "tokens_per_second": 1234.0,
            "slowest": 1200.0,
            "fastest": 1300.0,
            "step_seconds": 0.03,
            "updates_a_block": 1,
        },
        "peak_bytes": 1 << 20,
        "first_token_seconds": 0.002,
        "generation": [
            {"slots": 1, "tokens_per_second": 100.0, "slowest": 90.0, "fastest": 110.0},
            {"slots": 8, "tokens_per_second": 400.0, "slowest": 390.0, "fastest": 410.0},
        ],
        "matmul_flops": 1e9,
        "token_matmul_seconds": [0.001, 0.002],
    }


def _fake(device: str, broken: str | None = None) -> Any:
    def measured(job: str, _: GPTSpec, config: TrainConfig, backend: BackendName, *__: Any, **___: Any) -> Any:
        if backend == broken:
            raise ChildError("its process was ended by SIGABRT")
        return _row(backend, device, config.precision)

    return measured


def test_the_speed_of_products_is_that_of_the_engines_blas() -> None:
    """MLX takes its BLAS when it is imported: the engine's own has to be loaded before."""
    code = (
        "import os, sys\nfrom twingpt.core.engines import find_engine\nengine = find_engine('mlx')\n"
        "assert 'MLX_ENABLE_TF32' not in os.environ and 'mlx.core' not in sys.modules\n"
        "engine.arrays('cpu', 'float32').random(2, 2)\nnames = list(sys.modules)\n"
        "assert os.environ['MLX_ENABLE_TF32'] == '0'\n"
        "assert names.index('twingpt.backends.mlx.linux_cpu.blas') < names.index('mlx.core')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MLX_ENABLE_TF32"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
