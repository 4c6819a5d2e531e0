"""A run followed by TensorBoard, Weights & Biases or Trackio as well, beside metrics.jsonl.

RUN/trackers.json keeps each tracker's id of the run and how far it has been told, so that a resumed run goes on in the
same place, is told nothing twice, and catches up on what was trained without it.
"""

import contextlib
import html
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from twingpt.core.engines import framework_installed
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.training.config import RunConfig
from twingpt.training.log import METRICS_FILE, MetricsLog, metric_lines
from twingpt.weights.format import write_whole

TRACKERS_FILE = "trackers.json"
TENSORBOARD_FOLDER = "tensorboard"
PROJECT = "twingpt"
FINISH_SECONDS = 60.0
"""How long the end of a training waits for an upload; wandb keeps the rest for `wandb sync`."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a tracker is opened with.

    id: of the run there, kept over resumes. step: updates done. config: settings, with no path in them.
    """

    run_dir: Path
    id: str
    step: int
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return self.run_dir.resolve().name


class Tracker(Protocol):
    rewrites: bool
    """Whether what it was told beyond `Start.step` is taken back when it is opened there."""

    def log(self, step: int, numbers: dict[str, float], sample: str | None) -> None:
        """numbers by name, such as train/loss. sample: text that the model wrote, which must not become markup."""

    def finish(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard, by TensorBoard's own writer: tensorboardX would load PyTorch beside MLX."""

    rewrites = True

    def __init__(self, start: Start) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = Event
        self._writer = EventFileWriter(str(start.run_dir / TENSORBOARD_FOLDER))
        # From here on it hides what an earlier file has of this step or a later one.
        self._add(start.step + 1, session_log=SessionLog(status=SessionLog.START))

    def log(self, step: int, numbers: dict[str, float], sample: str | None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._add(step, summary=Summary(value=values))
        if sample is not None:
            self._add(step, summary=text_pb("val/sample", _as_code(sample)))
        # Or a killed run would lose two minutes of what trackers.json says it has written.
        self._writer.flush()

    def finish(self) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event(step=step, wall_time=time.time(), **content))


class WeightsAndBiases:
    """wandb, online or offline as WANDB_MODE says; its files in RUN/wandb."""

    rewrites = False

    def __init__(self, start: Start) -> None:
        import wandb

        self._html = wandb.Html
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=start.id,
            name=start.name,
            dir=str(start.run_dir),
            config=start.config,
            resume="allow",
            settings=wandb.Settings(
                # It would take over the terminal, where the progress bar is, and send what stands there.
                console="off",
                disable_git=True,
                disable_code=True,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=False,
            ),
        )

    def log(self, step: int, numbers: dict[str, float], sample: str | None) -> None:
        values: dict[str, Any] = dict(numbers)
        if sample is not None:
            values["val/sample"] = self._html(f"<pre>{html.escape(sample)}</pre>")
        self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio:
    """trackio: a database on this machine, or the Space that TRACKIO_SPACE_ID names."""

    rewrites = False

    def __init__(self, start: Start) -> None:
        import trackio

        self._markdown, self._finish = trackio.Markdown, trackio.finish
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            # It finds a run again by its name, and many a run's folder is called "run".
            name=f"{start.name}-{start.id}",
            config=start.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, numbers: dict[str, float], sample: str | None) -> None:
        values: dict[str, Any] = dict(numbers)
        if sample is not None:
            values["val/sample"] = self._markdown(_as_code(sample))
        self._run.log(values, step=step)

    def finish(self) -> None:
        # Not the run's own: that leaves it to be finished once more when Python ends.
        self._finish()


