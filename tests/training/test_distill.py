"""Several runs as one model: what they foretell, how it is kept, and a student that is a run like any other."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.killing import killed_at
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.tokens.windows import MostContext
from twingpt.generation.model import load
from twingpt.interchange.convert import convert_model
from twingpt.training import teachers as teachers_module
from twingpt.training.session import TrainRequest, open_session
from twingpt.training.soft_targets import RECORD_FILE, ROWS_FILE, Record, StoredTargets
from twingpt.training.sources import DataFolder
from twingpt.training.teachers import find_teachers, foretell, softmax, student_settings, teach
from twingpt.weights.checkpoint import MODEL_FILE, CheckpointStore, read_checkpoint

SMALL = {"block_size": 32, "n_layer": 1, "n_head": 2, "n_embd": 16, "dropout": 0.1, "activation": "gelu_tanh"}
TRAIN = {"steps": 2, "batch_size": 4, "sample_tokens": 0, "learning_rate": 1e-2, "eval_windows": 2}


def request(run: Path, data: Path | None, backend: str = "reference", **more: object) -> TrainRequest:
    return TrainRequest(run_dir=run, data_dir=data, backend=backend, device="cpu", **more)  # type: ignore[arg-type]


def trained(wanted: TrainRequest, stop_at: int | None = None) -> None:
    session = open_session(wanted)
    list(session.trainer.run(stop_at))
    assert session.lock is not None
    session.lock.release()


@pytest.fixture(scope="module")
def runs(plain_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("teachers")
    paths = [folder / name for name in ("a", "b")]
    for seed, path in enumerate(paths):
        trained(request(path, plain_data, preset="tiny", model=SMALL, train={**TRAIN, "seed": seed}))
    return paths


@pytest.fixture(scope="module")
def taught(plain_data: Path, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the runs have foretold the text."""
    folder = tmp_path_factory.mktemp("student")
    written(folder, plain_data, runs)
    return folder


def written(folder: Path, data: Path, runs: list[Path], *, top: int = 8, weight: float = 0.5) -> None:
    opened = DataFolder.open(data)
    found = find_teachers(runs, opened)
    foretell(folder, found, opened, backend="reference", device="cpu", top=top, weight=weight)


@pytest.mark.parametrize(
    ("tokens", "rows"), [(1000, False), (65, False), (66, False), (33, False), (20, False), (99, True)]
)
def test_every_token_is_foretold_once_with_the_most_before_it(tokens: int, rows: bool) -> None:
    T = 32
    plan = MostContext(tokens, T, rows=rows)
    seen = np.zeros(tokens, dtype=int)
    for window in range(plan.count):
        places, own = plan.places(range(window, window + 1))
        aims = places[:, 1:][own]
        seen[aims] += 1
        end = tokens if window + 1 == plan.count else plan.first(window + 1)
        assert aims.min() >= plan.first(window) and aims.max() < end
        before = aims - places[0, 0]
        least = 1 if rows or window == 0 else T // 2 + 1
        assert before.min() >= least and before.max() <= T
    expected = np.ones(tokens, dtype=int)
    expected[:: T + 1 if rows else tokens] = 0
    assert np.array_equal(seen, expected)


def test_what_is_kept_is_the_mean_of_probabilities(plain_data: Path, runs: list[Path], taught: Path) -> None:
    soft = StoredTargets.open(taught)
    assert soft is not None
    tokens = np.fromfile(plain_data / "train.bin", dtype=np.uint16)
    # The second half of the window that begins at 32 is where its tokens have the most before them.
    window = tokens[32:65].astype(np.int32)
    mean = []
    for run in runs:
        checkpoint = read_checkpoint(CheckpointStore(run).path(2), optimizer=False)
        engine = create_backend("reference", dataclasses.replace(checkpoint.spec, dropout=0.0), EngineConfig())
        engine.load_state(checkpoint.state)
        mean.append(softmax(engine.logits(window[None, :-1]))[0])
    expected = (mean[0] + mean[1]) / 2
    found = soft.of(np.arange(32, 65)[None], window[None, 1:])
    for position in range(16, 32):
        ids, shares = found.ids[0, position], found.shares[0, position]
        assert ids[0] == window[position + 1]
        assert set(ids[1:]) == set(np.argsort(-expected[position])[:8])
        assert shares[1:] == pytest.approx(0.5 * expected[position, ids[1:]], rel=1e-3)
        # What is not kept is the token's that came.
        assert shares.sum() == pytest.approx(1.0, abs=1e-6)
    # The first token of the text is foretold by nobody, and learned as what it is.
    first = soft.of(np.array([[40, 0]]), tokens[:1].astype(np.int32)[None])
    assert first.shares[0, 0, 0] == 1.0 and first.ids[0, 0, 0] == tokens[0]


