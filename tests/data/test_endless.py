"""Input that has no end, or never begins: refused in one line, or told while it comes. Never silent."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from twingpt.commands import data_tables
from twingpt.core.errors import TwinGPTError
from twingpt.data.prepare import stdin as stdin_module
from twingpt.data.prepare.pipeline import Watcher, prepare
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.prepare.stdin import StdinAsFile, stdin_file
from twingpt.data.text.inputs import find_sources
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation import prompts
from twingpt.training.config import read_toml

LINE = "가나다라 마바사 아자차카 타파하.\n".encode()


class Heard(Watcher):
    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.sizes: list[int] = []

    def start(self, stage: str, total: int | None) -> None:
        self.stages.append((stage, total))

    def advance(self, size: int) -> None:
        self.sizes.append(size)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """One that nobody writes to: whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("read", [prompts.read_text, read_toml, Tokenizer.load])
@pytest.mark.parametrize("endless", ["pipe", "/dev/zero", "/dev/urandom"])
def test_what_is_no_file_is_refused_before_it_is_opened(
    pipe: Path, read: Callable[[Path], object], endless: str
) -> None:
    with pytest.raises(TwinGPTError, match=r"pipe or a device|is no file"):
        read(pipe if endless == "pipe" else Path(endless))


def test_a_pipe_in_a_folder_is_told(pipe: Path) -> None:
    (pipe.parent / "a.txt").write_bytes(LINE)
    (pipe.parent / "gone").symlink_to(pipe.parent / "nowhere")
    found = find_sources([str(pipe.parent)])
    assert [source.path.name for source in found.sources] == ["a.txt"]
    assert [one.kind for one in found.unread] == ["link to nothing", "pipe or device"]


@pytest.fixture
def piped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The end of stdin to write to."""
    (tmp_path / "data" / ".stages").mkdir(parents=True)
    out, into = os.pipe()
    with os.fdopen(out, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        yield into


def test_stdin_that_gives_nothing_is_told_each_second(
    tmp_path: Path, piped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stdin_module, "WAIT_S", 0.01)
    heard = Heard()

    def advance(size: int) -> None:
        heard.advance(size)
        if len(heard.sizes) == 3:
            os.write(piped, LINE)
            os.close(piped)

    with StdinAsFile(["-"], tmp_path / "data", lambda: heard.start("stdin", None), advance) as given:
        assert Path(given[0]).read_bytes() == LINE
    assert heard.stages == [("stdin", None)]
    assert heard.sizes[:3] == [0, 0, 0]
    assert sum(heard.sizes) == len(LINE)


def test_stdin_that_is_no_text_is_refused_by_its_first_bytes(tmp_path: Path) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        command = [sys.executable, "-m", "twingpt", "prepare", "-", "--out", str(tmp_path / "data")]
        result = subprocess.run(command, stdin=zeros, capture_output=True, text=True, check=False, timeout=120)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 1, result.stderr
    assert len(errors) == 1
    assert "binary" in errors[0]
    assert not (tmp_path / "data").exists()


def test_stdin_without_end_stops_before_the_disk_is_full(
    tmp_path: Path, piped: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("", (), {"free": 5 * len(LINE)}))
    os.write(piped, LINE)
    heard = Heard()

    def advance(size: int) -> None:
        heard.advance(size)
        os.write(piped, LINE)

    with pytest.raises(TwinGPTError, match=r"has given .* bytes so far"):
        StdinAsFile(["-"], tmp_path / "data", advance=advance).__enter__()
    os.close(piped)
    assert heard.sizes == [len(LINE)]
    assert not stdin_file(tmp_path / "data").exists()


def test_reading_a_large_file_for_its_hash_is_told(tmp_path: Path, korean_text: Callable[[int], str]) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text(korean_text(40), encoding="utf-8")
    heard = Heard()
    prepare(
        [str(raw)], tmp_path / "data", PrepareSettings(template="plain", vocab_size=300), stages=("clean",),
        watcher=heard,
    )  # fmt: skip
    size = raw.stat().st_size
    assert heard.stages == [("reading", size), ("clean", size)]
    assert sum(heard.sizes) == 2 * size


def test_a_text_too_large_for_memory_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zstandard

    monkeypatch.setattr(prompts, "LARGEST_TEXT", 3_000_000)
    packed = tmp_path / "doc.txt.zst"
    packed.write_bytes(zstandard.compress(LINE * 200_000))
    with pytest.raises(TwinGPTError, match="more than 3,000,000 characters"):
        prompts.read_text(packed)


def test_without_a_terminal_a_line_tells_of_it_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 4.0, 12.0, 15.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    lines = data_tables.LinesNowAndThen()
    lines.start("stdin")
    for _ in range(3):
        lines.advance(6_000_000)
    assert capsys.readouterr().err == "stdin: 12.0 MB so far, 1.0 MB/s\n"
