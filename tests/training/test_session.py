"""The three steps before training: resolve reads, check refuses, and only open writes."""

import dataclasses
from pathlib import Path

import pytest

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.world import Alone
from twingpt.training.config import RunConfig
from twingpt.training.log import StepReport
from twingpt.training.session import TrainRequest, check, open_run, open_session, resolve
from twingpt.training.trainer import DROPOUT_STREAM
from twingpt.weights.checkpoint import CheckpointStore, read_checkpoint, write_checkpoint

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


def trained(run: Path, data: Path, stop_at: int, *, resume: bool = False, dropout: float = 0.0) -> list[str]:
    """What the user is told before a run of four steps goes to one of them."""
    model, train = {**SMALL, "dropout": dropout}, {"steps": 4, "batch_size": 2, "sample_tokens": 0}
    session = open_session(
        TrainRequest(
            run_dir=run,
            data_dir=data,
            backend="reference",
            resume=resume,
            model={} if resume else model,
            train={} if resume else train,
        )
    )
    list(session.trainer.run(stop_at))
    assert session.lock is not None
    session.lock.release()
    return session.notes


def with_fingerprint(run: Path, name: str, value: str | None) -> None:
    """The run's newest checkpoint, as if made by a version that said this of its numbers, or (None) nothing."""
    checkpoint = read_checkpoint(CheckpointStore(run).path(2))
    recorded = {key: old for key, old in checkpoint.progress.fingerprint.items() if key != name}
    recorded |= {} if value is None else {name: value}
    progress = dataclasses.replace(checkpoint.progress, fingerprint=recorded)
    write_checkpoint(checkpoint.path, checkpoint.spec, checkpoint.state, progress)


@pytest.mark.parametrize("stream", [None, "0"])
def test_other_masks_than_the_run_began_with_are_told_once(
    tmp_path: Path, plain_data: Path, stream: str | None
) -> None:
    assert trained(tmp_path, plain_data, 2, dropout=0.1) == trained(tmp_path, plain_data, 2, resume=True) == []
    with_fingerprint(tmp_path, DROPOUT_STREAM, stream)
    (note,) = trained(tmp_path, plain_data, 3, resume=True)
    assert note.startswith("from step 3 on, other values drop out")
    assert trained(tmp_path, plain_data, 4, resume=True) == []


def test_batches_shuffled_otherwise_are_refused(tmp_path: Path, plain_data: Path) -> None:
    """A run of an earlier version does not say how its batches were shuffled."""
    trained(tmp_path, plain_data, 2)
    with_fingerprint(tmp_path, "order of batches", "0" * 64)
    with pytest.raises(TwinGPTError, match="trained with other order of batches"):
        trained(tmp_path, plain_data, 3, resume=True)
    with_fingerprint(tmp_path, "order of batches", None)
    assert trained(tmp_path, plain_data, 3, resume=True) == []


def test_epochs_become_steps_and_go_on_as_such(plain_data: Path, tmp_path: Path) -> None:
    wanted = request(tmp_path / "run", plain_data, epochs=2.0, eval_epochs=0.5, batch_size=4)
    resolved = resolve(wanted)
    an_epoch = resolved.data.windows(SMALL["block_size"]) / 4  # type: ignore[arg-type]
    train = resolved.config.train
    assert train.steps == round(2 * an_epoch) and train.eval_every == round(an_epoch / 2)
    with pytest.raises(UsageError, match="--steps and --epochs say the same thing"):
        resolve(request(tmp_path / "run", plain_data, epochs=2.0, steps=3))
    # tau = 1 / (lr x decay x updates an epoch), whatever the batch.
    for batch_size in (1, 2):
        decays = resolve(request(tmp_path / "run", plain_data, decay_epochs=3.0, batch_size=batch_size)).config.train
        assert 1 / (decays.learning_rate * decays.weight_decay * an_epoch * 4 / batch_size) == pytest.approx(3.0)
    with pytest.raises(UsageError, match="--weight-decay and --decay-epochs"):
        resolve(request(tmp_path / "run", plain_data, decay_epochs=3.0, weight_decay=0.1))
    # Steps that are given undo the epochs that a file names.
    (tmp_path / "named.toml").write_text("[train]\nepochs = 5.0\n")
    named = dataclasses.replace(request(tmp_path / "run", plain_data, steps=3), config_file=tmp_path / "named.toml")
    assert resolve(named).config.train.steps == 3
    report = next(report for report in open_session(dataclasses.replace(wanted, backend="reference")).trainer.run())
    assert isinstance(report, StepReport)
    assert report.epoch == pytest.approx(1 / an_epoch, rel=0.1)


def test_a_run_of_older_windows_goes_on_with_them(plain_data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained(run, plain_data, 2)
    config = run / "config.toml"
    assert 'cut = "anew"\n' in config.read_text()
    with pytest.raises(TwinGPTError, match="other order of batches"):
        open_session(dataclasses.replace(request(run, plain_data, cut="fixed"), resume=True, preset=None, model={}))
    # What a run of before has no word of was fixed.
    config.write_text(config.read_text().replace('cut = "anew"\n', ""))
    assert RunConfig.load(run).train.cut == "fixed"
