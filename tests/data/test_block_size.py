"""The block size that `prepare` chooses: from the passages, as far as the text gives enough windows of it."""

from pathlib import Path

import pytest

from twingpt.data.prepare.block_size import choose_block_size
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text.corpus import Documents
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer
from twingpt.training.session import TrainRequest, resolve


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["하루에 한 번 문을 닫고 창을 연다. "], 268)


@pytest.mark.parametrize(
    ("sentences", "documents", "block_size"),
    [
        (1, 5000, 256),
        (4, 5000, 512),
        (20, 5000, 1024),
        # A long passage in a short text: too few windows of that length.
        (20, 60, 256),
    ],
)
def test_it_holds_the_passages_if_the_text_is_long_enough(
    tokenizer: Tokenizer, tmp_path: Path, sentences: int, documents: int, block_size: int
) -> None:
    document = "하루에 한 번 문을 닫고 창을 연다. " * sentences
    (tmp_path / "cleaned.txt").write_text("\n\n".join([document.strip()] * documents) + "\n", encoding="utf-8")
    assert choose_block_size(Documents(tmp_path / "cleaned.txt"), tokenizer) == block_size


def test_prepare_says_it_and_train_takes_it_for_every_preset(tmp_path: Path) -> None:
    text = "\n\n".join(f"안내 {i}\n창구 {i}번에서 서류 {i + 3}장을 내고 사흘을 기다립니다." for i in range(80))
    (tmp_path / "raw.txt").write_text(text + "\n", encoding="utf-8")
    settings = PrepareSettings(vocab_size=400)
    prepared = prepare([str(tmp_path / "raw.txt")], tmp_path / "data", settings, workers=1)
    assert prepared.report["settings"]["block_size"] == 256
    wanted = TrainRequest(run_dir=tmp_path / "run", data_dir=tmp_path / "data", backend="mlx", preset="gpt2")
    assert resolve(wanted).config.model.block_size == 256
    (tmp_path / "own.toml").write_text("[model]\nblock_size = 128\n")
    own = TrainRequest(
        run_dir=tmp_path / "run", data_dir=tmp_path / "data", backend="mlx", config_file=tmp_path / "own.toml"
    )
    assert resolve(own).config.model.block_size == 128
