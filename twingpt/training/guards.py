"""What watches over a run from outside: jumps of the loss, room on the disk, and a Mac that wants to sleep."""

import math
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.params import parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.core.state import state_bytes
from twingpt.training.config import TrainConfig
from twingpt.weights.checkpoint import CheckpointStore

FLOAT_BYTES = 4
SPIKE_WINDOW = 100
SPIKE_HISTORY = 20
SPIKE_DEVIATIONS = 5.0
SPIKE_NATS = 0.5


class SpikeDetector:
    """A spike: a loss above the mean of the last SPIKE_WINDOW updates by more than SPIKE_DEVIATIONS standard deviations
    and by at least SPIKE_NATS. The first SPIKE_HISTORY updates only fill the window.
    """

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=SPIKE_WINDOW)

    def check(self, loss: float) -> tuple[float, float] | None:
        """(loss, running mean) if this update's loss is a spike. Non-finite losses are counted elsewhere."""
        if not math.isfinite(loss):
            return None
        spike = None
        if len(self._recent) >= SPIKE_HISTORY:
            mean = sum(self._recent) / len(self._recent)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in self._recent) / len(self._recent))
            if loss - mean >= max(SPIKE_NATS, SPIKE_DEVIATIONS * deviation):
                spike = (loss, mean)
        self._recent.append(loss)
        return spike


def check_disk(store: CheckpointStore, spec: GPTSpec, config: TrainConfig) -> None:
    """Raises TwinGPTError, before anything is trained, if the disk cannot take the checkpoints that the run will keep.

    That is keep_last, the best one, and the one being written, less those already there; with keep_last = 0, all.
    """
    saves = config.steps // config.save_every + 1 if config.save_every else 1
    # Each evaluation may be the best so far, and be saved.
    evaluations = config.steps // config.eval_every if config.eval_every else 0
    kept = min(saves + evaluations, config.keep_last + 1) if config.keep_last else saves
    needed = max(1, kept + 1 - len(store.steps())) * checkpoint_bytes(spec, config)
    free = free_bytes(store.folder)
    if free < needed:
        raise TwinGPTError(
            tr(
                "{folder} has {free:,} bytes free, the run's checkpoints need {needed:,}: make space, lower "
                "--keep-last, or choose another --out",
                folder=store.folder,
                free=free,
                needed=needed,
            )
        )


def checkpoint_bytes(spec: GPTSpec, config: TrainConfig) -> int:
    """Bytes of one checkpoint of a run."""
    return state_bytes(spec, config.optimizer) + (FLOAT_BYTES * parameter_count(spec) if config.average else 0)


def free_bytes(path: Path) -> int:
    """Free space on the disk where `path` is, or is going to be."""
    folder = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(folder).free


def keep_awake() -> subprocess.Popen[bytes] | None:
    """On macOS, a process that keeps the machine from sleeping as long as this one lives; None elsewhere."""
    command = shutil.which("caffeinate") if sys.platform == "darwin" else None
    if command is None:
        return None
    return subprocess.Popen(  # it ends by itself, with the process it watches
        [command, "-i", "-w", str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
