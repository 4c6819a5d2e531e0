"""Each form of file, made as its program makes it: its text arrives, and nothing of the program around it."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from twingpt.core.errors import TwinGPTError
from twingpt.data.text.changes import Changes
from twingpt.data.text.characters import clean_text
from twingpt.data.text.forms.form import ReadAs
from twingpt.data.text.inputs import Source
from twingpt.data.text.reading import read_source
from twingpt.generation.prompts import read_text

SAID = [
    "여권을 잃어버렸는데 어디로 가야 해?",
    "먼저 경찰서에 가서\n분실 신고서를 받으세요.",
    "고마워요. 내일 가 볼게요.",
]
WINDOWS = """홍길동 님과 카카오톡 대화
저장한 날짜 : 2024-05-03 15:10:22

--------------- 2024년 5월 2일 목요일 ---------------
[홍길동] [오후 3:10] 여권을 잃어버렸는데 어디로 가야 해?
[김 영사/민원] [오후 3:11] 먼저 경찰서에 가서
분실 신고서를 받으세요.
[홍길동] [오후 3:12] 사진 2장
김영희님이 들어왔습니다.
[홍길동] [오후 3:12] 이모티콘
--------------- 2024년 5월 3일 금요일 ---------------
[홍길동] [오전 9:00] 고마워요. 내일 가 볼게요.
"""
ANDROID = """홍길동 님과 카카오톡 대화
저장한 날짜 : 2024년 5월 3일 오후 3:10


2024년 5월 2일 오후 3:10
2024년 5월 2일 오후 3:10, 홍길동 : 여권을 잃어버렸는데 어디로 가야 해?
2024년 5월 2일 오후 3:11, 회원님 : 먼저 경찰서에 가서
분실 신고서를 받으세요.
2024년 5월 2일 오후 3:12, 홍길동 : <사진 읽지 않음>
2024년 5월 2일 오후 3:12, 김영희님이 나갔습니다.

2024년 5월 3일 오전 9:00
2024년 5월 3일 오전 9:00, 홍길동 : 고마워요. 내일 가 볼게요.
"""
IOS = """Talk_2024.5.3 15:10-1.txt
저장한 날짜 : 2024. 5. 3. 오후 3:10

2024년 5월 2일 목요일
2024. 5. 2. 오후 3:10, 홍길동 : 여권을 잃어버렸는데 어디로 가야 해?
2024. 5. 2. 오후 3:11, 김 영사 : 먼저 경찰서에 가서
분실 신고서를 받으세요.
2024. 5. 2. 오후 3:12: 홍길동님이 김영희님을 초대했습니다.

