"""`generate` over several prompts, and `eval` over questions of held-out documents."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLE
from twingpt.cli import main
from twingpt.generation.answer_sections import SECTION_HEADS, in_order


def run_cli(monkeypatch: pytest.MonkeyPatch, *args: object) -> int:
    monkeypatch.setattr(sys, "argv", ["twingpt", *map(str, args)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(DATA, RUN) of the first documents of the example, barely trained."""
    folder = tmp_path_factory.mktemp("eval")
    text = folder / "text.txt"
    text.write_text("\n\n".join(EXAMPLE.read_text(encoding="utf-8").split("\n\n")[:12]), encoding="utf-8")
    data, run = folder / "data", folder / "run"
    prepare = ["prepare", text, "--out", data, "--vocab-size", 700, "--val-fraction", 0.2]
    train = ["train", "--data", data, "--out", run, "--preset", "tiny", "--steps", 2, "--batch-size", 1]
    for args in (prepare, [*train, "--backend", "mlx", "--device", "cpu"]):
        subprocess.run([sys.executable, "-m", "twingpt", *map(str, args)], check=True, capture_output=True)
    return data, run


def test_prompts_of_a_file_come_out_as_they_would_alone(
    prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, run = prepared
    (tmp_path / "q.txt").write_text("여권을 잃어버렸을 때?\n\n비자 연장?\n태풍 준비?\n", encoding="utf-8")
    options = ["--device", "cpu", "--seed", 3, "--max-new-tokens", 150, "--format", "answer"]
    assert run_cli(monkeypatch, "generate", run, "--questions", tmp_path / "q.txt", "--slots", 2, *options) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["question"] for line in lines] == ["여권을 잃어버렸을 때?", "비자 연장?", "태풍 준비?"]
    assert {line["finish_reason"] for line in lines} == {"stop"}
    assert all(in_order(line["text"], SECTION_HEADS) for line in lines)
    assert run_cli(monkeypatch, "generate", run, "--question", "비자 연장?", *options) == 0
    assert capsys.readouterr().out == lines[1]["text"] + "\n"


def test_eval_answers_questions_of_validation_documents(
    prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, run = prepared
    options = ["--data", data, "--device", "cpu", "--max-new-tokens", 150, "--format", "answer", "--fill-contacts"]
    samples = ["--prompts", 4, "--samples", tmp_path / "read.txt"]
    assert run_cli(monkeypatch, "eval", run, *options, *samples, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    figures = shown["answers"]["all"]
    assert shown["bits_per_byte"] > 0
    assert (figures["answers"], figures["all_sections"], figures["invented_numbers"]) == (4, 1.0, 0)
    assert (tmp_path / "read.txt").read_text(encoding="utf-8").count("[참조]") == 4
    assert run_cli(monkeypatch, "eval", run, *options, "--prompts", 2) == 0
    table = capsys.readouterr().out
    assert "bits_per_byte" in table
    assert "contact_recall" in table


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--prompt", "x", "--format", "answer"], 2, "--format answer goes with --question"),
        (["--prompts", "none.txt"], 1, "none.txt cannot be read"),
        (["--question", "x", "--format", "answer", "--max-new-tokens", "9"], 1, "room for 9"),
    ],
)
def test_mistakes_are_one_line(
    prepared: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    words: str,
) -> None:
    assert run_cli(monkeypatch, "generate", prepared[1], "--device", "cpu", *args) == code
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
