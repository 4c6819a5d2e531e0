"""Samples of the example text: they fit, no sentence is cut, nothing is invented, the same in gives the same out."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.core.errors import UsageError
from twingpt.data.contacts import mask, standardise
from twingpt.data.samples import summary
from twingpt.data.samples.make import SampleSettings, fixed_texts, make_samples
from twingpt.data.text.documents import Unit
from twingpt.data.tokens.template import Sample, sample_segments
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer

EXAMPLE = Path(__file__).parents[2] / "twingpt" / "examples" / "ph_life_ko.txt"
CLOSING = ".!?~…\"'”’)^ㅠㅜㅎㅋ;"


@pytest.fixture(scope="session")
def documents() -> list[str]:
    return EXAMPLE.read_text(encoding="utf-8").strip("\n").split("\n\n")


@pytest.fixture(scope="session")
def tokenizer(documents: list[str]) -> Tokenizer:
    return train_tokenizer(iter([*documents, *fixed_texts()]), 4000)


@pytest.fixture(scope="session", params=[(256, 0), (512, 0), (256, 40)], ids=str)
def made(request: pytest.FixtureRequest, documents: list[str], tokenizer: Tokenizer) -> tuple[int, list[Sample]]:
    block_size, samples_per_doc = request.param
    chosen = SampleSettings(block_size=block_size, samples_per_doc=samples_per_doc)
    return block_size, [
        sample
        for index, document in enumerate(documents)
        for sample in make_samples(document, index, "train", chosen, tokenizer.count)
    ]


def _length(sample: Sample, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode_segments(sample_segments(sample))[0])


def _numbers(text: str) -> set[str]:
    return set(re.findall(r"\d+", text))


def test_every_document_gives_all_three_kinds_and_all_fit(
    made: tuple[int, list[Sample]], documents: list[str], tokenizer: Tokenizer
) -> None:
    block_size, samples = made
    assert max(_length(sample, tokenizer) for sample in samples) <= block_size + 1
    for kind in ("closed", "open", "summary"):
        assert {sample.document for sample in samples if sample.kind == kind} == set(range(len(documents)))
    assert len({sample.id for sample in samples}) == len(samples)


def test_every_number_in_an_answer_occurs_in_its_document(made: tuple[int, list[Sample]], documents: list[str]) -> None:
    for sample in made[1]:
        assert _numbers(sample.answer) <= _numbers(standardise(documents[sample.document])[0]), sample.id
        if sample.doc is not None:
            assert _numbers(sample.answer) <= _numbers(sample.doc), sample.id


def test_no_sentence_is_cut(made: tuple[int, list[Sample]], documents: list[str]) -> None:
    """Judged on the document's characters, without the splitter: pieces start and end at closing marks or line ends."""
    for sample in made[1]:
        text = standardise(documents[sample.document])[0]
        summary_part, *rest = re.split(r"\n(?=체크리스트:|연락처\(공공정보\):|상세 설명:)", sample.answer, maxsplit=1)
        pieces = re.findall(r"^- (.*)$", summary_part, re.MULTILINE)
        for group in ("- 해야 할 일: ", "- 준비물: ", "- 주의사항: ", "상세 설명:\n"):
            if rest and group in rest[0]:
                flow = rest[0].split(group)[1]
                flow = flow if group.endswith("\n") else flow.split("\n")[0]
                pieces += re.split(r"(?<=[.!?~^ㅠㅎ]) |(?<=[.!?][)\"]) |(?<=\^;) |(?<!\^); |\n", flow)
        if sample.doc is not None:
            pieces += sample.doc.removeprefix("제목: ").replace("\n내용: ", "\n").split("\n")
        for piece in pieces:
            starts = [m.start() for m in re.finditer(re.escape(piece), text)]
            assert any(_is_whole(text, start, start + len(piece)) for start in starts), (sample.id, piece)


def _is_whole(text: str, start: int, end: int) -> bool:
    before = text[text.rfind("\n", 0, start) + 1 : start]
    line = re.sub(r"(?:(?:^|\s)(?:[-•]|\d{1,2}\.|준비물:|주의:))+\s*$", "", before).rstrip()
    opens = not line or line[-1] in CLOSING
    closes = (
        text[end - 1] in CLOSING or text[end : end + 1] in ("", "\n") or not text[end : text.find("\n", end)].strip()
    )
    return opens and closes


