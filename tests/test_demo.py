"""The demo's training, which is `twingpt train` in a process of its own."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from tests.training.test_memory import FAILING_MLX, assert_same_run, started_small
from twingpt import demo
from twingpt.core.errors import StoppedError, TwinGPTError
from twingpt.training.probe import ProbeResult


def options(data: Path) -> list[str]:
    given = (
        f"--backend mlx --device cpu --data {data} --preset tiny --dropout 0 --block-size 64 --steps 20 --batch-size 8"
    )
    return [*given.split(), "--log-every", "1", "--eval-every", "0", "--save-every", "4"]


def test_it_goes_on_after_running_out_of_memory(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING_MLX)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    demo.train(tmp_path / "run", options(plain_data), Console())
    started_small(tmp_path / "small", plain_data, "mlx", 2)
    assert_same_run(tmp_path / "run", tmp_path / "small")


def test_a_training_that_failed_ends_it_with_the_same_code(tmp_path: Path) -> None:
    with pytest.raises(StoppedError) as stopped:
        demo.train(tmp_path / "run", ["--backend", "cuda", "--data", str(tmp_path)], Console())
    assert stopped.value.exit_code in (1, 2)


def test_no_room_for_its_small_batch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "probe", lambda *_: ProbeResult(False, reason="no room"))
    with pytest.raises(TwinGPTError, match="does not fit into memory in mlx: no room"):
        demo.run_demo(tmp_path / "demo", "mlx", "cpu", 0.1)
