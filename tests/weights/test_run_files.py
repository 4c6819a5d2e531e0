"""A library, contacts, samples and settings of another run are noticed by their content, and its own are believed."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import EXAMPLE
from twingpt.cli import main
from twingpt.core.errors import TwinGPTError
from twingpt.data.files import CLEANED_FILE, CONTACTS_FILE, LIBRARY_FILE, SAMPLES_FILE
from twingpt.data.library.identity import content_of_library
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.tokens import custody
from twingpt.data.tokens.marks import Template
from twingpt.generation.model import load
from twingpt.serve.service import open_service
from twingpt.training.config import CONFIG_FILE
from twingpt.training.session import TrainRequest, open_session
from twingpt.weights.run_files import RECORD_FILE, record_files
from twingpt.weights.run_folder import library_of, open_contacts

TEXTS = {"own": slice(0, 14), "other": slice(14, 28)}
"""Documents of the example text."""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two DATA folders, own and other, and a run of each."""
    folder = tmp_path_factory.mktemp("made")
    documents = EXAMPLE.read_text(encoding="utf-8").split("\n\n")
    for name, part in TEXTS.items():
        (folder / f"{name}.txt").write_text("\n\n".join(documents[part]), encoding="utf-8")
        template: Template = "qa" if name == "own" else "plain"
        settings = PrepareSettings(vocab_size=600, block_size=384, val_fraction=0.3, template=template)
        prepare([str(folder / f"{name}.txt")], folder / name, settings, workers=1)
        train(folder / f"{name}-run", folder / name)
    return folder


@pytest.fixture
def folders(made: Path, tmp_path: Path) -> Path:
    """The same, for a test to change."""
    copy = Path(shutil.copytree(made, tmp_path / "made"))
    for name in TEXTS:
        config = copy / f"{name}-run" / CONFIG_FILE
        config.write_text(config.read_text("utf-8").replace(str(made), str(copy)), "utf-8")
        record_files(config.parent, [CONFIG_FILE])
    return copy


