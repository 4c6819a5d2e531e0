"""A run's folder as the training view reads it, while it may still be written."""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from twingpt.core.errors import TwinGPTError
from twingpt.training.config import RunConfig
from twingpt.training.log import METRICS_FILE
from twingpt.training.restart import RunningMark
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.run_folder import template_of

CHUNK_BYTES = 1 << 19


@dataclass(frozen=True, slots=True)
class MetricsChunk:
    """Whole lines of metrics.jsonl from one place on.

    file: names the file; a resumed run writes a new one. offset: where to go on reading. restart: what was read before
    no longer holds, `lines` begin anew. more: there is more to read now.
    """

    file: str
    offset: int
    restart: bool
    more: bool
    lines: list[dict[str, Any]]


class RunView:
    """run_dir: the folder that `train --out` wrote. Reads only its config, metrics and the names of its checkpoints."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._store = CheckpointStore(run_dir)

    def newest_step(self) -> int | None:
        """Of the newest checkpoint."""
        steps = self._store.steps()
        return steps[-1] if steps else None

    def config(self) -> RunConfig | None:
        """None for a folder without one, such as a converted model."""
        try:
            return RunConfig.load(self.run_dir)
        except TwinGPTError:
            return None

    def template(self) -> str | None:
        """ "qa" or "plain"; None where nothing says so."""
        return template_of(self.run_dir)

    def describe(self) -> dict[str, Any]:
        """What the training view shows beside the curves. process: that trains this run, None if it ended by itself."""
        config = self.config()
        train = {} if config is None else asdict(config.train)
        mark = RunningMark.read(self.run_dir)
        process = None if mark is None else "running" if mark.alive else "killed"
        return {"newest_step": self.newest_step(), "process": process, "train": train}

    def metrics(self, file: str, offset: int) -> MetricsChunk:
        """Lines from `offset` of the file that `file` names; "" and 0 at first."""
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())
                name = f"{found.st_dev:x}-{found.st_ino:x}"
                start = offset if name == file and _begins_a_line(stream, offset) else 0
                stream.seek(start)
                block = stream.read(CHUNK_BYTES)
        except OSError:
            return MetricsChunk("", 0, True, False, [])
        whole = block[: block.rfind(b"\n") + 1]
        end = start + len(whole)
        return MetricsChunk(
            file=name,
            offset=end,
            restart=start == 0,
            more=len(block) == CHUNK_BYTES and bool(whole),
            lines=[values for line in whole.split(b"\n") if (values := _parsed(line)) is not None],
        )

    @property
    def _path(self) -> Path:
        return self.run_dir / METRICS_FILE


def _begins_a_line(stream: BinaryIO, offset: int) -> bool:
    """A file that was written anew could have the old one's number, but hardly a line end in the same place."""
    if offset == 0:
        return True
    stream.seek(offset - 1)
    return stream.read(1) == b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """One line with a step; NaN and infinities, which JSON lacks, as None."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
