"""Checkpoints that are whole or not there, whenever a process is interrupted.

RUN/checkpoints/step-00001000/{model,optimizer}.safetensors + state.json, and average.safetensors where the run keeps an
average of its weights. A checkpoint is written under another name: first the tensors, then state.json, and each file
is flushed to the disk. One atomic rename then gives it its name, so that a folder of that name is always whole.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from twingpt.core.backend import State
from twingpt.core.errors import NotFiniteError, TwinGPTError, UsageError
from twingpt.core.language import os_reason, tr
from twingpt.core.spec import GPTSpec, check_types
from twingpt.core.state import MODEL, check_state, first_not_finite
from twingpt.weights.format import fsync, load_tensors, save_tensors, write_whole

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
STATE_FILE = "state.json"
STATE_VERSION = 1
BESIDE = ("unlogged", "skipped", "average_loss")
"""What of the progress stands beside it in state.json."""

BEST = "best"
"""RUN/best is no folder but a name for one of RUN's checkpoints."""

_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".writing-"
_DISCARDED = ".deleting-"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: everything but the tensors.

    step: updates done; samples: windows consumed; tokens: targets counted; val_loss: nats a token, if this step was
    evaluated; fingerprint: what a resumed run must agree with (data, tokenizer), by name; unlogged: the updates since
    the last line of metrics, each [loss in nats, tokens, gradient norm, whether it was applied], None where a number is
    not finite: the next line of metrics is about them too; skipped: how many of the last updates in a row could not be
    applied; average_loss: val_loss of the averaged weights, where there are any.
    """

    step: int
    samples: int = 0
    tokens: int = 0
    val_loss: float | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    unlogged: list[list[Any]] = field(default_factory=list)
    skipped: int = 0
    average_loss: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "progress")
        if min(self.step, self.samples, self.tokens, self.skipped) < 0:
            raise UsageError(tr("progress counts from 0"))
        if not _is_text_table(self.fingerprint):
            raise UsageError(tr("progress.fingerprint must name texts"))
        if not isinstance(self.unlogged, list) or not all(map(_is_update, self.unlogged)):
            raise UsageError(tr("unlogged must list updates"))

    @property
    def lowest_loss(self) -> float:
        """Of the weights or of their average, whichever is better; infinite if neither was evaluated."""
        return min(math.inf if loss is None else loss for loss in (self.val_loss, self.average_loss))

    @property
    def average_is_better(self) -> bool:
        return self.average_loss is not None and (self.val_loss is None or self.average_loss < self.val_loss)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: spec, state (keys of core.state) and progress.

    average: the averaged weights, with the same keys, if there are any and training is to go on.
    """

    path: Path
    spec: GPTSpec
    state: State
    progress: Progress
    average: State | None = None


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self._saved: int | None = None

    def save(self, spec: GPTSpec, state: State, progress: Progress, average: State | None = None) -> Path:
        """Write one checkpoint. average: the averaged weights, if there are any.

        Raises TwinGPTError if the disk refuses, and NotFiniteError if the state has a number that is not finite. The
        checkpoints before it stay as they are.

        A whole checkpoint of the same step is not written again, because it would be missing for a moment.
        """
        target = self.path(progress.step)
        writing = self.folder / f"{_UNFINISHED}{target.name}"
        with contextlib.suppress(TwinGPTError):
            self._read(progress.step)
            self._saved = progress.step
            return target
        for tensors in (state, average or {}):
            if (key := first_not_finite(tensors)) is not None:
                raise NotFiniteError(tr("step {step}", step=progress.step), key)
        try:
            _remove(writing)
            writing.mkdir(parents=True)
            write_checkpoint(writing, spec, state, progress, average)
            if target.exists():
                self._discard(target)
            writing.rename(target)
            fsync(self.folder)
            fsync(self.folder.parent)
        except OSError as error:
            _remove(writing)
            raise _write_error(target, state, error) from None
        self._saved = progress.step
        return target

    def record(self, progress: Progress) -> None:
        """Write the losses of an evaluation into the checkpoint of its step, which was saved before.

        Raises TwinGPTError if it cannot be read or the disk refuses. The checkpoint then stays as it was.
        """
        folder = self.path(progress.step)
        known, digests = read_progress(folder)
        evaluated = replace(known, val_loss=progress.val_loss, average_loss=progress.average_loss)
        content = _state_content(digests, evaluated)
        try:
            write_whole(folder / STATE_FILE, content)
        except OSError as error:
            raise TwinGPTError(
                tr("{path} cannot be written: {reason}", path=folder / STATE_FILE, reason=os_reason(error))
            ) from None

    def stand_on(self, step: int) -> None:
        """Go on from this step. Newer checkpoints are damaged, so they do not count among those that are kept."""
        self._saved = step

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first. Raises TwinGPTError if the folder cannot be read."""
        if self.folder.is_symlink() and not self.folder.exists():
            raise TwinGPTError(
                tr(
                    "{folder} is a link to {target}, which is not there: "
                    "connect the disk that the checkpoints are on, or delete the link",
                    folder=self.folder,
                    target=self.folder.readlink(),
                )
            )
        try:
            names = {entry.name for entry in self.folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TwinGPTError(
                tr("{folder} cannot be read: {reason}", folder=self.folder, reason=os_reason(error))
            ) from None
        steps = {int(match[1]) for name in names if (match := _STEP.fullmatch(name))}
        return sorted(step for step in steps if self.path(step).name in names)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def load_latest(self, *, optimizer: bool = True) -> tuple[Checkpoint | None, list[str]]:
        """(newest readable checkpoint or None, one line for each newer one that is damaged).

        optimizer: read the optimizer's state too.
        """
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return self._read(step, optimizer=optimizer), damaged
            except TwinGPTError as error:
                damaged.append(str(error))
        return None, damaged

    def best_step(self) -> int | None:
        """The step of the lowest recorded validation loss among the checkpoints at hand."""
        return self._best(self.steps())

    def best_loss(self, up_to: int) -> float:
        """The lowest validation loss recorded up to a step; infinite if there is none."""
        return min((self._val_loss(step) for step in self.steps() if step <= up_to), default=math.inf)

    def retain(self, last: int) -> None:
        """Delete all but the newest `last` (0: all are kept) and the best; clear away what a crash left behind."""
        self.clear()
        # What is newer than the last save was passed over as damaged on resume: it must not count as one that is kept.
        steps = [step for step in self.steps() if self._saved is None or step <= self._saved]
        if last > 0:
            best = self._best(steps)
            for step in steps[:-last]:
                if step != best:
                    self._discard(self.path(step))

    def clear(self) -> None:
        """Delete what a save or a deletion that was interrupted left behind."""
        for leftover in self.folder.glob(".*ing-*"):
            _remove(leftover)

    def _read(self, step: int, *, optimizer: bool = True) -> Checkpoint:
        checkpoint = read_checkpoint(self.path(step), optimizer=optimizer)
        if checkpoint.progress.step != step:
            raise TwinGPTError(
                tr(
                    "{checkpoint} is of step {step}: it was copied or renamed",
                    checkpoint=checkpoint.path,
                    step=checkpoint.progress.step,
                )
            )
        return checkpoint

    def _best(self, steps: list[int]) -> int | None:
        losses = {step: loss for step in steps if math.isfinite(loss := self._val_loss(step))}
        return min(losses, key=lambda step: losses[step]) if losses else None

    def _val_loss(self, step: int) -> float:
        with contextlib.suppress(TwinGPTError):
            return read_progress(self.path(step))[0].lowest_loss
        return math.inf

    def _discard(self, path: Path) -> None:
        # Renamed first: a deletion that is interrupted must not leave half a checkpoint under a valid name.
        trash = path.with_name(_DISCARDED + path.name)
        _remove(trash)
        path.rename(trash)
        _remove(trash)


def write_checkpoint(
    folder: Path, spec: GPTSpec, state: State, progress: Progress, average: State | None = None
) -> None:
    """Fill an existing folder: tensors first, then the marker. Raises OSError."""
    model, optimizer = _split(state)
    digests = {MODEL_FILE: save_tensors(folder / MODEL_FILE, model, spec)}
    if optimizer:
        digests[OPTIMIZER_FILE] = save_tensors(folder / OPTIMIZER_FILE, optimizer, spec)
    if average is not None:
        digests[AVERAGE_FILE] = save_tensors(folder / AVERAGE_FILE, _split(average)[0], spec)
    path = folder / STATE_FILE
    path.write_bytes(_state_content(digests, progress))
    fsync(path)
    fsync(folder)


def _state_content(digests: dict[str, str], progress: Progress) -> bytes:
    """What state.json holds."""
    told = asdict(progress)
    # Beside the progress, and only where there are any: version 0.1 reads what it does not know there.
    beside = {name: value for name in BESIDE if (value := told.pop(name))}
    content = {"format_version": STATE_VERSION, "files": digests, "progress": told, **beside}
    return (json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n").encode()


def read_checkpoint(folder: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises TwinGPTError naming the file that is damaged, NotFiniteError if
    every bit is as it was saved, and what was saved is of no use.

    optimizer: read the optimizer's state too, which is twice as large as the weights and only training needs. Without
    it the weights are those that predict better: those of the step, or their average.
    """
    progress, digests = read_progress(folder)
    averaged = AVERAGE_FILE in digests and (optimizer or progress.average_is_better)
    average: State | None = None
    if averaged:
        spec, average = _weights(folder / AVERAGE_FILE, digests)
    if optimizer or average is None:
        spec, state = _weights(folder / MODEL_FILE, digests)
    else:
        state, average = average, None
    if optimizer and OPTIMIZER_FILE in digests:
        _, moments, digest = load_tensors(folder / OPTIMIZER_FILE)
        _expect(digests[OPTIMIZER_FILE], digest, folder / OPTIMIZER_FILE)
        state.update(moments)
    try:
        for tensors in (state, *([] if average is None else [average])):
            check_state(spec, tensors)
            if (key := first_not_finite(tensors)) is not None:
                raise NotFiniteError(str(folder), key)
    except NotFiniteError:
        raise
    except TwinGPTError as error:
        raise TwinGPTError(tr("{folder} is damaged: {error}", folder=folder, error=error)) from None
    return Checkpoint(folder, spec, state, progress, average)


