import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import expected_shapes
from twingpt.weights import checkpoint as checkpoint_module
from twingpt.weights import format as format_module
from twingpt.weights.checkpoint import CheckpointStore, Progress, find_checkpoint, read_checkpoint


@pytest.fixture
def state(spec: GPTSpec) -> State:
    generator = np.random.default_rng(0)
    state: State = {
        key: generator.standard_normal(shape).astype(np.float32)
        for key, shape in expected_shapes(spec, optimizer="adamw").items()
    }
    state["adamw.count"] = np.array(7, dtype=np.int64)
    return state


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run")


def test_what_is_saved_comes_back_bit_for_bit(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    progress = Progress(step=7, samples=28, tokens=900, val_loss=2.5, fingerprint={"data": "abc"})
    loaded = read_checkpoint(store.save(spec, state, progress))
    assert loaded.spec == spec
    assert loaded.progress == progress
    assert loaded.state.keys() == state.keys()
    assert all(np.array_equal(loaded.state[key], state[key]) for key in state)


def test_equal_tensors_are_equal_bytes(tmp_path: Path) -> None:
    """The library orders the metadata anew at every call: eight calls would hardly ever agree by chance."""
    metadata = {name: f'"{name}" 한글' for name in "qwertyuiop"}
    written = set()
    for _ in range(8):
        format_module.write_safetensors(tmp_path / "t", {"b": np.arange(3.0), "a": np.ones((2, 2))}, metadata)
        written.add((tmp_path / "t").read_bytes())
    assert len(written) == 1
    tensors, found = format_module.read_safetensors(tmp_path / "t")
    assert found == metadata and tensors["b"].tolist() == [0, 1, 2]


def test_a_transposed_array_is_saved_as_it_reads(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    key = "model/blocks.0.mlp.fc.weight"
    state[key] = np.asfortranarray(state[key])
    assert np.array_equal(read_checkpoint(store.save(spec, state, Progress(step=1))).state[key], state[key])


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_any_flipped_byte_is_detected(store: CheckpointStore, spec: GPTSpec, state: State, file: str) -> None:
    folder = store.save(spec, state, Progress(step=1, fingerprint={"data": "abc"}))
    path = folder / file
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    positions = {*range(200), *generator.integers(0, len(content), 150).tolist(), len(content) - 2}
    for position in sorted(p for p in positions if p < len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            loaded = read_checkpoint(folder)
        except TwinGPTError:
            continue
        # White space and the order of JSON's keys carry nothing: what was loaded must be what was saved.
        assert all(np.array_equal(loaded.state[key], state[key]) for key in state), position
        assert loaded.spec == spec


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_missing_or_cut_file_is_named(store: CheckpointStore, spec: GPTSpec, state: State, file: str) -> None:
    folder = store.save(spec, state, Progress(step=1))
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(TwinGPTError, match=file):
        read_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(TwinGPTError, match=file):
        read_checkpoint(folder)


def test_files_of_two_checkpoints_do_not_mix(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    first = store.save(spec, state, Progress(step=1))
    state["adamw.m/ln_f.bias"] = state["adamw.m/ln_f.bias"] + 1
    second = store.save(spec, state, Progress(step=2))
    shutil.copy(first / "optimizer.safetensors", second / "optimizer.safetensors")
    with pytest.raises(TwinGPTError, match="not the file"):
        read_checkpoint(second)


def test_a_damaged_newest_one_is_named_and_the_one_before_is_used(
    store: CheckpointStore, spec: GPTSpec, state: State
) -> None:
    for step in (1, 2, 3):
        store.save(spec, state, Progress(step=step))
    (store.path(3) / "state.json").write_text("{")
    loaded, damaged = store.load_latest()
    assert loaded is not None
    assert loaded.progress.step == 2
    assert len(damaged) == 1
    assert "step-00000003" in damaged[0]


def test_retention_keeps_the_last_and_the_best(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    for step, loss in enumerate((3.0, 1.0, None, 2.0, 2.5), start=1):
        store.save(spec, state, Progress(step=step, val_loss=loss))
    store.retain(2)
    assert store.steps() == [2, 4, 5]
    assert store.best_step() == 2
    store.retain(0)
    assert store.steps() == [2, 4, 5]


def test_what_a_crash_left_is_no_checkpoint_and_is_cleared(
    store: CheckpointStore, spec: GPTSpec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(spec, state, Progress(step=1))

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint_module, "fsync", crash)
        store.save(spec, state, Progress(step=2))
    assert store.steps() == [1]
    assert len(list(store.folder.iterdir())) == 2
    store.retain(3)
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000001"]


def test_a_full_disk_names_path_and_bytes(
    store: CheckpointStore, spec: GPTSpec, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.save(spec, state, Progress(step=1))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(TwinGPTError, match=r"step-00000002.*disk is full.*bytes"):
        patch.setattr(checkpoint_module, "save_tensors", full)
        store.save(spec, state, Progress(step=2))
    assert [entry.name for entry in store.folder.iterdir()] == ["step-00000001"]


def test_a_whole_checkpoint_is_not_written_again(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    path = store.save(spec, state, Progress(step=1)) / "state.json"
    before = path.stat().st_mtime_ns
    store.save(spec, state, Progress(step=1))
    assert path.stat().st_mtime_ns == before
    path.write_text("{")
    store.save(spec, state, Progress(step=1))
    assert read_checkpoint(store.path(1)).progress.step == 1


def test_a_newer_format_is_refused(store: CheckpointStore, spec: GPTSpec, state: State) -> None:
    folder = store.save(spec, state, Progress(step=1))
    content = json.loads((folder / "state.json").read_text())
    content.pop("sha256")
    content["format_version"] = 99
    digest = checkpoint_module._digest(content)
    (folder / "state.json").write_text(json.dumps({**content, "sha256": digest}))
    with pytest.raises(TwinGPTError, match="format version 99"):
        read_checkpoint(folder)


def test_a_run_its_checkpoints_and_one_checkpoint_are_all_found(
    store: CheckpointStore, spec: GPTSpec, state: State, tmp_path: Path
) -> None:
    with pytest.raises(TwinGPTError, match="does not exist"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(TwinGPTError, match="holds no checkpoint"):
        find_checkpoint(tmp_path)
    for step in (1, 2):
        store.save(spec, state, Progress(step=step))
    assert find_checkpoint(store.folder.parent) == store.path(2)
    assert find_checkpoint(store.folder) == store.path(2)
    assert find_checkpoint(store.path(1)) == store.path(1)
