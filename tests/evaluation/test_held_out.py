import json
from pathlib import Path

import pytest

from tests.conftest import make_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.contacts import standardise
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.tokens.template import Sample
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.evaluation.held_out import AnswerSettings, answer_all, figures, held_out_questions, write_answers
from twingpt.evaluation.metrics import measure, repetition, rouge_l, summarise
from twingpt.generation.batching import Request
from twingpt.generation.model import Model

REFERENCE = (
    "요약:\n- 먼저 신고합니다.\n체크리스트: (문서에 없음)\n연락처(공공정보):\n"
    "- 대사관 TEL: +63 2 8555 0131\n- 통역 KAKAO: lost_demo"
)


def sample(number: int = 0, kind: str = "closed", split: str = "val", answer: str = REFERENCE) -> Sample:
    doc = "여권 분실\n대사관 TEL: +63 2 8555 0131" if kind == "open" else None
    line = {
        "id": f"{number:06d}/{kind}/0",
        "document": number,
        "kind": kind,
        "split": split,
        "question": f"여권 {number}?",
        "doc": doc,
        "answer": answer,
    }
    return Sample.from_json(json.dumps(line))


def test_an_answer_is_measured_against_its_reference() -> None:
    answer = REFERENCE.replace("0131", "9999").replace("합니다", "하세요")
    found = measure(answer, [1, 2, 3], REFERENCE, ["여권?"], None, finished=True, filled=False)
    assert (found.in_order, found.all_sections) == (True, False)
    assert (found.contacts_right, found.contacts_given, found.contacts_wanted) == (1, 2, 2)
    assert (found.numbers, found.invented) == (1, 1)
    assert found.rouge_l == pytest.approx(4 / 7)  # 먼저신고하세요 and 먼저신고합니다 share 먼저신고
    told = measure(answer, [], REFERENCE, ["전화 +63 2 8555 9999"], None, finished=True, filled=False)
    assert told.invented == 0


def test_a_reference_that_leaves_contacts_out_says_nothing_of_them() -> None:
    silent = REFERENCE.split("\n연락처")[0]
    found = measure(REFERENCE, [], silent, [], None, finished=True, filled=False)
    assert found.contacts_wanted is found.contacts_given is None
    figure = summarise([found])
    assert figure["contact_recall"] is None
    # One that says there are none does: what is given is wrong.
    none = silent + "\n연락처(공공정보): (문서에 없음)"
    assert summarise([measure(REFERENCE, [], none, [], None, finished=True, filled=False)])["contact_precision"] == 0


def test_placeholders_of_a_reference_mean_the_stores_values(tmp_path: Path) -> None:
    masked = REFERENCE.replace("+63 2 8555 0131", "[TEL_1]").replace("lost_demo", "[KAKAO_1]")
    contacts = standardise("여권 분실\n대사관 전화: 02-8555-0131")[1]
    with ContactStore.create(tmp_path / "contacts.sqlite", contacts) as store:
        filled = measure(REFERENCE, [], masked, [], store, finished=True, filled=True)
        # The store has no 통역: that contact stays wanted, and missed.
        assert (filled.contacts_right, filled.contacts_given, filled.contacts_wanted) == (1, 2, 2)
        raw = measure(masked, [], masked, [], store, finished=True, filled=False)
        assert (raw.contacts_right, raw.contacts_wanted) == (2, 2)


def test_rouge_counts_syllables_and_whole_numbers() -> None:
    assert rouge_l("여권을 잃다", "여권을 잃다") == 1.0
    assert rouge_l("여권", "신고") == 0.0
    assert rouge_l("가나다라", "가다") == pytest.approx(2 * 1.0 * 0.5 / 1.5)
    assert rouge_l("TEL 8555", "tel 8556") == 0.5
    assert rouge_l("", "") == 1.0
    assert rouge_l("", "가") == rouge_l("가", "") == 0.0


def test_repetition_is_the_share_of_4grams_seen_before() -> None:
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1] * 8) == pytest.approx(4 / 5)
    assert repetition([1, 2]) == 0.0


def test_only_questions_of_validation_documents_are_asked(tmp_path: Path) -> None:
    lines = [sample(n, split="val" if n % 2 else "train").to_json() for n in range(20)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = held_out_questions(tmp_path, 100, 0)
    assert [one.document for one in found] == list(range(1, 20, 2))
    some = [[one.document for one in held_out_questions(tmp_path, 4, seed)] for seed in (0, 0, 1)]
    assert some[0] == some[1] == sorted(some[0])
    assert len(some[0]) == 4
    assert some[0] != some[2]
    assert held_out_questions(tmp_path / "nothing", 4, 0) == []


def test_both_engines_give_the_same_figures(tokenizer: Tokenizer, tmp_path: Path) -> None:
    spec = GPTSpec(vocab_size=tokenizer.vocab_size, block_size=96, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
    samples = [sample(0), sample(1, "open"), sample(2)]
    settings = AnswerSettings(sampling=Sampling(temperature=0.0), max_new_tokens=130, structured=True, slots=2)
    found = [answer_all(Model(make_engine(name, spec), tokenizer), samples, None, settings) for name in ("mps", "mlx")]
    assert [one.answer for one in found[0]] == [one.answer for one in found[1]]
    shown = figures(found[0])
    assert shown == figures(found[1])
    assert shown["all"]["all_sections"] == shown["all"]["finished"] == 1.0
    assert (shown["closed"]["answers"], shown["open"]["answers"]) == (2, 1)
    write_answers(tmp_path / "a.jsonl", found[0])
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        one.id for one in samples
    ]
    write_answers(tmp_path / "a.txt", found[0])
    assert found[0][2].answer in (tmp_path / "a.txt").read_text()
    with pytest.raises(TwinGPTError, match="cannot be written"):
        write_answers(tmp_path / "no" / "a.txt", found[0])


def test_requests_of_both_kinds_share_a_batch(tokenizer: Tokenizer, backend_name: str) -> None:
    spec = GPTSpec(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=2, n_embd=16, dropout=0.0)
    model = Model(make_engine(backend_name, spec), tokenizer)
    sampling = Sampling(temperature=1.0, seed=1)

    def requests() -> list[Request]:
        return [
            model.request(question=str(n), sampling=sampling, max_new_tokens=120, structured=n == 1) for n in range(3)
        ]

    together = dict(model.write(requests(), 2))
    for number, request in enumerate(requests()):
        assert list(model.write([request], 1)) == [(0, together[number])]
        assert together[number].text == tokenizer.decode(together[number].tokens)
    assert together[1].text.startswith("요약:")
    with pytest.raises(TwinGPTError, match=r"needs \d+ tokens, there is room for 9"):
        model.request(question="?", sampling=sampling, max_new_tokens=9, structured=True)
