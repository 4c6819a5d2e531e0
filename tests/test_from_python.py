"""twingpt as a library: its surface, and the page and the notebook that show it, line by line."""

import ast
import dataclasses
import importlib.util
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import twingpt
from tests.pages import DOCS, LANGUAGES
from tests.pages import blocks as blocks_of
from tests.test_cli_generate import run_cli
from twingpt.data.prepare.settings import PrepareOptions, PrepareSettings

FUNCTIONS = [name for name in twingpt.__all__ if inspect.isfunction(getattr(twingpt, name))]
NOTEBOOK = DOCS / "from-python.ipynb"

# Runs a program and says which of its lines ran; the program itself must not hear of it.
TRACER = """
import sys
source = sys.stdin.read()
code, ran = compile(source, "<page>", "exec"), set()
def trace(frame, event, argument):
    if frame.f_code.co_filename != "<page>":
        return None
    if event == "line":
        ran.add(frame.f_lineno)
    return trace
sys.settrace(trace)
exec(code, {"__name__": "__main__"})
sys.settrace(None)
print("RAN", *sorted(ran))
"""


def statements(source: str) -> set[int]:
    """The first lines of all statements, those that only bind a name to a function's body aside."""
    return {node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt) and not _quiet(node)}


def _quiet(node: ast.stmt) -> bool:
    """A `try` itself does nothing that could be seen."""
    return isinstance(node, ast.Try)


def lines_not_run(source: str, folder: Path) -> set[int]:
    done = subprocess.run(
        [sys.executable, "-c", TRACER], input=source, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return statements(source) - set(map(int, done.stdout.splitlines()[-1].split()[1:]))


def page(language: str) -> str:
    blocks = blocks_of(DOCS / language / "python.md")
    return "\n".join(block.text for block in blocks if block.language == "python")


def test_every_line_of_the_page_runs(tmp_path: Path) -> None:
    source = page("en")
    assert len(statements(source)) > 40
    assert lines_not_run(source, tmp_path) == set()
    assert (tmp_path / "run-hf" / "README.md").is_file()


def test_the_notebook_runs_from_a_text_to_an_answer_and_on_arrays(tmp_path: Path) -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code")
    source = "\n".join(cells)
    called = {name for name in FUNCTIONS if f"twingpt.{name}(" in source}
    assert called == {"prepare", "ask", "train", "load", "evaluate"}
    check = '\nassert "출처" in answer.text and losses[-1][0] == 20 and own.evaluation.bits_per_byte < 8'
    assert lines_not_run(source + check, tmp_path) == set()


def test_a_line_that_does_not_run_is_found(tmp_path: Path) -> None:
    source = "def f():\n    return 1\nif False:\n    f()\nprint('x')\n"
    assert lines_not_run(source, tmp_path) == {2, 4}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_page_tells_of_the_whole_surface(language: str) -> None:
    text = (DOCS / language / "python.md").read_text(encoding="utf-8")
    names = [name for name in twingpt.__all__ if not name.startswith("_")]
    assert [name for name in names if f"`twingpt.{name}`" not in text] == []


def test_no_name_stands_for_a_function_and_for_a_package() -> None:
    assert sorted(FUNCTIONS) == ["ask", "convert", "evaluate", "load", "prepare", "train"]
    assert [name for name in FUNCTIONS if importlib.util.find_spec(f"twingpt.{name}") is not None] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_typed_and_told(name: str) -> None:
    function = getattr(twingpt, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(each.annotation is not inspect.Parameter.empty for each in signature.parameters.values())
    assert "Raises" in (function.__doc__ or "")


def test_type_checkers_are_told_that_there_are_types() -> None:
    assert (Path(twingpt.__file__).parent / "py.typed").is_file()


def test_the_settings_of_prepare_by_name_are_all_there_are() -> None:
    settings = get_type_hints(PrepareSettings)
    names = [each.name for each in dataclasses.fields(PrepareSettings)]
    assert get_type_hints(PrepareOptions) == {name: settings[name] for name in names}


def test_the_functions_do_what_the_commands_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(f"비자 {n}번 안내\n비자 {n}번은 이민국에서 연장합니다. 여권이 필요합니다." for n in range(40))
    (tmp_path / "raw.txt").write_text(text, encoding="utf-8")
    twingpt.prepare([tmp_path / "raw.txt"], tmp_path / "data", val_fraction=0.2, workers=1)
    prepare = ["prepare", tmp_path / "raw.txt", "--out", tmp_path / "same", "--val-fraction", 0.2]
    assert run_cli(monkeypatch, *prepare) == 0
    for name in ("train.bin", "manifest.json", "tokenizer.json"):
        assert (tmp_path / "data" / name).read_bytes() == (tmp_path / "same" / name).read_bytes()
    reports: list[object] = []
    run = twingpt.train(tmp_path / "run", data=tmp_path / "data", device="cpu", preset="tiny", steps=2, batch_size=2)
    run.finish(reports.append, lambda report: None)
    assert len(reports) >= 2
    measured = twingpt.evaluate(tmp_path / "run", tmp_path / "data", device="cpu", questions=2, max_new_tokens=8)
    capsys.readouterr()
    options = ["--data", tmp_path / "data", "--device", "cpu", "--prompts", 2, "--max-new-tokens", 8, "--json"]
    assert run_cli(monkeypatch, "eval", tmp_path / "run", *options) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (measured.loss, measured.bits_per_byte, measured.tokens) == (
        shown["loss"],
        shown["bits_per_byte"],
        shown["tokens"],
    )
    assert measured.figures["all"] == shown["answers"]["all"]
    assert len(measured.answers) == 2
    with pytest.raises(twingpt.UsageError, match="choose one of"):
        twingpt.convert(tmp_path / "run", tmp_path / "out", "onnx")  # type: ignore[arg-type]