def _weights(path: Path, digests: dict[str, str]) -> tuple[GPTSpec, State]:
    spec, tensors, digest = load_tensors(path)
    _expect(digests.get(path.name), digest, path)
    return spec, {MODEL + name: tensor for name, tensor in tensors.items()}


def read_progress(folder: Path) -> tuple[Progress, dict[str, str]]:
    """(progress, digest of each tensor file) of a checkpoint, without reading its tensors."""
    path = folder / STATE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        if digest != _digest(content):
            raise TwinGPTError(tr("{path} is damaged: its content does not match its checksum", path=path))
        if content["format_version"] != STATE_VERSION:
            raise TwinGPTError(
                tr(
                    "{path} has format version {version}, not {known}",
                    path=path,
                    version=content["format_version"],
                    known=STATE_VERSION,
                )
            )
        if not _is_text_table(content["files"]):
            raise TypeError("files must name digests")
        return Progress(**content["progress"], **{name: content[name] for name in BESIDE if name in content}), content[
            "files"
        ]
    except FileNotFoundError:
        raise TwinGPTError(
            tr("{folder} is no checkpoint: it has no {state_file}", folder=folder, state_file=STATE_FILE)
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise TwinGPTError(tr("{path} is damaged: {error}", path=path, error=error)) from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a RUN, a RUN/checkpoints or a checkpoint folder itself means; the newest of a run.

    RUN/best is the one of the lowest validation loss. Raises TwinGPTError if there is none.
    """
    if path.name == BEST and not path.exists() and (best := CheckpointStore(path.parent).best_step()) is not None:
        return CheckpointStore(path.parent).path(best)
    if not path.exists():
        raise TwinGPTError(tr("{path} does not exist", path=path))
    if (path / STATE_FILE).is_file():
        return path
    store = CheckpointStore(path.parent if path.name == "checkpoints" else path)
    steps = store.steps()
    if not steps:
        raise TwinGPTError(tr("{path} holds no checkpoint: train one with `twingpt train --out {path}`", path=path))
    return store.path(steps[-1])


def load_checkpoint(path: Path, *, optimizer: bool = True) -> Checkpoint:
    """What `find_checkpoint` means, read; for a run, the newest that is whole, with a warning for each that is not.

    optimizer: read the optimizer's state too.
    Raises TwinGPTError if there is none.
    """
    found = find_checkpoint(path)
    if path in (found, found.parent.parent / BEST):
        return read_checkpoint(found, optimizer=optimizer)
    checkpoint, damaged = CheckpointStore(found.parent.parent).load_latest(optimizer=optimizer)
    if checkpoint is None:
        raise TwinGPTError(damaged[0])
    for line in damaged:
        logging.getLogger(__name__).warning("%s; using %s instead", line, checkpoint.path.name)
    return checkpoint


def _split(state: State) -> tuple[State, State]:
    model = {key.removeprefix(MODEL): array for key, array in state.items() if key.startswith(MODEL)}
    return model, {key: array for key, array in state.items() if not key.startswith(MODEL)}


def _is_text_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(part, str) for pair in value.items() for part in pair)


def _is_update(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and isinstance(value[1], int) and isinstance(value[3], bool)


def _remove(path: Path) -> None:
    """Delete what has the name, if anything has: a folder, a file, or a link, never what the link leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _expect(recorded: str | None, found: str, path: Path) -> None:
    if recorded != found:
        raise TwinGPTError(
            tr(
                "{path} is damaged: it is not the file that {state_file} was written with",
                path=path,
                state_file=STATE_FILE,
            )
        )


def _write_error(target: Path, state: State, error: OSError) -> TwinGPTError:
    needed = sum(array.nbytes for array in state.values())
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    reason = tr("the disk is full") if full else str(error)
    return TwinGPTError(
        tr(
            "checkpoint {target} could not be written ({reason}): it needs {needed:,} bytes; "
            "the checkpoints before it are untouched",
            target=target,
            reason=reason,
            needed=needed,
        )
    )
