"""Several runs as one teacher: the mean of their probabilities, token by token, written down for a student.

Averaged predictions of runs that differ in their seeds are better than those of any one of them, and a student learns
most of that (Hinton, Vinyals and Dean, arXiv 1503.02531). The probabilities are averaged, not the logits: what one
teacher holds for impossible stays possible if another does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.checks.causality import startup_check
from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, create_backend
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.memory import machine_memory
from twingpt.core.spec import GPTSpec, build
from twingpt.core.world import launched_for
from twingpt.data.tokens.batches import Batches
from twingpt.data.tokens.windows import MostContext, Tokens
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.guards import free_bytes
from twingpt.training.lock import RunLock
from twingpt.training.session import TrainRequest, check_new
from twingpt.training.soft_targets import TEACHERS, Record, Rows, Writer
from twingpt.training.sources import DataFolder
from twingpt.weights.checkpoint import (
    AVERAGE_FILE,
    MODEL_FILE,
    CheckpointStore,
    load_checkpoint,
    read_checkpoint,
    read_progress,
)

LOGIT_BYTES = 1 << 26
"""Of the logits that an engine hands out at a time."""
SHARE_OF_MEMORY = 16
"""A block's probabilities take this part of the machine's memory at most: the larger a block, the rarer the teachers
have to take turns.
"""
ROWS_AT_A_TIME = 1 << 10

Advance = Callable[[int, int], None]
"""(tokens that are foretold, all of them)"""


@dataclass(frozen=True)
class Teacher:
    """A checkpoint, the digest of the weights that it answers with (the averaged ones, if they are better), its model,
    and the settings of its run.
    """

    path: Path
    weights: str
    spec: GPTSpec
    config: RunConfig


def find_teachers(paths: Sequence[Path], data: DataFolder) -> list[Teacher]:
    """Raises TwinGPTError or UsageError for one that cannot teach a student on this DATA, or not beside the others."""
    teachers = [_find(path, data) for path in paths]
    first = teachers[0]
    for path, teacher in zip(paths[1:], teachers[1:], strict=True):
        differences = [d for d in first.spec.differences(teacher.spec) if not d.startswith("dropout ")]
        if differences:
            raise UsageError(f"{path} is of another shape than {paths[0]} ({', '.join(differences)}): give runs of one")
    for number, (path, teacher) in enumerate(zip(paths, teachers, strict=True)):
        if teacher.weights in (other.weights for other in teachers[:number]):
            raise UsageError(f"--from {path} is given twice, or is a copy of another one: each teaches once")
    return teachers


def _find(path: Path, data: DataFolder) -> Teacher:
    checkpoint = load_checkpoint(path, optimizer=False)
    recorded, wanted = checkpoint.progress.fingerprint, data.fingerprint()
    for name, what in (("tokenizer", "tokenizer"), ("data", "text")):
        if recorded.get(name) != wanted[name]:
            raise TwinGPTError(
                f"{path} was trained with another {what} than {data.folder} has: teachers and student share one DATA"
            )
    config = RunConfig.load(checkpoint.path.parent.parent)
    return Teacher(checkpoint.path, weights_of(checkpoint.path), checkpoint.spec, config)


def weights_of(checkpoint: Path) -> str:
    """The digest of the weights that `read_checkpoint` gives to whoever does not train on."""
    progress, digests = read_progress(checkpoint)
    return digests[AVERAGE_FILE if AVERAGE_FILE in digests and progress.average_is_better else MODEL_FILE]


def student_settings(teacher: Teacher, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a teacher's training, with those in their place that are given."""
    # What fits into memory is found out anew.
    own = {**dataclasses.asdict(teacher.config.train), "micro_batch": 0}
    for steps, epochs in (("steps", "epochs"), ("eval_every", "eval_epochs")):
        by_epochs = epochs in given or (own[epochs] and steps not in given)
        del own[steps if by_epochs else epochs]
    return own | given


def teach(
    request: TrainRequest,
    paths: Sequence[Path],
    *,
    top: int,
    weight: float,
    advance: Advance = lambda done, total: None,
) -> TrainRequest:
    """Have the teachers foretell what the student of a request learns from; returns the request to train it by.

    What interrupted it before makes no difference: it goes on from there. Raises TwinGPTError or UsageError, with
    nothing written, if the runs cannot teach or the folder is not the student's.
    """
    if launched_for() is not None:
        raise UsageError("distill begins in one process: once it has trained a step, `train --resume` takes several")
    assert request.data_dir is not None
    data = DataFolder.open(request.data_dir)
    teachers = find_teachers(paths, data)
    settings = request.train if request.resume else student_settings(teachers[0], request.train)
    build(TrainConfig, settings, "train")
    if request.resume:
        _check_student(request.run_dir, weight)
    else:
        check_new(request.run_dir)
    foretell(
        request.run_dir,
        teachers,
        data,
        backend=request.backend,
        device=request.device,
        top=top,
        weight=weight,
        advance=advance,
    )
    model = request.model if request.resume else {**teachers[0].spec.to_dict(), **request.model}
    return dataclasses.replace(request, student=True, model=model, train=settings)


def _check_student(run_dir: Path, weight: float) -> None:
    """A run that goes on has had these teachers from its first step on, and listened to them as much."""
    store = CheckpointStore(run_dir)
    steps, record = store.steps(), Record.read(run_dir)
    if steps and TEACHERS not in read_progress(store.path(steps[-1]))[0].fingerprint:
        raise UsageError(f"{run_dir} holds a run that is no student: choose another --out")
    if steps and record is not None and record.weight != weight:
        raise UsageError(f"--weight {weight:g}, but {run_dir} has {record.weight:g}: a run goes on as it is")


