"""Which fields of records hold text: told by their names and by what stands in them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

from twingpt.core.language import mark
from twingpt.data.text.forms.form import ReadAs

Record = Mapping[str, str]
"""Names of fields (of nested ones with dots between) -> their values."""

# So many records are looked at before the fields are chosen.
SAMPLE = 500
_LEAST_PROSE = 12  # characters that a value of prose has at the least

_TEXT_FIELDS = (
    "text content contents body message document article passage context paragraph sentence question questions answer"
    " answers title subject headline summary description comment comments review caption instruction output input"
    " response prompt completion post note notes 본문 내용 글 제목 질문 답변 답 대답 설명 요약 문장 댓글 리뷰 후기 메모"
    " 문서 기사 대화 비고 안내"
)
_NO_TEXT_FIELDS = (
    "id uuid guid idx index no num key user userid username nickname sender sendername from to author authorname writer"
    " speaker date time datetime timestamp timestampms created createdat updated updatedat modified url uri link links"
    " href src path file filename image images photo photos video type kind label labels category categories tag tags"
    " score rating rate lang language source hash status version views likes count 번호 순번 아이디 작성자 글쓴이"
    " 보낸사람 받는사람 닉네임 날짜 작성일 등록일 수정일 일시 시간 조회수 추천수 좋아요 분류 라벨 평점 별점"
)
_CONTACT_FIELDS = (
    "tel telephone phone phonenumber mobile cell fax email mail address website homepage kakao kakaoid 전화 전화번호"
    " 연락처 휴대폰 휴대전화 핸드폰 팩스 이메일 메일 주소 카톡 카카오톡 홈페이지 웹사이트"
)
_NAME_FIELDS = "name names shop store company place 이름 성명 상호 상호명 업체 업체명 가게 기관 기관명 장소 부서"
_TEXT, _NO_TEXT, _CONTACT, _NAMES = (
    frozenset(names.split()) for names in (_TEXT_FIELDS, _NO_TEXT_FIELDS, _CONTACT_FIELDS, _NAME_FIELDS)
)
# The answers of SQuAD's form are cut out of a context that stands there anyway.
_CUT_OUT = re.compile(r"\banswers\.text$")
_LETTER = re.compile(r"[^\W\d_]")


def _word(name: str) -> str:
    """The last part of a field's name, as it stands in the lists."""
    return re.sub(r"[\W_]+", "", name.rpartition(".")[2].casefold())


def is_known(name: str) -> bool:
    """Whether a name is one that fields have, and values seldom."""
    return _word(name) in _TEXT | _NO_TEXT | _CONTACT | _NAMES


def texts(records: Iterable[Record], read_as: ReadAs) -> Iterator[str]:
    """The text of each record, a blank line after it. The chosen fields are named in `read_as.fields`."""
    waiting = iter(records)
    sample = list(islice(waiting, SAMPLE))
    chosen = choose_fields(sample)
    read_as.fields += chosen
    read_as.records = True
    for record in chain(sample, waiting):
        parts = [
            f"{name.rpartition('.')[2]}: {value}" if _word(name) in _CONTACT else value
            for name in chosen
            if (value := record.get(name, "").strip())
        ]
        if parts:
            yield "\n".join(parts) + "\n\n"
        elif any(_LETTER.search(value) for value in record.values()):
            read_as.changes.count(mark("records without text in the chosen fields"))


def choose_fields(records: Sequence[Record]) -> list[str]:
    """The fields that hold text, in their order.

    A directory (records with telephone numbers or addresses) keeps names and everything else that is not bookkeeping.
    """
    values: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.items():
            if value.strip() and not _CUT_OUT.search(name):
                values.setdefault(name, []).append(value.strip())
    lettered = [name for name, found in values.items() if _has_letters(found)]
    likely = [name for name in lettered if _word(name) not in _NO_TEXT]
    if any(_word(name) in _CONTACT for name in values):
        return [name for name in values if _word(name) in _CONTACT or name in likely]
    return [name for name in likely if _word(name) in _TEXT or _is_prose(values[name])] or likely


def _has_letters(values: Sequence[str]) -> bool:
    return 2 * sum(_LETTER.search(value) is not None for value in values) >= len(values)


def _is_prose(values: Sequence[str]) -> bool:
    """Words with blanks between, and not the same few again and again."""
    long = sum(len(value) >= _LEAST_PROSE and " " in value for value in values)
    return 2 * long >= len(values) and 2 * len(set(values)) >= min(len(values), 100)
