"""`twingpt go`: the whole way in one command, from wherever an earlier call was interrupted, within its time."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.conftest import EXAMPLE
from tests.test_cli import Cli, assert_one_line, cli  # noqa: F401 - the fixture
from twingpt import go as journey_module
from twingpt import timed
from twingpt.cli import app
from twingpt.commands.go import LEAST, default_folder
from twingpt.commands.options import seconds_of
from twingpt.core.errors import StoppedError, UsageError
from twingpt.data.prepare.pipeline import Watcher
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.go import Journey, State, begun, go
from twingpt.measure.sizing import Plan
from twingpt.weights.checkpoint import CheckpointStore

STEPS = 6
TINY = {"n_layer": 1, "n_head": 2, "n_embd": 16}
TRAIN = {"batch_size": 1, "warmup_steps": 0, "save_every": 2, "log_every": 1, "sample_tokens": 0, "eval_windows": 2}


def in_this_process(options: Sequence[str], run: Path, _: Console) -> None:
    """A process of its own takes seconds to start; that part is tested with `supervise`."""
    app(["train", "--out", str(run), "--no-supervise", *options], standalone_mode=False)


def a_plan(steps: int) -> Plan:
    settings = {**TRAIN, "steps": steps, "eval_every": steps}
    return Plan(
        backend="mlx",
        model=TINY,
        train=settings,
        steps=steps,
        most=steps,
        step_seconds=0.01,
        rounds=1.0,
        parameters=1,
        block_size=32,
        short_of="text",
    )


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Plans without timing anything, and trains here; what the plans were asked for."""
    asked: list[dict[str, Any]] = []

    def plan(**given: Any) -> Plan:
        asked.append(given)
        return a_plan(STEPS)

    monkeypatch.setattr(timed, "plan_training", plan)
    # Questions and answers take seconds to make, and are tested where they are made.
    monkeypatch.setattr(
        journey_module, "PrepareSettings", lambda template: PrepareSettings(template="plain", block_size=32)
    )
    monkeypatch.setattr(timed, "train_supervised", in_this_process)
    return asked


def journey(raw: Path, out: Path, console: Console | None = None) -> Journey:
    return Journey(
        raw=[str(raw)],
        out=out,
        backend="mlx",
        device="cpu",
        console=console or Console(quiet=True),
        watcher=nullcontext(Watcher()),
    )