KILLED = """
from pathlib import Path
from twingpt.training import teachers
from twingpt.training.sources import DataFolder

teachers.machine_memory = lambda: teachers.SHARE_OF_MEMORY * 4 * 600 * 33 * 60
out, data, *runs = map(Path, sys.argv[1:])
opened = DataFolder.open(data)
found = teachers.find_teachers(runs, opened)
count_from_here()
teachers.foretell(out, found, opened, backend="reference", device="cpu", top=8, weight=0.5)
"""


@pytest.mark.parametrize("operation", [1, 2, 5, 6, 8])
def test_what_is_foretold_survives_a_kill(
    operation: int, plain_data: Path, runs: list[Path], taught: Path, tmp_path: Path
) -> None:
    """Between two file operations; then the same call goes on, and the file is the one that nobody touched."""
    folder = tmp_path / "student"
    arguments = [str(path) for path in (folder, plain_data, *runs)]
    assert killed_at(operation, ["mkdir", "open", "write_bytes", "replace"], KILLED, *arguments)
    written(folder, plain_data, runs)
    assert (folder / ROWS_FILE).read_bytes() == (taught / ROWS_FILE).read_bytes()
    record = Record.read(folder)
    assert record is not None and record == Record.read(taught)


def test_what_is_written_is_not_made_again_and_damage_is_noticed(
    plain_data: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = teachers_module.SHARE_OF_MEMORY * 4 * 600 * 33 * 200
    monkeypatch.setattr(teachers_module, "machine_memory", lambda: block)
    written(tmp_path, plain_data, runs)
    whole, record = (tmp_path / ROWS_FILE).read_bytes(), Record.read(tmp_path)
    assert record is not None and record.windows.count > 400
    made: list[range] = []
    real = teachers_module._mean_probabilities

    def noted(*args: Any) -> Any:
        made.append(args[-1])
        return real(*args)

    monkeypatch.setattr(teachers_module, "_mean_probabilities", noted)
    written(tmp_path, plain_data, runs, weight=0.9)
    again = StoredTargets.open(tmp_path)
    assert made == [] and again is not None and again.record.weight == 0.9
    # Where the record counts one block, the file may hold the torn half of the next one.
    size = record.bytes_after(200)
    half = dataclasses.replace(record, done=200, sha256=hashlib.sha256(whole[:size]).hexdigest())
    half.write(tmp_path)
    (tmp_path / ROWS_FILE).write_bytes(whole[:size] + b"torn")
    with pytest.raises(TwinGPTError, match="is not whole"):
        StoredTargets.open(tmp_path)
    written(tmp_path, plain_data, runs)
    assert made[0].start == 200 and (tmp_path / ROWS_FILE).read_bytes() == whole
    os.utime(tmp_path / ROWS_FILE)
    (tmp_path / ROWS_FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(TwinGPTError, match="is damaged"):
        StoredTargets.open(tmp_path)
    written(tmp_path, plain_data, runs)
    assert (tmp_path / ROWS_FILE).read_bytes() == whole


def student(folder: Path, data: Path, runs: list[Path], backend: str, **train: object) -> TrainRequest:
    wanted = request(folder, data, backend, train={"steps": 4, "micro_batch": 2, "save_every": 0, **train})
    return teach(wanted, runs, top=8, weight=0.5)


@pytest.fixture
def copied(taught: Path, tmp_path: Path) -> list[Path]:
    """Two folders with what the runs have foretold, so that every engine is taught the same."""
    folders = [tmp_path / name for name in ("whole", "parts")]
    for folder in folders:
        folder.mkdir()
        for name in (ROWS_FILE, RECORD_FILE):
            (folder / name).write_bytes((taught / name).read_bytes())
    return folders


@pytest.mark.parametrize("backend", ["mps", "mlx", "reference"])
def test_a_student_goes_on_as_if_nothing_had_happened(
    backend: str, plain_data: Path, runs: list[Path], copied: list[Path]
) -> None:
    whole, parts = copied
    trained(student(whole, plain_data, runs, backend))
    trained(student(parts, plain_data, runs, backend), stop_at=3)
    trained(request(parts, None, backend, resume=True))
    files = [CheckpointStore(run).path(4) / MODEL_FILE for run in copied]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_engines_train_the_same_student_and_no_other_model(
    plain_data: Path, runs: list[Path], copied: list[Path], tmp_path: Path
) -> None:
    wanted = [student(folder, plain_data, runs, name) for folder, name in zip(copied, ("mps", "mlx"), strict=True)]
    untaught = dataclasses.replace(wanted[1], run_dir=tmp_path / "untaught", student=False)
    states = []
    for each in (*wanted, untaught):
        trained(each)
        states.append(read_checkpoint(CheckpointStore(each.run_dir).path(4), optimizer=False).state)
    by_engine, by_teachers = (
        max(float(np.abs(states[first][key] - states[1][key]).max()) for key in states[1]) for first in (0, 2)
    )
    assert by_engine < 1e-4 < 1e-3 < by_teachers


def test_a_student_opens_as_any_model(plain_data: Path, runs: list[Path], copied: list[Path], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    folder = copied[0]
    trained(student(folder, plain_data, runs, "reference"))
    convert_model(folder, tmp_path / "hf", "hf", None)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokens = np.fromfile(plain_data / "val.bin", dtype=np.uint16)[None, :32].astype(np.int64)
    with torch.no_grad():
        theirs = opened(torch.from_numpy(tokens)).logits.numpy()
    ours = load(folder, "reference").engine.logits(tokens.astype(np.int32))
    assert np.abs(ours - theirs).max() < 1e-5


def test_the_settings_are_the_teachers_where_none_is_given(
    plain_data: Path, runs: list[Path], copied: list[Path]
) -> None:
    wanted = student(copied[0], plain_data, runs, "reference", steps=7, batch_size=2)
    config = open_session(wanted).config
    assert (config.train.steps, config.train.batch_size, config.train.learning_rate) == (7, 2, 1e-2)
    assert config.model.differences(read_checkpoint(CheckpointStore(runs[0]).path(2)).spec) == []
    (teacher, *_) = find_teachers(runs, DataFolder.open(plain_data))
    by_epochs = student_settings(teacher, {"epochs": 3.0})
    assert by_epochs["epochs"] == 3.0 and "steps" not in by_epochs


def test_what_cannot_teach_is_one_line_and_writes_nothing(
    plain_data: Path, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = tmp_path / "wide"
    trained(request(wide, plain_data, preset="tiny", model={**SMALL, "n_embd": 32}, train=TRAIN))
    out = tmp_path / "student"

    def refused(*paths: Path) -> str:
        with pytest.raises((TwinGPTError, UsageError)) as told:
            student(out, plain_data, list(paths), "reference")
        assert not out.exists()
        return str(told.value)

    assert "of another shape" in refused(runs[0], wide) and "n_embd" in refused(runs[0], wide)
    assert "given twice" in refused(runs[0], runs[1], runs[0])
    assert "does not exist" in refused(tmp_path / "nobody")
    own = DataFolder.fingerprint
    for name, word in (("tokenizer", "another tokenizer"), ("data", "another text")):
        monkeypatch.setattr(DataFolder, "fingerprint", lambda self, name=name: own(self) | {name: "0" * 64})
        assert word in refused(*runs)


def test_a_student_stays_its_teachers(plain_data: Path, runs: list[Path], copied: list[Path], tmp_path: Path) -> None:
    folder, other = copied
    trained(student(folder, plain_data, runs, "reference"), stop_at=2)
    resume = request(folder, plain_data, resume=True)
    with pytest.raises(UsageError, match="add --resume"):
        student(folder, plain_data, runs, "reference")
    with pytest.raises(UsageError, match=r"--weight 0\.9, but .* has 0\.5"):
        teach(resume, runs, top=8, weight=0.9)
    with pytest.raises(TwinGPTError, match="other teachers"):
        teach(resume, runs[:1], top=8, weight=0.5)
    with pytest.raises(UsageError, match="no student"):
        teach(request(runs[0], plain_data, resume=True), runs, top=8, weight=0.5)
    with pytest.raises(TwinGPTError, match="go on with `twingpt distill`"):
        open_session(request(other, plain_data, preset="tiny", model=SMALL, train=TRAIN))
    # Soft targets that weigh more are those of another run.
    record = Record.read(folder)
    assert record is not None
    dataclasses.replace(record, weight=0.7).write(folder)
    with pytest.raises(TwinGPTError, match="trained with other teachers"):
        open_session(resume)
    (folder / RECORD_FILE).unlink()
    with pytest.raises(TwinGPTError, match="is a student, and"):
        open_session(resume)
    teach(resume, runs, top=8, weight=0.5)
    trained(resume)
