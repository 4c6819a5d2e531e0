"""Characters that programs leave in a text, and lines that they broke: undone where that is certain."""

import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import twingpt.examples
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import clean_text, cleaned
from twingpt.data.text.clean import CleanSettings, clean_chunk
from twingpt.data.text.mojibake import repair_mojibake
from twingpt.data.text.wrapped import columns

NOTES = (
    "여권을 잃어버렸을 때에는 먼저 가까운 경찰서에 가서 분실 신고서를 받습니다.\n그 말\n네\n"
    "비용은 약 200페소(Police Report)입니다.\n똠얌꿍 한 그릇\n“보험증”과 사진을 가져가세요…"
)
LOST = {0x81, 0x8D, 0x8F, 0x90, 0x9D}


def _as(text: str, encoding: str) -> str:
    """The text in CP949 as a program shows it that takes it for another encoding."""
    if encoding == "cp1252":
        return "".join(chr(b) if b in LOST else bytes([b]).decode("cp1252") for b in text.encode("cp949"))
    return text.encode("cp949").decode(encoding)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "mac_roman"])
def test_cp949_that_was_read_as_latin_letters(encoding: str) -> None:
    changes = Changes()
    assert repair_mojibake(_as(NOTES, encoding), changes) == NOTES
    assert changes.counts == {"mojibake lines repaired": 6}
    assert repair_mojibake(f"제목: {_as('하세요', encoding)}", Changes()) == "제목: 하세요"


@pytest.mark.parametrize(
    "line",
    [
        "ÄÖÜäöü ÅÄÖ",
        "SITUAÇÃO, AÇÕES, NÃO",
        "Smørrebrød på Grønland, ÆØÅ æøå",
        "Ελληνικά ∑π≥≤≈∞",
        "Ç¼¿ä",
        "½¼¾ ±× °C",
    ],
)
def test_what_makes_no_more_korean_is_left(line: str) -> None:
    changes = Changes()
    assert repair_mojibake(line, changes) == line
    assert changes.counts == {}


@pytest.mark.parametrize(
    ("raw", "clean", "kind"),
    [
        ("\U000f02b1 여권 \U000f02d0 사진", "① 여권 ③ 사진", "private-use characters of HWP and Word mapped"),
        ("\uf06c 여권", "• 여권", "private-use characters of HWP and Word mapped"),
        ("나\ue1a7라\U00100041", "나라", "private-use characters dropped"),
        (
            "\uffbe\uffc2\uffa4\uffa1\uffda\uffa9\uffb7\uffdc\uffa1\uffcc\uffb7\uffc2\uffa2\uffdc\uffbb\uffbb",
            "한글이고아끼ㅋㅋ",
            "runs of half-width jamo made whole",
        ),
        ("여\u115f권\uffa0은\u1160", "여권은", "Hangul fillers removed"),
        ("A&amp;B &#50668;&#xAD8C;&lt;끝&gt;", "A&B 여권<끝>", "entities of HTML undone"),
        ("&amp;amp;lt;", "<", "entities of HTML undone"),
        ("R&D; 비용 &없음; AT&T", "R&D; 비용 &없음; AT&T", ""),
    ],
)
def test_characters(raw: str, clean: str, kind: str) -> None:
    changes = Changes()
    assert clean_text(raw, changes) == clean
    assert set(changes.counts) == ({kind} if kind else set())
    if kind:
        assert changes.examples[kind]


TEXT = (Path(twingpt.examples.__file__).parent / "ph_life_ko.txt").read_text(encoding="utf-8")
PARAGRAPHS = [line for line in TEXT.split("\n") if len(line) > 80][:60]


