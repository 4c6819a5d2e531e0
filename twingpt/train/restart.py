"""Going on in a fresh process, where running out of memory has left this one unusable."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from twingpt.weights.checkpoint import CheckpointStore


def restart(run_dir: Path, micro_batch: int) -> NoReturn:
    """Replace this process by the same `twingpt train`, from the last checkpoint, or the start if there is none yet."""
    arguments = restart_arguments(sys.argv[1:], micro_batch, resume=bool(CheckpointStore(run_dir).steps()))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "twingpt", *arguments])


def restart_arguments(arguments: list[str], micro_batch: int, *, resume: bool) -> list[str]:
    """The command line again, with another --micro-batch and, if there is a checkpoint, --resume."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--micro-batch":
            next(rest, None)
        elif argument != "--resume" and not argument.startswith("--micro-batch="):
            kept.append(argument)
    return [*kept, *(["--resume"] if resume else []), "--micro-batch", str(micro_batch)]