def test_answers_have_the_sections_in_order(made: tuple[int, list[Sample]]) -> None:
    form = re.compile(
        r"요약:(?: \(문서에 없음\)|(?:\n- .+){1,7})"
        r"(?:\n체크리스트:(?: \(문서에 없음\)|(?:\n- 해야 할 일: .+)?(?:\n- 준비물: .+)?(?:\n- 주의사항: .+)?))?"
        r"(?:\n연락처\(공공정보\):(?: \(문서에 없음\)|(?:\n- .+)+))?(?:\n상세 설명:\n(?s:.+))?"
    )
    for sample in made[1]:
        if sample.kind == "summary":
            assert re.fullmatch(r"(?:- .+\n?){1,7}", sample.answer), sample.id
        else:
            assert form.fullmatch(sample.answer), (sample.id, sample.answer)


def test_absence_is_said_only_where_it_is_true(made: tuple[int, list[Sample]], documents: list[str]) -> None:
    absent = f"{summary.CONTACTS_HEAD} {summary.ABSENT}"
    said = 0
    for sample in made[1]:
        if absent in sample.answer:
            said += 1
            shown = sample.doc if sample.doc is not None else documents[sample.document]
            assert not standardise(shown)[1], sample.id
    silent = sum(sample.kind == "open" and summary.CONTACTS_HEAD not in sample.answer for sample in made[1])
    # A quarter of the answers say so, the others leave the section out.
    assert 0 < said < silent


def test_open_book_answers_come_from_the_text_shown(made: tuple[int, list[Sample]]) -> None:
    for sample in made[1]:
        if sample.kind == "open":
            assert sample.doc is not None
            for point in re.findall(
                r"^- (.*)$", re.split("체크리스트:|연락처|상세 설명:", sample.answer)[0], re.MULTILINE
            ):
                assert point in sample.doc, sample.id


def test_summary_has_three_to_seven_points_where_the_text_allows(made: tuple[int, list[Sample]]) -> None:
    counts = Counter(
        sample.answer.split("체크리스트:")[0].count("\n- ") for sample in made[1] if sample.kind == "closed"
    )
    assert max(counts) <= 7
    assert sum(n for points, n in counts.items() if points >= 3) >= 0.8 * counts.total()


def test_open_book_answers_have_room_for_what_the_text_says(made: tuple[int, list[Sample]]) -> None:
    """Half of the room goes to the answer: most answers tell nearly all of their document."""
    shares = []
    for sample in made[1]:
        if sample.kind == "open" and sample.doc is not None:
            sentences = re.findall(r"[^.!?\n]{8,}[.!?]", sample.doc)
            shares.append(sum(s.strip() in sample.answer for s in sentences) / max(1, len(sentences)))
    assert sum(shares) / len(shares) >= 0.9


def test_parts_begin_with_no_contact_and_end_with_no_heading(tokenizer: Tokenizer) -> None:
    places = [
        f"제{n} 병원에 가면 접수를 먼저 하고 번호표를 받습니다.\n제{n} 병원 전화: 02-8555-01{n}" for n in range(10, 22)
    ]
    lists = [f"챙길 것\n- 여권 원본과 사본 {n}장을 봉투에 넣어 가져가기" for n in range(10, 22)]
    text = "\n".join(["병원 안내", *(f"{place}\n{one}" for place, one in zip(places, lists, strict=True))])
    opened = [
        sample.doc.split("\n")
        for sample in make_samples(text, 0, "train", SampleSettings(), tokenizer.count)
        if sample.kind == "open" and sample.doc is not None
    ]
    assert len(opened) > 4
    for lines in opened:
        assert lines[0] == "병원 안내"
        assert "TEL:" not in lines[1]
        assert lines[-1] != "챙길 것"


def test_contacts_keep_their_place_however_often_a_document_is_cut(tokenizer: Tokenizer) -> None:
    places = [
        f"제{n} 병원에 가면 접수를 먼저 하고 번호표를 받습니다.\n제{n} 병원 전화: 02-8555-01{n}" for n in range(10, 22)
    ]
    chosen = SampleSettings(block_size=128, samples_per_doc=60)
    made = make_samples("\n".join(["병원 안내", *places]), 0, "train", chosen, tokenizer.count)
    opened = [sample.doc.split("\n") for sample in made if sample.kind == "open" and sample.doc is not None]
    assert len(opened) > 12
    assert not [lines for lines in opened if "TEL:" in lines[1]]


