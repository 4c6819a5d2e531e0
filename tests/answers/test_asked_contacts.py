"""Questions for a telephone number, a website or an address get it, and nobody else's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from twingpt.answers.ask import ask_library
from twingpt.answers.contacts import same_form
from twingpt.data.library.asked_contacts import asked_contact
from twingpt.data.library.build import build_library, split_document
from twingpt.data.library.contact_store import is_no_name
from twingpt.data.library.search import Library
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings

EXAMPLE = Path(__file__).parents[2] / "twingpt" / "examples" / "ph_life_ko.txt"
ASKED = {
    "TEL": ["전화번호 알려줘", "번호가 뭐예요?", "연락처", "전화번호 뭔가요", "에 전화하려면 몇 번이에요?"],
    "WEB": ["홈페이지 주소", "웹사이트 알려줘", "홈피"],
    "EMAIL": ["이메일 주소가 뭔가요", "메일 알려주세요"],
    "KAKAO": ["카톡 아이디 알려줘", "카카오톡"],
    "ADDR": ["주소 알려주세요"],
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    out = tmp_path_factory.mktemp("contacts") / "data"
    prepare([str(EXAMPLE)], out, PrepareSettings(), stages=["clean", "library"])
    with Library(out / "library.sqlite") as opened:
        yield opened


def small(folder: Path, *documents: str) -> Library:
    build_library(folder / "library.sqlite", (split_document(text.split("\n")) for text in documents))
    return Library(folder / "library.sqlite")


def test_every_contact_of_the_text_is_found_by_its_name(library: Library) -> None:
    asked = found = first = 0
    for number in range(library.passages):
        for contact in library.contacts(library.passage(number)):
            if is_no_name(contact.name):
                continue
            for words in ASKED.get(contact.kind, []):
                lines = ask_library(library, f"{contact.name} {words}").sections["연락처"]
                asked += 1
                found += any(same_form(contact.value) in line for line in lines)
                first += bool(lines) and same_form(contact.value) in lines[0]
    assert asked > 350
    assert found / asked >= 0.99, (found, asked)
    assert first / asked >= 0.95, (first, asked)


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("영사콜센터에 전화하려면 몇 번으로 걸어요?", "3210 0404"),
        ("메랄코에 연락하고 싶은데 번호 좀", "16211"),
        ("한국어 되는 치과 예약하려는데 전화 어디로 해요?", "8555 0190"),
        ("대사관 홈피 알려줘", "overseas.mofa.go.kr"),
        ("이삿짐 기사 카톡 뭐야", "move_demo01"),
        ("태풍 정보 보는 기상청 홈페이지", "pagasa.dost.gov.ph"),
        ("운구 업체 연락처 좀 알려주세요", "8555 0177"),
    ],
)
def test_as_people_ask(library: Library, question: str, value: str) -> None:
    answer = ask_library(library, question)
    assert any(value in line for line in answer.sections["요약"]), answer.text
    assert value in answer.sections["연락처"][0]


@pytest.mark.parametrize("question", ["일본 대사관 전화번호", "서울 아산병원 전화번호", "스타벅스 마닐라 지점 연락처"])
def test_what_the_text_does_not_have_is_nobody_elses(library: Library, question: str) -> None:
    assert not ask_library(library, question).found


def test_a_number_beside_the_name_is_not_the_names(tmp_path: Path) -> None:
    text = "출생 신고\n마닐라 한국 대사관에 신고합니다.\n번역 도우미 TEL: +63 917 555 0134"
    with small(tmp_path, text, "여권\n여권은 두 곳에 둡니다.") as library:
        assert not ask_library(library, "마닐라 한국 대사관 전화번호").found
        assert "0134" in ask_library(library, "번역 도우미 전화번호").sections["요약"][0]


def test_plain_text_keeps_its_contacts_as_written_and_ask_knows_them(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("마닐라 메모\n\n동네 치과 전화 (02)8555-0134 예약 필수\n\n우산은 현관에 둡니다.\n", encoding="utf-8")
    prepare([str(raw)], tmp_path / "data", PrepareSettings(template="plain"), stages=["clean", "library"])
    with Library(tmp_path / "data" / "library.sqlite") as library:
        answer = ask_library(library, "동네 치과 전화번호 알려줘")
    assert answer.sections["요약"] == ["- 동네 치과 전화 (02)8555-0134 예약 필수 [1]"]
    assert "+63 2 8555 0134" in answer.sections["연락처"][0]


def test_a_contact_under_no_name_is_that_of_what_is_said(tmp_path: Path) -> None:
    text = "에어컨 청소\n에어컨 청소는 봄에 맡기세요.\n문의 TEL: +63 917 555 0134"
    with small(tmp_path, text, "여권\n여권은 두 곳에 둡니다.") as library:
        assert "0134" in ask_library(library, "에어컨 청소 전화번호").sections["요약"][0]


@pytest.mark.parametrize(
    "question", ["모르는 전화가 오면 어떻게 해요?", "여권 번호를 적어 두어야 하나요?", "이메일로 신청할 수 있나요?"]
)
def test_what_only_mentions_a_telephone_asks_for_more_than_a_contact(question: str) -> None:
    asked = asked_contact(question)
    assert asked is None or not asked.only


def test_what_is_asked_for() -> None:
    for question, kinds, about in (
        ("대사관 전화번호 알려줘", {"TEL"}, "대사관"),
        ("병무청 홈페이지 주소가 뭐예요", {"WEB"}, "병무청"),
        ("사무실 주소", {"ADDR"}, "사무실"),
    ):
        asked = asked_contact(question)
        assert asked is not None and asked.kinds == kinds and about in asked.about
        assert asked.only == ("ADDR" not in kinds)
    assert asked_contact("비자 연장은 어떻게 하나요?") is None
    assert asked_contact("연락처") is None


GUIDE = """여권을 잃어버렸을 때
먼저 경찰서에 가서 신고서를 받으세요.
영사콜센터 TEL: +82 2 3210 0404
번역 도움 TEL: +63 917 555 0104"""
AGAIN = """사고가 났을 때
구급차를 부르세요.
영사콜센터 TEL: +82 2 3210 0404"""


def test_who_asks_only_for_a_number_gets_that_number(tmp_path: Path) -> None:
    with small(tmp_path, GUIDE, AGAIN, "식당\n점심은 열두 시부터 먹습니다.") as library:
        answer = ask_library(library, "영사콜센터 번호 알려줘")
        assert answer.sections["연락처"] == ["- 영사콜센터 TEL: +82 2 3210 0404 [1]"]
        assert answer.sections["요약"] == ["- 영사콜센터 TEL: +82 2 3210 0404 [1]"]
        assert not answer.sections["체크리스트"] and not answer.sections["상세 설명"]
        assert len(answer.sources) == 1
        more = ask_library(library, "여권을 잃어버렸을 때 영사콜센터 번호와 순서를 정리해줘")
        assert more.sections["체크리스트"]
