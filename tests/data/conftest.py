"""Text for the data tests: made here, Korean, and as much of it as a test asks for."""

from collections.abc import Callable

import pytest

_PLACES = ["마닐라", "세부", "바기오", "다바오", "앙헬레스", "일로일로", "보홀", "클락"]
_TOPICS = ["병원 예약", "은행 계좌", "학교 입학", "비자 연장", "분실 신고", "운전면허", "인터넷 개통", "집 계약"]
_SENTENCES = [
    "{place}에서 {topic}을 하려면 여권 사본과 사진 두 장을 준비해야 합니다.",
    "접수 창구는 오전 {hour}시에 열고 점심시간에는 쉽니다.",
    "처음 가는 사람은 {number}번 번호표를 받고 기다리세요.",
    "비용은 약 {number}0페소이며 현금만 받는 곳이 많습니다.",
    "서류가 부족하면 다시 와야 하므로 미리 확인하는 것이 좋습니다.",
    "담당자 이름과 접수 번호를 꼭 적어 두세요.",
]


def _document(number: int) -> str:
    place, topic = _PLACES[number % 8], _TOPICS[number // 8 % 8]
    lines = [f"{place} {topic} 안내 {number}"]
    for k in range(6):
        sentence = _SENTENCES[(number * 7 + k * 5) % len(_SENTENCES)]
        lines.append(sentence.format(place=place, topic=topic, hour=8 + number % 4, number=number * 6 + k))
    lines.append(f"전화: 02-8555-{number % 10000:04}")
    return "\n".join(lines)


@pytest.fixture(scope="session")
def korean_text() -> Callable[[int], str]:
    """korean_text(n): n documents of about 700 bytes with a blank line between."""
    return lambda count: "\n\n".join(_document(number) for number in range(count)) + "\n"
