"""Cleaning any text: mixtures of what people bring, made at random, and what must hold of each."""

import re
import textwrap
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.data.contacts import standardise
from twingpt.data.contacts.labels import LABEL
from twingpt.data.contacts.numbers import digits, plain_of
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import clean_text
from twingpt.data.text.clean import CleanedChunk, CleanSettings, clean_chunk

_TEXT = """
여권을 먼저 경찰서에 가서 신고하고 대사관에서 다시 받습니다. 영화가 정말 재밌었다 ㅋㅋ 그래서 또 볼게요~ 비 오는 날,
우산 꼭! 서울 마닐라 세부 준비물: 사진 2장 (원본) “그래.” 10:30 2026년 3.5kg 1,500페소 ~ - · … 뷁 햏 쿄쿄 ABC Makati
"""
WORDS = st.sampled_from(_TEXT.split())
PROSE = st.lists(WORDS, min_size=1, max_size=30).map(" ".join)
NUMBERS = st.from_regex(
    r"(?:\+63[ -]?|\+82[ -]?|0)(?:2|9[0-9]{2}|10|31)[ )\-‐–.]{0,2}[0-9]{3,4}[ \-–.]?(?:[0-9]{4}|[0-9]{2}xx|\*{4})",
    fullmatch=True,
)
CONTACTS = st.tuples(
    st.sampled_from(
        ["전화: ", "☎ ", "TEL ", "Tel.", "문의 ", "카톡: ", "주소: ", "홈페이지 ", "팩스:", "연락처\n", "예약 ", ""]
    ),
    NUMBERS
    | st.sampled_from(["help@example.com", "https://example.com/진료", "example_ph", "123 Example St., Makati"]),
    st.sampled_from(["", "으로", " (내선 12)", " 번", "번으로 전화", "~5"]),
).map("".join)
CHATS = st.tuples(st.sampled_from(["[민수] [오후 3:10] ", "2026년 5월 3일 오후 3:10, 지영 : ", "민수: "]), PROSE).map(
    "".join
)
TABLES = st.lists(st.tuples(PROSE, NUMBERS), min_size=1, max_size=4).map(
    lambda rows: "\n".join(f"| {name} | {number} |" for name, number in rows)
)
HTML = PROSE.map(lambda text: f"<p>{text}<br>&nbsp;</p>") | PROSE.map(
    lambda text: "".join(f"&#{ord(c)};" if c > "가" else c for c in text)
)
MOJIBAKE = st.tuples(
    PROSE, st.sampled_from([("utf-8", "cp1252"), ("utf-8", "latin-1"), ("cp949", "latin-1"), ("cp949", "mac_roman")])
).map(lambda part: part[0].encode(part[1][0], errors="ignore").decode(part[1][1], errors="replace"))
_ODD = (
    "\x00\x07\x0b\x1b\x7f\x85\xa0\xad\u1160\u200b\u200d\u2028\u202e\u3000\u3164\ufeff\ufffd\ue1a7\uf06c\uffa1\uffc2"
    "\u1100\u1161\u11a8ㅋ \t&;<"
)
ODD = st.text(st.sampled_from(_ODD), min_size=1, max_size=4)
DECOMPOSED = PROSE.map(lambda text: unicodedata.normalize("NFD", text))
WRAPPED = st.tuples(st.lists(PROSE, min_size=4, max_size=9), st.integers(18, 60)).map(
    lambda part: "\n".join(textwrap.wrap(" ".join(part[0]), part[1]))
)
GLUE = st.sampled_from(["", " ", "\n", "\n\n", "\n----\n", ", "])
# What stands for other characters than it has: of it nobody can count the syllables before it is cleaned.
PLAIN = PROSE | CONTACTS | CHATS | TABLES | WRAPPED | DECOMPOSED


def _mixtures(blocks: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.tuples(blocks, GLUE), min_size=1, max_size=8).map(
        lambda parts: "".join(block + glue for block, glue in parts)
    )


ANY = _mixtures(PLAIN | HTML | MOJIBAKE | ODD)


def _lines(chunk: CleanedChunk) -> list[str]:
    return [line for document in chunk.documents for line in document.decode().split("\n")]


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_characters_are_clean_after_one_cleaning(text: str) -> None:
    once = clean_text(text, Changes())
    assert clean_text(once, Changes()) == once


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_contacts_of_each_document_are_in_their_form_after_one_cleaning(text: str) -> None:
    for document in clean_chunk(text, CleanSettings()).documents:
        assert standardise(document.decode())[0] == document.decode()


def _hangul(text: str) -> str:
    """The syllables of a text but for the labels, which TEL: and the like stand for."""
    return "".join(re.findall("[가-힣]", re.sub("내선|구내", "", LABEL.sub("", unicodedata.normalize("NFC", text)))))


@settings(max_examples=60, deadline=None)
@given(_mixtures(PLAIN | ODD.filter(lambda odd: not re.search("[\u1100-\u11ff\uffa0-\uffdc]", odd))))
def test_no_hangul_is_lost(text: str) -> None:
    assert _hangul("\n".join(_lines(clean_chunk(text, CleanSettings())))) == _hangul(text)


@settings(max_examples=60, deadline=None)
@given(ANY)
def test_digits_of_a_contact_stand_in_the_text(text: str) -> None:
    """The last seven, since a number may take its code from the one before it or from the country."""
    raw = digits(plain_of(clean_text(text, Changes())))
    for contact in clean_chunk(text, CleanSettings()).contacts:
        if contact.kind in ("TEL", "FAX"):
            assert digits(contact.value.split(" 내선")[0])[-7:] in raw
