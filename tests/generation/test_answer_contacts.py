from twingpt.core.sampling import Sampling
from twingpt.data.contacts import standardise
from twingpt.generation.answer_contacts import known_contacts, with_contact_section
from twingpt.generation.batching import Request
from twingpt.generation.writing import with_contacts

DOC = "여권 분실\n먼저 신고합니다.\n대사관 전화: 02-8555-0131\n통역 카톡: lost_demo"
GIVEN = "- 대사관 TEL: +63 2 8555 9999"
ANSWER = f"요약:\n- 신고합니다.\n체크리스트: (문서에 없음)\n연락처(공공정보):\n{GIVEN}\n상세 설명:\n끝."


def test_the_section_holds_the_contacts_of_the_document() -> None:
    contacts = known_contacts(None, DOC, None)
    assert contacts is not None
    filled = with_contact_section(ANSWER, contacts)
    assert filled == ANSWER.replace(GIVEN, "- 대사관 TEL: +63 2 8555 0131\n- 통역 KAKAO: lost_demo")
    # Where the model left the section out, it comes to stand in its place.
    without = ANSWER.replace(f"연락처(공공정보):\n{GIVEN}\n", "")
    assert with_contact_section(without, contacts) == filled
    assert with_contact_section("요약:\n- 가", contacts).endswith("KAKAO: lost_demo")


def test_a_document_without_contacts_has_none_in_its_answer() -> None:
    request = Request([1], Sampling(), 1, question="여권 분실", doc="여권 분실\n먼저 신고합니다.")
    filled = with_contacts(ANSWER, request, None, fill_in=True)
    assert "연락처(공공정보): (문서에 없음)\n상세 설명:" in filled
    assert standardise(filled)[1] == []


def test_without_a_document_or_a_topic_the_section_stays() -> None:
    assert known_contacts("무엇이든", None, None) is None
