"""`twingpt.train`: a run from Python, on DATA or on arrays of one's own, in both engines."""

import dataclasses
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

import twingpt
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.tokens.arrays import ArrayBatches, TokenArrays
from twingpt.data.tokens.batches import Batches
from twingpt.data.tokens.manifest import Manifest
from twingpt.training.config import RunConfig
from twingpt.training.lock import RunLock
from twingpt.training.log import EvalReport, SaveReport, StepReport, read_metrics
from twingpt.training.recipe import TrainConfig, TrainSettings
from twingpt.training.run import Data, TrainingRun
from twingpt.weights.checkpoint import load_checkpoint

MODEL: dict[str, Any] = {"block_size": 16, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1}
TRAIN: TrainSettings = {"steps": 8, "batch_size": 4, "micro_batch": 2, "log_every": 1, "save_every": 4, "eval_every": 4}

ARRAYS = (np.arange(700) ** 2 % 41, np.arange(90) ** 2 % 41)
FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def start(run: Path, backend: str, data: Data = ARRAYS, **options: Any) -> TrainingRun:
    return twingpt.train(
        run, data=data, backend=backend, device="cpu", preset="tiny", **{"model": MODEL, **TRAIN, **options}
    )


def saved(checkpoint: Path) -> dict[str, bytes]:
    return {name: (checkpoint / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_windows_of_an_array_are_those_of_a_packed_file(plain_data: Path, dtype: type) -> None:
    manifest = Manifest.load(plain_data)
    packed = np.fromfile(plain_data / "train.bin", dtype=np.uint16)
    packed_batches = Batches(plain_data, manifest, "train", 32, seed=3)
    batches = ArrayBatches(packed, 32, seed=3)
    for position in (0, 5, packed_batches.windows - 1, 3 * packed_batches.windows):
        (inputs, targets), (packed_inputs, packed_targets) = (
            each.batch(position, 4) for each in (batches, packed_batches)
        )
        assert np.array_equal(targets, packed_targets)
        # What fills up the last window predicts nothing, and needs no token of its own.
        assert np.array_equal(inputs[targets >= 0], packed_inputs[targets >= 0])
    assert batches.spread(7) == packed_batches.spread(7)
    assert batches.spread(0) == packed_batches.spread(0)
    small = ArrayBatches(np.arange(11, dtype=dtype), 4)
    inputs, targets = small.gather([0, 2])
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.tolist() == [[0, 1, 2, 3], [8, 9, 0, 0]]
    assert targets.tolist() == [[1, 2, 3, 4], [9, 10, -1, -1]]


def test_a_run_on_arrays_has_all_that_a_run_has(backend_name: str, tmp_path: Path, caplog: Any) -> None:
    run = start(tmp_path / "run", backend_name)
    assert run.step == 0
    assert [line for line in run.notes if "vocab_size is 41" in line] == [record.message for record in caplog.records]
    reports = list(run)
    assert [report.step for report in reports if isinstance(report, StepReport)] == list(range(1, 9))
    assert [report.step for report in reports if isinstance(report, SaveReport)] == [4, 8]
    (*_, last) = [report for report in reports if isinstance(report, EvalReport)]
    assert run.evaluation == last.evaluation
    assert last.evaluation.text_bytes == last.evaluation.tokens == len(ARRAYS[1]) - 1
    assert (run.step, last.sample) == (8, None)
    config = RunConfig.load(tmp_path / "run")
    assert (config.data, config.model.vocab_size) == ("<arrays>", 41)
    assert config == run.config
    assert {line["step"] for line in read_metrics(tmp_path / "run")} == set(range(1, 9))
    session = json.loads((tmp_path / "run" / "sessions.jsonl").read_text())
    assert (session["backend"], session["step"]) == (backend_name, 0)
    assert not (tmp_path / "run" / "running.json").exists()
    RunLock(tmp_path / "run").release()
    assert load_checkpoint(tmp_path / "run" / "best").progress.step in (4, 8)


def test_finish_gives_the_last_checkpoint_and_a_resumed_run_is_the_same_bytes(
    backend_name: str, tmp_path: Path
) -> None:
    whole = start(tmp_path / "whole", backend_name).finish()
    assert whole == tmp_path / "whole" / "checkpoints" / "step-00000008"
    with start(tmp_path / "cut", backend_name) as run:
        for report in run:
            if isinstance(report, StepReport) and report.step == 3:
                run.stop()
    assert run.step == 3
    # The same numbers in another integer type are the same arrays.
    same = (ARRAYS[0].astype(np.uint8), ARRAYS[1].astype(np.int32))
    resumed = twingpt.train(tmp_path / "cut", data=same, backend=backend_name, device="cpu", resume=True)
    assert resumed.step == 3
    assert saved(resumed.finish()) == saved(whole)
    assert list(resumed) == []
    again = twingpt.train(tmp_path / "cut", data=same, backend=backend_name, device="cpu", resume=True)
    assert again.finish() == tmp_path / "cut" / "checkpoints" / "step-00000008"


def test_a_run_that_is_left_gives_its_folder_up(tmp_path: Path) -> None:
    run = start(tmp_path / "run", "reference")
    next(run)
    with pytest.raises(TwinGPTError, match="is being trained by another twingpt"):
        twingpt.train(tmp_path / "run", data=ARRAYS, backend="reference", resume=True)
    run.close()
    assert not (tmp_path / "run" / "running.json").exists()
    # One that was never begun has nothing to end but its lock.
    kept = twingpt.train(tmp_path / "run", data=ARRAYS, backend="reference", resume=True)
    kept.close()
    RunLock(tmp_path / "run").release()


def test_other_arrays_are_refused_on_resume(tmp_path: Path, plain_data: Path) -> None:
    start(tmp_path / "run", "reference", stop_at=2).finish()

    def resume(data: Data, **options: Any) -> None:
        twingpt.train(tmp_path / "run", data=data, backend="reference", resume=True, **options)

    other = ARRAYS[1].copy()
    other[-1] = (other[-1] + 1) % 41
    with pytest.raises(TwinGPTError, match="was trained with other data"):
        resume((ARRAYS[0], other))
    with pytest.raises(TwinGPTError, match="was trained with other data"):
        resume((ARRAYS[1], ARRAYS[0]))
    with pytest.raises(TwinGPTError, match="was trained with other token_bytes"):
        resume(ARRAYS, token_bytes=np.full(41, 2))
    with pytest.raises(TwinGPTError, match=r"was trained on arrays of tokens: go on in Python"):
        resume(None)
    with pytest.raises(UsageError, match=r"model\.vocab_size = 41, but the tokenizer"):
        resume(plain_data)
    with pytest.raises(UsageError, match=r"the array train holds token 99, but model\.vocab_size = 41"):
        resume((np.append(ARRAYS[0], 99), ARRAYS[1]))
    with pytest.raises(UsageError, match="learningrate"):
        resume(ARRAYS, learningrate=1.0)


def test_token_bytes_and_vocab_size_can_be_given(tmp_path: Path, caplog: Any) -> None:
    run = start(tmp_path / "run", "reference", model={**MODEL, "vocab_size": 50}, token_bytes=np.arange(50), stop_at=4)
    assert not [line for line in run.notes if "vocab_size" in line]
    run.finish()
    assert run.evaluation is not None
    assert run.evaluation.text_bytes == ARRAYS[1][1:].sum()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((np.arange(40.0), np.arange(40)), "the array train is 1-D float64: give a 1-D NumPy array of integers"),
        ((np.arange(40), np.arange(40).reshape(4, 10)), "the array val is 2-D int64"),
        ((list(range(40)), np.arange(40)), "the array train is list"),
        ((np.arange(40) > 3, np.arange(40)), "the array train is 1-D bool"),
        ((np.arange(40) - 1, np.arange(40)), "the array train holds -1: give numbers from 0 on"),
        ((np.arange(40), np.arange(1)), "the array val holds 1 tokens: give 2 or more"),
        ((np.arange(16), np.arange(40)), "fewer than one window of block_size 16"),
        ((np.arange(40),), r"data holds 1 arrays: give \(train_tokens, val_tokens\)"),
        (np.arange(40), "data is ndarray: give a DATA folder, or"),
        (None, "--data is missing"),
    ],
)
def test_arrays_that_cannot_be_meant_are_one_line(data: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as raised:
        start(tmp_path / "run", "reference", data)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_token_bytes_that_cannot_be_meant_are_one_line(tmp_path: Path, plain_data: Path) -> None:
    with pytest.raises(UsageError, match="token_bytes has 7 entries: give one for each of 41 tokens"):
        start(tmp_path / "run", "reference", token_bytes=np.ones(7, dtype=np.int64))
    with pytest.raises(UsageError, match="token_bytes belongs to arrays"):
        start(tmp_path / "run", "reference", plain_data, token_bytes=np.ones(7, dtype=np.int64))


def test_a_run_on_data_is_the_one_of_the_command(
    plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[model]\nblock_size = 16\nn_layer = 1\nn_head = 2\nn_embd = 16\n[train]\nsample_tokens = 4\n")
    mine = twingpt.train(
        str(tmp_path / "mine"),
        data=str(plain_data),
        backend="torch",
        device="cpu",
        config=str(config),
        steps=2,
        batch_size=2,
        micro_batch=2,
    )
    checkpoint = mine.finish()
    words = ["train", "--out", tmp_path / "theirs", "--data", plain_data, "--device", "cpu", "--config", config]
    run_command([*words, "--steps", 2, "--batch-size", 2, "--micro-batch", 2], monkeypatch)
    assert saved(checkpoint) == saved(tmp_path / "theirs" / "checkpoints" / "step-00000002")
    read = [tomllib.loads((tmp_path / name / "config.toml").read_text()) for name in ("mine", "theirs")]
    assert read[0] == read[1]
    assert twingpt.load(checkpoint, "mps", "cpu").step == 2


def run_command(words: list[Any], monkeypatch: pytest.MonkeyPatch) -> int:
    from twingpt.cli import main

    monkeypatch.setattr("sys.argv", ["twingpt", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def without_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    start(folder, "reference", stop_at=4).finish()
    return folder


NO_TOKENIZER = "was trained on arrays of tokens, so it has no tokenizer"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda run, _: ["generate", run, "--prompt", "a"], NO_TOKENIZER),
        (lambda run, data: ["eval", run, "--data", data], NO_TOKENIZER),
        (lambda run, _: ["serve", run, "--port", 0], NO_TOKENIZER),
        (lambda run, _: ["ask", run, "a"], "was trained on arrays of tokens, so there is no text"),
        (lambda run, _: ["ask", run / "best", "a"], "was trained on arrays of tokens, so there is no text"),
        (lambda run, _: ["train", "--out", run, "--resume"], "was trained on arrays of tokens: go on in Python"),
    ],
)
def test_a_command_that_needs_text_says_so_in_one_line(
    words: Callable[[Path, Path], list[Any]],
    said: str,
    without_text: Path,
    plain_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(words(without_text, plain_data), monkeypatch) in (1, 2)
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1


def test_a_report_needs_no_text(without_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jinja2")
    assert run_command(["report", without_text], monkeypatch) == 0
    assert (without_text / "report.html").is_file()


def test_the_settings_that_can_be_given_by_name_are_those_of_a_run() -> None:
    config = get_type_hints(TrainConfig)
    assert get_type_hints(TrainSettings) == {each.name: config[each.name] for each in dataclasses.fields(TrainConfig)}


def test_the_hash_sees_every_token_and_which_array_it_is_in() -> None:
    first, second = TokenArrays(np.arange(9), np.arange(5)), TokenArrays(np.arange(5), np.arange(9))
    assert first.fingerprint()["data"] != second.fingerprint()["data"]
    joined = TokenArrays(np.arange(8), np.arange(6))
    assert first.fingerprint()["data"] != joined.fingerprint()["data"]
    assert first.fingerprint() == TokenArrays(np.arange(9, dtype=np.uint8), np.arange(5, dtype=">i2")).fingerprint()


def test_several_ranks_are_left_to_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twingpt.training.run.launched_for", lambda: "mps")
    with pytest.raises(UsageError, match="several ranks are trained by the command"):
        start(tmp_path / "run", "mps")
    assert list(tmp_path.iterdir()) == []
