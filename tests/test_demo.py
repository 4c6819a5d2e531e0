"""The demo: its training, which is `twingpt train` in a process of its own, and the answers that it ends with."""

import os
from importlib import resources
from pathlib import Path

import pytest
from rich.console import Console

from tests.answers.test_ask import check_grounded
from tests.training.test_memory import FAILING_MLX, assert_same_run, started_small
from twingpt import demo
from twingpt.answers.ask import ask_library
from twingpt.core.errors import StoppedError, TwinGPTError
from twingpt.data.library.search import Library
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.training.probe import ProbeResult
from twingpt.training.restart import train_supervised


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
    train_supervised(options(plain_data), tmp_path / "run", Console())
    started_small(tmp_path / "small", plain_data, "mlx", 2)
    assert_same_run(tmp_path / "run", tmp_path / "small")


def test_a_training_that_failed_ends_it_with_the_same_code(tmp_path: Path) -> None:
    with pytest.raises(StoppedError) as stopped:
        train_supervised(["--backend", "cuda", "--data", str(tmp_path)], tmp_path / "run", Console())
    assert stopped.value.exit_code in (1, 2)


def test_no_room_for_its_small_batch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "probe", lambda *_: ProbeResult(False, reason="no room"))
    with pytest.raises(TwinGPTError, match="does not fit into memory in mlx: no room"):
        demo.run_demo(tmp_path / "demo", "mlx", "cpu", 0.1)


def test_its_answers_are_true_and_the_last_question_has_none(tmp_path: Path) -> None:
    """What it shows first to anyone: each line stands in the example text."""
    with resources.as_file(resources.files("twingpt.examples") / "ph_life_ko.txt") as text:
        prepare([str(text)], tmp_path, PrepareSettings(), stages=["clean", "library"])
    with Library(tmp_path / "library.sqlite") as library:
        answers = [ask_library(library, question) for question in demo.QUESTIONS]
    assert [answer.found for answer in answers] == [True, True, True, False]
    titles = [answer.sources[0].title for answer in answers[:3]]
    assert titles == ["여권을 잃어버렸을 때 할 일", "태풍이 오기 전 이틀 동안", "관광비자 연장, 처음이라면 이렇게"]
    assert all(check_grounded(answer) > 3 for answer in answers[:3])
    console = Console(record=True, width=200)
    demo.ask(tmp_path, console)
    shown = console.export_text()
    assert all(question in shown for question in demo.QUESTIONS) and shown.count("출처") == 3
