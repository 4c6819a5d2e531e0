"""The demo: its training, which is `twingpt train` in a process of its own, and the answers that it ends with."""

import os
import re
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.answers.test_ask import check_grounded
from tests.training.test_memory import FAILING_MLX, assert_same_run, started_small
from twingpt import demo
from twingpt.answers.answer import NOT_FOUND
from twingpt.answers.ask import ask_library
from twingpt.cli import app
from twingpt.core.errors import StoppedError, TwinGPTError, UsageError
from twingpt.data.contacts import standardise
from twingpt.data.library.search import Library
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text.characters import cleaned
from twingpt.data.tokens.manifest import Manifest
from twingpt.training.config import RunConfig
from twingpt.training.probe import ProbeResult
from twingpt.training.record import read_sessions
from twingpt.training.restart import train_supervised
from twingpt.weights.checkpoint import CheckpointStore


def options(data: Path) -> list[str]:
    given = (
        f"--backend mlx --device cpu --data {data} --preset tiny --dropout 0 --block-size 64 --steps 20 --batch-size 8"
    )
    return [*given.split(), "--log-every", "1", "--eval-every", "0", "--save-every", "4"]


@pytest.mark.slow
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
    monkeypatch.setattr(demo, "PrepareSettings", partial(PrepareSettings, template="plain"))
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


def test_it_goes_on_where_it_was_interrupted_and_every_line_is_in_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small and in this process; what is printed is checked, and not what was meant to be."""
    steps = 4 + demo.RELAY_STEPS
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0}
    monkeypatch.setattr(demo, "MODEL", small)
    monkeypatch.setattr(demo, "planned", lambda *_: ("mlx", steps))
    stops = iter(["2"])

    def train(options: Sequence[str], run: Path, _: Console) -> None:
        interrupted = next(stops, None)
        more = [] if interrupted is None else ["--stop-at", interrupted]
        app(["train", "--out", str(run), "--no-supervise", *options, *more], standalone_mode=False)
        if interrupted is not None:
            raise StoppedError(130)

    monkeypatch.setattr(demo, "train_supervised", train)
    out = tmp_path / "demo"
    with pytest.raises(StoppedError):
        demo.run_demo(out, None, "cpu", 3.0)
    assert CheckpointStore(out / "run").steps() == [2]
    capsys.readouterr()
    demo.run_demo(out, None, "cpu", 3.0)
    check_printed(capsys.readouterr().out, (out / "ph_life_ko.txt").read_text(encoding="utf-8"))
    assert CheckpointStore(out / "run").steps()[-1] == steps
    # Interrupted at 2, then to its end, then the other engine: each from where the one before it was.
    assert [(session.backend, session.step) for session in read_sessions(out / "run")] == [
        ("mlx", 0),
        ("mlx", 2),
        ("mps", 4),
    ]
    assert demo.steps_left(out / "run") == 0

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="is no demo"):
        demo.run_demo(tmp_path / "mine", None, "cpu", 3.0)


def test_its_time_is_kept_where_the_machine_was_slower_than_it_seemed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first engine gets to step 4 of 100 in the time; the other one ends the run."""
    given: list[list[str]] = []
    monkeypatch.setattr(demo, "train_supervised", lambda options, *_: given.append(options))
    monkeypatch.setattr(demo, "prepare_example", lambda _: Manifest.load(Path(__file__).parent / "fixtures/v0.1/data"))
    monkeypatch.setattr(demo, "planned", lambda *_: ("mlx", 100))
    monkeypatch.setattr(demo, "steps_left", lambda *_: 96)
    monkeypatch.setattr(RunConfig, "load", lambda _: SimpleNamespace(train=SimpleNamespace(steps=100)))
    for part in ("ask", "write"):
        monkeypatch.setattr(demo, part, lambda *_: None)
    (tmp_path / "demo").mkdir()
    demo.run_demo(tmp_path / "demo", None, "cpu", 2.0)
    assert [given[0][-4:], given[1][-2:]] == [["--stop-at", "90", "--stop-after", "120s"], ["--steps", "14"]]


def check_printed(shown: str, text: str) -> None:
    """Each line that cites a source stands in the text, or is a contact whose name or value does."""
    answers, rest = shown.split("4. ask the text")[1].split("5. let the model write")
    asked = re.split(r"^\? ", answers, flags=re.MULTILINE)[1:]
    assert [answer.splitlines()[0] for answer in asked] == list(demo.QUESTIONS)
    assert asked[-1].splitlines()[1] == NOT_FOUND
    standard = standardise(cleaned(text))[0]
    for answer in asked[:-1]:
        assert "출처" in answer and "ph_life_ko.txt" in answer
        lines = re.findall(r"^ *- (.+) \[\d+\]$", answer, flags=re.MULTILINE)
        assert len(lines) > 5
        for line in lines:
            values = re.findall(r"(?:TEL|WEB|KAKAO|ADDR|EMAIL): ([^,(]+)", line)
            assert all(value.strip() in standard for value in values) if values else line in standard, line
    assert "작문" in rest and "nothing in it is checked" in rest
    assert "twingpt serve" in rest and "http://127.0.0.1:8000/" in rest
