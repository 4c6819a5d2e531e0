"""A model that was trained with `prepare --contacts mask` is asked, and answers, with placeholders for contacts."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import twingpt
from tests.conftest import EXAMPLE
from twingpt.core.sampling import Sampling
from twingpt.data.prepare.settings import contacts_of
from twingpt.data.tokens.template import prompt_segments
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.model import Model
from twingpt.generation.pieces import TextWriter
from twingpt.training.config import RunConfig

DOC = "여권 분실\n먼저 신고합니다.\n대사관 전화: 02-8555-0131\n통역 카톡: lost_demo\n다시 대사관 전화: 02-8555-0131"
QUESTION = "여권을 잃어버렸을 때?"


def twingpt_command(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "twingpt", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module", params=["keep", "mask"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(how its contacts were prepared, DATA, RUN); the stages run one by one, so the last does not say how."""
    folder = tmp_path_factory.mktemp(request.param)
    documents = [DOC, *EXAMPLE.read_text(encoding="utf-8").split("\n\n")[:12]]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    data, run = folder / "data", folder / "run"
    twingpt_command("data", "clean", folder / "text.txt", "--out", data, "--contacts", request.param)
    twingpt_command("data", "tokenizer", data, "--vocab-size", 700)
    twingpt_command("data", "samples", data, "--val-fraction", 0.2)
    twingpt_command("data", "pack", data, "--val-fraction", 0.2)
    options = ["--preset", "tiny", "--steps", 1, "--batch-size", 1, "--backend", "mlx", "--device", "cpu"]
    twingpt_command("train", "--data", data, "--out", run, *options)
    return request.param, data, run


class Saying:
    """Makes a model say a fixed text: an untrained one says nothing of use."""

    least = 0

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._ids = [*tokenizer.encode(text), tokenizer.eos_id]
        self._vocab = tokenizer.vocab_size
        self._at = 0

    def constraint(self, _: int) -> "Saying":
        return self

    def allowed(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self._vocab), self._ids[self._at])

    def push(self, _: int) -> None:
        self._at += 1


def test_a_run_remembers_how_its_contacts_were_prepared(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    how, data, run = trained
    assert contacts_of(data) == how
    assert RunConfig.load(run).contacts == how
    assert twingpt.load(run, "mlx", "cpu").masked is (how == "mask")
    twingpt_command("convert", run, tmp_path / "copy", "--to", "native")
    assert twingpt.load(tmp_path / "copy", "mlx", "cpu").masked is (how == "mask")


def test_a_document_is_read_as_the_training_text_was(trained: tuple[str, Path, Path]) -> None:
    how, data, run = trained
    model = twingpt.load(run, "mlx", "cpu")
    document = (data / "cleaned.txt").read_text(encoding="utf-8").split("\n\n")[0].strip()
    assert ("[TEL_1]" in document) is (how == "mask")
    ids, _ = model.tokenizer.encode_segments(prompt_segments(QUESTION, document))
    request = model.request(question=QUESTION, doc=DOC)
    assert request.prompt == ids
    # What `prepare` made is read as it stands, and has nothing to be put back.
    again = model.request(question=QUESTION, doc=document)
    assert (again.prompt, dict(again.contacts)) == (ids, {})


def test_placeholders_of_an_answer_become_the_documents_contacts(
    trained: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    how, _, run = trained
    model = twingpt.load(run, "mlx", "cpu")
    said = "대사관 TEL: [TEL_1], [TEL_7] [KAKAO_1]"
    monkeypatch.setattr("twingpt.generation.model.answer_form", lambda tokenizer: Saying(tokenizer, said))
    filled = "대사관 TEL: +63 2 8555 0131, [TEL_7] lost_demo" if how == "mask" else said
    assert _said(model) == filled
    pieces = model.stream(question=QUESTION, doc=DOC, sampling=Sampling(), max_new_tokens=99, structured=True)
    assert "".join(pieces) == filled


def _said(model: Model) -> str:
    request = model.request(question=QUESTION, doc=DOC, max_new_tokens=99, structured=True)
    ((_, written),) = model.write([request])
    return written.text


def test_a_run_without_the_record_is_asked_as_before(trained: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, data, run = trained
    config = tmp_path / "config.toml"
    lines = (run / "config.toml").read_text(encoding="utf-8").splitlines()
    config.write_text("\n".join(line for line in lines if not line.startswith("contacts")), encoding="utf-8")
    assert RunConfig.load(tmp_path).contacts == "keep"
    report = json.loads((data / "report.json").read_text(encoding="utf-8"))
    del report["clean"]["masked"]
    for settings in ("keep", "mask"):
        # As version 0.1 wrote it, where `prepare` ran all stages with the same settings.
        report["settings"]["contacts"] = settings
        (tmp_path / "report.json").write_text(json.dumps(report), encoding="utf-8")
        assert contacts_of(tmp_path) == settings
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    assert contacts_of(tmp_path) == "keep"
    assert contacts_of(tmp_path / "nowhere") == "keep"


def test_a_placeholder_is_held_back_until_it_is_whole(tokenizer: Tokenizer) -> None:
    writer = TextWriter(tokenizer, ("끝",), {"[TEL_1]": "911", "[TEL_12]": "117"})
    single = {tokenizer.token_text(token): token for token in range(tokenizer.vocab_size)}
    shown = []
    for byte in "a[TEL_1][TEL_2][TEL_12]b[TE끝".encode():
        if (piece := writer.push(single[bytes([byte])])) is not None:
            shown.append(piece.text)
    assert shown == ["a", "911", "[TEL_2", "]", "117", "b", "[TE"]
    assert writer.stopped
