"""Markdown: what a person reads of it is text, and nothing else; written here as the programs of notes and docs do."""

from pathlib import Path

import pytest

from twingpt.answers.ask import ask_document
from twingpt.data.library.build import passage_contacts, split_document
from twingpt.data.library.sentences import sentences
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text.changes import Changes
from twingpt.data.text.documents import merge_blocks, read_document
from twingpt.data.text.forms import markdown
from twingpt.data.text.forms.form import ReadAs
from twingpt.data.text.inputs import Source
from twingpt.data.text.reading import read_source


def _read(tmp_path: Path, text: str, *, prose: bool = True, form: str = "Markdown") -> tuple[str, Changes]:
    path = tmp_path / "note.txt"
    path.write_text(text, encoding="utf-8")
    told, changes = ReadAs("note.txt", prose=prose), Changes()
    read = "".join(piece for piece, _ in read_source(Source("note.txt", path), changes, read_as=told))
    assert told.form == form
    return read, changes


PAGE = """---
title: 회의실
---

<Intro>

**회의실**은 누구나 예약합니다.

</Intro>

## 예약하기 {#reserve}

[예약 화면](./reserve.md)을 열고 [안내](https://example.com/help "설명")를 읽습니다.

```html
<div class="room">
  <p>열림</p>

  <!-- # 제목이 아님 -->
</div>
```

:::tip 알아 두세요
열쇠는 *한 개*뿐입니다.
:::

| 방 | 자리 |
|----|-----:|
| 가람 | 8 |
| 나래 | 12 |

- **준비할 것**

  ~~~sh
  # 전원
  ~~~

- [ ] 이름표
- 마이크
  - 건전지

3. 창문을 닫습니다.
4. 불을 끕니다.

### 취소하기 {/*cancel*/}

![취소 단추](cancel.png) 메일은 <help@example.com>으로 보냅니다. [문의](mailto:help@example.com?subject=a%20b)
"""
AS_TEXT = """# 회의실

회의실은 누구나 예약합니다.

## 회의실 - 예약하기

예약 화면을 열고 안내(https://example.com/help)를 읽습니다.

│ <div class="room">
│   <p>열림</p>
│   <!-- # 제목이 아님 -->
│ </div>

알아 두세요
열쇠는 한 개뿐입니다.

방 | 자리
가람 | 8
나래 | 12

- 준비할 것:
│ # 전원

- 이름표
- 마이크:
- 건전지

3. 창문을 닫습니다.
4. 불을 끕니다.

### 회의실 - 취소하기

취소 단추 메일은 help@example.com으로 보냅니다. 문의(help@example.com)
"""


def test_a_page_becomes_what_a_person_reads_of_it(tmp_path: Path) -> None:
    text, changes = _read(tmp_path, PAGE)
    assert text == AS_TEXT
    assert changes.counts["lines of code marked with │"] == 5
    assert changes.counts["links within the notes left out, but for their words"] == 1
    assert changes.counts["pictures of Markdown left out, but for their words"] == 1


def test_for_a_plain_model_marks_stay_as_they_were_written(tmp_path: Path) -> None:
    text, _ = _read(tmp_path, PAGE, prose=False)
    assert text == "# 회의실\n\n" + PAGE.split("---\n\n", 1)[1]


@pytest.mark.parametrize("prose", [True, False])
def test_notes_about_tags_are_no_web_page(tmp_path: Path, prose: bool) -> None:
    note = "# 목록\n\n" + "이렇게 씁니다.\n\n```html\n<ul>\n  <li>하나</li>\n</ul>\n```\n\n" * 8
    text, _ = _read(tmp_path, note, prose=prose)
    assert text.count("  <li>하나</li>") == 8


def test_a_web_page_that_holds_markdown_is_a_web_page(tmp_path: Path) -> None:
    page = (
        "<!doctype html><html><body><pre>" + "# 제목\n**굵게** `코드`\n" * 5 + "</pre><p>본문입니다.</p></body></html>"
    )
    _read(tmp_path, page, form="HTML")


@pytest.mark.parametrize(
    "text",
    [
        "준비물: 여권 *원본*\n1) 사진\n---\n다음 글입니다.\n",
        "    들여 쓴 줄입니다.\n제목\n====\n본문은 여기부터입니다.\n",
        "# 제목\n본문입니다.\n# 다른 제목\n본문입니다.\n",
    ],
)
def test_a_text_without_its_signs_stays_as_it_is(tmp_path: Path, text: str) -> None:
    assert _read(tmp_path, text, form="text")[0] == text


