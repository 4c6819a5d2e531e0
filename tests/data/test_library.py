"""The library: whole passages, found by what people type, in a file that is there whole or not at all."""

import hashlib
import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from twingpt.core.errors import TwinGPTError
from twingpt.data.library.build import (
    PASSAGE_CHARS,
    LibraryDocument,
    build_library,
    read_documents,
    split_passages,
)
from twingpt.data.library.calibrate import calibrate
from twingpt.data.library.dates import date_of_name
from twingpt.data.library.identity import content_of_library
from twingpt.data.library.search import LEAST_FIT, Library
from twingpt.data.library.sentences import best_sentences, sentences
from twingpt.data.library.terms import question_terms, terms
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text.corpus import Documents

DOCUMENTS = [
    LibraryDocument(
        "여권 분실", ("가까운 경찰서에 먼저 신고합니다. 그다음 대사관에 전화합니다.", "사진 두 장을 준비합니다.")
    ),
    LibraryDocument("비자 연장", ("이민국에서 연장 신청서를 냅니다. 수수료는 현금으로 냅니다.",)),
    LibraryDocument("", ("약국은 밤 아홉 시에 닫습니다. 병원 응급실은 늘 열려 있습니다.",)),
    LibraryDocument("섬 여행", tuple(f"배편 {i}번은 아침에 떠납니다." for i in range(40))),
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    assert build_library(tmp_path / "library.sqlite", DOCUMENTS) == 44
    return tmp_path / "library.sqlite"


@pytest.mark.parametrize(
    ("question", "title", "begins"),
    [
        ("경찰서는 어디에 신고해요?", "여권 분실", "가까운"),
        ("비자를 연장하려면 수수료가 얼마예요?", "비자 연장", "이민국"),
        ("약국이 언제 닫아요?", "", "약국은"),
        ("여권 사진은 몇 장이 필요한가요", "여권 분실", "사진"),
    ],
)
def test_a_question_finds_its_passage_whatever_particles_it_has(
    library: Path, question: str, title: str, begins: str
) -> None:
    with Library(library) as opened:
        found = opened.search(question)
        assert (found[0].title, found[0].text.startswith(begins)) == (title, True)
        assert [passage.score for passage in found] == sorted((passage.score for passage in found), reverse=True)
        assert opened.search(unicodedata.normalize("NFD", question)) == found
        best = best_sentences(question, found)
        assert best and all(one.text in found[one.passage].text for one in best)


def test_what_shares_nothing_with_the_text_finds_nothing(library: Path) -> None:
    with Library(library) as opened:
        for question in ("", "?!", "xyz 쀍쁧"):
            assert opened.search(question) == []
        assert opened.fit("경찰서에 신고", opened.search("경찰서에 신고")[0]) > 0.7
        assert opened.fit("경찰서의 화성 탐사선 연료", opened.search("경찰서")[0]) < 0.5
        # No operator of the index's query language is one here.
        assert opened.search('"경찰서" OR NOT NEAR(*)')[0].title == "여권 분실"


def test_terms_are_pairs_of_syllables_within_words() -> None:
    assert terms("대사관은 Tel 02-8555") == ["대사", "사관", "관은", "tel", "02", "8555"]
    assert terms("ＡＢ 집") == ["ab", "집"]


def test_words_that_only_ask_are_not_looked_for() -> None:
    assert question_terms("여권을 잃어버렸을 때 해야 할 일 정리해줘") == terms("여권 잃어버렸")
    assert question_terms("비자 연장은 어떻게 하나요?") == terms("비자 연장")
    assert question_terms("태풍이 올 때 뭘 준비해?") == ["태풍", "올", "준비"]
    assert question_terms("태풍 오면 뭘 준비해야 하나요") == terms("태풍 준비")
    assert question_terms("돈을 후원하고 싶은데 어떻게 하죠") == terms("돈을 후원")
    assert question_terms("한국 대사관 전화번호 알려줘") == terms("한국 대사관")
    assert question_terms("무엇을 해야 하나요?") == terms("무엇을 해야 하나요")


def test_the_same_text_is_the_same_bytes(library: Path, tmp_path: Path) -> None:
    build_library(tmp_path / "again.sqlite", iter(DOCUMENTS))
    assert (tmp_path / "again.sqlite").read_bytes() == library.read_bytes()


def test_paragraphs_stay_whole_up_to_a_length(tmp_path: Path) -> None:
    lines = ["짧은 줄입니다.", "가" * 995 + ".", "문장 하나입니다. " * 200]
    passages = list(split_passages(lines))
    assert max(map(len, passages)) <= PASSAGE_CHARS
    assert passages[:2] == lines[:2]
    assert "".join(passages).replace("\n", "").replace(" ", "") == "".join(lines).replace(" ", "")
    (tmp_path / "cleaned.txt").write_text("여권 분실\n신고합니다.\n전화합니다.\n\n제목 없이 끝나는 글입니다.\n")
    read = list(read_documents(Documents(tmp_path / "cleaned.txt"), [("a.txt", 1), ("b.txt", 1)]))
    assert read == [
        LibraryDocument("여권 분실", ("신고합니다.\n전화합니다.",), "a.txt", 1),
        LibraryDocument("", ("제목 없이 끝나는 글입니다.",), "b.txt", 1),
    ]


@pytest.mark.parametrize("contacts", ["keep", "mask"])
def test_prepare_makes_a_library_with_real_contacts(contacts: Literal["keep", "mask"], tmp_path: Path) -> None:
    """Also where the model is trained on placeholders: nobody is helped by one."""
    (tmp_path / "raw.txt").write_text(
        "가게 하나\n문의 전화: 02-8555-0100 입니다.\n아침 아홉 시에 엽니다.\n", encoding="utf-8"
    )
    out, settings = tmp_path / "data", PrepareSettings(contacts=contacts, vocab_size=300)
    prepared = prepare([str(tmp_path / "raw.txt")], out, settings, stages=["clean", "library"])
    assert prepared.report["library"] == {
        "text": hashlib.sha256((out / "cleaned.txt").read_bytes()).hexdigest(),
        "documents": 1,
        "passages": 1,
        "least_fit": LEAST_FIT,
        "content": content_of_library(out / "library.sqlite"),
    }
    masked = "[TEL_1]" in (out / "cleaned.txt").read_text(encoding="utf-8")
    assert masked == (contacts == "mask")
    with Library(out / "library.sqlite") as opened:
        assert "TEL: +63 2 8555 0100" in opened.search("가게 하나")[0].text
    assert prepare([], out, settings, stages=["library"]).reused == {"library": True}


def test_a_passage_names_its_file_and_the_date_in_the_files_name(tmp_path: Path) -> None:
    texts = {
        "guide_20240315.txt": "대사관 안내\n대사관 전화: 02-8555-0100 입니다.\n\n약국\n약국은 아홉 시에 닫습니다.\n",
        "옛 안내 2019.txt": "대사관 안내\n2018년 3월에 고친 글이며 대사관 전화: 02-8555-0199 입니다.\n",
        "다시.txt": "약국\n약국은 아홉 시에 닫습니다.\n\n학교 안내\n학교는 유월에 방학합니다.\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    out, files = tmp_path / "data", [str(tmp_path / name) for name in texts]
    prepare(files, out, PrepareSettings(), stages=["clean", "library"])
    with Library(out / "library.sqlite") as opened:
        assert opened.search("약국")[0].file == files[0]  # the second one is a duplicate
        assert opened.search("학교 방학")[0].file == files[2]
        dates = {contact.value: contact.date for contact in opened.contacts_named("대사관", "TEL")}
    assert dates == {"+63 2 8555 0100": "2024-03-15", "+63 2 8555 0199": "2018-03"}


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("guide_20240315.txt", "2024-03-15"),
        ("notes/2019/안내 2023-07.md", "2023-07"),
        ("안내 2022년 5월.txt", "2022-05"),
        ("2021.txt", "2021"),
        ("tel-0285550100.txt", ""),
        ("guide.txt", ""),
    ],
)
def test_a_files_name_may_have_a_date(name: str, date: str) -> None:
    assert date_of_name(name) == date


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "철도는 존 맥도날드(John A. Macdonald)의 보수당이 시작한 사업이었다. 다음 해에 끝났다.",
            ["철도는 존 맥도날드(John A. Macdonald)의 보수당이 시작한 사업이었다.", "다음 해에 끝났다."],
        ),
        (
            '그는 "자유를 지키겠다. 온 힘을 다하겠다."라고 말했다. 이때 논평이 나왔다.',
            ['그는 "자유를 지키겠다. 온 힘을 다하겠다."라고 말했다.', "이때 논평이 나왔다."],
        ),
        ("1. 여권을 챙깁니다. 2. 대사관에 갑니다.", ["1. 여권을 챙깁니다.", "2. 대사관에 갑니다."]),
        (
            "Dr. Kim을 만났다. 영사관(평일 9시. 주말 쉼)에 갔다!",
            ["Dr. Kim을 만났다.", "영사관(평일 9시. 주말 쉼)에 갔다!"],
        ),
        ("여는 괄호 (닫히지 않음. 다음 문장. 끝.", ["여는 괄호 (닫히지 않음.", "다음 문장.", "끝."]),
        ('"그래." 그가 말했다. “응. 가자.” 끝.', ['"그래."', "그가 말했다.", "“응. 가자.”", "끝."]),
    ],
)
def test_a_sentence_is_not_cut_in_brackets_in_quotes_or_after_a_shortened_word(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_sentences_are_cut_at_closing_marks_and_line_ends() -> None:
    text = "하나입니다. 둘은 3.5미터입니다!\n셋 (끝.) 넷"
    assert sentences(text) == ["하나입니다.", "둘은 3.5미터입니다!", "셋 (끝.)", "넷"]


def test_an_interrupted_build_leaves_the_old_library(library: Path) -> None:
    def broken() -> Iterator[LibraryDocument]:
        yield DOCUMENTS[0]
        raise KeyboardInterrupt

    before = library.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        build_library(library, broken())
    assert library.read_bytes() == before
    with pytest.raises(TwinGPTError, match="there is no text"):
        build_library(library, [])
    assert library.read_bytes() == before


def test_what_is_no_library_is_refused_in_one_line(library: Path, tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match=r"does not exist: make it again with `twingpt data library"):
        Library(tmp_path / "none.sqlite")
    (tmp_path / "text.sqlite").write_text("no database " * 500)
    with pytest.raises(TwinGPTError, match="cannot be read as a library"):
        Library(tmp_path / "text.sqlite")
    with sqlite3.connect(library) as db:
        db.execute("UPDATE meta SET value = '99' WHERE name = 'format_version'")
    db.close()
    with pytest.raises(TwinGPTError, match="format version 99"):
        Library(library)


def test_a_library_finds_out_how_well_a_passage_must_fit(tmp_path: Path) -> None:
    """From questions made of its own text, the same each time."""
    subjects = ["여권", "비자", "항공권", "보험증", "운전면허", "체류 카드", "졸업 증명서", "통장", "진단서", "계약서"]
    unlike = [
        LibraryDocument(name, (f"{name} 문제는 담당 창구 {i}번에서 서류 {i + 3}장을 내고 {i + 20}일 안에 해결합니다.",))
        for i, name in enumerate(subjects)
    ]
    build_library(tmp_path / "a.sqlite", unlike)
    threshold = calibrate(tmp_path / "a.sqlite")
    build_library(tmp_path / "b.sqlite", unlike)
    assert calibrate(tmp_path / "b.sqlite") == threshold
    assert (tmp_path / "b.sqlite").read_bytes() == (tmp_path / "a.sqlite").read_bytes()
    with Library(tmp_path / "a.sqlite") as opened:
        assert opened.least_fit == threshold != LEAST_FIT
        assert opened.fit("여권 창구", opened.search("여권 창구")[0]) > threshold
    build_library(tmp_path / "one.sqlite", DOCUMENTS[:1])
    assert calibrate(tmp_path / "one.sqlite") == LEAST_FIT


def test_the_sentence_asked_for_comes_before_those_that_name_the_subject(tmp_path: Path) -> None:
    """The title's words, and those that every sentence has, tell no sentence from another."""
    text = (
        "여권 재발급 신청은 대사관에서 여권 재발급 신청서로 합니다. 여권 재발급 수수료는 사진과 함께 냅니다. "
        "여권 재발급은 보름이 걸리니 출국 날짜를 먼저 보세요."
    )
    build_library(tmp_path / "library.sqlite", [LibraryDocument("여권 재발급 신청", (text,)), *DOCUMENTS])
    with Library(tmp_path / "library.sqlite") as opened:
        for question, begins in (
            ("여권 재발급 신청하면 며칠이 걸리나요?", "여권 재발급은 보름이"),
            ("여권 재발급 신청 수수료", "여권 재발급 수수료는"),
            ("여권 재발급 신청", "여권 재발급 신청은"),
        ):
            assert best_sentences(question, opened.search(question))[0].text.startswith(begins)
    assert best_sentences("여권", []) == []