def _at_columns(paragraph: str, width: int) -> str:
    """Broken between words by the width on a terminal, as mail programs do."""
    lines = [""]
    for word in paragraph.split(" "):
        if lines[-1] and columns(lines[-1]) + 1 + columns(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _between_characters(paragraph: str, width: int) -> str:
    """Broken wherever the line is full, as word processors do that export lines as they stood on the page."""
    lines = [""]
    for character in paragraph:
        if columns(lines[-1] + character) > width:
            lines.append("")
        lines[-1] += character
    return "\n".join(lines)


def test_lines_broken_between_words_are_joined() -> None:
    whole = clean_text("\n\n".join(PARAGRAPHS), Changes())
    for wrapped in (
        [textwrap.fill(paragraph, 30, break_on_hyphens=False) for paragraph in PARAGRAPHS],
        [_at_columns(paragraph, 40) for paragraph in PARAGRAPHS],
        [_at_columns(paragraph, 76) for paragraph in PARAGRAPHS],
    ):
        changes = Changes()
        assert clean_text("\n\n".join(wrapped), changes) == whole
        joints = sum(paragraph.count("\n") for paragraph in wrapped)
        assert changes.counts["lines broken at one width joined"] == joints


def test_lines_broken_between_characters_are_joined() -> None:
    whole = clean_text("\n\n".join(PARAGRAPHS[:20]), Changes())
    broken = [_between_characters(paragraph, 50) for paragraph in PARAGRAPHS[:20]]
    assert clean_text("\n\n".join(broken), Changes()) == whole
    # Without the blanks at line ends Kiwi has to tell which lines end within a word.
    bare = ["\n".join(line.strip() for line in paragraph.split("\n")) for paragraph in broken]
    joined = clean_text("\n\n".join(bare), Changes())
    assert joined.replace(" ", "") == whole.replace(" ", "")
    wrong = sum(a != b for a, b in zip(joined.split(), whole.split(), strict=False))
    assert joined.count(" ") == pytest.approx(whole.count(" "), rel=0.02), wrong


def test_a_number_that_a_line_end_cuts_is_whole_again() -> None:
    """Programs break after a hyphen too."""
    said = "담당자에게 여권을 잃어버린 곳과 날짜를 말하고 접수 번호를 받아 적으세요."
    text = "\n\n".join(f"{'꼭 ' * k}전화하려면 02-555-0123 번으로 걸어서 {said}" for k in range(12))
    parted = [_at_columns(paragraph, 40) for paragraph in text.replace("555-", "555- ").split("\n\n")]
    broken = "\n\n".join(parted).replace("555- ", "555-")
    assert "555-\n0123" in broken
    assert clean_text(broken, Changes()) == text


def test_contacts_are_not_lost_to_line_ends() -> None:
    def contacts(text: str) -> list[str]:
        return [contact.value for contact in clean_chunk(text, CleanSettings(merge=False)).contacts]

    part = TEXT[: TEXT.index("\n\n", 20_000)]
    wrapped = "\n".join(_at_columns(line, 60) for line in part.split("\n"))
    assert wrapped.count("\n") > 1.3 * part.count("\n")
    assert len(contacts(part)) > 5
    assert contacts(wrapped) == contacts(part)


VERSES = (
    "나 보기가 역겨워\n가실 때에는\n말없이 고이 보내 드리우리다\n영변에 약산\n진달래꽃\n아름 따다 가실 길에 뿌리우리다"
)
SENTENCE = "접수 창구는 오전 아홉 시에 열고 점심시간에는 쉬므로 그 전에 가서 번호표를 받고 기다리세요."
PLACES = ("마닐라", "바기오", "앙헬레", "다바오", "세부시", "일로일")
OFFICE = "대한민국대사관민원실에서"
STREET = "서울특별시 종로구 세종대로"


@pytest.mark.parametrize(
    "text",
    [
        "\n".join([VERSES] * 4),
        "\n".join(
            f"김{name}, {STREET} {k * 37} {'가나다라마바사'[: k % 7]}".strip()
            for k, name in enumerate("하나둘셋넷다섯여섯일곱")
        ),
        "\n".join(f"{OFFICE}는 접수한 서류를 {'다시 ' * (k % 3)}확인합니다." for k in range(30)),
        "\n\n".join(
            f"{place} 병원 예약과 접수 안내\n{OFFICE}는 {SENTENCE}" for place in ["마닐라", "세부", "카비테주"] * 5
        ),
        "\n".join(
            f"{place}에서 병원을 다니며 느낀 {what}" for place in PLACES for what in ("좋은 점", "나쁜 점", "다른 점")
        ),
        "\n".join(f"-{OFFICE} 확인하는 여권 사본{'과 사진' * (k % 3)}" for k in range(30)),
    ],
    ids=["verses", "addresses", "sentences", "titles", "entries", "items"],
)
def test_lines_that_somebody_ended_stay(text: str) -> None:
    changes = Changes()
    assert clean_text(text, changes).split("\n") == text.split("\n")
    assert "lines broken at one width joined" not in changes.counts


PIECES = [
    *(
        "여권을 잃어버렸을 때에는",
        "먼저 경찰서에 갑니다.",
        "&amp;",
        "&am",
        "p;",
        "&#44032;",
        "&#8203;",
        "\u200b",
        "\ufffd",
    ),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\u3000",
        "\u1160",
        "\uffa0",
        "\ue1a7",
        "\U000f02b1",
        "\uffbe\uffc2",
        "\u1112\u1161",
        "\u11ab",
    ),
    *(_as("하세요 그 말", "latin-1"), _as("하세요", "mac_roman"), "여권".encode().decode("latin-1"), "Café", "- 목록"),
    *("전화 02-555-", "0123", "https://example.com/", "x" * 40, _at_columns(PARAGRAPHS[0] * 3, 40)),
]
MIXTURES = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(text=MIXTURES)
@settings(max_examples=80, deadline=None)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = cleaned(text)
    assert cleaned(once) == once


def test_wrapped_mixtures_are_clean_after_one_cleaning() -> None:
    """Pairs of a full and a short line: joined, they could pass for the lines of a wider text."""
    full, short = "가나다라 마바사아자차카 타파", "하가나다라마바사 아자차"
    text = "\n".join([full, short] * 20)
    once = clean_text(text, Changes())
    assert clean_text(once, Changes()) == once
    for first, second in pairwise([once, cleaned(once), cleaned(cleaned(once))]):
        assert first == second