def test_rules_and_indentation_of_notes_are_neither_headings_nor_code(tmp_path: Path) -> None:
    note = "# 여행\n[예약](https://example.com/a)을 합니다.\n\n숙소\n----\n\n    짐은 가볍게 쌉니다.\n"
    assert _read(tmp_path, note)[0] == (
        "# 여행\n\n예약(https://example.com/a)을 합니다.\n\n숙소\n\n---\n\n짐은 가볍게 쌉니다.\n"
    )


def test_links_of_obsidian(tmp_path: Path) -> None:
    note = "# 메모\n\n`가`를 보고 [[다른 글|이 글]]과 [[셋째 글]]을 봅니다. ![[그림.png]]\n"
    note += "\n> [!note] 덧붙임\n> 끝입니다.\n"
    assert _read(tmp_path, note)[0] == "# 메모\n\n`가`를 보고 이 글과 셋째 글을 봅니다.\n\n덧붙임\n끝입니다.\n"


def test_a_link_too_long_for_an_address_is_left_out_and_told(tmp_path: Path) -> None:
    text, changes = _read(tmp_path, f"# 예\n\n[해 보기](https://example.com/#{'a1' * 200})를 누릅니다.\n")
    assert text == "# 예\n\n해 보기를 누릅니다.\n"
    assert changes.counts["links too long for an address left out, but for their words"] == 1


def test_a_long_export_is_read_in_parts_that_end_at_headings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = "".join(f"## 제목 {i}\n\n```\n## 코드 {i}\n```\n\n**글** {i}\n\n" for i in range(40))
    whole, _ = _read(tmp_path, "# 모음\n\n" + note)
    monkeypatch.setattr(markdown, "_PARSED_CHARS", 100)
    parts, _ = _read(tmp_path, "# 모음\n\n" + note)
    assert parts.split() == whole.split()
    assert "│ ## 코드 39\n" in parts


def test_what_is_cut_under_a_heading_keeps_it() -> None:
    blocks = [
        "# 회의실",
        "## 회의실 - 예약",
        "가 " * 120 + "입니다.",
        "참고",
        "나 " * 120 + "입니다.",
        "# 다음",
        "글입니다.",
    ]
    documents = list(merge_blocks(blocks, min_size=30, max_size=400, count=len))
    assert [document.split("\n")[0] for document in documents] == ["# 회의실", "## 회의실 - 예약", "# 다음"]
    assert documents[0].startswith("# 회의실\n## 회의실 - 예약\n가 ")
    assert documents[1].startswith("## 회의실 - 예약\n나 ")
    again = list(merge_blocks("\n\n".join(documents).split("\n\n"), min_size=30, max_size=400, count=len))
    assert again == documents


def test_a_heading_is_a_title_whatever_it_ends_in() -> None:
    document = split_document(["## 누가 예약하나요?", "누구나 예약합니다."])
    assert (document.title, document.passages) == ("누가 예약하나요?", ("누구나 예약합니다.",))


CODE = """# 회의실 프로그램

회의실은 프로그램으로 예약합니다. 예약은 다음과 같습니다:

│ # 예약합니다. 문의 전화: 02-555-0123
│ reserve(room="가람")

예약은 하루 전까지 취소합니다. 주의!
문의 전화: 02-555-0199
"""


def test_code_is_kept_and_is_no_sentence_and_no_contact() -> None:
    text = CODE.replace("\n\n", "\n")
    answer = ask_document(text, "회의실 예약은 어떻게 하나요?")
    assert answer.found and "│ reserve" in answer.sources[0].passage
    lines = [line for name in ("요약", "체크리스트", "상세 설명") for line in answer.sections[name]]
    assert "- 예약은 하루 전까지 취소합니다. [1]" in lines
    for none in ("│", "reserve", "# 예약", "다음과 같습니다", "주의! [1]"):
        assert not any(none in line for line in lines), none
    assert [contact.value for contact in passage_contacts("회의실", answer.sources[0].passage)] == ["+82 2 555 0199"]
    units = read_document(text).units
    assert [unit.role for unit in units if "│" in unit.text] == ["code", "code"]
    assert not any("│" in sentence for sentence in sentences(text))


def test_code_that_ends_alike_in_many_documents_is_no_boilerplate(tmp_path: Path) -> None:
    for i in range(40):
        code = f"```js\nstart({i}, '{i * i}번')\nfinishAll()\n```"
        note = f"# 글 {i}\n\n{code}\n\n{i}번째 글의 설명은 {i * 7}쪽에 있습니다.\n"
        (tmp_path / f"{i:02}.md").write_text(note, encoding="utf-8")
    prepare([str(tmp_path)], tmp_path / "data", PrepareSettings(), stages=["clean"], workers=1)
    assert (tmp_path / "data" / "cleaned.txt").read_text(encoding="utf-8").count("│ finishAll()") == 40