OPENERS: dict[str, Callable[[Start], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}
"""Name of a tracker, of its package and of the extra that installs it -> what opens it."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError for an unknown name, TwinGPTError if its package is not installed."""
    for name in names:
        if name not in OPENERS:
            raise UsageError(tr("--log {name}: choose one of {choices}", name=name, choices=", ".join(OPENERS)))
        if not framework_installed(name):
            raise TwinGPTError(
                tr("--log {name}: that package is not installed: pip install 'twingpt[{name}]'", name=name)
            )


@contextlib.contextmanager
def followed(
    log: MetricsLog | None,
    names: Sequence[str],
    run_dir: Path,
    config: RunConfig,
    step: int,
    warn: Callable[[str], None],
) -> Iterator[None]:
    """While inside, each line of `log` (None: this rank writes none) goes to the trackers too.

    A tracker that fails, when it is opened or later, is named in one call of `warn`, and is off from then on: nothing
    that it does can end a training.
    """
    if log is None or not names:
        yield
        return
    settings = {"model": config.model.to_dict(), "train": asdict(config.train)}
    followers = [_Follower(name, run_dir, step, settings, warn) for name in dict.fromkeys(names)]
    try:
        for follower in followers:
            follower.open()
            for values in metric_lines(log.path):
                follower.tell(values)
            log.watch(follower.tell)
        yield
    finally:
        for follower in followers:
            follower.close()


class _Follower:
    """One tracker, what it has been told so far, and whether it still works."""

    def __init__(
        self, name: str, run_dir: Path, step: int, config: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        self._name, self._run_dir, self._warn = name, run_dir, warn
        # A run that begins anew is another one, whatever stood in its folder.
        known = _read(run_dir).get(name) if step else None
        self._told: dict[str, int] = {} if known is None else known["told"]
        self._start = Start(
            run_dir=run_dir, id=secrets.token_hex(4) if known is None else known["id"], step=step, config=config
        )
        self._tracker: Tracker | None = None

    def open(self) -> None:
        with self._surviving(tr("cannot be opened")), contextlib.redirect_stdout(sys.stderr):
            self._tracker = OPENERS[self._name](self._start)
        if self._tracker is not None and self._tracker.rewrites:
            self._told = {kind: min(step, self._start.step) for kind, step in self._told.items()}

    def tell(self, values: dict[str, Any]) -> None:
        """One line of metrics, unless it has been told. Lines of a kind have rising steps."""
        step = values["step"]
        kind = next((name for name in values if name != "step"), "")
        if self._tracker is None or step <= self._told.get(kind, 0):
            return
        part = "val" if "val_loss" in values else "train"
        numbers = {
            f"{part}/{name.removeprefix('val_')}": value
            for name, value in values.items()
            if name != "step" and isinstance(value, int | float) and math.isfinite(value)
        }
        with self._surviving(tr("takes no more metrics")):
            self._tracker.log(step, numbers, values.get("sample") or None)
            self._told[kind] = step
            self._write()

    def close(self) -> None:
        with self._surviving(tr("did not finish")), contextlib.redirect_stdout(sys.stderr):
            if self._tracker is not None:
                self._tracker.finish()
        self._tracker = None

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tracker = None
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            self._warn(
                tr(
                    "warning: {name} {what} ({reason}): it is off, {metrics_file} goes on",
                    name=self._name,
                    what=what,
                    reason=reason,
                    metrics_file=METRICS_FILE,
                )
            )

    def _write(self) -> None:
        known = {**_read(self._run_dir), self._name: {"id": self._start.id, "told": self._told}}
        write_whole(self._run_dir / TRACKERS_FILE, (json.dumps(known, indent=2) + "\n").encode())


def _read(run_dir: Path) -> dict[str, Any]:
    """What RUN/trackers.json says of each tracker; nothing if it was damaged or is not there."""
    try:
        known = json.loads((run_dir / TRACKERS_FILE).read_text(encoding="utf-8"))
        return {name: {"id": str(each["id"]), "told": dict(each["told"])} for name, each in known.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _as_code(text: str) -> str:
    """A block of code in Markdown, out of which no text can break."""
    return "".join(f"    {line}\n" for line in text.splitlines())
