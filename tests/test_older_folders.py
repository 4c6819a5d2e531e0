"""Folders of earlier versions go on working: each command on a DATA and a RUN that version 0.1 (1844508) made.

Made with the example text's first 14 documents: `prepare --vocab-size 300 --block-size 128 --max-samples 12`, then
`train --steps 6 --stop-at 4` of one layer, 16 wide, with Muon and dropout, in MLX.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from twingpt.cli import main

MADE_BY = Path(__file__).parent / "fixtures"
VERSIONS = ["v0.1"]
# What version 0.1 itself measured at the last step.
VAL_LOSS = {"v0.1": 5.69257116317749}

Cli = Callable[..., str]


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def folders(version: str, tmp_path: Path) -> tuple[Path, Path]:
    """(DATA, RUN), copied: a command may write into them."""
    shutil.copytree(MADE_BY / version, tmp_path / version)
    return tmp_path / version / "data", tmp_path / version / "run"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command that must succeed; what it wrote to stdout."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["twingpt", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("backend", ["mps", "mlx"])
def test_an_older_run_answers_and_measures_as_it_did(
    cli: Cli, version: str, folders: tuple[Path, Path], backend: str
) -> None:
    data, run = folders
    options = ["--backend", backend, "--device", "cpu"]
    assert cli("generate", run, "--question", "여권?", "--max-new-tokens", 4, *options)
    measured = json.loads(cli("eval", run, "--data", data, "--prompts", 0, "--json", *options))
    assert measured["loss"] == pytest.approx(VAL_LOSS[version], abs=1e-4)


def test_an_older_run_is_resumed_to_its_end(cli: Cli, folders: tuple[Path, Path]) -> None:
    data, run = folders
    cli("train", "--data", data, "--out", run, "--resume", "--backend", "mlx", "--device", "cpu")
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == sorted(steps) and steps[-1] == 6
    assert (run / "checkpoints" / "step-00000006" / "state.json").is_file()


def test_older_data_is_inspected(cli: Cli, folders: tuple[Path, Path]) -> None:
    data, _ = folders
    assert json.loads(cli("data", "inspect", data, "--json"))["vocab_size"] == 300
