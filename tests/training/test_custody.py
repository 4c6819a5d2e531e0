"""Every file that a command reads is the one that its record tells of, and a run's folder holds one run."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_trainer import run_to, session
from twingpt.console import print_json
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.files import CONTACTS_FILE, LIBRARY_FILE, TOKENIZER_FILE
from twingpt.data.text.inputs import find_sources
from twingpt.data.tokens import custody
from twingpt.data.tokens.arrays import TokenArrays
from twingpt.data.tokens.custody import content_of
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.tokenizer import train_tokenizer
from twingpt.generation.model import load
from twingpt.interchange.convert import convert_model
from twingpt.serve.service import ServedModel
from twingpt.training.lock import RunLock
from twingpt.training.session import TrainRequest, open_session
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.run_folder import library_of


@pytest.fixture
def data(plain_data: Path, tmp_path: Path) -> Path:
    """A DATA folder that a test may damage."""
    return Path(shutil.copytree(plain_data, tmp_path / "data"))


@pytest.fixture
def other_data(data: Path, tmp_path: Path) -> Path:
    """DATA with another tokenizer."""
    other = Path(shutil.copytree(data, tmp_path / "other"))
    words = [
        f"{first}{second}{third} " for first in "가나다라마바사" for second in "아자차카타파하" for third in "고노도"
    ]
    tokenizer = train_tokenizer(iter(words * 8), 400)
    assert tokenizer.vocab_size == 400
    tokenizer.save(other / TOKENIZER_FILE)
    dataclasses.replace(Manifest.load(other), tokenizer_sha256=tokenizer.sha256).save(other)
    return other


def _reversed(path: Path) -> None:
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[::-1].copy().tofile(path)


def _too_large(path: Path) -> None:
    tokens = np.fromfile(path, dtype=np.uint16)
    tokens[len(tokens) // 2] = 60_000
    tokens.tofile(path)


@pytest.mark.parametrize("damage", [_reversed, _too_large])
@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_packed_file_of_the_same_size_is_not_the_same(
    tmp_path: Path, data: Path, name: str, damage: Callable[[Path], None]
) -> None:
    run_to(tmp_path / "run", data, "mlx", 2)
    damage(data / name)
    with pytest.raises(TwinGPTError, match=rf"{name} is not the file that .*manifest\.json.*prepare"):
        session(tmp_path / "run", data, "mlx", resume=True)


def test_tokens_above_the_vocabulary_reach_no_engine(tmp_path: Path, data: Path) -> None:
    """Also where the manifest tells of just these."""
    _too_large(data / "train.bin")
    manifest = Manifest.load(data)
    found = content_of(data / "train.bin", np.dtype(np.uint16))
    dataclasses.replace(manifest, train=dataclasses.replace(manifest.train, sha256=found.sha256)).save(data)
    with pytest.raises(TwinGPTError, match=r"train\.bin holds 60,000 where all is below 600"):
        session(tmp_path / "run", data, "mlx")
    assert not (tmp_path / "run").exists()


def test_a_file_is_read_whole_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(custody, "SETTLED_SECONDS", -1.0)
    path, dtype, reads = data / "train.bin", np.dtype(np.uint16), []
    real = custody._read

    def read(*args: Any) -> Any:
        reads.append(args)
        return real(*args)

    monkeypatch.setattr(custody, "_read", read)
    first = content_of(path, dtype)
    assert content_of(path, dtype) == first and len(reads) == 1
    # In place, of the same size, and with the old time put back.
    times = path.stat()
    _reversed(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_of(path, dtype).sha256 != first.sha256 and len(reads) == 2
    next((tmp_path / "cache" / "checked").iterdir()).write_text("[1")
    content_of(path, dtype)
    assert len(reads) == 3


def test_what_has_just_changed_is_not_remembered(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINGPT_CACHE", str(tmp_path / "cache"))
    _reversed(data / "train.bin")
    content_of(data / "train.bin", np.dtype(np.uint16))
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_refuses_costs_only_time(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("TWINGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(custody, "SETTLED_SECONDS", -1.0)
    before = sorted(data.iterdir())
    assert session(tmp_path / "run", data, "mlx").trainer.step == 0
    assert sorted(data.iterdir()) == before


def test_what_came_to_nothing_does_not_reach_the_next_run(tmp_path: Path, data: Path, other_data: Path) -> None:
    (data / CONTACTS_FILE).write_bytes(b"of the first")
    for folder in (data, other_data):
        (folder / LIBRARY_FILE).write_bytes(folder.name.encode())
    run = tmp_path / "run"
    first = session(run, data, "mlx")
    assert (run / CONTACTS_FILE).is_file() and first.lock is not None
    first.lock.release()
    _fit(other_data)
    second = session(run, other_data, "mlx")
    assert (run / TOKENIZER_FILE).read_bytes() == (other_data / TOKENIZER_FILE).read_bytes()
    assert (run / LIBRARY_FILE).read_bytes() == b"other"
    assert not (run / CONTACTS_FILE).exists() and second.lock is not None
    second.lock.release()
    # Nor where the next one knows tokens only.
    arrays = TokenArrays(np.arange(99), np.arange(99))
    model = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8}
    open_session(TrainRequest(run_dir=run, data_dir=None, arrays=arrays, backend="mlx", device="cpu", model=model))
    assert not (run / TOKENIZER_FILE).exists() and not (run / LIBRARY_FILE).exists()


def _fit(folder: Path) -> None:
    """Keep the tokens of a folder below the size of its tokenizer."""
    tokenizer_size = 400
    for name in ("train.bin", "val.bin"):
        tokens = np.fromfile(folder / name, dtype=np.uint16) % tokenizer_size
        tokens.tofile(folder / name)
    manifest = Manifest.load(folder)
    splits = {
        name: dataclasses.replace(
            getattr(manifest, name), sha256=content_of(folder / f"{name}.bin", np.dtype(np.uint16)).sha256
        )
        for name in ("train", "val")
    }
    dataclasses.replace(manifest, vocab_size=tokenizer_size, **splits).save(folder)


def test_a_tokenizer_that_is_not_the_runs_is_refused_by_everyone(tmp_path: Path, data: Path, tokenizer: Any) -> None:
    run = tmp_path / "run"
    run_to(run, data, "mlx", 1)
    (run / LIBRARY_FILE).write_bytes(b"")
    good = (run / TOKENIZER_FILE).read_bytes()
    # Another one that works: the same, written otherwise, would be as good; nobody can see that.
    (run / TOKENIZER_FILE).write_bytes(good + b"\n")
    said = r"tokenizer\.json is not the tokenizer that the model was trained with"
    with pytest.raises(TwinGPTError, match=said):
        load(run, "mlx", "cpu")
    with pytest.raises(TwinGPTError, match=said):
        load(CheckpointStore(run).path(1), "mlx", "cpu")
    with pytest.raises(TwinGPTError, match=said):
        library_of(run)
    with pytest.raises(TwinGPTError, match=said):
        convert_model(run, tmp_path / "hf", "hf", None)
    served = ServedModel(run, "mlx", "cpu")
    found = served.find()
    assert found is not None
    with pytest.raises(TwinGPTError, match=said):
        found()
    # One that is named instead is held against the record too.
    assert convert_model(run, tmp_path / "native", "native", data / TOKENIZER_FILE) == []
    # And going on puts it right.
    session(run, data, "mlx", resume=True)
    assert (run / TOKENIZER_FILE).read_bytes() == good
    assert load(run, "mlx", "cpu").step == 1


def test_other_masks_are_other_data(tmp_path: Path, data: Path) -> None:
    run_to(tmp_path / "run", data, "mlx", 1)
    manifest = Manifest.load(data)
    splits = {}
    for name in ("train", "val"):
        split = getattr(manifest, name)
        np.ones(split.tokens, dtype=np.uint8).tofile(data / f"{name}.mask")
        sha256 = content_of(data / f"{name}.mask", np.dtype(np.uint8)).sha256
        splits[name] = dataclasses.replace(split, mask_file=f"{name}.mask", mask_sha256=sha256)
    dataclasses.replace(manifest, **splits).save(data)
    with pytest.raises(TwinGPTError, match="trained with other mask"):
        session(tmp_path / "run", data, "mlx", resume=True)
    run_to(tmp_path / "masked", data, "mlx", 1)
    (data / "val.mask").write_bytes(bytes(manifest.val.tokens))
    with pytest.raises(TwinGPTError, match=r"val\.mask is not the file"):
        session(tmp_path / "masked", data, "mlx", resume=True)


# One line each


def test_a_busy_run_says_so_before_its_checkpoints_are_looked_at(tmp_path: Path, data: Path) -> None:
    run_to(tmp_path / "run", data, "mlx", 1)
    shutil.rmtree(CheckpointStore(tmp_path / "run").path(1))
    CheckpointStore(tmp_path / "run").path(1).mkdir()
    lock = RunLock(tmp_path / "run")
    for resume in (True, False):
        with pytest.raises(TwinGPTError, match="is being trained by another twingpt"):
            session(tmp_path / "run", data, "mlx", resume=resume)
    lock.release()
    # Who only looks keeps nobody out.
    looking = RunLock(tmp_path / "run", shared=True)
    RunLock.check_free(tmp_path / "run")
    looking.release()


def test_a_run_with_a_byte_order_mark_in_its_settings_is_read(tmp_path: Path, data: Path) -> None:
    run_to(tmp_path / "run", data, "mlx", 1)
    path = tmp_path / "run" / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert session(tmp_path / "run", None, "mlx", resume=True).trainer.step == 1


def test_data_that_is_no_text_is_named(tmp_path: Path, data: Path) -> None:
    run_to(tmp_path / "run", data, "mlx", 1)
    path = tmp_path / "run" / "config.toml"
    path.write_text("data = 7\n" + "\n".join(path.read_text().splitlines()[1:]))
    with pytest.raises(UsageError, match=r"data = 7 in .*config\.toml must be a text"):
        session(tmp_path / "run", None, "mlx", resume=True)


def test_an_empty_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "ckpt.pt").touch()
    with pytest.raises(TwinGPTError, match=r"ckpt\.pt cannot be read as a torch checkpoint: \w+"):
        convert_model(tmp_path / "ckpt.pt", tmp_path / "out", "native", None)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for given in (str(tmp_path / "pipe"), os.devnull):
        with pytest.raises(TwinGPTError, match="is a pipe or a device"):
            find_sources([given])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, data: Path, value: float) -> None:
    with pytest.raises(UsageError, match="--memory-limit"):
        session(tmp_path / "run", data, "mlx", memory_limit=value)


def test_a_model_that_fits_nowhere_is_one_line(tmp_path: Path, data: Path) -> None:
    with pytest.raises(TwinGPTError, match="weights alone take"):
        session(tmp_path / "run", data, "mlx", model={"n_embd": 2**20, "n_head": 2**14, "n_layer": 1000})
    assert not (tmp_path / "run").exists()


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"loss": float("nan"), "runs": [(1.5, float("inf"))], "path": Path("x")})
    told = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert told == {"loss": None, "runs": [[1.5, None]], "path": "x"}


def test_a_mark_of_a_process_that_is_gone_goes(tmp_path: Path, data: Path) -> None:
    run_to(tmp_path / "run", data, "mlx")
    mark = tmp_path / "run" / "running.json"
    mark.write_text('{"pid": 1, "micro_batch": 4, "batch_size": 4}')
    command = [sys.executable, "-m", "twingpt", "train", "--out", tmp_path / "run", "--resume", "--device", "cpu"]
    done = subprocess.run([*map(str, command), "--backend", "mlx"], capture_output=True, text=True, check=True)
    assert "nothing is left to do" in done.stdout
    assert not mark.exists()
