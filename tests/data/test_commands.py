"""The commands: what they print, what they exit with, what they load."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from twingpt.commands import data as cli_data
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.prepare.settings import PrepareSettings

COMMANDS = ["clean", "tokenizer", "samples", "pack", "library", "inspect"]


@pytest.fixture
def raw(tmp_path: Path, korean_text: Callable[[int], str]) -> Path:
    path = tmp_path / "raw.txt"
    path.write_text(korean_text(60), encoding="utf-8")
    return path


def _app() -> typer.Typer:
    app = typer.Typer()
    app.command()(cli_data.prepare)
    app.add_typer(cli_data.app, name="data")
    return app


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(_app(), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_prepare_prints_a_summary_with_three_samples(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    options = ["--template", "plain", "--separator", "blank-line", "--vocab-size", "600", "--block-size", "64"]
    raw.write_text(raw.read_text(encoding="utf-8").replace("번 번호표를", "번  번호표를"), encoding="utf-8")
    shown = _run("prepare", str(raw), "--out", str(out), *options)
    assert "Sample 3" in shown and "bytes a token" in shown and "What cleaning changed" in shown
    again = json.loads(_run("prepare", str(raw), "--out", str(out), *options, "--json"))
    assert all(again["reused"].values()) and again["pack"]["dtype"] == "uint16"


def test_the_stages_one_by_one_make_what_prepare_makes(raw: Path, tmp_path: Path) -> None:
    at_once, data = tmp_path / "once", tmp_path / "data"
    _run("prepare", str(raw), "--out", str(at_once), "--vocab-size", "600", "--mask-prompt", "--seed", "3")
    _run("data", "clean", str(raw), "--out", str(data))
    _run("data", "tokenizer", str(data), "--vocab-size", "600", "--seed", "3")
    _run("data", "samples", str(data), "--seed", "3")
    _run("data", "pack", str(data), "--mask-prompt", "--seed", "3")
    names = ["cleaned.txt", "tokenizer.json", "samples.jsonl", "train.bin", "val.bin", "train.mask", "manifest.json"]
    for name in names:
        assert (at_once / name).read_bytes() == (data / name).read_bytes(), name
    shown = _run("data", "inspect", str(data))
    assert "everyday Hangul syllables" in shown and "[BOS][QUESTION]" in shown
    assert json.loads(_run("data", "inspect", str(data), "--json"))["vocab_size"] == 600


def test_errors_reach_the_command_line_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match=r"none\.txt does not exist"):
        _run("prepare", str(tmp_path / "none.txt"), "--out", str(tmp_path / "data"))


@pytest.mark.parametrize("arguments", [["prepare"], *(["data", command] for command in COMMANDS)], ids=" ".join)
def test_every_option_has_help(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(_app())
    for name in arguments:
        command = command.commands[name]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    assert command.help and options
    assert all(option.help for option in options)


def test_an_option_says_what_its_setting_says(tmp_path: Path) -> None:
    """Default, help and bounds stand once, in PrepareSettings."""
    command: Any = typer.main.get_command(_app())
    options = {parameter.name: parameter for parameter in command.commands["prepare"].params}
    for field in dataclasses.fields(PrepareSettings):
        assert options[field.name].default == field.default, field.name
        assert options[field.name].help.replace("\\[", "[") == field.metadata["help"]
    assert list(options["summaries"].secondary_opts) == ["--no-summaries"]
    assert not options["mask_prompt"].secondary_opts
    raw = tmp_path / "raw.txt"
    for option, value, give in (
        ("--vocab-size", "5", "268 to 4,294,967,296"),
        ("--max-samples", "0", "1 to 1,000,000,000,000"),
        ("--closed-share", "1.5", "0 to 1"),
    ):
        with pytest.raises(UsageError, match=f"{option} {value} cannot be meant: give {give}"):
            _run("prepare", str(raw), "--out", str(tmp_path / "data"), option, value)


def test_importing_the_commands_loads_nothing_heavy() -> None:
    code = "import sys, twingpt.commands.data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"numpy", "tokenizers", "torch", "mlx", "kiwipiepy", "gigatoken", "ftfy"} & set(loaded)
