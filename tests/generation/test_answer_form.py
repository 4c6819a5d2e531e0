import time

import numpy as np
import pytest

from tests.conftest import make_engine
from twingpt.core.errors import GrammarError, TwinGPTError
from twingpt.core.sampling import Sampling, sample
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.answer_form import AnswerForm
from twingpt.generation.answer_sections import SECTION_HEADS, in_order, section, split_sections
from twingpt.generation.batching import Batcher, Request

WHOLE = (
    "요약:\n- 가.\n- 나.\n체크리스트:\n- 해야 할 일: 다.\n- 주의사항: 라\n"
    "연락처(공공정보): (문서에 없음)\n상세 설명:\n마."
)


@pytest.fixture(scope="module")
def form(tokenizer: Tokenizer) -> AnswerForm:
    return AnswerForm(tokenizer)


def takes(form: AnswerForm, ids: list[int]) -> bool:
    """Whether the form lets these tokens by, and the answer end after them."""
    constraint = form.constraint(10_000)
    for token in [*ids, form.tokenizer.id("[/ANSWER]")]:
        if not constraint.allowed()[token]:
            return False
        if token != form.tokenizer.id("[/ANSWER]"):
            constraint.push(token)
    return True


def byte_by_byte(tokenizer: Tokenizer, text: str) -> list[int]:
    single = {tokenizer.token_text(token): token for token in range(12, tokenizer.vocab_size)}
    return [single[bytes([byte])] for byte in text.encode()]


def test_an_answer_is_read_section_by_section() -> None:
    assert [head for head, _ in split_sections(WHOLE)] == list(SECTION_HEADS)
    assert section(WHOLE, "요약:") == "- 가.\n- 나."
    assert section(WHOLE, "연락처(공공정보):") == "(문서에 없음)"
    assert section("요약:\n- 가.", "상세 설명:") is None
    assert in_order(WHOLE, SECTION_HEADS)


@pytest.mark.parametrize(
    "broken",
    [
        "아무 말\n" + WHOLE,
        WHOLE.replace("체크리스트:", "상세 설명:"),
        WHOLE.replace("상세 설명:", "체크리스트:"),
        WHOLE.removesuffix("\n마."),
        WHOLE.replace("요약:\n- 가.\n- 나.\n", ""),
        WHOLE + "\n요약:\n- 바",
        "",
    ],
)
def test_an_answer_out_of_form_is_seen(broken: str) -> None:
    assert not in_order(broken)


def test_sections_that_training_leaves_out_are_missed_only_when_asked_for() -> None:
    short = "요약:\n- 가.\n상세 설명:\n나."
    assert in_order(short)
    assert not in_order(short, SECTION_HEADS)


@pytest.mark.parametrize("cut", ["bpe", "bytes"])
def test_the_form_takes_answers_however_they_are_cut(form: AnswerForm, cut: str) -> None:
    texts = [WHOLE, WHOLE.replace("- 준비물", "- 주의사항").replace("마.", "마. 요약: 바"), f"{WHOLE}😀 é"]
    texts.append(
        "요약: (문서에 없음)\n체크리스트: (문서에 없음)\n연락처(공공정보):\n- 곳 TEL: 911\n상세 설명: (문서에 없음)"
    )
    for text in texts:
        ids = form.tokenizer.encode(text) if cut == "bpe" else byte_by_byte(form.tokenizer, text)
        assert takes(form, ids), text


@pytest.mark.parametrize(
    "text",
    [
        "요약:\n- 가.\n연락처(공공정보): (문서에 없음)\n상세 설명:\n나",  # no checklist
        "요약:\n- 가.\n요약:\n- 가.",
        "요약:\n체크리스트: (문서에 없음)",  # no content
        "요약:\n- \n체크리스트: (문서에 없음)",
        WHOLE.replace("- 주의사항: 라", "- 해야 할 일: 라"),
        WHOLE.replace("- 해야 할 일", "- 주의사항").replace("- 주의사항: 라", "- 준비물: 라"),
        WHOLE.replace("마.", "요약:"),
        WHOLE.removesuffix("마."),
        WHOLE.removesuffix("\n상세 설명:\n마."),
        "체크리스트: (문서에 없음)",
        WHOLE.replace("가.", "😀 …"),  # neither letter nor digit
        WHOLE.replace("마.", "마\n바"),
        WHOLE.replace("마.", "마\x0b"),
    ],
)
def test_the_form_refuses_everything_else(form: AnswerForm, text: str) -> None:
    assert not takes(form, form.tokenizer.encode(text))
    assert not takes(form, byte_by_byte(form.tokenizer, text))


