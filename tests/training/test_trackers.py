"""Runs followed by TensorBoard, wandb and trackio: what they hold afterwards, read back with their own formats."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_engine
from twingpt.core.spec import GPTSpec
from twingpt.training import trackers
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.log import MetricsLog, read_metrics
from twingpt.training.record import read_sessions, record_session
from twingpt.training.trackers import followed

CONFIG = RunConfig(model=GPTSpec(vocab_size=16), train=TrainConfig(), data="/somewhere/private")
SAMPLE = "<script>alert(1)</script>\n```\n[a](javascript:b)"


def line(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "loss": loss, "lr": 0.1, "skipped": 0}


def validation(step: int, loss: float) -> dict[str, Any]:
    return {"step": step, "val_loss": loss, "bits_per_byte": loss / 2, "sample": SAMPLE}


def train(run: Path, step: int, lines: list[dict[str, Any]], *names: str) -> list[str]:
    """What a process writes that goes on from the checkpoint of `step`; the warnings that the user sees."""
    run.mkdir(exist_ok=True)
    warnings: list[str] = []
    log = MetricsLog(run, step)
    with followed(log, names, run, CONFIG, step, warnings.append):
        for values in lines:
            log.write(values)
    return warnings


def killed_and_resumed(run: Path, name: str) -> None:
    """Killed at step 6 after a checkpoint of step 4; resumed without the tracker up to 6, with it from there to 8."""
    train(run, 0, [line(step, 10 + step) for step in (1, 2, 3)], name)
    resumed = [line(4, 14), validation(4, 4.5), line(5, 15), line(6, 16)]
    train(run, 3, resumed, name)
    train(run, 4, [line(5, 25), line(6, 26)])
    train(run, 6, [line(7, 27), line(8, 28), validation(8, 4.25)], name)


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_shows_a_resumed_run_once_and_as_it_went_on(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    killed_and_resumed(tmp_path / "run", "tensorboard")
    found = scalars(tmp_path / "run")
    # Steps 5 and 6 were trained twice: it is told of those only that it was there to see.
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert found["val/loss"] == [(4, 4.5), (8, 4.25)]
    assert found["val/bits_per_byte"] == [(4, 2.25), (8, 2.125)]
    assert set(found) == {"train/loss", "train/lr", "train/skipped", "val/loss", "val/bits_per_byte"}


def test_tensorboard_takes_back_what_was_lost(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", 0, [line(step, step) for step in (1, 2, 3, 4)], "tensorboard")
    train(tmp_path / "run", 2, [line(3, 30), line(4, 40)], "tensorboard")
    assert scalars(tmp_path / "run")["train/loss"] == [(1, 1), (2, 2), (3, 30), (4, 40)]


def test_a_run_that_begins_anew_is_another_one(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", 0, [line(step, step) for step in (1, 2, 3)], "tensorboard")
    before = json.loads((tmp_path / "run" / "trackers.json").read_text())
    train(tmp_path / "run", 0, [line(1, 5)], "tensorboard")
    after = json.loads((tmp_path / "run" / "trackers.json").read_text())
    assert before["tensorboard"]["id"] != after["tensorboard"]["id"]
    assert scalars(tmp_path / "run")["train/loss"] == [(1, 5)]


def test_a_tracker_catches_up_on_what_was_trained_without_it(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", 0, [line(1, 1), line(2, 2)])
    train(tmp_path / "run", 2, [line(3, 3)], "tensorboard")
    assert scalars(tmp_path / "run")["train/loss"] == [(1, 1), (2, 2), (3, 3)]


def test_a_sample_is_text_in_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path / "run", 0, [validation(1, 1.0)], "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    (event,) = events.Tensors("val/sample")
    (text,) = event.tensor_proto.string_val
    assert text.decode() == "".join(f"    {each}\n" for each in SAMPLE.split("\n"))


def test_tensorboard_loads_neither_pytorch_nor_tensorflow(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    program = (
        "import sys\nfrom pathlib import Path\nfrom twingpt.training.trackers import Start, TensorBoard\n"
        f"board = TensorBoard(Start(run_dir=Path({str(tmp_path)!r}), id='x', step=0, config={{}}))\n"
        "board.log(1, {'a': 1.0}, 'b')\nboard.finish()\nprint({'torch', 'tensorflow', 'mlx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert scalars(tmp_path) == {"a": [(1, 1.0)]}


def leveldb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    content, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield record
            record = b""


def wandb_history(run: Path) -> tuple[set[str], list[tuple[int, float]], str]:
    """Of all offline runs: (ids, (step, train/loss) in the order of logging, everything that was recorded)."""
    from wandb.proto import wandb_internal_pb2

    ids, losses, everything = set(), [], ""
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        for data in leveldb_records(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            everything += f"\n{record}"
            if record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
            elif record.WhichOneof("record_type") == "history":
                values = {"/".join([item.key, *item.nested_key]).strip("/"): item for item in record.history.item}
                if "train/loss" in values:
                    losses.append((record.history.step.num, json.loads(values["train/loss"].value_json)))
    return ids, losses, everything


def test_wandb_goes_on_with_the_same_run_and_hears_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    killed_and_resumed(tmp_path / "run", "wandb")
    deadline = time.monotonic() + 60
    while True:
        ids, losses, everything = wandb_history(tmp_path / "run")
        # Its service ends a file a moment after the run has finished, with this record.
        if everything.count("\nexit {") == 3 or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert ids == {json.loads((tmp_path / "run" / "trackers.json").read_text())["wandb"]["id"]}
    assert losses == [(1, 11), (2, 12), (3, 13), (4, 14), (5, 15), (6, 16), (7, 27), (8, 28)]
    assert "/somewhere/private" not in everything
    html = "".join(path.read_text() for path in (tmp_path / "run" / "wandb").rglob("*.html"))
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert" not in html


def test_trackio_goes_on_with_the_same_run_and_hears_nothing_twice(tmp_path: Path) -> None:
    pytest.importorskip("trackio")
    # A process of its own: trackio reads its folder from the environment when it is imported.
    program = (
        "from pathlib import Path\nfrom tests.training.test_trackers import killed_and_resumed\n"
        f"killed_and_resumed(Path({str(tmp_path / 'run')!r}), 'trackio')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    with sqlite3.connect(tmp_path / "trackio" / "twingpt.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    database.close()
    runs, losses = set(), []
    for name, step, metrics in rows:
        runs.add(name)
        if "train/loss" in (values := json.loads(metrics)):
            losses.append((step, values["train/loss"]))
    assert losses == [(1, 11), (2, 12), (3, 13), (4, 14), (5, 15), (6, 16), (7, 27), (8, 28)]
    assert runs == {f"run-{json.loads((tmp_path / 'run' / 'trackers.json').read_text())['trackio']['id']}"}


@pytest.mark.parametrize("fails_at", ["open", "log", "finish"])
def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    told: list[int] = []

    class Failing:
        rewrites = False

        def __init__(self, start: trackers.Start) -> None:
            if fails_at == "open":
                raise ConnectionError("no route to host\nand more")

        def log(self, step: int, numbers: dict[str, float], sample: str | None) -> None:
            if fails_at == "log" and step == 2:
                raise ConnectionError("no route to host")
            told.append(step)

        def finish(self) -> None:
            raise ConnectionError("no route to host")

    monkeypatch.setitem(trackers.OPENERS, "wandb", Failing)
    run = tmp_path / "run"
    warnings = train(run, 0, [line(step, 1.0) for step in (1, 2, 3)], "wandb")
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert all(word in warnings[0] for word in ("warning: wandb", "no route to host", "metrics.jsonl"))
    assert [values["step"] for values in read_metrics(run)] == [1, 2, 3]
    assert told == {"open": [], "log": [1], "finish": [1, 2, 3]}[fails_at]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"wandb": 3}', '{"wandb": {"id": "x"}}'])
def test_a_damaged_record_is_a_new_start(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "trackers.json").write_text(content)
    assert train(tmp_path, 1, [line(2, 1.0)], "tensorboard") == []
    assert json.loads((tmp_path / "trackers.json").read_text())["tensorboard"]["told"] == {"loss": 2}


def test_not_finite_values_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path / "run", 0, [{"step": 1, "loss": float("nan"), "lr": 0.5}], "tensorboard")
    assert scalars(tmp_path / "run") == {"train/lr": [(1, 0.5)]}


@pytest.mark.slow
def test_a_run_trained_in_both_engines_is_followed_from_the_command_line(tmp_path: Path, plain_data: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"

    def twingpt(*args: object) -> None:
        command = [sys.executable, "-m", "twingpt", "train", "--out", run, "--device", "cpu", "--log", "tensorboard"]
        subprocess.run([*map(str, command), *map(str, args)], check=True, capture_output=True)

    model = ("--preset", "tiny", "--batch-size", 2, "--block-size", 32, "--log-every", 1, "--eval-every", 2)
    twingpt("--data", plain_data, "--backend", "mlx", "--steps", 4, "--stop-at", 2, *model)
    twingpt("--resume", "--backend", "mps")
    logged = read_metrics(run)
    for tag, name in (("train/loss", "loss"), ("train/memory", "memory"), ("val/loss", "val_loss")):
        expected = [(values["step"], values[name]) for values in logged if name in values]
        found = scalars(run)[tag]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)
    sessions = read_sessions(run)
    assert [(each.step, each.backend, each.device) for each in sessions] == [(0, "mlx", "cpu"), (2, "mps", "cpu")]


def test_a_session_of_which_nothing_is_left_is_forgotten(tmp_path: Path) -> None:
    engine = make_engine("mlx", GPTSpec(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8))
    for step in (0, 0, 20, 40, 20):
        record_session(tmp_path, step, engine, 1, 4)
    with (tmp_path / "sessions.jsonl").open("a") as file:
        file.write('{"step": 60, "star')
    assert [each.step for each in read_sessions(tmp_path)] == [0, 20]