2024년 5월 3일 금요일
2024. 5. 3. 오전 9:00, 홍길동 : 고마워요. 내일 가 볼게요.
"""
MAC = (
    "Date,User,Message\n"
    '2024-05-02 15:10:22,"홍길동","여권을 잃어버렸는데 어디로 가야 해?"\n'
    '2024-05-02 15:11:05,"김 영사","먼저 경찰서에 가서\n분실 신고서를 받으세요."\n'
    '2024-05-02 15:12:00,"홍길동","사진"\n'
    '2024-05-03 09:00:00,"홍길동","고마워요. 내일 가 볼게요."\n'
)


def _read(path: Path, told: ReadAs | None = None, changes: Changes | None = None) -> str:
    read = read_source(Source(path.name, path), changes or Changes(), read_as=told)
    return "".join(text for text, _ in read)


def _read_text(tmp_path: Path, content: str | bytes, form: str, changes: Changes | None = None) -> str:
    """What is read of a file that has no telling name; its form must be the one expected."""
    path = tmp_path / "file.txt"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    told = ReadAs("file.txt")
    text = _read(path, told, changes)
    assert told.form == form
    return text


@pytest.mark.parametrize(
    ("export", "form"),
    [
        (WINDOWS, "KakaoTalk chat (Windows)"),
        (ANDROID, "KakaoTalk chat (Android, iOS)"),
        (IOS, "KakaoTalk chat (Android, iOS)"),
        (MAC, "KakaoTalk chat (CSV)"),
    ],
)
@pytest.mark.parametrize("write", [str.encode, lambda text: ("\ufeff" + text.replace("\n", "\r\n")).encode()])
def test_of_a_chat_only_what_was_said_is_text(
    tmp_path: Path, export: str, form: str, write: Callable[[str], bytes]
) -> None:
    changes = Changes()
    text = _read_text(tmp_path, write(export), form, changes)
    assert text.strip().replace("\n\n", "\n") == "\n".join(SAID)
    # A day is a block.
    assert text.strip().count("\n\n") == 1
    assert changes.counts["chat messages kept without name and time"] == 3


def test_text_that_quotes_a_chat_is_no_chat(tmp_path: Path) -> None:
    text = "회의에서 나온 말을 적는다.\n[홍길동] [오후 3:10] 안녕하세요\n그 뒤는 조용했다.\n[참고] 다음에 또 만난다.\n"
    assert _read_text(tmp_path, text, "text") == text


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_of_a_table_the_columns_of_text_are_read(tmp_path: Path, delimiter: str) -> None:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["id", "document", "label"])
    for number in range(5):
        writer.writerow([9976970 + number, f"{number}번째 영화는, 정말; 재미있었다\n다시 보고 싶다", number % 2])
    path = tmp_path / "ratings.txt"
    path.write_text(file.getvalue(), encoding="cp949", newline="")
    told = ReadAs("ratings.txt")
    text = _read(path, told)
    assert (told.form, told.fields) == ("table (CSV, TSV)", ["document"])
    assert text.split("\n\n")[3] == "3번째 영화는, 정말; 재미있었다\n다시 보고 싶다"
    assert "9976970" not in text


def test_a_directory_keeps_names_and_numbers(tmp_path: Path) -> None:
    table = "번호,이름,전화번호,분류\n1,마닐라 대사관,02-555-0123,공관\n2,세부 분관,032-555-0147,공관\n"
    text = _read_text(tmp_path, table, "table (CSV, TSV)")
    assert text.split("\n\n")[:2] == ["마닐라 대사관\n전화번호: 02-555-0123", "세부 분관\n전화번호: 032-555-0147"]


@pytest.mark.parametrize(
    "text",
    [
        "사과, 배, 감을 샀다.\n시장, 가게, 집을 돌았다.\n비가, 눈이, 바람이 왔다.\n",
        "이름, 나이, 그리고 사는 곳을 적습니다.\n그, 저, 그리고 우리가 있습니다.\n가, 나, 다라고 적습니다.\n",
        "사과, 배, 감\n포도, 귤, 밤\n시장, 가게, 집\n",
        "[1] 첫째 각주입니다.\n[2] 둘째 각주입니다.\n",
        "{이것은} 글입니다.\n",
        "x < y 이고 <b>굵은</b> 글자 하나\n그 밖에는 글입니다.\n",
        "---\n구분선 아래의 글입니다.\n---\n",
    ],
)
def test_prose_stays_as_it_stands(tmp_path: Path, text: str) -> None:
    assert _read_text(tmp_path, text, "text") == text


def test_json_lines(tmp_path: Path) -> None:
    records = [
        {"id": str(n), "text": f'{n}번 여권은 "소중히" 다룹니다.\n꼭이요.', "date": "2024-05-03"} for n in range(4)
    ]
    lines = [json.dumps(record) for record in records]
    assert "\\uc5ec\\uad8c" in lines[0]
    changes = Changes()
    text = _read_text(tmp_path, "\n".join([*lines[:2], '{"text": "깨진', *lines[2:]]), "JSON lines", changes)
    assert text.split("\n\n")[:4] == [record["text"] for record in records]
    assert "2024" not in text
    assert changes.counts["lines that are no JSON dropped"] == 1


def test_json_in_the_order_of_its_text(tmp_path: Path) -> None:
    """As SQuAD and KorQuAD have it."""
    asked = [{"id": "6", "question": "언제 세웠나?", "answers": [{"text": "1899년", "answer_start": 4}]}]
    data = {
        "version": "1.0",
        "data": [{"title": "역", "paragraphs": [{"context": "그 역은 1899년에 세웠다.", "qas": asked}]}],
    }
    path = tmp_path / "set.json"
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    told = ReadAs("set.json")
    assert _read(path, told).split("\n\n")[:3] == ["역", "그 역은 1899년에 세웠다.", "언제 세웠나?"]
    assert told.form == "JSON"
    assert told.fields == ["data.title", "data.paragraphs.context", "data.paragraphs.qas.question"]


def test_exports_that_were_encoded_twice(tmp_path: Path) -> None:
    """Facebook and Instagram write the bytes of UTF-8 as characters, and those as escapes."""
    twice = [text.encode().decode("latin-1") for text in (*SAID, "좋아요 👍")]
    messages = [
        {"sender_name": "홍길동".encode().decode("latin-1"), "timestamp_ms": 1714630222000 + n, "content": text}
        for n, text in enumerate(twice)
    ]
    export = json.dumps({"participants": [{"name": messages[0]["sender_name"]}], "messages": messages})
    assert "\\u00ec" in export
    changes = Changes()
    text = clean_text(_read_text(tmp_path, export, "JSON"), changes)
    assert text.split("\n\n")[:4] == [*SAID, "좋아요 👍"]
    assert "홍길동" not in text
    assert changes.counts["mojibake lines repaired"] == 5


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"data": [' + '{"text": "글은 여기에 있습니다."},' * 5000, "JSON"),
        ("<SAMI><BODY>\n<SYNC Start=10초><P Class=KRCC>안녕하세요\n</BODY></SAMI>", "subtitles"),
        (r"{\rtf1\ansi \u99999999? abc}", "RTF"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str, form: str) -> None:
    path = tmp_path / "set.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TwinGPTError, match=rf"set\.json is damaged, it cannot be read as {form}") as caught:
        _read(path)
    assert "\n" not in str(caught.value)


PAGE = """<!DOCTYPE html><html><head><meta charset="euc-kr"><title>여권을 잃어버렸을 때 - 교민 카페</title>
<script>var hidden = "스크립트";</script></head><body>
<nav><ul><li><a href="/">첫 화면</a></li><li><a href="/b">게시판</a></li></ul></nav>
<div class="article"><h1>여권을 잃어버렸을 때</h1>
<p>먼저 경찰서에서 분실 신고서를 받습니다.<br>비용은 200페소 &amp; 사진값입니다.</p>
<p>그다음에 대사관에 가서 &#49352; 여권을 신청합니다. 두 주쯤 걸립니다.</p>
<table><tr><th>장소</th><th>전화</th></tr><tr><td>대사관</td><td>02-555-0123</td></tr></table></div>
<div id="comments"><h3>댓글 2</h3><p>좋은 글 감사합니다</p></div>
<footer>모든 권리는 카페에 있습니다</footer></body></html>"""


def test_of_a_web_page_the_main_text_is_read(tmp_path: Path) -> None:
    text = _read_text(tmp_path, PAGE.encode("cp949"), "HTML")
    for line in ("여권을 잃어버렸을 때", "비용은 200페소 & 사진값입니다.", "대사관 02-555-0123"):
        assert line in text.split("\n")
    assert "가서 새 여권을" in text
    assert not any(word in text for word in ("게시판", "스크립트", "감사합니다", "권리", "<", "&amp;"))


def test_a_fragment_of_html_is_read_whole(tmp_path: Path) -> None:
    text = _read_text(tmp_path, "<p>첫째 글<br>&nbsp;</p><ul><li>하나</li></ul>\n<p>&#50668;&#44428; 글</p>", "HTML")
    assert [line.strip(" *\xa0") for line in text.split("\n") if line.strip()] == ["첫째 글", "하나", "여권 글"]


def test_rtf_in_the_code_page_of_korean(tmp_path: Path) -> None:
    said = "".join(f"\\'{byte:02x}" for byte in "여권을 잃어버렸을 때".encode("cp949"))
    rtf = (
        r"{\rtf1\ansi\ansicpg949\deff0{\fonttbl{\f0\fnil\fcharset129 \'b8\'bc\'c0\'ba \'b0\'ed\'b5\'f1;}}"
        rf"\pard\f0\fs20 {said}\par \uc1\u49352?\u50668?\u44428? OK\par {{\pict\wmetafile8 0102030405}}}}"
    )
    assert _read_text(tmp_path, rtf, "RTF").split("\n")[:2] == ["여권을 잃어버렸을 때", "새여권 OK"]


@pytest.mark.parametrize(
    "subtitles",
    [
        "1\n00:00:01,000 --> 00:00:02,000\n<i>안녕하세요</i>\n\n2\n00:00:02,500 --> 00:00:03,000\n어디\n가세요?\n\n"
        "3\n00:01:00,000 --> 00:01:02,000\n집에 왔다.\n",
        "WEBVTT\n\n00:01.000 --> 00:02.000\n안녕하세요\n\n00:02.500 --> 00:03.000\n어디\n가세요?\n\n"
        "01:00.000 --> 01:02.000\n집에 왔다.\n",
        "<SAMI><HEAD><TITLE>영화</TITLE></HEAD><BODY>\n<SYNC Start=1000><P Class=KRCC>안녕하세요\n"
        "<SYNC Start=2000><P Class=KRCC>&nbsp;\n<SYNC Start=2500><P Class=KRCC>어디<br>가세요?\n"
        "<SYNC Start=3000><P Class=KRCC>&nbsp;\n<SYNC Start=60000><P Class=KRCC>집에 왔다.\n</BODY></SAMI>\n",
    ],
    ids=["srt", "vtt", "smi"],
)
def test_subtitles(tmp_path: Path, subtitles: str) -> None:
    assert _read_text(tmp_path, subtitles, "subtitles") == "안녕하세요\n어디 가세요?\n\n집에 왔다.\n"


def test_front_matter_of_markdown(tmp_path: Path) -> None:
    note = '---\ntitle: "여권 안내"\ndate: 2024-05-03\ntags:\n  - 여권\n---\n\n먼저 경찰서에 갑니다.\n'
    assert _read_text(tmp_path, note, "Markdown") == "# 여권 안내\n\n먼저 경찰서에 갑니다.\n"


def _docx(path: Path) -> None:
    docx = pytest.importorskip("docx")
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    document = docx.Document()
    document.add_heading("여권을 잃어버렸을 때", 1)
    paragraph = document.add_paragraph("먼저 경찰서에 갑니다.")
    inserted, deleted = "넣은 글입니다.", "지운 글입니다."
    for kind, part in (("ins", f"<w:t>{inserted}</w:t>"), ("del", f"<w:delText>{deleted}</w:delText>")):
        paragraph._p.append(parse_xml(f'<w:{kind} {nsdecls("w")} w:id="1" w:author="a"><w:r>{part}</w:r></w:{kind}>'))
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "대사관", "02-555-0123"
    document.add_paragraph("신분증", style="List Bullet")
    document.save(str(path))


_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes" ?>'
_NAMES = 'xmlns:hp="http://www.hancom.co.kr/hwpml/2011/paragraph" xmlns:hs="http://www.hancom.co.kr/hwpml/2011/section"'


def _hwpx(path: Path, *, locked: bool = False) -> None:
    """As Hancom Office writes it: mimetype first, runs in paragraphs, tables and notes inside runs."""

    def said(text: str) -> str:
        return f'<hp:p id="0"><hp:run charPrIDRef="0"><hp:t>{text}</hp:t></hp:run><hp:linesegarray/></hp:p>'

    cells = "".join(f"<hp:tc><hp:subList>{said(text)}</hp:subList></hp:tc>" for text in ("대사관", "02-555-0123"))
    header = f"<hp:ctrl><hp:header><hp:subList>{said('머리말')}</hp:subList></hp:header></hp:ctrl>"
    section = (
        f"{_HEAD}<hs:sec {_NAMES}><hp:p><hp:run><hp:secPr/>{header}<hp:t>여권을 잃어버렸을 때</hp:t></hp:run></hp:p>"
        f"{said('먼저 경찰서에<hp:tab/>갑니다.<hp:lineBreak/>그리고 기다립니다.')}"
        f"<hp:p><hp:run><hp:tbl><hp:tr>{cells}</hp:tr></hp:tbl></hp:run></hp:p></hs:sec>"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mimetype", "application/hwp+zip")
        archive.writestr("Contents/section0.xml", section)
        archive.writestr("Contents/section10.xml", f"{_HEAD}<hs:sec {_NAMES}>{said('마지막 절')}</hs:sec>")
        archive.writestr("Contents/section2.xml", f"{_HEAD}<hs:sec {_NAMES}>{said('가운데 절')}</hs:sec>")
        archive.writestr(
            "META-INF/manifest.xml", "<manifest><encryption-data/></manifest>" if locked else "<manifest/>"
        )


def test_docx(tmp_path: Path) -> None:
    _docx(tmp_path / "note.bin")
    told = ReadAs("note.bin")
    text = _read(tmp_path / "note.bin", told)
    assert told.form == "DOCX"
    lines = [" ".join(line.split()) for line in text.split("\n") if line.strip()]
    expected = ["여권을 잃어버렸을 때", "먼저 경찰서에 갑니다.넣은 글입니다.", "대사관 02-555-0123", "* 신분증"]
    assert lines == expected


def test_hwpx(tmp_path: Path) -> None:
    _hwpx(tmp_path / "note.bin")
    told = ReadAs("note.bin")
    text = _read(tmp_path / "note.bin", told)
    assert told.form == "HWPX"
    expected = (
        "여권을 잃어버렸을 때\n먼저 경찰서에\t갑니다.\n그리고 기다립니다.\n대사관 02-555-0123\n\n가운데 절\n\n마지막 절"
    )
    assert text.strip() == expected


def test_a_locked_hwpx_is_named(tmp_path: Path) -> None:
    _hwpx(tmp_path / "note.hwpx", locked=True)
    with pytest.raises(TwinGPTError, match=r"note\.hwpx is not read \(HWPX locked with a password\): save it without"):
        _read(tmp_path / "note.hwpx")


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_examples_of_the_page_are_what_is_read(tmp_path: Path, language: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / language / "files.md").read_text(encoding="utf-8")
    examples = re.findall(r'```text title="(.+?)"\n(.*?)```\n.*?```text\n(.*?)```', page, re.DOTALL)
    assert [name for name, _, _ in examples] == ["chat.txt", "ratings.tsv"]
    for name, given, read in examples:
        (tmp_path / name).write_text(given, encoding="utf-8")
        assert clean_text(_read(tmp_path / name), Changes()).strip() == read.strip()


def test_a_list_of_prompts_is_taken_line_by_line(tmp_path: Path) -> None:
    """It may look like a table, or like lines of one width."""
    lines = [
        "제목, 본문을 적어 줘",
        "날짜, 장소를 적어 줘",
        "이름, 주소를 적어 줘",
        *["여권을 어디에서 다시 받을 수 있나"] * 12,
    ]
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_text(path, forms=False).split("\n") == lines
    path.write_text("\n".join(lines[:3]), encoding="utf-8")
    assert read_text(path, forms=False).split("\n") == lines[:3]
    path.write_text(PAGE, encoding="utf-8")
    assert "게시판" not in read_text(path)
