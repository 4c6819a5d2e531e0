"""Prompts and documents are read as the training text was: one form, whatever keyboard or program they come from."""

import gzip
import unicodedata
from pathlib import Path

import pytest

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.prompts import cleaned, question_prompt, read_text, text_prompt

QUESTION = "여권을 잃어버렸을 때 해야 할 일은?"


@pytest.mark.parametrize(
    "typed",
    [
        unicodedata.normalize("NFD", QUESTION),
        "\ufeff" + QUESTION,
        QUESTION.replace(" ", "\u00a0"),
        QUESTION.replace("여", "여\u200b"),
        f"  {QUESTION} \r\n",
    ],
)
def test_a_question_is_the_same_however_it_is_typed(typed: str, tokenizer: Tokenizer) -> None:
    expected = question_prompt(tokenizer, QUESTION, QUESTION, 256)
    assert question_prompt(tokenizer, typed, typed, 256) == expected
    assert text_prompt(tokenizer, typed) == text_prompt(tokenizer, QUESTION)
    assert cleaned(cleaned(typed)) == cleaned(typed) == QUESTION


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
def test_a_file_is_read_in_any_encoding_that_prepare_reads(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    text = f"{QUESTION}\n\n{QUESTION}"
    path.write_bytes(text.encode(encoding))
    assert read_text(path) == text
    path.write_bytes(gzip.compress(text.encode(encoding)))
    assert read_text(path) == text


def test_nothing_is_not_asked_about(tmp_path: Path, tokenizer: Tokenizer) -> None:
    for empty in ("", " \n", "\u200b"):
        with pytest.raises(UsageError, match="the question is empty"):
            question_prompt(tokenizer, empty, None, 256)
        with pytest.raises(UsageError, match="the document is empty"):
            question_prompt(tokenizer, QUESTION, empty, 256)
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(TwinGPTError, match=r"empty\.txt holds no text"):
        read_text(tmp_path / "empty.txt")
    with pytest.raises(TwinGPTError, match=r"missing\.txt cannot be read"):
        read_text(tmp_path / "missing.txt")