def train(run: Path, data: Path | None, *, resume: bool = False) -> list[str]:
    """What is told of two more steps."""
    model = {"block_size": 384, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0}
    session = open_session(
        TrainRequest(
            run_dir=run,
            data_dir=data,
            backend="reference",
            resume=resume,
            model={} if resume else model,
            train={"steps": 4} if resume else {"steps": 2, "batch_size": 2, "sample_tokens": 0, "log_every": 1},
        )
    )
    list(session.trainer.run())
    assert session.lock is not None
    session.lock.release()
    return session.notes


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["twingpt", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_runs_own_files_are_believed(folders: Path, cli: Cli) -> None:
    run, data = folders / "own-run", folders / "own"
    assert set(json.loads((run / RECORD_FILE).read_text())["files"]) == {
        "tokenizer.json",
        CONTACTS_FILE,
        LIBRARY_FILE,
        CONFIG_FILE,
    }
    for folder in (run, data):
        assert "30일" in cli("ask", folder, "관광비자 연장은 처음에 어떻게 하나요?")[1]
    assert train(run, None, resume=True)[1:] == []
    assert cli("eval", run, "--data", data, "--backend", "reference", "--prompts", 1)[0] == 0


def test_a_library_of_another_run_is_refused_with_what_to_do(folders: Path, cli: Cli) -> None:
    run, other = folders / "own-run", folders / "other-run"
    shutil.copyfile(other / LIBRARY_FILE, run / LIBRARY_FILE)
    code, out, err = cli("ask", run, "재외선거 투표는 어떻게 하나요?")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert f"{LIBRARY_FILE} is not the one that was made for own-run" in err
    assert f"`twingpt data library {run}`" in err
    said = f"{LIBRARY_FILE} is not the one"
    with pytest.raises(TwinGPTError, match=said):
        load(run, "reference").ask("여권?")
    with pytest.raises(TwinGPTError, match=said):
        open_service(run, "reference", "cpu")
    with pytest.raises(TwinGPTError, match=said):
        train(run, None, resume=True)
    # What it says to do is what helps.
    assert cli("data", "library", run)[0] == 0
    assert "30일" in cli("ask", run, "관광비자 연장은 처음에 어떻게 하나요?")[1]
    assert train(run, None, resume=True)[1:] == []


def test_a_newer_text_of_the_users_own_is_accepted(folders: Path, cli: Cli) -> None:
    run, data = folders / "own-run", folders / "own"
    before = content_of_library(run / LIBRARY_FILE)
    text = (data / CLEANED_FILE).read_text("utf-8")
    (data / CLEANED_FILE).write_text(
        text.replace("월요일", "화요일") + "\n체육관 안내\n체육관은 열 시에 엽니다.\n", "utf-8"
    )
    assert cli("data", "library", data)[0] == 0
    assert "열 시" in cli("ask", data, "체육관은 언제 여나요?")[1]
    # The run keeps its own until it is told.
    assert content_of_library(library_of(run)) == before
    assert cli("data", "library", run)[0] == 0
    assert "열 시" in cli("ask", run, "체육관은 언제 여나요?")[1]
    # Also of a text that lies in the run, where DATA is gone.
    shutil.copyfile(folders / "other" / CLEANED_FILE, run / CLEANED_FILE)
    shutil.rmtree(data)
    assert cli("data", "library", run)[0] == 0
    assert "선거" in cli("ask", run, "재외선거 투표는 어떻게 하나요?")[1]
    (run / CLEANED_FILE).unlink()
    code, _, err = cli("data", "library", run)
    assert code == 1 and f"where there is no {CLEANED_FILE}" in err


def test_a_record_that_came_with_the_files_of_another_run_is_found_out(folders: Path, cli: Cli) -> None:
    run, other = folders / "own-run", folders / "other-run"
    for name in (LIBRARY_FILE, CONTACTS_FILE, RECORD_FILE):
        shutil.copyfile(other / name, run / name)
    with pytest.raises(TwinGPTError, match=rf"{RECORD_FILE} is of another run"):
        library_of(run)
    (run / RECORD_FILE).unlink()
    assert cli("data", "library", run)[0] == 0
    assert "30일" in cli("ask", run, "관광비자 연장은 처음에 어떻게 하나요?")[1]


def test_a_run_without_a_record_goes_on_and_has_one_then(folders: Path) -> None:
    run = folders / "own-run"
    (run / RECORD_FILE).unlink()
    assert library_of(run) == run / LIBRARY_FILE
    train(run, None, resume=True)
    shutil.copyfile(folders / "other-run" / LIBRARY_FILE, run / LIBRARY_FILE)
    with pytest.raises(TwinGPTError, match="not the one that was made"):
        library_of(run)


def test_other_contacts_are_refused(folders: Path) -> None:
    run, data, other = folders / "own-run", folders / "own", folders / "other"
    store = open_contacts(run)
    assert store is not None and len(store)
    store.close()
    for folder in (run, data):
        shutil.copyfile(other / CONTACTS_FILE, folder / CONTACTS_FILE)
        with pytest.raises(TwinGPTError, match=f"{CONTACTS_FILE} is not the one"):
            open_contacts(folder)
    with pytest.raises(TwinGPTError, match=rf"own.{CONTACTS_FILE} is not the one .*twingpt prepare"):
        train(folders / "new", data)
    assert not (folders / "new").exists()


def test_other_samples_are_refused_unless_they_were_packed(folders: Path, cli: Cli) -> None:
    run, data = folders / "own-run", folders / "own"
    lines = (data / SAMPLES_FILE).read_text("utf-8").splitlines(keepends=True)
    (data / SAMPLES_FILE).write_text("".join(lines[1:]), "utf-8")
    code, _, err = cli("eval", run, "--data", data, "--backend", "reference", "--prompts", 1)
    assert code == 1 and f"{SAMPLES_FILE} is not the one" in err
    with pytest.raises(TwinGPTError, match=f"{SAMPLES_FILE} is not the one"):
        train(folders / "new", data)
    # Samples may be edited by hand, and packed then.
    assert cli("data", "pack", data, "--block-size", 384)[0] == 0
    train(folders / "new", data)


def test_settings_of_another_run_are_told_on_resume(folders: Path) -> None:
    run = folders / "own-run"
    config = (run / CONFIG_FILE).read_text("utf-8")
    (run / CONFIG_FILE).write_text(config.replace("batch_size = 2", "batch_size = 4"), "utf-8")
    said = f"{CONFIG_FILE} is not as the run last wrote it"
    assert any(said in note for note in train(run, None, resume=True))
    assert not any(said in note for note in train(run, None, resume=True))


def test_a_library_is_not_read_whole_to_know_it(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ask` starts as quickly on a hundred megabytes."""
    read: list[Path] = []
    monkeypatch.setattr(custody, "_read", lambda path, dtype: read.append(path))
    for folder in (folders / "own-run", folders / "own"):
        os.utime(folder / LIBRARY_FILE)
        assert library_of(folder) == folder / LIBRARY_FILE
    assert read == []
