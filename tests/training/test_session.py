"""The three steps before training: resolve reads, check refuses, and only open writes."""

from pathlib import Path

import pytest

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.world import Alone
from twingpt.training.session import TrainRequest, check, open_run, resolve

SMALL = {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.0}


def request(run: Path, data: Path, **train: object) -> TrainRequest:
    return TrainRequest(
        run_dir=run, data_dir=data, backend="mlx", device="cpu", preset="tiny", model=SMALL, train=train
    )


def test_nothing_is_written_before_the_run_is_opened(plain_data: Path, tmp_path: Path) -> None:
    wanted = request(tmp_path / "run", plain_data, steps=4, batch_size=2)
    resolved = resolve(wanted)
    assert resolved.config.train.steps == 4 and resolved.checkpoint is None
    checked = check(wanted, resolved, Alone(), lambda: None)
    assert checked.memory.micro_batch in (1, 2) and len(checked.train.spread(0)) > 1
    assert list(tmp_path.iterdir()) == []
    session = open_run(wanted, resolved, checked, Alone(), lambda: None)
    assert (tmp_path / "run" / "config.toml").is_file()
    assert session.lock is not None
    assert list(session.trainer.run())
    assert session.trainer.step == 4


def test_each_step_refuses_what_is_its_own(plain_data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.steps"):
        resolve(request(tmp_path / "run", plain_data, steps=0))
    model = {**SMALL, "block_size": 10**6}
    long = TrainRequest(run_dir=tmp_path / "run", data_dir=plain_data, backend="mlx", device="cpu", model=model)
    resolved = resolve(long)
    with pytest.raises(TwinGPTError, match="fewer than one window"):
        check(long, resolved, Alone(), lambda: None)
    assert list(tmp_path.iterdir()) == []
