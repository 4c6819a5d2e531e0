"""Checkpoints that an interruption at any instant cannot tear.

RUN/checkpoints/step-00001000/{model,optimizer}.safetensors + state.json. A checkpoint is written beside its place:
tensors first, then state.json, everything fsynced, then one atomic rename. What has the name is whole.
"""

import contextlib
import errno
import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from twingpt.core.backend import State
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, check_state
from twingpt.weights.format import fsync, load_tensors, save_tensors

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
STATE_VERSION = 1

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

    def save(self, spec: GPTSpec, state: State, progress: Progress) -> Path:
        """Write one checkpoint. Raises TwinGPTError, the checkpoints before it untouched, if the disk refuses.

        A whole checkpoint of the same step stays as it is: no instant may pass without it.
        """
        target = self.path(progress.step)
        writing = self.folder / f"{_UNFINISHED}{target.name}"
        with contextlib.suppress(TwinGPTError):
            read_checkpoint(target)
            return target
        try:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
            write_checkpoint(writing, spec, state, progress)
            if target.exists():
                self._discard(target)
            writing.rename(target)
            fsync(self.folder)
        except OSError as error:
            shutil.rmtree(writing, ignore_errors=True)
            raise _write_error(target, state, error) from None
        return target

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def load_latest(self) -> tuple[Checkpoint | None, list[str]]:
        """(newest readable checkpoint or None, one line for each newer one that is damaged)."""
        damaged: list[str] = []
        for step in reversed(self.steps()):
            try:
                return read_checkpoint(self.path(step)), damaged
            except TwinGPTError as error:
                damaged.append(str(error))
        return None, damaged

    def best_step(self) -> int | None:
        """The step of the lowest recorded validation loss among the checkpoints at hand."""
        losses = {step: loss for step in self.steps() if (loss := self._val_loss(step)) is not None}
        return min(losses, key=lambda step: losses[step]) if losses else None

    def retain(self, last: int) -> None:
        """Delete all but the newest `last` (0: all are kept) and the best; clear away what a crash left behind."""
        if not self.folder.is_dir():
            return
        for leftover in self.folder.glob(".*ing-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if last > 0:
            best = self.best_step()
            for step in self.steps()[:-last]:
                if step != best:
                    self._discard(self.path(step))

    def _val_loss(self, step: int) -> float | None:
        with contextlib.suppress(TwinGPTError):
            return read_progress(self.path(step))[0].val_loss
        return None

    def _discard(self, path: Path) -> None:
        # Renamed first: a deletion that is interrupted must not leave half a checkpoint under a valid name.
        trash = path.with_name(_DISCARDED + path.name)
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


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


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint folder. Raises TwinGPTError naming the file that is damaged."""
    progress, digests = read_progress(folder)
    spec, model, digest = load_tensors(folder / MODEL_FILE)
    state: State = {MODEL + name: tensor for name, tensor in model.items()}
    _expect(digests.get(MODEL_FILE), digest, folder / MODEL_FILE)
    if OPTIMIZER_FILE in digests:
        _, optimizer, digest = load_tensors(folder / OPTIMIZER_FILE)
        _expect(digests[OPTIMIZER_FILE], digest, folder / OPTIMIZER_FILE)
        state.update(optimizer)
    check_state(spec, state)
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
        return Progress(**content["progress"]), content["files"]
    except FileNotFoundError:
        raise TwinGPTError(f"{folder} is no checkpoint: it has no {STATE_FILE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TwinGPTError(f"{path} is damaged: {error}") from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint folder that a RUN, a RUN/checkpoints or a checkpoint folder itself means; the newest of a run.

    Raises TwinGPTError if there is none.
    """
    if not path.exists():
        raise TwinGPTError(f"{path} does not exist")
    if (path / STATE_FILE).is_file():
        return path
    store = CheckpointStore(path.parent if path.name == "checkpoints" else path)
    steps = store.steps()
    if not steps:
        raise TwinGPTError(f"{path} holds no checkpoint: train one with `twingpt train --out {path}`")
    return store.path(steps[-1])


def _split(state: State) -> tuple[State, State]:
    model = {key.removeprefix(MODEL): array for key, array in state.items() if key.startswith(MODEL)}
    return model, {key: array for key, array in state.items() if not key.startswith(MODEL)}


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
