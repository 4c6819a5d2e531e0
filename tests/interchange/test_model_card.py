"""The README.md of an exported folder: what the Hub reads of it, and what it tells people."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from tests.test_cli_generate import run_cli
from tests.weights.models import GPT2, QWEN3, save_run
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer
from twingpt.interchange.convert import convert_model
from twingpt.interchange.model_card import CardOptions
from twingpt.weights.targets import Target

LIBRARIES: dict[Target, str] = {"hf": "transformers", "mlx-lm": "mlx", "gguf": "llama.cpp"}


@dataclass(frozen=True)
class Card:
    data: ModelCardData
    text: str


def card_of(folder: Path) -> Card:
    """As huggingface_hub reads it, with its checks: nothing in the metadata is passed over."""
    card = ModelCard((folder / "README.md").read_text(encoding="utf-8"), ignore_metadata_errors=False)
    assert isinstance(card.data, ModelCardData)
    return Card(card.data, card.text)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    save_run(tmp_path / "run", GPT2, tokenizer)
    return tmp_path / "run"


@pytest.mark.parametrize("target", LIBRARIES)
def test_the_hub_reads_what_its_owner_says(run: Path, target: Target) -> None:
    said = CardOptions(license="cc-by-4.0", language="en")
    convert_model(run, run.parent / "My model", target, None, card=said)
    card = card_of(run.parent / "My model")
    assert (card.data.language, card.data.license) == (["en"], "cc-by-4.0")
    assert (card.data.library_name, card.data.pipeline_tag) == (LIBRARIES[target], "text-generation")
    assert card.data.tags == ["twingpt", "gpt2", *(["gguf"] if target == "gguf" else [])]
    assert card.data.eval_results is None
    assert card.text.strip().startswith("# My model")
    assert "What it was trained on is not recorded here." in card.text


def test_nothing_is_said_that_nobody_told(run: Path) -> None:
    convert_model(run, run.parent / "out", "hf", None)
    card = card_of(run.parent / "out")
    assert card.data.license is None
    assert "named none" in card.text
    assert card.data.language == ["ko"]


def test_a_vocabulary_of_another_language_is_not_called_korean(tmp_path: Path) -> None:
    words = ["the passport is renewed at the consulate", "a visa is extended at the office of immigration"] * 40
    tokenizer = train_tokenizer(iter(words), 400, or_fewer=True)
    spec = QWEN3.__class__(**{**QWEN3.to_dict(), "vocab_size": tokenizer.vocab_size})
    save_run(tmp_path / "run", spec, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "out", "hf", None)
    assert card_of(tmp_path / "out").data.language is None


def test_figures_come_from_the_log_of_the_same_step_or_from_eval(run: Path, tmp_path: Path) -> None:
    lines = [
        {"step": 1, "val_loss": 2.5, "perplexity": 12.2, "bits_per_byte": math.inf},
        {"step": 2, "val_loss": 9.0, "perplexity": 9.0, "bits_per_byte": 9.0},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    convert_model(run, tmp_path / "logged", "hf", None)
    card = card_of(tmp_path / "logged")
    results = card.data.eval_results or []
    # Infinitely many bits are no figure.
    assert {result.metric_type: result.metric_value for result in results} == {"loss": 2.5, "perplexity": 12.2}
    assert "| Perplexity | 12.2 |" in card.text
    evaluated = {"loss": 3.0, "perplexity": 20.1, "bits_per_byte": 1.75, "tokens": 9}
    (tmp_path / "eval.json").write_text(json.dumps(evaluated))
    convert_model(run, tmp_path / "told", "hf", None, card=CardOptions(figures=tmp_path / "eval.json"))
    results = card_of(tmp_path / "told").data.eval_results or []
    assert {result.metric_type: result.metric_value for result in results} == {
        name: evaluated[name] for name in ("loss", "perplexity", "bits_per_byte")
    }
    (tmp_path / "eval.json").write_text("[]")
    with pytest.raises(TwinGPTError, match=r"eval\.json has no figures .*twingpt eval RUN"):
        convert_model(run, tmp_path / "bad", "hf", None, card=CardOptions(figures=tmp_path / "eval.json"))
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(("options", "words"), [({"language": "Korean"}, "ISO 639"), ({"license": "MIT!"}, "apache")])
def test_what_the_hub_would_refuse_is_refused_here(options: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CardOptions(**options)  # type: ignore[arg-type]


def test_a_native_checkpoint_takes_no_card(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--license"):
        convert_model(run, tmp_path / "native", "native", None, card=CardOptions(license="mit"))


def test_a_trained_run_tells_of_its_text_and_a_plain_one_of_its_template(
    plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"clean": {"documents": 24, "cleaned_bytes": 34567}}
    (plain_data / "report.json").write_text(json.dumps(report))
    try:
        train = ["train", "--data", plain_data, "--out", tmp_path / "run", "--preset", "tiny", "--steps", 2]
        assert run_cli(monkeypatch, *train, "--device", "cpu", "--block-size", 32, "--batch-size", 1) == 0
        export = ["convert", tmp_path / "run", tmp_path / "out", "--to", "hf", "--license", "mit"]
        assert run_cli(monkeypatch, *export) == 0
        text = card_of(tmp_path / "out").text
        assert "24 documents of its owner, 34,567 bytes" in text
        assert "in 2 updates" in text
        assert "knows no questions" in text
        assert str(tmp_path) not in text
        # Another text under the same name is not the one that the model was trained on.
        manifest = (plain_data / "manifest.json").read_text()
        changed = json.loads(manifest)
        changed["train"]["sha256"] = "0" * 64
        (plain_data / "manifest.json").write_text(json.dumps(changed))
        assert run_cli(monkeypatch, "convert", tmp_path / "run", tmp_path / "other", "--to", "hf") == 0
        assert "not recorded" in card_of(tmp_path / "other").text
        (plain_data / "manifest.json").write_text(manifest)
    finally:
        (plain_data / "report.json").unlink()
    capsys.readouterr()
