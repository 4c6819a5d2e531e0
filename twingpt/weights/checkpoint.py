"""Checkpoints that an interruption at any instant cannot tear.

RUN/checkpoints/step-00001000/{model,optimizer}.safetensors + state.json. A checkpoint is written beside its place:
tensors first, then state.json, everything fsynced, then one atomic rename. What has the name is whole.
"""

import contextlib
import errno
import hashlib
import json
import logging
import math
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.spec import GPTSpec, check_types
from twingpt.core.state import MODEL, check_state
from twingpt.weights.format import fsync, load_tensors, save_tensors

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
STATE_VERSION = 1

BEST = "best"
"""RUN/best is no folder but a name for one of RUN's checkpoints."""

_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".writing-"
_DISCARDED = ".deleting-"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: everything but the tensors.

    step: updates done; samples: windows consumed; tokens: targets counted; val_loss: nats a token, if this step was
    evaluated; fingerprint: what a resumed run must agree with (data, tokenizer), by name.
    """

    step: int
    samples: int = 0
    tokens: int = 0
    val_loss: float | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "progress")
        if min(self.step, self.samples, self.tokens) < 0:
            raise UsageError("progress counts from 0")
        if not _is_text_table(self.fingerprint):
            raise UsageError("progress.fingerprint must name texts")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: spec, state (keys of core.state) and progress."""

    path: Path
    spec: GPTSpec
    state: State
    progress: Progress


class CheckpointStore:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "checkpoints"
        self._saved: int | None = None

    def save(self, spec: GPTSpec, state: State, progress: Progress) -> Path:
        """Write one checkpoint. Raises TwinGPTError, the checkpoints before it untouched, if the disk refuses.

        A whole checkpoint of the same step stays as it is: no instant may pass without it.
        """
        target = self.path(progress.step)
        writing = self.folder / f"{_UNFINISHED}{target.name}"
        with contextlib.suppress(TwinGPTError):
            self._read(progress.step)
            self._saved = progress.step
            return target
        try:
            _remove(writing)
            writing.mkdir(parents=True)
            write_checkpoint(writing, spec, state, progress)
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

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first. Raises TwinGPTError if the folder cannot be read."""
        try:
            names = {entry.name for entry in self.folder.iterdir()}
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise TwinGPTError(f"{self.folder} cannot be read: {error.strerror}") from None
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

    def retain(self, last: int) -> None:
        """Delete all but the newest `last` (0: all are kept) and the best; clear away what a crash left behind."""
        for leftover in self.folder.glob(".*ing-*"):
            _remove(leftover)
        # What is newer than the last save was passed over as damaged on resume: it must not count as one that is kept.
        steps = [step for step in self.steps() if self._saved is None or step <= self._saved]
        if last > 0:
            best = self._best(steps)
            for step in steps[:-last]:
                if step != best:
                    self._discard(self.path(step))

    def _read(self, step: int, *, optimizer: bool = True) -> Checkpoint:
        checkpoint = read_checkpoint(self.path(step), optimizer=optimizer)
        if checkpoint.progress.step != step:
            raise TwinGPTError(f"{checkpoint.path} is of step {checkpoint.progress.step}: it was copied or renamed")
        return checkpoint

    def _best(self, steps: list[int]) -> int | None:
        losses = {step: loss for step in steps if math.isfinite(loss := self._val_loss(step))}
        return min(losses, key=lambda step: losses[step]) if losses else None

    def _val_loss(self, step: int) -> float:
        with contextlib.suppress(TwinGPTError):
            loss = read_progress(self.path(step))[0].val_loss
            return math.inf if loss is None else loss
        return math.inf

    def _discard(self, path: Path) -> None:
        # Renamed first: a deletion that is interrupted must not leave half a checkpoint under a valid name.
        trash = path.with_name(_DISCARDED + path.name)
        _remove(trash)
        path.rename(trash)
        _remove(trash)


def write_checkpoint(folder: Path, spec: GPTSpec, state: State, progress: Progress) -> None:
    """Fill an existing folder: tensors first, then the marker. Raises OSError."""
    model, optimizer = _split(state)
    digests = {MODEL_FILE: save_tensors(folder / MODEL_FILE, model, spec)}
    if optimizer:
        digests[OPTIMIZER_FILE] = save_tensors(folder / OPTIMIZER_FILE, optimizer, spec)
    content = {"format_version": STATE_VERSION, "files": digests, "progress": asdict(progress)}
    path = folder / STATE_FILE
    path.write_text(json.dumps({**content, "sha256": _digest(content)}, indent=2) + "\n", encoding="utf-8")
    fsync(path)
    fsync(folder)


def read_checkpoint(folder: Path, *, optimizer: bool = True) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises TwinGPTError naming the file that is damaged.

    optimizer: read the optimizer's state too, which is twice as large as the weights and only training needs.
    """
    progress, digests = read_progress(folder)
    spec, model, digest = load_tensors(folder / MODEL_FILE)
    state: State = {MODEL + name: tensor for name, tensor in model.items()}
    _expect(digests.get(MODEL_FILE), digest, folder / MODEL_FILE)
    if optimizer and OPTIMIZER_FILE in digests:
        _, moments, digest = load_tensors(folder / OPTIMIZER_FILE)
        _expect(digests[OPTIMIZER_FILE], digest, folder / OPTIMIZER_FILE)
        state.update(moments)
    try:
        check_state(spec, state)
    except TwinGPTError as error:
        raise TwinGPTError(f"{folder} is damaged: {error}") from None
    return Checkpoint(folder, spec, state, progress)


def read_progress(folder: Path) -> tuple[Progress, dict[str, str]]:
    """(progress, digest of each tensor file) of a checkpoint, without reading its tensors."""
    path = folder / STATE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("sha256")
        if digest != _digest(content):
            raise TwinGPTError(f"{path} is damaged: its content does not match its checksum")
        if content["format_version"] != STATE_VERSION:
            raise TwinGPTError(f"{path} has format version {content['format_version']}, not {STATE_VERSION}")
        if not _is_text_table(content["files"]):
            raise TypeError("files must name digests")
        return Progress(**content["progress"]), content["files"]
    except FileNotFoundError:
        raise TwinGPTError(f"{folder} is no checkpoint: it has no {STATE_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise TwinGPTError(f"{path} is damaged: {error}") from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a RUN, a RUN/checkpoints or a checkpoint folder itself means; the newest of a run.

    RUN/best is the one of the lowest validation loss. Raises TwinGPTError if there is none.
    """
    if path.name == BEST and not path.exists() and (best := CheckpointStore(path.parent).best_step()) is not None:
        return CheckpointStore(path.parent).path(best)
    if not path.exists():
        raise TwinGPTError(f"{path} does not exist")
    if (path / STATE_FILE).is_file():
        return path
    store = CheckpointStore(path.parent if path.name == "checkpoints" else path)
    steps = store.steps()
    if not steps:
        raise TwinGPTError(f"{path} holds no checkpoint: train one with `twingpt train --out {path}`")
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
        raise TwinGPTError(f"{path} is damaged: it is not the file that {STATE_FILE} was written with")


def _write_error(target: Path, state: State, error: OSError) -> TwinGPTError:
    needed = sum(array.nbytes for array in state.values())
    full = error.errno == errno.ENOSPC or "No space left" in str(error)
    reason = "the disk is full" if full else str(error)
    return TwinGPTError(
        f"checkpoint {target} could not be written ({reason}): it needs {needed:,} bytes; "
        "the checkpoints before it are untouched"
    )
