"""Files, folders and zips: what is read, in which order, and that nothing is passed over in silence."""

import gzip
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_forms import WINDOWS, _docx, _hwpx, _read
from twingpt.commands.data_tables import _form_rows
from twingpt.core.errors import TwinGPTError
from twingpt.data.prepare.pipeline import prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text import unpacking
from twingpt.data.text.changes import Changes
from twingpt.data.text.inputs import find_sources
from twingpt.data.text.reading import read_source

UNREAD = {
    "a.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
    "b.hwp": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
    "c.png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "d.py": b"import os\n",
    "e.dat": bytes(range(256)) * 4,
}


def _zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_a_folder_and_a_zip_are_read_alike_and_nothing_is_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "안").mkdir(parents=True)
    _docx(folder / "안" / "note.docx")
    _hwpx(folder / "안" / "note.hwpx")
    files = {**UNREAD, "chat.txt": WINDOWS.encode(), "안/글.txt": "압축한 글입니다.".encode(), ".DS_Store": b"x"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    _zip(folder / "inner.zip", {"속.txt": "속에 든 글입니다.".encode()})
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    _zip(tmp_path / "packed.zip", {name: (folder / name).read_bytes() for name in names})

    found = find_sources([str(folder)])
    read = [source.name.removeprefix(f"{folder}/") for source in found.sources]
    assert read == ["chat.txt", "inner.zip/속.txt", "안/note.docx", "안/note.hwpx", "안/글.txt"]
    kinds = {Path(one.name).name: one.kind for one in found.unread}
    assert kinds == {
        "a.pdf": "PDF",
        "b.hwp": "HWP",
        "c.png": "picture",
        "d.py": "program text or settings",
        "e.dat": "binary file",
    }
    zipped = find_sources([str(tmp_path / "packed.zip")])
    assert [one.name.partition(".zip/")[2] for one in zipped.sources] == [name for name in read if "inner" not in name]
    assert {Path(one.name).name for one in zipped.unread} == {*UNREAD, "inner.zip"}
    for source, name in zip(zipped.sources, [name for name in read if "inner" not in name], strict=True):
        assert "".join(text for text, _ in read_source(source, Changes())) == _read(folder / name)


def test_korean_names_in_a_zip_of_windows(tmp_path: Path) -> None:
    """Written in CP949 without the mark of UTF-8, and read by `zipfile` as CP437."""
    info = zipfile.ZipInfo("12345")
    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr(info, "글입니다.")
    content = (tmp_path / "old.zip").read_bytes().replace(b"12345", "글".encode("cp949") + b".md")
    (tmp_path / "old.zip").write_bytes(content)
    sources = find_sources([str(tmp_path / "old.zip")]).sources
    assert [source.name.partition(".zip/")[2] for source in sources] == ["글.md"]
    assert "".join(text for text, _ in read_source(sources[0], Changes())) == "글입니다."


@pytest.mark.parametrize("name", ["a.pdf", "b.hwp"])
def test_a_file_that_is_not_read_is_told_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(UNREAD[name])
    with pytest.raises(TwinGPTError, match=rf"{name} is not read \(\w+\): (?:export|save) it as"):
        find_sources([str(tmp_path / name)])


def test_bombs_are_refused_while_they_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "BOMB_BYTES", 1 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress("가".encode() * (2 << 20)))
    _zip(tmp_path / "bomb.zip", {"a.txt": b"a" * (4 << 20)})
    with pytest.raises(TwinGPTError, match=r"bomb\.txt\.gz grows to more than 200 times its packed size"):
        _read(tmp_path / "bomb.txt.gz")
    with pytest.raises(TwinGPTError, match=r"bomb\.zip grows to more than 200 times its packed size"):
        find_sources([str(tmp_path / "bomb.zip")])


def test_the_report_tells_which_file_was_read_as_what(tmp_path: Path, korean_text: Callable[[int], str]) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "notes.txt").write_text(korean_text(20), encoding="utf-8")
    (folder / "chat.txt").write_text(WINDOWS, encoding="utf-8")
    (folder / "a.pdf").write_bytes(UNREAD["a.pdf"])
    rows = "\n".join(f'{{"id": {n}, "text": "{n}번째 이야기는 이렇게 끝났습니다."}}' for n in range(3))
    (folder / "stories.jsonl").write_text(rows, encoding="utf-8")
    settings = PrepareSettings(template="plain", separator="blank-line", dedup=False)
    report = prepare([str(folder)], tmp_path / "data", settings, stages=("clean",), workers=1).report["clean"]
    told = [(Path(one["name"]).name, one["form"], one["documents"], one.get("fields")) for one in report["read_as"]]
    assert told == [
        ("chat.txt", "KakaoTalk chat (Windows)", 2, None),
        ("notes.txt", "text", 20, None),
        ("stories.jsonl", "JSON lines", 3, ["text"]),
    ]
    assert [one["kind"] for one in report["not_read"]] == ["PDF"]
    text = (tmp_path / "data" / "cleaned.txt").read_text(encoding="utf-8")
    assert "홍길동" not in text and "오후" not in text and "이모티콘" not in text


def test_the_summary_names_forms_and_what_was_not_read() -> None:
    read = [("a.txt", "text", 3), ("b.csv", "table (CSV, TSV)", 2), ("c.csv", "table (CSV, TSV)", 1)]
    clean: dict[str, list[dict[str, Any]]] = {
        "read_as": [{"name": name, "form": form, "documents": count} for name, form, count in read],
        "not_read": [{"name": f"x/{n}.pdf", "kind": "PDF", "way_out": "export it"} for n in range(5)],
    }
    clean["read_as"][1]["fields"] = ["text"]
    assert _form_rows(clean) == [
        ("read as text", "1 file, 3 documents"),
        ("read as table (CSV, TSV)", "1 file, 2 documents, text of text"),
        ("read as table (CSV, TSV)", "1 file, 1 documents"),
        ("not read: PDF", "5 files (0.pdf, 1.pdf, 2.pdf, ...): export it"),
    ]
    assert _form_rows({"read_as": clean["read_as"][:1]}) == _form_rows({}) == []


def test_a_folder_is_read_in_one_order_whatever_form_its_names_have(tmp_path: Path) -> None:
    names = ["가.txt", "나 2.txt", "ㄱ.txt", "한글.txt", "하.txt", "z.txt"]
    orders = []
    for form in ("NFC", "NFD"):
        folder = tmp_path / form
        folder.mkdir()
        for name in names:
            (folder / unicodedata.normalize(form, name)).write_text("글", encoding="utf-8")
        found = find_sources([str(folder)]).sources
        orders.append([unicodedata.normalize("NFC", source.path.name) for source in found])
    assert orders[0] == orders[1]
