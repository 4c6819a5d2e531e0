"""The page "What your file should look like": each example is given to `prepare`, and is what that makes of it."""

import re
from pathlib import Path

import numpy as np
import pytest

from twingpt.data.files import CLEANED_FILE, TOKENIZER_FILE
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.tokens.tokenizer import Tokenizer

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLE = re.compile(
    r'```text title="(?!cleaned)([^"]+)"\n(.*?)```\n.*?```text title="cleaned\.txt of \1"\n(.*?)```', re.DOTALL
)
TITLE = re.compile(r'```text title="([^"]+)"')


def _examples(language: str) -> dict[str, tuple[str, str]]:
    """Of each example its file's name, the file, and what cleaned.txt is to hold."""
    page = (DOCS / language / "your-text.md").read_text(encoding="utf-8")
    found = {name: (given, cleaned) for name, given, cleaned in EXAMPLE.findall(page)}
    # None may slip through the pattern.
    assert len(TITLE.findall(page)) == 2 * len(found)
    return found


def test_both_languages_show_the_same_examples() -> None:
    assert _examples("en") == _examples("ko")


@pytest.mark.parametrize("name", _examples("en"))
def test_prepare_makes_of_each_example_what_the_page_shows(name: str, tmp_path: Path) -> None:
    given, cleaned = _examples("en")[name]
    (tmp_path / name).write_text(given, encoding="utf-8")
    prepare([str(tmp_path / name)], tmp_path / "data", PrepareSettings(), stages=["clean"], workers=1)
    assert (tmp_path / "data" / CLEANED_FILE).read_text(encoding="utf-8") == cleaned


@pytest.mark.parametrize("template", ["qa", "plain"])
def test_an_end_mark_stands_after_each_sample_or_document(template: str, tmp_path: Path) -> None:
    """What a person types there is no mark: it counts for none."""
    text = "".join(given for given, _ in _examples("en").values() if "{" not in given)
    raw = tmp_path / "raw.txt"
    raw.write_text(text.replace("현금을 씁니다.", "현금을 [EOS] 씁니다."), encoding="utf-8")
    settings = PrepareSettings(template=template, block_size=96, val_fraction=0.0)  # type: ignore[arg-type]
    report = prepare([str(raw)], tmp_path / "data", settings, workers=1).report
    marks = np.fromfile(tmp_path / "data" / "train.bin", dtype=np.uint16)
    eos = Tokenizer.load(tmp_path / "data" / TOKENIZER_FILE).eos_id
    wanted = report["samples"]["samples"] if template == "qa" else report["clean"]["documents"]
    # A plain file is one document.
    assert wanted > 1 if template == "qa" else wanted == 1
    assert int((marks == eos).sum()) == wanted
