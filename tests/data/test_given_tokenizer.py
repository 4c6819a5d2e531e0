"""A tokenizer that a run was trained with, or that was put into DATA, stays there until another is asked for."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.prepare.given_tokenizer import note_trained
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.prepare.stages import Report
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.training.session import TrainRequest, open_session

PLAIN = PrepareSettings(template="plain", block_size=32, vocab_size=300)
FREE = dataclasses.replace(PLAIN, vocab_size=None)
OLD, NEW = "여권을 잃으면 경찰서에 갑니다. " * 60, "버스를 타고 시장에 가면 과일이 쌉니다. " * 60


def made(folder: Path, text: str, settings: PrepareSettings = FREE) -> Report:
    raw = folder.with_suffix(".txt")
    raw.write_text(text, encoding="utf-8")
    report = prepare([str(raw)], folder, settings, workers=1).report
    assert Manifest.load(folder).tokenizer_sha256 == sha256(folder)
    return report["tokenizer"]  # type: ignore[no-any-return]


def sha256(folder: Path) -> str:
    return Tokenizer.load(folder / "tokenizer.json").sha256


def test_a_named_tokenizer_is_taken_whatever_the_text(tmp_path: Path) -> None:
    made(tmp_path / "old", OLD, PLAIN)
    for number, name in enumerate((tmp_path / "old", tmp_path / "old" / "tokenizer.json")):
        data = tmp_path / f"new{number}"
        report = made(data, NEW, dataclasses.replace(FREE, tokenizer=str(name)))
        assert sha256(data) == sha256(tmp_path / "old")
        assert report == {
            "vocab_size": 300,
            "taken_from": str(tmp_path / "old" / "tokenizer.json"),
            "why": "it was named",
        }
    # It stays when the text grows and nobody names it again.
    assert "taken_from" in made(tmp_path / "new0", NEW + OLD)
    assert sha256(tmp_path / "new0") == sha256(tmp_path / "old")


def test_one_that_was_learned_there_goes_with_its_text(tmp_path: Path) -> None:
    made(tmp_path / "data", OLD)
    before = sha256(tmp_path / "data")
    assert "taken_from" not in made(tmp_path / "data", NEW)
    assert sha256(tmp_path / "data") != before


@pytest.mark.parametrize("how", ["put there", "trained"])
def test_one_that_is_needed_stays_until_another_is_asked_for(tmp_path: Path, how: str) -> None:
    data = tmp_path / "data"
    made(data, OLD, PLAIN)
    if how == "trained":
        note_trained(data)
    else:
        made(tmp_path / "other", NEW, PLAIN)
        shutil.copy(tmp_path / "other" / "tokenizer.json", data)
    before = sha256(data)
    assert how in made(data, NEW)["why"].replace("was trained", "trained")
    assert sha256(data) == before
    with pytest.raises(UsageError, match=r"--vocab-size 290, but .* has 300 tokens \(.*\): .*--tokenizer new"):
        made(data, NEW, dataclasses.replace(PLAIN, vocab_size=290))
    assert sha256(data) == before
    learned = made(data, NEW + OLD, dataclasses.replace(FREE, tokenizer="new"))
    assert "taken_from" not in learned and sha256(data) != before


def test_training_notes_what_it_trains_with(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made(data, OLD, PLAIN)
    before = sha256(data)
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16}
    request = TrainRequest(run_dir=tmp_path / "run", data_dir=data, backend="reference", model=model)
    opened = open_session(request)
    assert opened.lock is not None
    opened.lock.release()
    assert made(data, NEW)["why"] == "a run was trained with it" and sha256(data) == before


def test_a_data_folder_that_cannot_be_written_to_can_be_trained_on(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made(data, OLD, PLAIN)
    shutil.rmtree(data / ".stages")
    note_trained(data)
    assert not (data / ".stages").exists()
    # Without its records it counts as put there.
    before = sha256(data)
    assert made(data, NEW)["why"] == "it was put there" and sha256(data) == before


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match=r"--tokenizer .*nowhere: .* is not there"):
        made(tmp_path / "data", OLD, dataclasses.replace(FREE, tokenizer=str(tmp_path / "nowhere")))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TwinGPTError, match="is not a tokenizer that twingpt can use"):
        made(tmp_path / "data", OLD, dataclasses.replace(FREE, tokenizer=str(tmp_path)))
    assert not (tmp_path / "data").exists()


def test_a_small_text_has_the_vocabulary_that_it_supports(tmp_path: Path) -> None:
    settings = PrepareSettings(template="plain")
    assert 268 <= made(tmp_path / "data", "작은 글이다.\n" * 30, settings)["vocab_size"] < 300
