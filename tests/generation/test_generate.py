import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_engine
from twingpt.core.backend import Backend
from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling, sample
from twingpt.core.spec import GPTSpec
from twingpt.data.contacts import standardise
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.library.verify import verify_numbers
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Request
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.generation.writing import stop_tokens, stream_text, stream_tokens, with_contacts


def asked(question: str) -> Request:
    return Request([1], Sampling(), 1, question=question)


def test_cached_generation_is_generation_without_a_cache(engine: Backend) -> None:
    sampling = Sampling(temperature=1.0, seed=3)
    tokens = list(stream_tokens(engine, Request([5, 6, 7], sampling, 20)))
    sequence = [5, 6, 7]
    for expected in tokens:
        logits = engine.logits(np.array([sequence], dtype=np.int32))[0, -1]
        assert sample(logits, sampling, len(sequence)) == expected
        sequence.append(expected)


def test_both_engines_write_the_same_from_the_same_seed(spec: GPTSpec) -> None:
    """Rung 8: the random number would have to fall within the logit error of a boundary to tell them apart."""
    texts = [
        list(stream_tokens(make_engine(name, spec), Request([1, 2], Sampling(seed=11), 28))) for name in compared()
    ]
    assert texts[0] == texts[1]


def test_generation_goes_on_past_block_size(engine: Backend, spec: GPTSpec) -> None:
    tokens = list(stream_tokens(engine, Request([1, 2, 3], Sampling(seed=1), 3 * spec.block_size)))
    assert len(tokens) == 3 * spec.block_size
    # The window slid: every later token still follows from the half block before it.
    long_prompt = [1] * (2 * spec.block_size)
    assert len(list(stream_tokens(engine, Request(long_prompt, Sampling(), 5)))) == 5


def test_it_stops_at_a_stop_token_and_leaves_it_out(engine: Backend) -> None:
    greedy = Sampling(temperature=0.0)
    tokens = list(stream_tokens(engine, Request([1, 2, 3], greedy, 20)))
    stopped = list(stream_tokens(engine, Request([1, 2, 3], greedy, 20, frozenset({tokens[4]}))))
    assert stopped == tokens[: tokens.index(tokens[4])]


def test_text_comes_in_whole_characters(backend_name: str, tokenizer: Tokenizer, spec: GPTSpec) -> None:
    spec = dataclasses.replace(spec, vocab_size=tokenizer.vocab_size)
    engine = make_engine(backend_name, spec)
    prompt = text_prompt(tokenizer, "여권")
    pieces = list(stream_text(engine, tokenizer, Request(prompt, Sampling(temperature=1.5, top_k=0), 60)))
    ids = list(stream_tokens(engine, Request(prompt, Sampling(temperature=1.5, top_k=0), 60)))
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_question_fills_the_template(tokenizer: Tokenizer) -> None:
    marks = [tokenizer.id(mark) for mark in ("[BOS]", "[QUESTION]", "[/QUESTION]", "[ANSWER]")]
    ids = question_prompt(tokenizer, "[ANSWER] 여권?", None, 256)
    assert [ids[0], ids[1], ids[-2], ids[-1]] == marks
    # A mark typed by the user is text, not a mark.
    assert tokenizer.decode(ids[2:-2]) == "[ANSWER] 여권?"
    assert marks[3] not in ids[:-1]
    with_doc = question_prompt(tokenizer, "여권?", "문서", 256)
    assert tokenizer.id("[DOC]") in with_doc
    assert tokenizer.id("[/ANSWER]") in stop_tokens(tokenizer)
    with pytest.raises(TwinGPTError, match=r"tokens, this model's maximum context length is 16"):
        question_prompt(tokenizer, "여권을 잃어버렸을 때 " * 5, None, 16)


def test_numbers_that_nobody_gave_are_marked_or_taken_out(tmp_path: Path) -> None:
    _, contacts = standardise("한국 대사관\n대사관 전화: 02-8555-0123")
    answer = "대사관 TEL: +63 2 8555 0123\n경찰서 TEL: +63 2 8555 9999\n문의 TEL: +63 917 555 0142"
    with ContactStore.create(tmp_path / "contacts.sqlite", contacts) as store:
        marked = with_contacts(answer, asked("0917-555-0142 은 무슨 번호?"), store, fill_in=False)
        assert marked == answer.replace("9999", "9999 (확인되지 않은 번호)")
        filled = with_contacts(answer, asked("무슨 번호?"), store, fill_in=True)
        assert "8555 0123" in filled
        assert "9999" not in filled
        assert "0142" not in filled
    with pytest.raises(TwinGPTError, match=r"filling in contacts needs the contacts\.sqlite"):
        with_contacts(answer, asked("무슨 번호?"), None, fill_in=True)


@pytest.mark.parametrize(
    "answer",
    [
        "긴급 TEL: +63 917 555 9111111111",
        "1111111KAKAO: +63 917 555 1111111 -01",
        "3(KAKAO: 0147911 01470147전화 ",
        "8555 전화 +63 917 555 3(1111111 8555(02) ",
    ],
)
def test_digits_that_run_on_behind_an_invented_number_go_too(answer: str, tmp_path: Path) -> None:
    """Once it is gone, what is left of them is a number of its own."""
    with ContactStore.create(tmp_path / "contacts.sqlite", []) as store:
        filled = with_contacts(answer, asked("무슨 번호?"), store, fill_in=True)
        assert "(확인 필요)" in filled
        assert not verify_numbers(filled, [], store)
