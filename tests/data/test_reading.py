"""Every way that a text arrives gives the same text; what is no text is refused in one line."""

import gzip
import io
import lzma
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.text import encodings, inputs, reading
from twingpt.data.text.changes import Changes
from twingpt.data.text.inputs import Source, find_sources
from twingpt.data.text.mojibake import repair_mojibake
from twingpt.data.text.reading import read_source

TEXT = (
    "여권을 잃어버렸을 때\n먼저 경찰서에서 분실 신고서(Police Report)를 받습니다. 비용은 약 200페소입니다.\n"
    "☎ 02-8555-0123, 카톡: ph_help\n\n병원 안내\n응급실은 24시간 열려 있습니다. “보험증”과 여권을 가져가세요…\n" * 40
)


def _read(path: Path, changes: Changes | None = None, **options: object) -> str:
    return "".join(text for text, _ in read_source(Source(path.name, path), changes or Changes(), **options))  # type: ignore[arg-type]


def _cp1252_mojibake(text: str) -> str:
    """UTF-8 read as CP1252, with Latin-1 for the five bytes that CP1252 leaves out, as browsers do."""
    return "".join(
        bytes([byte]).decode("cp1252") if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else chr(byte)
        for byte in text.encode()
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_give_the_same_text(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert _read(path) == TEXT


@pytest.mark.parametrize("mojibake", [_cp1252_mojibake, lambda text: text.encode().decode("latin-1")])
def test_mojibake_is_undone(tmp_path: Path, mojibake: object) -> None:
    assert callable(mojibake)
    path = tmp_path / "raw.txt"
    path.write_text(mojibake(TEXT), encoding="utf-8", newline="")
    changes = Changes()
    assert repair_mojibake(_read(path), changes) == TEXT
    assert changes.counts["mojibake lines repaired"] == TEXT.count("\n") - TEXT.count("\n\n")


def test_mojibake_with_lost_bytes_keeps_what_can_be_read() -> None:
    """As in a document that lost the bytes which CP1252 does not know."""
    line = "한국어를 처음부터 학습합니다."
    broken = _cp1252_mojibake(line).replace("\u008d", "").replace("\u00ad", "")
    assert broken != _cp1252_mojibake(line)
    changes = Changes()
    repaired = repair_mojibake(broken, changes)
    assert "를 처음부터 학습합니다." in repaired
    assert changes.counts["characters that mojibake had lost"] == repaired.count("\ufffd") > 0


@pytest.mark.parametrize(
    "line",
    [
        "Café Müller, Peñafrancia, señor, naïve, Dvořák",
        "₱200 – 300, 25 °C, ½ kg, “따옴표”, 3×4, ©2024",
        "Ñiño's à la carte â",
        "한글과 Ångström, São Paulo",
    ],
)
def test_text_that_is_meant_as_it_stands_is_left_alone(line: str) -> None:
    assert repair_mojibake(line, Changes()) == line


def test_mojibake_within_good_korean() -> None:
    good = "전화번호는 문 앞에 있습니다"
    assert repair_mojibake(f"메모: {_cp1252_mojibake(good)} (끝)", Changes()) == f"메모: {good} (끝)"


@given(text=st.text(st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3), min_size=1, max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_hangul_text_survives_cp1252_and_latin1(text: str) -> None:
    assert repair_mojibake(text, Changes()) == text
    assert repair_mojibake(_cp1252_mojibake(text), Changes()) == text
    assert repair_mojibake(text.encode().decode("latin-1"), Changes()) == text


def test_lines_of_cp949_within_utf8(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    lines = TEXT.split("\n")
    path.write_bytes(b"\n".join(line.encode("cp949" if i % 7 == 3 else "utf-8") for i, line in enumerate(lines)))
    changes = Changes()
    assert _read(path, changes) == TEXT
    assert changes.counts["lines read as cp949"] > 10


def test_a_few_undecodable_bytes_are_counted_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes(TEXT.encode() + "여기 ".encode() + b"\xff\xfe" + " 깨짐\n".encode())
    changes = Changes()
    assert _read(path, changes) == TEXT + "여기 \ufffd\ufffd 깨짐\n"
    assert changes.counts["undecodable bytes"] == 2
    assert "깨짐" in changes.examples["undecodable bytes"][0][0]


def test_many_undecodable_bytes_stop_unless_allowed(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes((b"\xff" + "가나다라마바사 ".encode()) * 500)
    with pytest.raises(TwinGPTError, match=r"raw\.txt: 500 of .* are not utf-8.*--max-undecodable") as caught:
        _read(path)
    assert "\n" not in str(caught.value)
    assert _read(path, max_undecodable=0.1).count("\ufffd") == 500


@pytest.mark.parametrize("name", ["raw.txt.gz", "raw.txt.xz", "raw.txt.zst", "misnamed.txt"])
def test_packed_files(tmp_path: Path, name: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    packers = {
        ".gz": gzip.compress,
        ".xz": lzma.compress,
        ".zst": zstandard.ZstdCompressor().compress,
        ".txt": gzip.compress,
    }
    path = tmp_path / name
    path.write_bytes(packers[path.suffix](TEXT.encode()))
    assert _read(path) == TEXT


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_damaged_packed_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    zstandard = pytest.importorskip("zstandard")
    packers = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
    packed = packers[suffix](os.urandom(100_000).hex().encode())
    path = tmp_path / f"raw{suffix}"
    path.write_bytes(packed[: len(packed) // 2] + b"x" * 10)
    with pytest.raises(TwinGPTError, match=r"is damaged, it cannot be unpacked") as caught:
        _read(path)
    assert "\n" not in str(caught.value)


def test_binary_files_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40)
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF" + b"\x00" * 5000 + b"some text")
    for path, told in ((picture, r"is not read \(picture\)"), (program, "looks like a binary file")):
        with pytest.raises(TwinGPTError, match=rf"{path.name} {told}"):
            _read(path)


def test_empty_files_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.touch()
    changes = Changes()
    assert _read(path, changes) == ""
    assert changes.counts == {"empty files": 1}


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "raw.txt"
    path.write_bytes("Grüße aus Köln\n".encode("latin-1"))
    assert _read(path, encoding="latin-1") == "Grüße aus Köln\n"
    with pytest.raises(UsageError, match="klingon"):
        _read(path, encoding="klingon")


def test_folders_are_searched_in_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.md", "b/1.txt.gz", "picture.png", ".hidden.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("글", encoding="utf-8")
    found = [source.path.relative_to(tmp_path).as_posix() for source in find_sources([str(tmp_path)]).sources]
    assert found == ["a.md", "b/1.txt.gz", "b/2.txt"]


def test_missing_and_barren_inputs(tmp_path: Path) -> None:
    with pytest.raises(TwinGPTError, match="does not exist"):
        find_sources([str(tmp_path / "none.txt")])
    with pytest.raises(TwinGPTError, match="holds no file that is read"):
        find_sources([str(tmp_path)])


def test_no_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "raw.txt"
    path.write_text("글", encoding="utf-8")
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything, so the system's answer is given in its place

        def refuse(self: Path, *_: object, **__: object) -> io.BytesIO:
            assert not stat.S_IMODE(self.stat().st_mode)
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    for act in (lambda: _read(path), lambda: inputs.fingerprint(Source("raw.txt", path))):
        with pytest.raises(TwinGPTError, match=r"raw\.txt cannot be read: Permission denied"):
            act()


def test_one_endless_line_comes_in_pieces_cut_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "LINE_BYTES", 1000)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 333)
    monkeypatch.setattr(reading, "HEAD_BYTES", 100)
    monkeypatch.setattr(reading, "FORM_CHARS", 100)
    path = tmp_path / "raw.txt"
    text = "끝없는줄👍" * 3000
    for encoding in ("utf-8", "cp949", "utf-16"):
        content = text if encoding != "cp949" else text.replace("👍", "")
        path.write_bytes(content.encode(encoding))
        pieces = [piece for piece, _ in read_source(Source("raw.txt", path), Changes())]
        assert "".join(pieces) == content and len(pieces) > 5


@given(data=st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_text_or_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        _read(path, max_undecodable=1.0).encode()
    except TwinGPTError as error:
        assert "\n" not in str(error)