def foretell(
    run_dir: Path,
    teachers: Sequence[Teacher],
    data: DataFolder,
    *,
    backend: str,
    device: DeviceChoice,
    top: int,
    weight: float,
    advance: Advance = lambda done, total: None,
) -> None:
    """Write into RUN what the teachers foretell of the training text; goes on where it was interrupted.

    Only one model is held at a time, and of the probabilities only those of a block of windows. Raises TwinGPTError if
    the folder holds other soft targets, the disk refuses, or a teacher has changed meanwhile.
    """
    spec = dataclasses.replace(teachers[0].spec, dropout=0.0)
    text = Batches(data.folder, data.manifest, "train", spec.block_size)
    wanted = Record(
        teachers={str(teacher.path.resolve()): teacher.weights for teacher in teachers},
        weight=weight,
        top=min(top, spec.vocab_size),
        data=data.fingerprint()["data"],
        tokens=len(text.tokens),
        vocab_size=spec.vocab_size,
        block_size=spec.block_size,
        rows=data.manifest.layout == "rows",
    )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = RunLock(run_dir)
        try:
            writer = Writer(run_dir, wanted)
            _check_disk(run_dir, writer.record)
            _write(writer, teachers, spec, text.tokens, backend, EngineConfig(device=device), advance)
        finally:
            lock.release()
    except OSError as error:
        raise TwinGPTError(f"{run_dir} cannot be written to: {error.strerror}") from None


def _check_disk(run_dir: Path, record: Record) -> None:
    needed = record.bytes_after(record.windows.count) - record.bytes_after(record.done)
    if (free := free_bytes(run_dir)) < needed:
        raise TwinGPTError(
            f"{run_dir} has {free:,} bytes free, what the teachers foretell needs {needed:,} "
            f"({record.row_type.itemsize} a token): make space, lower --top, or choose another --out"
        )


def _write(
    writer: Writer,
    teachers: Sequence[Teacher],
    spec: GPTSpec,
    tokens: Tokens,
    backend: str,
    config: EngineConfig,
    advance: Advance,
) -> None:
    plan = writer.record.windows
    if writer.record.is_complete:
        # Another weight needs no other rows.
        writer.record.write(writer.run_dir)
        return
    startup_check(backend, spec, config)
    engine = create_backend(backend, spec, config)
    # A window of rows has as many tokens as a row, one of a stream half as many as a block or, the first one, all.
    block = max(1, machine_memory() // SHARE_OF_MEMORY // (4 * spec.vocab_size * (spec.block_size + 1)))
    for start in range(writer.record.done, plan.count, block):
        windows = range(start, min(start + block, plan.count))
        advance(plan.first(start), len(tokens))
        probabilities = _mean_probabilities(engine, teachers, tokens, plan, windows)
        writer.append(_likeliest(probabilities, writer.record.row_type), windows.stop)
    advance(len(tokens), len(tokens))


def _mean_probabilities(
    engine: Backend, teachers: Sequence[Teacher], tokens: Tokens, plan: MostContext, windows: range
) -> NDArray[np.float32]:
    """[n, V] of the n tokens that are for these windows to foretell; zeros where nothing comes before a token."""
    first = plan.first(windows.start)
    end = len(tokens) if windows.stop == plan.count else plan.first(windows.stop)
    mean = np.zeros((end - first, engine.spec.vocab_size), dtype=np.float32)
    for teacher in teachers:
        engine.load_state(_weights(teacher))
        for inputs, kept, aims in _batches(engine.spec, tokens, plan, windows):
            mean[aims - first] += softmax(engine.logits(inputs)[kept])
    mean /= len(teachers)
    return mean


def _weights(teacher: Teacher) -> dict[str, NDArray[Any]]:
    try:
        if weights_of(teacher.path) == teacher.weights:
            return read_checkpoint(teacher.path, optimizer=False).state
    except TwinGPTError as error:
        raise TwinGPTError(f"a teacher is gone: {error}") from None
    raise TwinGPTError(f"{teacher.path} has changed while it taught: let it end its own training first")


def _batches(
    spec: GPTSpec, tokens: Tokens, plan: MostContext, windows: range
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64]]]:
    """(inputs [B, T], which of their positions foretell a token of these windows, the places of those tokens)."""
    size = max(1, LOGIT_BYTES // (4 * spec.vocab_size * spec.block_size))
    for start in range(windows.start, windows.stop, size):
        places, kept = plan.places(range(start, min(start + size, windows.stop)))
        # After the end of the text any token will do: nothing that is kept can see it.
        inputs = tokens[np.maximum(places[:, :-1], 0)].astype(np.int32)
        yield inputs, kept, places[:, 1:][kept]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities


def _likeliest(probabilities: NDArray[np.float32], row: np.dtype[Any]) -> Rows:
    """The likeliest tokens of each of [n, V], the likeliest first."""
    rows = np.zeros(len(probabilities), dtype=row)
    top = rows["ids"].shape[1]
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        part = slice(start, start + ROWS_AT_A_TIME)
        ids = np.argpartition(probabilities[part], -top, axis=1)[:, -top:]
        found = np.take_along_axis(probabilities[part], ids, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows["ids"][part] = np.take_along_axis(ids, order, axis=1)
        rows["probabilities"][part] = np.take_along_axis(found, order, axis=1)
    return rows
