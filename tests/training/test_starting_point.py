"""`train --from RUN`: a new run with the weights of another one, the same in each engine, and resumable by itself."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.training.log import read_metrics
from twingpt.training.restart import restart_arguments
from twingpt.training.session import Session, TrainRequest, open_session
from twingpt.weights.checkpoint import CheckpointStore, load_checkpoint, read_checkpoint

SMALL = {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0}
TRAIN = {"steps": 4, "batch_size": 2, "sample_tokens": 0, "schedule": "cosine", "min_learning_rate": 1e-5}


def opened(run: Path, data: Path, backend: str = "mps", **options: Any) -> Session:
    session = open_session(TrainRequest(run_dir=run, data_dir=data, backend=backend, device="cpu", **options))
    assert session.lock is not None
    session.lock.release()
    return session


def trained(run: Path, data: Path, backend: str = "mps", stop_at: int | None = None, **options: Any) -> list[str]:
    session = opened(run, data, backend, **options)
    list(session.trainer.run(stop_at))
    return session.notes


@pytest.fixture(scope="module")
def old(plain_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("old") / "run"
    trained(run, plain_data, model=SMALL, train=TRAIN)
    return run


def weights(state: dict[str, np.ndarray[Any, Any]]) -> dict[str, bytes]:
    return {key: array.tobytes() for key, array in state.items() if key.startswith("model/")}


def test_a_new_run_begins_with_the_weights_and_says_its_schedule(
    old: Path, plain_data: Path, tmp_path: Path, backend_name: str
) -> None:
    session = opened(tmp_path / "new", plain_data, backend_name, start_from=old, train={"warmup_steps": 2, "steps": 6})
    first, second = session.notes
    assert first.startswith(f"begins with the weights of {old}/checkpoints/step-00000004 (step 4, validation loss ")
    assert first.endswith("and moments of zero")
    assert second.startswith("a new schedule over 6 steps: from 0.00015, 2 steps of warm-up to 0.0003, then cosine")
    assert f"down to 1e-05; {old} had come to " in second
    start, source = read_checkpoint(tmp_path / "new/checkpoints/step-00000000"), load_checkpoint(old)
    assert weights(start.state) == weights(source.state)
    assert all(not array.any() for key, array in start.state.items() if not key.startswith("model/"))
    # How the other run was trained holds where nothing else is said.
    assert session.config.train.batch_size == 2 and session.config.model == source.spec
    list(session.trainer.run())
    assert [line["step"] for line in read_metrics(tmp_path / "new") if "loss" in line][-1] == 6


def test_both_engines_go_the_same_way(old: Path, plain_data: Path, tmp_path: Path) -> None:
    for backend in ("mps", "mlx"):
        trained(tmp_path / backend, plain_data, backend, start_from=old, moments=True)
    one, other = (load_checkpoint(tmp_path / backend).state for backend in ("mps", "mlx"))
    for key, array in one.items():
        np.testing.assert_allclose(array, other[key], atol=2e-5, rtol=1e-3, err_msg=key)


def test_moments_are_taken_where_they_are_asked_for(old: Path, plain_data: Path, tmp_path: Path) -> None:
    notes = opened(tmp_path / "new", plain_data, start_from=old, moments=True).notes
    assert notes[0].endswith("and its optimizer's moments")
    start, source = read_checkpoint(tmp_path / "new/checkpoints/step-00000000").state, load_checkpoint(old).state
    assert {key: array.tobytes() for key, array in start.items()} == {k: a.tobytes() for k, a in source.items()}


def test_it_is_resumed_without_the_other_run(old: Path, plain_data: Path, tmp_path: Path) -> None:
    """Stopped before its first step, the weights are still those that it began with."""
    gone = tmp_path / "gone"
    shutil.copytree(old, gone)
    opened(tmp_path / "new", plain_data, start_from=gone)
    trained(tmp_path / "whole", plain_data, start_from=gone)
    shutil.rmtree(gone)
    trained(tmp_path / "new", plain_data, resume=True, stop_at=2)
    trained(tmp_path / "new", plain_data, resume=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, other = (tmp_path / run / "checkpoints/step-00000004" / name for run in ("new", "whole"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": {"n_embd": 32}}, r"model\.n_embd = 32, but .* has 16: weights keep the shape"),
        ({"preset": "llama"}, r"model\.\w+ = .*, but .* has "),
        ({"resume": True}, "give one of them"),
        ({"start_from": None, "moments": True}, "--moments goes with --from"),
        ({"moments": True, "train": {"optimizer": "muon"}}, "leave out --moments"),
        ({"model": {"n_embdd": 32}}, "n_embdd"),
    ],
)
def test_what_cannot_be_is_refused(
    old: Path, plain_data: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises((UsageError, TwinGPTError), match=said) as error:
        opened(tmp_path / "new", plain_data, **{"start_from": old, **options})
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_another_tokenizer_is_refused_by_its_hash(old: Path, plain_data: Path, tmp_path: Path) -> None:
    import dataclasses

    from twingpt.data.tokens.manifest import Manifest
    from twingpt.data.tokens.tokenizer import Tokenizer

    data = tmp_path / "data"
    shutil.copytree(plain_data, data)
    # Other bytes, though the tokens are as many.
    content = (data / "tokenizer.json").read_text(encoding="utf-8")
    (data / "tokenizer.json").write_text(content + "\n", encoding="utf-8")
    sha256 = Tokenizer.load(data / "tokenizer.json").sha256
    dataclasses.replace(Manifest.load(data), tokenizer_sha256=sha256).save(data)
    with pytest.raises(TwinGPTError, match=rf"another tokenizer\.json than .* --tokenizer {old}") as error:
        opened(tmp_path / "new", data, start_from=old)
    assert "\n" not in str(error.value) and not (tmp_path / "new").exists()


def test_a_fresh_process_goes_on_with_its_own_run() -> None:
    given = ["train", "--out", "new", "--from", "old", "--moments", "--micro-batch", "8"]
    resumed = ["train", "--out", "new", "--resume", "--micro-batch", "4"]
    assert restart_arguments(given, 4, resume=True) == resumed
    assert restart_arguments(given, 4, resume=False) == [*given[:-2], "--micro-batch", "4"]


def test_a_step_of_zero_is_a_checkpoint_like_another(old: Path, plain_data: Path, tmp_path: Path) -> None:
    trained(tmp_path / "new", plain_data, start_from=old, train={"save_every": 1, "keep_last": 2, "eval_every": 0})
    assert CheckpointStore(tmp_path / "new").steps() == [3, 4]
