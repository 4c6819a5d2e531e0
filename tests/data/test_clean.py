"""What cleaning removes, and that it removes nothing else; documents come out with one blank line between them."""

import re
import tempfile
import time
import unicodedata
from random import Random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.data.text import clean
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import break_line, clean_text
from twingpt.data.text.clean import (
    CleanSettings,
    boilerplate_hashes,
    chunks,
    clean_chunk,
    is_junk,
    line_hash,
    split_plain,
    without_boilerplate,
)
from twingpt.data.text.corpus import Table

NOTES = st.lists(
    st.sampled_from(
        [
            *"가나다 라\n\n\t\u200b\x00\u3000😀.",
            "한글 문장입니다. ",
            "\n\n\n",
            "\r\n",
            "e\u0301",
            "\u1112\u1161\u11ab",
            "TEL: 02",
        ]
    ),
    max_size=60,
).map("".join)


def _clean(text: str) -> str:
    return clean_text("".join(chunks([text])), Changes())


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("가\x00나", "가 나"),
        ("가\x07\x08나", "가 나"),
        ("가\u0085나\u2028다\x0b라\x0c마", "가\n나\n다\n라\n마"),
        ("\x1b[31m빨강\x1b[0m", "빨강"),
        ("가\u200b나\ufeff다\u00ad라\u2060마", "가나다라마"),
        ("\ufeff처음", "처음"),
        ("가   나\t\t다\u3000\u00a0라", "가 나 다 라"),
        ("  가  \n   나  ", "가\n나"),
        ("가\n\n\n\n나", "가\n\n나"),
        ("가\r\n나\r다", "가\n나\n다"),
        ("가 \n \n \n 나", "가\n\n나"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),
        ("깨\ufffd짐", "깨짐"),
        ("👩\u200d👩\u200d👧 ☎\ufe0f", "👩\u200d👩\u200d👧 ☎\ufe0f"),
        ("가\u200d나", "가나"),
    ],
)
def test_rules(raw: str, cleaned: str) -> None:
    assert _clean(raw) == cleaned


@given(text=NOTES)
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = _clean(text)
    assert _clean(once) == once


@given(text=NOTES)
@settings(max_examples=300, deadline=None)
def test_cleaning_keeps_every_letter(text: str) -> None:
    def letters(value: str) -> list[str]:
        return [c for c in unicodedata.normalize("NFC", re.sub("[\u200b\x00]", "", value)) if c.isalnum()]

    assert letters(_clean(text)) == letters(text.replace("\x00", " "))


@given(text=st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_documents_are_separated_by_exactly_one_blank_line(text: str) -> None:
    parts, _ = split_plain(_clean(text), "file")
    for document, _ in parts:
        assert document.strip() and "\n\n" not in document and not document.startswith("\n")
        assert unicodedata.is_normalized("NFC", document)


def test_changes_are_counted_with_examples() -> None:
    changes = Changes()
    clean_text("가\x00나 \u200b다\n\n\n\n라", changes)
    assert changes.counts["control characters made blanks"] == 1
    assert changes.counts["zero-width characters removed"] == 1
    assert changes.counts["runs of blank lines made one"] == 1
    before, after = changes.examples["control characters made blanks"][0]
    assert "가\\x00나" in before and "가 나" in after


def test_text_without_anything_to_clean_is_not_touched() -> None:
    text = "여권 분실\n경찰서에 갑니다. “신고서”를 받아요… 2,500페소!\n\nTEL: +63 2 8555 0123"
    changes = Changes()
    assert clean_text(text, changes) == text
    assert changes.counts == {}


def test_long_lines_break_at_sentence_ends() -> None:
    sentences = [f"{number}번째 문장은 이렇게 끝납니다." for number in range(200)]
    pieces = break_line(" ".join(sentences), limit=300)
    assert all(len(piece) <= 300 and piece.endswith("끝납니다.") for piece in pieces)
    assert " ".join(pieces) == " ".join(sentences)


@given(line=st.text("가나 .다요!?", min_size=1, max_size=400))
@settings(max_examples=200, deadline=None)
def test_breaking_loses_no_character_but_blanks(line: str) -> None:
    pieces = break_line(line, limit=50)
    assert all(len(piece) <= 50 for piece in pieces)
    assert "".join(pieces).replace(" ", "") == line.replace(" ", "")


@given(text=NOTES, sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_chunks_do_not_depend_on_how_the_text_arrives(text: str, sizes: list[int]) -> None:
    lines = re.split(r"(?<=\n)", text * 3)
    pieces: list[str] = []
    while lines:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append("".join(lines[:size]))
        lines = lines[size:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "CHUNK", 40)
        patch.setattr(clean, "LARGEST_CHUNK", 160)
        whole, arriving = list(chunks([text * 3])), list(chunks(pieces))
    assert whole == arriving
    assert "".join(whole) == (text * 3).replace("\r\n", "\n").replace("\r", "\n")


def test_a_chunk_of_one_endless_line_ends_at_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean, "CHUNK", 500)
    monkeypatch.setattr(clean, "LARGEST_CHUNK", 2000)
    made = list(chunks(["문장이 끝없이 이어집니다. " * 1000]))
    assert len(made) > 5
    assert all(chunk.endswith("이어집니다. ") for chunk in made)


@pytest.mark.parametrize(
    ("separator", "text", "parts", "ended"),
    [
        ("file", "가\n나\n\n다", [("가\n나", False), ("다", False)], False),
        ("file", "가\n====\n나\n\n***\n\n다", [("가\n====\n나", False), ("***", False), ("다", False)], False),
        ("file", "가<|endoftext|>나\n\n다\n[EOS]\n\n", [("가", False), ("나", True), ("다", False)], True),
        ("file", "[EOS]라는 말", [("[EOS]라는 말", False)], False),
        ("blank-line", "가\n나\n\n다", [("가\n나", True), ("다", True)], False),
        ("line", "가\n나\n\n다\n", [("가", True), ("나", True), ("다", True)], False),
        ("====", "가\n\n나\n====\n다\n=====\n라", [("가", False), ("나", False), ("다\n=====\n라", True)], False),
        ("a.b", "가\naxb\n나\n a.b \n다", [("가\naxb\n나", False), ("다", True)], False),
    ],
)
def test_plain_text_is_parted_where_it_is_told(
    separator: str, text: str, parts: list[tuple[str, bool]], ended: bool
) -> None:
    assert split_plain(text, separator) == (parts, ended)


def test_layout_is_kept_where_it_is_asked_for() -> None:
    text = "\tdef 하나():\n\t    return  1  \n\n\u3000들여 쓴 문단.\n  두  칸"
    assert clean_text(text, Changes(), keep_layout=True) == text.replace("1  \n", "1\n")
    assert clean_text(text, Changes()) == "def 하나():\nreturn 1\n\n들여 쓴 문단.\n두 칸"
    parts, _ = split_plain(clean_text(text, Changes(), keep_layout=True), "file")
    assert [part for part, _ in parts] == text.replace("1  \n", "1\n").split("\n\n")


def test_a_long_line_stays_one_where_lines_may_be_long() -> None:
    line = "문장이 끝없이 이어집니다. " * 300
    assert clean_text(line, Changes(), break_lines=False) == line.strip()
    assert "\n" in clean_text(line, Changes())


def test_a_long_run_of_blanks_takes_no_time_to_keep() -> None:
    text = "나" + " " * 200_000 + "나"
    started = time.monotonic()
    assert clean_text(text, Changes(), keep_layout=True, break_lines=False) == text
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "line",
    [
        "https://example.com/a?b=c",
        "😀😀🎉",
        "2024-01-02 10:11:12 INFO started",
        "[ERROR] something failed",
        "import os",
        "for (int i = 0; i < n; i++) {",
        "}",
        "<div class='x'>",
        "x = compute(1)",
    ],
)
def test_junk_lines(line: str) -> None:
    assert is_junk(line)


