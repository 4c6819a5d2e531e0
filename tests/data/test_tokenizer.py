"""Lossless, never a special token out of text, the same ids in both encoders, refusals in one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.tokens import tokenizer as tokenizer_module
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.template import Sample, Segment, prompt_segments, sample_segments
from twingpt.data.tokens.tokenizer import Tokenizer, choose_vocab_size, train_tokenizer

TEXTS = [
    "여권 분실\n여권을 잃어버렸을 때는 먼저 경찰서에서 분실 신고서를 받습니다.\nTEL: +63 2 8555 0123",
    "병원 안내\n응급실은 24시간 열려 있습니다. 보험증과 여권을 가져가야 합니다.",
    "ㅋㅋㅋㅋㅋㅋ [BOS]가 아니라 텍스트 ^^ 100% 3,000페소 I'll don't",
]
# What raw text holds by accident or by malice: template marks, blanks, broken and rare characters.
HARD = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPECIAL_TOKENS, " ", "\n", "\r\n", "\t", "\x00", "　", "\u1100\u1161", "가", "👩‍👩‍👧", "'ll"]
        ),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="module")
def reference(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.content, fast=False)


@given(text=HARD)
@example(text="[BOS]")
@example(text=" [/ANSWER] [EOS]\n")
@settings(max_examples=300, deadline=None)
def test_text_comes_back_and_never_holds_a_special_token(tokenizer: Tokenizer, reference: Tokenizer, text: str) -> None:
    for one in (tokenizer, reference):
        ids = one.encode(text)
        assert one.decode(ids) == text
        assert one.decode(ids, marks=False) == text
        assert all(token >= len(SPECIAL_TOKENS) for token in ids)
        assert one.count(text) == len(ids)
    assert tokenizer.encode(text) == reference.encode(text)


@given(texts=st.lists(HARD, max_size=5))
@settings(max_examples=60, deadline=None)
def test_batches_equal_single_texts(tokenizer: Tokenizer, reference: Tokenizer, texts: list[str]) -> None:
    for one in (tokenizer, reference):
        assert [ids.tolist() for ids in one.encode_batch(texts)] == [one.encode(text) for text in texts]


@given(text=HARD)
@settings(max_examples=100, deadline=None)
def test_the_stream_shows_the_same_text_and_never_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream = tokenizer.stream()
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text
    assert "".join(shown) + stream.flush() == text


def test_the_stream_waits_for_the_last_byte_of_a_syllable(tokenizer: Tokenizer) -> None:
    rare = "뷁"
    ids = tokenizer.encode(rare)
    assert len(ids) == 3, "the syllable must be one that the small vocabulary splits into bytes"
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["", "", rare]
    assert stream.push(ids[0]) + stream.flush() == "\ufffd"


def test_the_fast_encoder_forgets_and_encodes_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"여권 {n}번을 잃어버렸을 때" for n in range(40)]
    expected = [tokenizer.encode(text) for text in texts]
    encoder = tokenizer._fast
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED_CHARACTERS", 100)
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == expected
    assert [tokenizer.count(text) for text in texts] == list(map(len, expected))
    assert encoder is None or tokenizer._fast is not encoder


def test_fast_encoder_is_in_use_where_it_is_installed(tokenizer: Tokenizer) -> None:
    pytest.importorskip("gigatoken")
    assert tokenizer.engine == "gigatoken"


def test_special_tokens_have_their_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id(mark) for mark in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.decode([2, 4, 3]) == "[BOS][QUESTION][EOS]"
    assert tokenizer.decode([2, 4, 3], marks=False) == ""


def test_token_bytes_count_the_text(tokenizer: Tokenizer) -> None:
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32 and sizes.shape == (tokenizer.vocab_size,)
    assert not sizes[: len(SPECIAL_TOKENS)].any()
    text = TEXTS[0]
    assert int(sizes[tokenizer.encode(text)].sum()) == len(text.encode())


@pytest.mark.parametrize("engine", ["rustbpe", "tokenizers"])
def test_both_learners_give_the_asked_size_and_the_same_bytes_twice(engine: Any) -> None:
    if engine == "rustbpe":
        pytest.importorskip("rustbpe")
    first, second = (train_tokenizer(TEXTS, 400, engine=engine) for _ in range(2))
    assert first.vocab_size == 400
    assert first.content == second.content
    for text in TEXTS:
        assert first.decode(first.encode(text)) == text
    assert len(first.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


@pytest.mark.parametrize("engine", ["rustbpe", "tokenizers"])
def test_too_large_a_vocabulary_names_what_the_text_supports(engine: Any) -> None:
    if engine == "rustbpe":
        pytest.importorskip("rustbpe")
    with pytest.raises(TwinGPTError, match="supports a vocabulary of") as caught:
        train_tokenizer(TEXTS, 5000, engine=engine)
    supported = int(str(caught.value).split("vocabulary of ")[1].split()[0])
    assert train_tokenizer(TEXTS, supported, engine=engine).vocab_size == supported


def test_too_small_a_vocabulary_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="268"):
        train_tokenizer(TEXTS, 267)


def _pre_tokenizer(config: dict[str, Any]) -> None:
    config["pre_tokenizer"] = {"type": "Whitespace"}


def _prefix_space(config: dict[str, Any]) -> None:
    config["pre_tokenizer"]["add_prefix_space"] = True


def _normalizer(config: dict[str, Any]) -> None:
    config["normalizer"] = {"type": "NFC"}


def _fewer_specials(config: dict[str, Any]) -> None:
    config["added_tokens"] = config["added_tokens"][:4]


def _gap(config: dict[str, Any]) -> None:
    config["model"]["vocab"]["가"] = 9999


def _swapped(config: dict[str, Any]) -> None:
    vocabulary = config["model"]["vocab"]
    vocabulary["[PAD]"], vocabulary["[UNK]"] = 1, 0
    config["added_tokens"][0]["id"], config["added_tokens"][1]["id"] = 1, 0


@pytest.mark.parametrize(
    "change",
    [_pre_tokenizer, _prefix_space, _normalizer, _fewer_specials, _gap, _swapped],
    ids=lambda f: f.__name__,
)
def test_foreign_files_are_refused_in_one_line(tokenizer: Tokenizer, tmp_path: Path, change: Any) -> None:
    config = json.loads(tokenizer.content)
    change(config)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TwinGPTError, match="not a tokenizer that twingpt can use") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b"\xff\xfe\x00", b'{"model": 3}'])
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TwinGPTError, match="tokenizer") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match="does not exist"):
        Tokenizer.load(tmp_path / "none.json")


def test_save_and_load_keep_the_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    again = Tokenizer.load(path)
    assert again.sha256 == tokenizer.sha256
    assert again.encode(TEXTS[2]) == tokenizer.encode(TEXTS[2])


def test_an_id_outside_the_vocabulary_is_one_line(tokenizer: Tokenizer) -> None:
    with pytest.raises(TwinGPTError, match="the vocabulary has 400"):
        tokenizer.decode([400])
    with pytest.raises(TwinGPTError, match="surrogate"):
        tokenizer.encode("a\ud800")


def _samples() -> Iterator[tuple[Sample, str]]:
    yield (
        Sample("000001/closed/0", 1, "closed", "train", "q", None, "a"),
        "[BOS][QUESTION]q[/QUESTION][ANSWER]a[/ANSWER][EOS]",
    )
    yield (
        Sample("000001/open/0", 1, "open", "train", "q", "d", "a"),
        "[BOS][QUESTION]q[/QUESTION][DOC]d[/DOC][ANSWER]a[/ANSWER][EOS]",
    )
    yield (
        Sample("000001/summary/0", 1, "summary", "val", None, "d", "s"),
        "[BOS][DOC]d[/DOC][SUMMARY]s[/SUMMARY][EOS]",
    )


@pytest.mark.parametrize(("sample", "layout"), list(_samples()), ids=lambda v: getattr(v, "kind", ""))
def test_template(tokenizer: Tokenizer, sample: Sample, layout: str) -> None:
    ids, counted = tokenizer.encode_segments(sample_segments(sample))
    assert tokenizer.decode(ids) == layout
    assert Sample.from_json(sample.to_json()) == sample
    # Counted: the answer, its closing mark and [EOS].
    assert counted == [False] * (len(ids) - 3) + [True] * 3


def test_the_prompt_is_the_start_of_the_sample(tokenizer: Tokenizer) -> None:
    for sample, _ in _samples():
        if sample.question is not None:
            prompt = prompt_segments(sample.question, sample.doc)
            assert sample_segments(sample)[: len(prompt)] == prompt


def test_marks_in_fields_stay_text(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode_segments([Segment("[BOS]", True, False), Segment("[BOS]", False, True)])
    assert ids.count(tokenizer.bos_id) == 1
    assert tokenizer.decode(ids) == "[BOS][BOS]"


def test_a_sample_without_its_fields_is_refused() -> None:
    with pytest.raises(TwinGPTError, match="no question"):
        sample_segments(Sample("x", 1, "closed", "train", None, None, "a"))
    with pytest.raises(TwinGPTError, match="not a sample"):
        Sample.from_json('{"id": 1}')


@pytest.mark.slow
def test_every_code_point_has_the_same_ids_in_both_encoders(tokenizer: Tokenizer, reference: Tokenizer) -> None:
    """The encoders split at Unicode categories; another Unicode version in one of them would show here."""
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(characters), 8192):
        texts = [f"a{c}a 1{c}1 .{c}. {c} \n{c}{c} a" for c in characters[start : start + 8192]]
        fast, fast_lengths = tokenizer.encode_flat(texts)
        slow, slow_lengths = reference.encode_flat(texts)
        assert np.array_equal(fast_lengths, slow_lengths) and np.array_equal(fast, slow)


def test_a_small_text_gets_a_small_vocabulary() -> None:
    assert [choose_vocab_size(size) for size in (0, 114_000, 2_500_000, 10_000_000, 10**10)] == [
        *(1_000, 1_700, 8_000, 16_000, 16_000)
    ]
    few = train_tokenizer(["가나다 가나다"], 1_000, or_fewer=True)
    assert few.vocab_size < 1_000 and few.decode(few.encode("가나다")) == "가나다"
