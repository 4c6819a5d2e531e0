from pathlib import Path

import pytest

from twingpt.data.contacts import mask, standardise
from twingpt.data.library.contact_store import ContactStore
from twingpt.generation.answer_contacts import known_contacts

DOCUMENTS = (
    "관광비자 연장, 처음이라면 이렇게\n기한 전에 갑니다.\n물어볼 곳 전화: 02-8555-0123",
    "여권 분실\n신고부터 합니다.\n물어볼 곳 전화: 02-8555-0131\n카톡: lost_demo",
    "취업비자 연장\n회사가 합니다.\n물어볼 곳 전화: 02-8555-0123",
)


@pytest.fixture
def store(tmp_path: Path) -> ContactStore:
    return ContactStore.create(tmp_path / "contacts.sqlite", [c for d in DOCUMENTS for c in standardise(d)[1]])


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("관광비자를 연장할 때 필요한 것 알려줘.", ["+63 2 8555 0123"]),
        ("여권을 잃어버렸을 때 해야 할 일 정리해줘.", ["+63 2 8555 0131", "lost_demo"]),
        ("취업비자 연장 중 서류 부분을 정리해줘.", ["+63 2 8555 0123"]),
        ("비자 연장 정리해줘.", []),  # either of two
        ("오늘 저녁은 무엇을 먹을까?", []),
        ("정리해줘.", []),
        ("", []),
    ],
)
def test_a_question_finds_the_contacts_of_its_topic(store: ContactStore, question: str, numbers: list[str]) -> None:
    assert [contact.value for contact in store.of_topic(question)] == numbers


def test_a_masked_document_gets_its_own_values_back(store: ContactStore) -> None:
    """The place's name alone would not tell: three documents call it the same."""
    for document in DOCUMENTS:
        text, contacts = standardise(document)
        found = known_contacts(None, mask(text, contacts), store)
        assert found is not None
        assert [contact.value for contact in found] == [contact.value for contact in contacts]