def test_a_text_that_does_not_fit_is_refused(form: AnswerForm) -> None:
    constraint = form.constraint(400)
    with pytest.raises(GrammarError):
        constraint.push(form.tokenizer.encode("체")[0])


@pytest.mark.parametrize("room", ["least", 160, 400])
@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_model_says_the_answer_has_its_form(form: AnswerForm, room: int | str, seed: int) -> None:
    """Random logits: what they choose is the worst that a model could say, broken characters included."""
    if room == "least":
        room = next(n for n in range(1, 400) if _fits(form, n))
    rng = np.random.default_rng(seed)
    constraint = form.constraint(int(room))
    chosen: list[int] = []
    for position in range(int(room)):
        logits = rng.normal(size=form.tokenizer.vocab_size).astype(np.float32)
        # Single bytes are the costliest way to write a head.
        logits[12:268] += 3.0 * (seed % 2)
        allowed = constraint.allowed()
        assert set(np.flatnonzero(allowed[:12])) <= {form.end}  # of special tokens, the end alone
        token = sample(logits, Sampling(temperature=1.0, top_k=0), position, None, allowed)
        if token == form.tokenizer.id("[/ANSWER]"):
            break
        chosen.append(token)
        constraint.push(token)
    else:
        pytest.fail(f"no end within {room} tokens: {form.tokenizer.decode(chosen)!r}")
    text = b"".join(form.tokenizer.token_text(token) for token in chosen).decode()  # strict: whole characters only
    assert in_order(text, SECTION_HEADS)


def _fits(form: AnswerForm, room: int) -> bool:
    try:
        form.constraint(room)
    except TwinGPTError as error:
        assert "the form of an answer needs" in str(error)
        return False
    return True


def test_a_model_that_knows_no_form_is_held_to_it(form: AnswerForm, backend_name: str) -> None:
    spec = GPTSpec(vocab_size=form.tokenizer.vocab_size, block_size=64, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
    batcher = Batcher(make_engine(backend_name, spec), slots=3)
    stop = frozenset({form.tokenizer.id("[/ANSWER]")})
    texts: dict[int, list[int]] = {}
    for seed in range(4):
        handle = batcher.add(Request([2], Sampling(seed=seed, temperature=1.5), 150, stop, form.constraint(150)))
        texts[handle] = []
    reasons = set()
    while batcher:
        for event in batcher.step():
            if event.token is not None:
                texts[event.handle].append(event.token)
            reasons.add(event.finish_reason)
    assert reasons == {None, "stop"}
    for ids in texts.values():
        assert in_order(form.tokenizer.decode(ids), SECTION_HEADS)


def test_a_mask_takes_little_time(form: AnswerForm) -> None:
    ids = form.tokenizer.encode(WHOLE)
    constraint = form.constraint(10_000)
    started = time.perf_counter()
    for token in ids:
        constraint.allowed()
        constraint.push(token)
    seconds = (time.perf_counter() - started) / len(ids)
    assert seconds < 2e-3


def test_a_section_that_is_long_enough_ends_with_its_sentence(form: AnswerForm) -> None:
    tokenizer = form.tokenizer
    constraint = form.constraint(400)
    ids = tokenizer.encode("요약:\n- " + "가" * 95)
    for token in ids:
        constraint.push(token)
    full_stop, newline = tokenizer.encode(".")[0], tokenizer.encode("\n")[0]
    assert constraint.allowed()[tokenizer.encode("나")[0]]
    constraint.push(full_stop)
    assert constraint.allowed()[newline]
    assert not constraint.allowed()[tokenizer.encode("나")[0]]
    constraint.push(newline)
    assert not constraint.allowed()[tokenizer.encode("-")[0]]  # no further point