@pytest.fixture
def thirty_lines(tmp_path: Path) -> Path:
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()][:30]
    (tmp_path / "raw.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "raw.txt"


def test_it_goes_the_whole_way_on_and_says_when_it_is_done(
    tmp_path: Path, thirty_lines: Path, planned: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def interrupted(options: Sequence[str], run: Path, console: Console) -> None:
        in_this_process([*options, "--stop-at", "2"], run, console)
        raise StoppedError(130)

    monkeypatch.setattr(timed, "train_supervised", interrupted)
    with pytest.raises(StoppedError):
        go(journey(thirty_lines, out), 60.0)
    assert CheckpointStore(out / "run").steps() == [2]
    monkeypatch.setattr(timed, "train_supervised", in_this_process)
    console = Console(record=True, width=200)
    go(journey(thirty_lines, out, console), 90.0)
    shown = console.export_text()
    assert "was begun with --time 0:01:00, which counts" in shown and "kept from before" in shown
    assert CheckpointStore(out / "run").steps()[-1] == STEPS
    assert len(planned) == 1
    facts = [line.split()[0] for line in shown.splitlines()[-5:]]
    assert facts == ["text", "model", "loss", "library", "next"]
    assert f"{STEPS} updates" in shown and "bits per byte on" in shown

    monkeypatch.setattr(timed, "train_supervised", lambda *_: pytest.fail("it was trained before"))
    console = Console(record=True, width=200)
    go(journey(thirty_lines, out, console), 60.0)
    assert f"done before: step {STEPS}" in console.export_text()
    before = (out / "go.json").read_bytes()
    thirty_lines.write_text("다른 글입니다.\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"another text .* give another --out"):
        go(journey(thirty_lines, out), 60.0)
    assert (out / "go.json").read_bytes() == before


def test_a_text_of_one_document_is_judged_on_a_part_of_it(tmp_path: Path, planned: list[dict[str, Any]]) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text(EXAMPLE.read_text(encoding="utf-8").split("\n\n")[1], encoding="utf-8")
    console = Console(record=True, width=200)
    go(journey(raw, tmp_path / "out", console), 60.0)
    shown = console.export_text()
    assert "1 document," in shown and "on a part of the text that it was not trained on" in shown
    assert planned[0]["text_tokens"] < 1000


def test_a_folder_that_go_did_not_make_is_left_alone(tmp_path: Path, thirty_lines: Path) -> None:
    out = tmp_path / "out"
    assert begun([str(thirty_lines)], out) is None
    out.mkdir()
    (out / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="did not make it"):
        begun([str(thirty_lines)], out)


def test_no_time_without_a_terminal_is_one_line(cli: Cli, thirty_lines: Path) -> None:  # noqa: F811
    assert_one_line(cli("go", thirty_lines), 2, "--time is missing", "--time 20m")
    assert_one_line(cli("go", thirty_lines, "--time", "20"), 2, "--time 20 is no time", "20m")
    assert_one_line(cli("go", thirty_lines.with_name("nothing.txt"), "--time", "20m"), 1, "nothing.txt")
    assert not default_folder([str(thirty_lines)]).exists()


def test_the_time_is_asked_for_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from twingpt.commands import go as command

    answers = iter(["soon", "20m"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    assert command._asked() == 1200
    assert "soon is no time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("written", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1.5h", 5400), (" 2H ", 7200)]
)
def test_times_as_people_write_them(written: str, seconds: float) -> None:
    assert seconds_of(written, "--time", LEAST) == seconds


@pytest.mark.parametrize("written", ["", "20", "m", "-5m", "5m3h", "1d", "3s", "9999999h", "nan"])
def test_what_is_no_time(written: str) -> None:
    with pytest.raises(UsageError, match="--time"):
        seconds_of(written, "--time", LEAST)


def test_a_state_that_is_none_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "go.json").write_text(json.dumps({"unknown": 1}))
    with pytest.raises(Exception, match=f"delete {tmp_path}"):
        State.load(tmp_path)


def test_a_training_ends_after_its_time_and_names_what_comes_next(cli: Cli, tmp_path: Path, plain_data: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    small = ["--preset", "tiny", "--block-size", 32, "--batch-size", 1, "--device", "cpu", "--backend", "mlx"]
    code, shown, _ = cli("train", "--data", plain_data, "--out", run, "--steps", 10**6, "--stop-after", "1s", *small)
    assert code == 0
    step = CheckpointStore(run).steps()[-1]
    assert 0 < step < 10**5
    assert f"next: twingpt train --out {run} --resume   (to step 1000000)" in shown
    assert f"next: twingpt serve {run}" in shown
    again = ("train", "--out", run, "--resume", "--backend", "mlx", "--steps", step + 1, "--device", "cpu")
    code, shown, _ = cli(*again)
    assert code == 0 and "--resume" not in shown
    assert_one_line(cli(*again, "--stop-after", "soon"), 2, "--stop-after soon is no time")


@pytest.mark.parametrize(
    ("text", "template"),
    [("비자 연장은 이민국에서 합니다. Bring your passport.\n", "qa"), ("Bring your passport. 가\n" * 9, "plain")],
)
def test_a_text_that_is_not_korean_gets_no_korean_questions(tmp_path: Path, text: str, template: str) -> None:
    (tmp_path / "raw.txt").write_text(text, encoding="utf-8")
    console = Console(record=True, width=200)
    assert journey_module._template(journey(tmp_path / "raw.txt", tmp_path / "out", console)) == template
    assert ("not Korean" in console.export_text()) == (template == "plain")
