"""Documents: merged and cut at sentence ends, taken apart into whole sentences; Korean particles and summaries."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.data.samples import summary
from twingpt.data.samples.questions import focused, noun_topic, pattern_texts, questions, title_topic
from twingpt.data.text.documents import Unit, is_title, merge_blocks, read_document
from twingpt.data.text.korean import particle, pre_split, sentences

SENTENCES = [
    "여권을 잃어버리면 가까운 경찰서에서 신고서를 받으세요.",
    "비용은 ₱1,500 정도입니다.",
    "정말 힘들었어요ㅠㅠ",
    '"도장 하나면 된다"고 하면 가짜일 가능성이 높습니다.',
    "St. Luke's 병원은 BGC에 있습니다.",
    "준비물은 무엇인가요?",
    "절대 안 됩니다!",
]
PARAGRAPHS = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=8).map(" ".join)
BLOCKS = st.lists(st.lists(PARAGRAPHS, min_size=1, max_size=3).map("\n".join), min_size=1, max_size=5)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@given(BLOCKS, st.integers(20, 200))
@settings(max_examples=50, deadline=None)
def test_merging_and_cutting_loses_nothing_and_cuts_no_sentence(blocks: list[str], size: int) -> None:
    documents = list(merge_blocks(blocks, min_size=size // 2, max_size=size, count=len))
    assert _squeezed("".join(documents)) == _squeezed("".join(blocks))
    # Kiwi may take an exclamation without a mark (ㅠㅠ) and what follows as one sentence.
    longest = 2 * max(map(len, SENTENCES))
    for document in documents:
        assert len(document) <= max(size, longest)
        assert "\n\n" not in document
        for line in document.split("\n"):
            assert re.search(r"(?:[.!?]|ㅠㅠ)$", line), line


def test_short_blocks_are_merged_and_titled_ones_are_not() -> None:
    blocks = [
        "짧은 글입니다.",
        "또 짧은 글이에요.",
        "여권 분실\n여권을 잃어버리면 신고하세요.",
        "비자 연장\n이민국에 가세요.",
    ]
    assert list(merge_blocks(blocks, min_size=100, max_size=1000, count=len)) == [
        "짧은 글입니다.\n또 짧은 글이에요.",
        "여권 분실\n여권을 잃어버리면 신고하세요.",
        "비자 연장\n이민국에 가세요.",
    ]


def test_lone_title_joins_its_text_and_contacts_their_place() -> None:
    blocks = [
        "여권 분실 안내",
        "여권을 잃어버리면 신고하세요.",
        "대사관 전화: 02-8555-0123\n홈페이지: www.example.com",
        "다른 글입니다. " * 9,
    ]
    merged = list(merge_blocks(blocks, min_size=20, max_size=400, count=len))
    assert merged[0] == "\n".join(blocks[:3])
    assert merged[1] == blocks[3]


def test_lone_title_joins_even_a_text_that_is_long_enough() -> None:
    blocks = ["여권 분실 안내", "분실 신고\n여권을 잃어버리면 신고하세요."]
    assert list(merge_blocks(blocks, min_size=1, max_size=400, count=len)) == ["\n".join(blocks)]


@pytest.mark.parametrize("separator", ["----", "====", "****", "###", "────", "* * *"])
def test_separators_end_documents(separator: str) -> None:
    block = f"첫 글은 이렇게 끝납니다.\n{separator}\n둘째 글은 이렇게 시작합니다."
    merged = list(merge_blocks([block], min_size=5, max_size=400, count=len))
    assert merged == ["첫 글은 이렇게 끝납니다.", "둘째 글은 이렇게 시작합니다."]


def test_markdown_heading_starts_a_document() -> None:
    block = "첫 글은 이렇게 끝납니다.\n## 둘째 제목\n둘째 글은 이렇게 시작합니다."
    assert len(list(merge_blocks([block], min_size=100, max_size=400, count=len))) == 2


@pytest.mark.parametrize(
    ("line", "title"),
    [
        ("여권을 잃어버렸을 때 할 일", True),
        ("9(g) 취업비자 서류 챙기기", True),
        ("여권을 잃어버렸습니다.", False),
        ("정말 좋았다", False),
        ("- 여권 사본", False),
        ("전화: 02-8555-0123", False),
        ("-----", False),
        ("준비물:", False),
        ("", False),
    ],
)
def test_is_title(line: str, title: bool) -> None:
    assert is_title(line) is title


def test_units_are_whole_lines_and_sentences() -> None:
    text = (
        "여권 분실 안내\n여권을 잃어버렸을 때는 경찰서에 갑니다. St. Luke's 병원 앞입니다(지도는 아래. 참고하세요).\n"
        "준비물\n- 여권 사본. 두 장이면 됩니다.\n1. 사진 2장\n대사관 전화: 02-8555-0123"
    )
    document = read_document(text)
    assert document.title == "여권 분실 안내"
    assert [(unit.role, unit.text) for unit in document.units] == [
        ("sentence", "여권을 잃어버렸을 때는 경찰서에 갑니다."),
        ("sentence", "St. Luke's 병원 앞입니다(지도는 아래. 참고하세요)."),
        ("heading", "준비물"),
        ("item", "- 여권 사본. 두 장이면 됩니다."),
        ("item", "1. 사진 2장"),
        ("contact", "대사관 TEL: +63 2 8555 0123"),
    ]
    assert [unit.plain for unit in document.units[3:5]] == ["여권 사본. 두 장이면 됩니다.", "사진 2장"]
    assert [(line, c.value) for line, c in document.contacts] == [(5, "+63 2 8555 0123")]


def test_contact_in_a_sentence_leaves_the_sentence_whole() -> None:
    (unit,) = read_document("의식이 흐리면 물을 먹이지 말고 911에 신고합니다.").units
    assert (unit.role, unit.text) == ("sentence", "의식이 흐리면 물을 먹이지 말고 911에 신고합니다.")


def test_claim_over_a_paragraph_is_a_title() -> None:
    body = "필리핀의 처벌은 매우 무겁습니다. " * 6
    assert read_document(f"마약, 호기심도 안 됩니다\n{body}").title == "마약, 호기심도 안 됩니다"
    assert read_document("정말 재미있게 봤다\n다시 보고 싶다").title == ""


@given(st.text(max_size=300), st.integers(1, 40))
def test_pre_split_is_lossless_and_bounded(line: str, limit: int) -> None:
    pieces = pre_split(line, limit)
    assert "".join(pieces) == line
    assert all(len(piece) <= limit for piece in pieces)


def test_pre_split_is_linear() -> None:
    """A line of megabytes without a newline: 10 MB in well under a second a piece count of thousands."""
    assert len(pre_split("가나다 " * 2_500_000)) >= 10_000


@given(st.lists(PARAGRAPHS, min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_sentences_lose_nothing(lines: list[str]) -> None:
    for line, found in zip(lines, sentences(lines), strict=True):
        assert _squeezed("".join(s.text for s in found)) == _squeezed(line)
        for sentence in found:
            assert re.search(r"(?:[.!?]|ㅠㅠ)$", sentence.text), sentence


@pytest.mark.parametrize(
    ("word", "kind", "form"),
    [
        ("여권", "을", "을"),
        ("비자", "을", "를"),
        ("서울", "으로", "로"),
        ("부산", "으로", "으로"),
        ("ACR I-Card", "을", "를"),
        ("BGC", "이", "가"),
        ("ATM", "은", "은"),
        ("URL", "으로", "로"),
        ("hospital", "을", "을"),
        ("Grab", "과", "과"),
        ("Makati", "과", "와"),
        ("911", "으로", "로"),
        ("10", "을", "을"),
        ("2025", "은", "는"),
        ("여권(Passport)", "을", "을"),
        ("비자!!", "이", "가"),
        ("", "을", "를"),
    ],
)
def test_particle(word: str, kind: str, form: str) -> None:
    assert particle(word, kind) == form


def _units(*texts: str) -> list[Unit]:
    return [Unit(text, tuple(text.split()), i, "sentence") for i, text in enumerate(texts)]


def test_rank_prefers_the_centre_and_the_title() -> None:
    units = _units("여권 신고 경찰서", "여권 신고 대사관", "여권 신고 사진", "날씨 구름")
    scores = summary.rank(units, [])
    assert min(scores) == scores[3]
    pair = _units("여권 신고", "날씨 구름")
    assert summary.rank(pair, ["날씨"])[1] > summary.rank(pair, ["날씨"])[0]
    assert summary.rank(_units("", ""), []) == [0.0, 0.0]


@pytest.mark.parametrize(("number", "points"), [(1, 1), (2, 1), (3, 2), (4, 3), (9, 3), (15, 5), (21, 7), (60, 7)])
def test_points(number: int, points: int) -> None:
    assert summary.points(number) == points


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("체류 기한이 끝나기 전에 이민국에서 연장을 해야 합니다.", "todo"),
        ("가까운 경찰서에 가서 신고서를 받으세요.", "todo"),
        ("시청에 결혼 허가를 신청합니다.", "todo"),
        ("여권 사본과 사진 2장을 준비하세요.", "bring"),
        ("준비물: 여권 원본, 사진 2장", "bring"),
        ("항공권과 신분증을 챙기세요.", "bring"),
        ("서류 원본을 남에게 맡기지 마세요.", "caution"),
        ("카드를 빌려주는 것은 금지입니다.", "caution"),
        ("아무 약이나 먹으면 안 됩니다.", "caution"),
        ("바다가 예쁘고 바람이 시원했습니다.", None),
        ("어제 마닐라에 비가 왔다.", None),
    ],
)
def test_checklist_group(text: str, group: str | None) -> None:
    assert summary.group_of(Unit(text, (), 0, "sentence"), "") == group


def test_list_follows_its_heading() -> None:
    units = read_document("여행\n가져갈 것\n- 여권 원본\n- 왕복 항공권\n조심할 것\n- 늦은 밤 골목").units
    assert summary.groups(units) == [None, "bring", "bring", None, "caution"]


def test_answer_layout() -> None:
    text = (
        "여권 분실 안내\n여권을 잃어버리면 경찰서에 신고합니다. 신고서는 무료입니다. "
        "대사관은 마닐라에 있습니다. 날씨가 덥습니다.\n준비물: 사진 2장\n주의: 브로커에게 여권을 맡기지 마세요.\n"
        "대사관 전화: 02-8555-0123, 홈페이지: www.example.com"
    )
    document = read_document(text)
    scores = summary.rank(document.units, document.title_nouns)
    answer = summary.make_answer(document.units, scores, [c for _, c in document.contacts]).render()
    lines = answer.split("\n")
    assert [line for line in lines if line.endswith(":")] == ["요약:", "체크리스트:", "연락처(공공정보):", "상세 설명:"]
    assert "- 해야 할 일: 여권을 잃어버리면 경찰서에 신고합니다." in lines
    assert "- 준비물: 사진 2장" in lines
    assert "- 주의사항: 브로커에게 여권을 맡기지 마세요." in lines
    assert "- 대사관 TEL: +63 2 8555 0123, WEB: www.example.com" in lines


def test_what_the_document_lacks_is_said_or_left_out() -> None:
    document = read_document("바다가 예쁘고 바람이 시원했습니다.")
    answer = summary.make_answer(document.units, [1.0], []).render()
    assert answer == (
        "요약:\n- 바다가 예쁘고 바람이 시원했습니다.\n체크리스트: (문서에 없음)\n연락처(공공정보): (문서에 없음)"
    )


def test_question_bank() -> None:
    assert len(set(pattern_texts())) >= 40


@pytest.mark.parametrize(
    ("title", "question"),
    [
        ("여권 분실", "여권을 잃어버렸을 때 해야 할 일 정리해줘."),
        ("휴대폰 도난 신고", "휴대폰을 도난당했을 때 해야 할 일 정리해줘."),
        ("ACR I-Card 갱신 방법", "ACR I-Card를 갱신할 때 필요한 것 알려줘."),
        ("교통사고", "교통사고가 났을 때 해야 할 일 정리해줘."),
        ("태풍", "태풍이 올 때 해야 할 일 정리해줘."),
        ("병원", "병원에 갈 때 알아야 할 것 정리해줘."),
        ("여권을 잃어버렸을 때 할 일", "여권을 잃어버렸을 때 해야 할 일 정리해줘."),
        ("전화를 받으면", "전화를 받으면 어떻게 해야 해?"),
        ("■ 관광비자 연장, 처음이라면 이렇게", "관광비자를 연장할 때 필요한 것 알려줘."),
        ("은퇴비자를 고민하는 분께", "'은퇴비자를 고민하는 분께' 글을 요약해줘."),
        ("운전면허", "운전면허를 요약해줘."),
    ],
)
def test_topic_shaped_questions(title: str, question: str) -> None:
    assert question in questions(title_topic(title), 0, "", 40)


def test_questions_are_keyed_by_seed_and_text() -> None:
    topic = title_topic("여권 분실")
    assert questions(topic, 1, "글", 5) == questions(topic, 1, "글", 5)
    assert questions(topic, 1, "글", 5) != questions(topic, 2, "글", 5)
    assert questions(topic, 1, "글", 5) != questions(topic, 1, "다른 글", 5)
    assert len(set(questions(topic, 1, "글", 25))) == 25


def test_topics_without_title_and_of_a_part() -> None:
    topic = noun_topic(["배우", "음악", "감독"])
    assert topic is not None
    assert topic.text == "배우와 음악"
    assert noun_topic([]) is None
    assert focused(title_topic("여권 분실"), ["여권", "경찰서", "사진"]).text == "여권 분실 중 경찰서·사진 부분"
