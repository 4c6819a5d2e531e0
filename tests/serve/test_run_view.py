import json
import os
import subprocess
import sys
from pathlib import Path

from fastapi.testclient import TestClient

from twingpt.serve.run_view import CHUNK_BYTES, RunView
from twingpt.training.restart import RunningMark


def test_lines_come_once_and_whole(client: TestClient, run_dir: Path) -> None:
    first = client.get("/api/metrics").json()
    assert first["restart"] is True
    assert [line["step"] for line in first["lines"]] == [1, 2, 2]
    # JSON has no NaN, and U+2028 does not end a line.
    assert first["lines"][1]["loss"] is None
    assert first["lines"][2]["sample"] == "여권\u2028대사관"
    place = {"file": first["file"], "offset": first["offset"]}
    assert client.get("/api/metrics", params=place).json()["lines"] == []
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "loss": 5.0}\n{"step": 4, "lo')
    grown = client.get("/api/metrics", params=place).json()
    assert (grown["restart"], grown["lines"]) == (False, [{"step": 3, "loss": 5.0}])
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('ss": 4.0}\n')
    rest = client.get("/api/metrics", params={"file": grown["file"], "offset": grown["offset"]}).json()
    assert rest["lines"] == [{"step": 4, "loss": 4.0}]


def test_a_resumed_run_is_read_anew(run_dir: Path) -> None:
    view = RunView(run_dir)
    first = view.metrics("", 0)
    other = run_dir / "other"
    other.write_text('{"step": 1, "loss": 1.0}\n')
    other.replace(run_dir / "metrics.jsonl")
    again = view.metrics(first.file, first.offset)
    assert again.restart
    assert [line["loss"] for line in again.lines] == [1.0]


def test_a_file_in_the_old_ones_place_is_read_anew(run_dir: Path) -> None:
    """Same file, shorter or with other lines: an offset beyond its end, or within a line."""
    view = RunView(run_dir)
    first = view.metrics("", 0)
    for offset in (first.offset + 100, first.offset - 3):
        assert view.metrics(first.file, offset).restart


def test_long_files_come_in_pieces(run_dir: Path) -> None:
    line = json.dumps({"step": 1, "sample": "가" * 100}) + "\n"
    (run_dir / "metrics.jsonl").write_text(line * (3 * CHUNK_BYTES // len(line.encode())))
    view, file, offset, lines, more = RunView(run_dir), "", 0, 0, True
    while more:
        chunk = view.metrics(file, offset)
        file, offset, more = chunk.file, chunk.offset, chunk.more
        lines += len(chunk.lines)
    assert lines == 3 * CHUNK_BYTES // len(line.encode())


def test_a_run_without_metrics_has_none(tmp_path: Path) -> None:
    chunk = RunView(tmp_path).metrics("a-b", 5)
    assert chunk.restart
    assert chunk.lines == []
    assert RunView(tmp_path).describe() == {"newest_step": None, "process": None, "train": {}}


def test_whether_a_process_trains_is_told_before_its_first_line(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").unlink()
    view = RunView(run_dir)
    assert view.describe()["process"] is None
    RunningMark(os.getpid(), 2, 2).write(run_dir)
    assert view.describe()["process"] == "running"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    RunningMark(gone.pid, 2, 2).write(run_dir)
    assert view.describe()["process"] == "killed"


def test_what_is_no_line_of_metrics_is_left_out(run_dir: Path) -> None:
    (run_dir / "metrics.jsonl").write_bytes(b'[1]\nnull\n{"loss": 1}\n{"step": "x"}\n\xff\xfe\n\n{"step": 9}\n')
    assert RunView(run_dir).metrics("", 0).lines == [{"step": 9}]