def test_contacts_keep_their_place(documents: list[str], tokenizer: Tokenizer) -> None:
    found = [
        s.answer
        for s in make_samples(documents[8], 8, "train", SampleSettings(), tokenizer.count)
        if s.kind == "closed"
    ]
    assert "- 긴급신고 TEL: 911\n- 통역 자원봉사 TEL: +63 917 555 0188" in found[0]


def test_masked_documents_give_placeholders_with_their_place(documents: list[str], tokenizer: Tokenizer) -> None:
    masked = mask(*standardise(documents[8]))
    samples = make_samples(masked, 8, "train", SampleSettings(), tokenizer.count)
    assert "- 긴급신고 TEL: [TEL_1]\n- 통역 자원봉사 TEL: [TEL_2]" in samples[0].answer
    assert not any("0188" in (sample.doc or "") + sample.answer for sample in samples)


def test_same_input_gives_the_same_samples(documents: list[str], tokenizer: Tokenizer) -> None:
    first, second = (make_samples(documents[3], 3, "val", SampleSettings(), tokenizer.count) for _ in range(2))
    assert first == second
    other = make_samples(documents[3], 3, "val", SampleSettings(seed=2), tokenizer.count)
    assert [s.question for s in other] != [s.question for s in first]
    assert [s.answer for s in other] == [s.answer for s in first]
    assert all(s.split == "val" and s.id.startswith("000003/") for s in first)


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"open"}), (1.0, {"closed"}), (0.5, {"open", "closed"})])
def test_share_of_closed_book(share: float, kinds: set[str], documents: list[str], tokenizer: Tokenizer) -> None:
    chosen = SampleSettings(closed_share=share, summaries=False)
    assert {s.kind for s in make_samples(documents[0], 0, "train", chosen, tokenizer.count)} == kinds


def test_samples_per_doc_keep_the_ratio_over_many_documents(documents: list[str], tokenizer: Tokenizer) -> None:
    chosen = SampleSettings(block_size=512, samples_per_doc=3, closed_share=0.25, summaries=False)
    kinds = Counter(
        sample.kind
        for i, one in enumerate(documents)
        for sample in make_samples(one, i, "train", chosen, tokenizer.count)
    )
    assert kinds.total() == 3 * len(documents)
    assert 0.15 <= kinds["closed"] / kinds.total() <= 0.35


def test_more_samples_than_parts_ask_differently(documents: list[str], tokenizer: Tokenizer) -> None:
    chosen = SampleSettings(block_size=512, samples_per_doc=12, summaries=False)
    asked = [s.question for s in make_samples(documents[0], 0, "train", chosen, tokenizer.count)]
    assert len(asked) == 12
    assert len(set(asked)) >= 11


def test_more_samples_than_parts_are_of_other_parts(documents: list[str], tokenizer: Tokenizer) -> None:
    """The document cut elsewhere: the same answers to other questions would only be learned by heart."""
    once, often = (
        make_samples(documents[0], 0, "train", SampleSettings(samples_per_doc=n), tokenizer.count) for n in (0, 60)
    )
    for kind in ("closed", "open"):
        parts, answers = ({sample.answer for sample in made if sample.kind == kind} for made in (once, often))
        assert len(answers) >= 3 * len(parts)
    first = [sample for sample in once if sample.kind == "closed"]
    assert [sample for sample in often if sample.kind == "closed"][: len(first)] == first
    assert [s for s in often if s.kind == "summary"] == [s for s in once if s.kind == "summary"]


def test_one_sentence_is_asked_about_again(tokenizer: Tokenizer) -> None:
    """There is nothing to cut elsewhere."""
    chosen = SampleSettings(samples_per_doc=10, min_tokens=0)
    made = make_samples("여권 분실\n여권을 잃어버리면 대사관에 신고합니다.", 0, "train", chosen, tokenizer.count)
    asked = [sample.question for sample in made if sample.kind != "summary"]
    assert len(asked) == 10
    assert len(set(asked)) >= 8


def test_allow_long_keeps_the_document_whole(documents: list[str], tokenizer: Tokenizer) -> None:
    chosen = SampleSettings(allow_long=True)
    samples = make_samples(documents[0], 0, "train", chosen, tokenizer.count)
    opened = [s for s in samples if s.kind == "open"]
    assert len(opened) == 1
    assert opened[0].doc is not None
    assert _length(opened[0], tokenizer) > 257