@pytest.mark.parametrize(
    "line",
    [
        "홈페이지는 https://example.com 입니다",
        "WEB: https://example.com",
        "TEL: +63 2 8555 0123",
        "축하합니다 🎉",
        "Passport application form",
        "- 준비물: 여권; 사진;",
        "----------",
        "2024-01-02 일정 안내",
        "Return to sender",
    ],
)
def test_lines_that_are_no_junk(line: str) -> None:
    assert not is_junk(line)


def test_junk_is_dropped_only_when_asked() -> None:
    text = "안내\n😀😀\nimport os\n설명입니다."
    kept = clean_chunk(text, CleanSettings(merge=False))
    dropped = clean_chunk(text, CleanSettings(merge=False, drop_junk=True))
    assert kept.documents == [text.encode()]
    assert dropped.documents == ["안내\n설명입니다.".encode()]
    assert dropped.changes.counts["lines of only code, log, URL or emoji dropped"] == 2


def _boilerplate(lines: npt.NDArray[np.uint64], documents: int) -> frozenset[int]:
    with tempfile.TemporaryFile() as file:
        file.write(lines.tobytes())
        file.flush()
        return boilerplate_hashes(Table(file, "<u8"), documents)


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 30), max_size=8), st.integers(1, 500), st.randoms())
def test_boilerplate_is_what_an_exact_count_finds(counts: dict[int, int], documents: int, order: Random) -> None:
    """In two buckets, so that rare lines share a bucket with frequent ones."""
    lines = [line for line, number in counts.items() for _ in range(number)]
    order.shuffle(lines)
    least = max(20, -(-documents // 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clean, "_BUCKETS", np.uint64(2))
        found = _boilerplate(np.asarray(lines, dtype=np.uint64), documents)
    assert found == {line for line, number in counts.items() if number >= least}


def test_boilerplate_goes_and_contacts_stay() -> None:
    footer, number = "이 글은 카페 공지입니다", "TEL: +63 2 8555 0123"
    documents = [f"제목 {index}\n{footer}\n{number}\n내용 {index}" for index in range(40)]
    chunk = clean_chunk("\n\n".join(documents), CleanSettings(merge=False))
    hashes = _boilerplate(chunk.lines, len(documents))
    assert hashes == {line_hash(footer), line_hash(number)}
    changes = Changes()
    assert without_boilerplate(documents[3], hashes, changes) == f"제목 3\n{number}\n내용 3"
    assert changes.counts["boilerplate lines dropped"] == 1
    assert without_boilerplate(footer, hashes, changes) == footer


def test_a_line_repeated_within_one_document_is_no_boilerplate() -> None:
    chunk = clean_chunk(
        "\n".join(["같은 줄을 반복합니다"] * 100) + "\n\n다른 글입니다 그래요", CleanSettings(merge=False)
    )
    assert _boilerplate(chunk.lines, 2) == frozenset()
    assert _boilerplate(np.empty(0, dtype=np.uint64), 0) == frozenset()


def test_masked_contacts_leave_placeholders() -> None:
    raw = "대사관 안내\n전화: 02-8856-9210"
    kept = clean_chunk(raw, CleanSettings(merge=False)).documents[0].decode()
    masked = clean_chunk(raw, CleanSettings(merge=False, contacts="mask"))
    assert kept.startswith("대사관 안내\nTEL: +63")
    assert masked.documents[0].decode() == "대사관 안내\nTEL: [TEL_1]"
    assert [contact.value for contact in masked.contacts] == [kept.split("TEL: ")[1]]