def test_document_without_title_or_sentences(tokenizer: Tokenizer) -> None:
    count = tokenizer.count
    assert make_samples("짧다", 0, "train", SampleSettings(), count) == []
    assert make_samples("", 0, "train", SampleSettings(min_tokens=0), count) == []
    endless = "끝나지않는말" * 2000
    assert make_samples(endless, 0, "train", SampleSettings(), count) == []
    untitled = make_samples(
        "배우의 연기가 좋았다.\n음악도 훌륭했고 배우도 멋졌다.\n다시 보고 싶은 작품이다.",
        0,
        "train",
        SampleSettings(),
        count,
    )
    assert {s.kind for s in untitled} == {"open", "closed", "summary"}
    assert all(s.question is None or "배우" in s.question for s in untitled)


def test_mere_list_of_contacts(tokenizer: Tokenizer) -> None:
    text = "대사관 전화: 02-8555-0123\n마카티 경찰서 전화: 02-8555-0124\n세부 병원 전화: 032-555-0134"
    samples = make_samples(text, 0, "train", SampleSettings(), tokenizer.count)
    assert {sample.kind for sample in samples} == {"open", "closed"}
    for sample in samples:
        assert sample.question is not None
        assert "대사관과 마카티 경찰서" in sample.question
        assert sample.answer.replace("체크리스트: (문서에 없음)\n", "") == (
            "요약: (문서에 없음)\n연락처(공공정보):\n- 대사관 TEL: +63 2 8555 0123"
            "\n- 마카티 경찰서 TEL: +63 2 8555 0124\n- 세부 병원 TEL: +63 32 555 0134"
        )


def test_long_document_is_taken_in_windows(
    documents: list[str], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(line for one in documents[:12] for line in one.split("\n"))
    ranked: list[int] = []
    rank = summary.rank

    def recorded(units: Sequence[Unit], nouns: Iterable[str]) -> list[float]:
        ranked.append(len(units))
        return rank(units, nouns)

    monkeypatch.setattr(summary, "rank", recorded)
    samples = make_samples(text, 0, "train", SampleSettings(), tokenizer.count)
    assert len(ranked) > 2
    assert max(ranked) <= 64
    assert max(_length(sample, tokenizer) for sample in samples) <= 257


@given(st.text(max_size=400), st.sampled_from([96, 128, 256]), st.sampled_from([0, 7]))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_samples_that_fit(text: str, block_size: int, number: int) -> None:
    def count(piece: str) -> int:
        return len(piece.encode(errors="surrogatepass"))

    chosen = SampleSettings(block_size=block_size, min_tokens=0, samples_per_doc=number)
    for sample in make_samples(text, 0, "train", chosen, count):
        assert sum(1 if part.mark else count(part.text) for part in sample_segments(sample)) <= block_size + 1


@pytest.mark.parametrize(
    ("field", "value"), [("block_size", 32), ("closed_share", 1.5), ("samples_per_doc", -1), ("min_tokens", -1)]
)
def test_settings_that_cannot_be_meant(field: str, value: float) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(SampleSettings(), **{field: value})  # type: ignore[arg-type]


def test_fixed_texts_cover_the_headings() -> None:
    words = "\n".join(fixed_texts())
    for head in (
        "요약:",
        "체크리스트:",
        "- 해야 할 일:",
        "- 준비물:",
        "- 주의사항:",
        "연락처(공공정보):",
        "상세 설명:",
        "(문서에 없음)",
    ):
        assert head in words


def test_only_a_guide_is_asked_what_to_do(documents: list[str], tokenizer: Tokenizer) -> None:
    """Nobody asks of a queen what to bring."""
    life = (
        "어느 왕비의 생애\n그는 작은 나라의 왕녀로 태어났다. 열네 살에 이웃 나라의 왕자와 결혼하였다. "
        "궁전에서는 음악회와 무도회가 이어졌다. 흉년이 든 해에 백성들은 빵을 달라고 외쳤다. "
        "혁명이 일어나자 가족과 함께 탑에 갇혔다. 그의 편지는 뒷날 책으로 묶였다. 화가들은 그의 초상을 여러 점 남겼다."
    )
    guide_like = re.compile("체크리스트|준비물|주의|조심|순서대로|뭐부터|해야|하면 돼|교민|연락처")

    def asked(document: str) -> list[str]:
        wanted = SampleSettings(samples_per_doc=40, closed_share=0)
        samples = make_samples(document, 0, "train", wanted, tokenizer.count)
        return [sample.question for sample in samples if sample.question is not None]

    assert len(asked(life)) >= 10
    assert not any(guide_like.search(question) for question in asked(life))
    passport = next(document for document in documents if "여권" in document.split("\n")[0])
    assert any(guide_like.search(question) for question in asked(passport))
