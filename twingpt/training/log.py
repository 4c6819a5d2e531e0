"""What a run reports: the reports themselves, metrics.jsonl, and the progress bar."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.training.validation import Evaluation
from twingpt.weights.format import write_whole

METRICS_FILE = "metrics.jsonl"
ASIDE_FILE = "metrics.damaged.jsonl"
"""Where lines go that are no metrics: whatever put them there, they may be all that is left of something."""
PARTIAL = "partial"
MEASURED = ("tokens_per_second", "seconds_left", "memory")
"""What a line says of the machine, and not of the run: it differs where everything else is equal."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The updates since the last report, ending with number `step`.

    loss: nats a counted token over all of them; grad_norm: of the last one, before clipping;
    tokens_per_second: tokens that went through the model, padding included, evaluations and saves left out.
    seconds_left: until the run's last step, evaluations and saves included. memory: peak bytes on the device, or of the
    process on the CPU. epoch: passes over the text so far. partial: the run stops before its next line, in
    which these updates will be told again, with those that follow.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds_left: float
    skipped: int
    samples: int
    tokens: int
    memory: int
    epoch: float
    partial: bool = False

    def metrics(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != PARTIAL or self.partial}


@dataclass(frozen=True, slots=True)
class EvalReport:
    """A validation at `step`; sample: text that the model wrote there, prompt included; problem: why there is none.

    average: the same of the averaged weights, where the run keeps them.
    """

    step: int
    evaluation: Evaluation
    sample: str | None
    problem: str | None = None
    average: Evaluation | None = None

    @property
    def best(self) -> Evaluation:
        """Of the weights that are the better ones."""
        return min((self.evaluation, self.average or self.evaluation), key=lambda it: it.loss)

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "val_loss": self.evaluation.loss,
            "perplexity": self.evaluation.perplexity,
            "bits_per_byte": self.evaluation.bits_per_byte,
            **self._of_average(),
            "sample": self.sample,
            **({} if self.problem is None else {"sample_problem": self.problem}),
        }

    def _of_average(self) -> dict[str, float]:
        if self.average is None:
            return {}
        return {"average_val_loss": self.average.loss, "average_bits_per_byte": self.average.bits_per_byte}


@dataclass(frozen=True, slots=True)
class SaveReport:
    step: int
    path: Path


@dataclass(frozen=True, slots=True)
class SpikeReport:
    """The loss of update `step`, nats a token, jumped above the mean of those before it."""

    step: int
    loss: float
    mean: float

    def metrics(self) -> dict[str, Any]:
        return {"step": self.step, "spike_loss": self.loss, "running_mean": self.mean}


@dataclass(frozen=True, slots=True)
class MicroBatchReport:
    """Update `step` ran out of memory and goes on in smaller pieces, with the same data."""

    step: int
    before: int
    after: int
    problem: str

    def metrics(self) -> dict[str, Any]:
        return {"step": self.step, "micro_batch": self.after, "problem": self.problem}


@dataclass(frozen=True, slots=True)
class DiskReport:
    """After the save of `step`, `folder` has fewer bytes free than the next one needs."""

    step: int
    folder: Path
    needed: int
    free: int


Report = StepReport | EvalReport | SaveReport | SpikeReport | MicroBatchReport | DiskReport


class MetricsLog:
    """RUN/metrics.jsonl: one JSON object a line, cut back to the checkpoint that a run resumes from."""

    def __init__(self, run_dir: Path, step: int, *, evaluated: bool = True) -> None:
        """Keep the lines up to `step`, drop what an interrupted run wrote beyond its last checkpoint.

        evaluated: False if the evaluation of `step` is to be made again. Lines that are no metrics are put aside.
        """
        self.path = run_dir / METRICS_FILE
        self._watchers: list[Callable[[dict[str, Any]], None]] = []
        kept: list[dict[str, Any]] = []
        damaged: list[bytes] = []
        for line in _raw_lines(self.path) if step else ():
            values = _parsed(line)
            if values is None:
                # Without its end it is the line that a crash cut off.
                if line.strip() and line.endswith(b"\n"):
                    damaged.append(line)
            elif values["step"] < step or (values["step"] == step and (evaluated or "val_loss" not in values)):
                kept.append(values)
        # What it tells will be told again: it goes when the run goes on.
        self._partial = any(PARTIAL in values for values in kept)
        with self._writing():
            if damaged:
                with (run_dir / ASIDE_FILE).open("ab") as file:
                    file.writelines(damaged)
                logging.getLogger(__name__).warning(
                    "%s: %d lines are no metrics, and are in %s now", self.path, len(damaged), ASIDE_FILE
                )
            self._rewrite(kept)

    def write(self, values: dict[str, Any]) -> None:
        with self._writing():
            if self._partial:
                self._rewrite([line for line in metric_lines(self.path) if PARTIAL not in line])
            self._partial = PARTIAL in values
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_json_line(values))
        for watcher in self._watchers:
            watcher(values)

    def _rewrite(self, lines: list[dict[str, Any]]) -> None:
        write_whole(self.path, "".join(map(_json_line, lines)).encode())

    def watch(self, watcher: Callable[[dict[str, Any]], None]) -> None:
        """Hand every line that is written from now on to `watcher` as well."""
        self._watchers.append(watcher)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TwinGPTError(
                tr(
                    "{path} cannot be written ({reason}): mend that, then go on with --resume",
                    path=self.path,
                    reason=os_reason(error),
                )
            ) from None


def metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, none if there is no such file; also of one that is still written.

    A line that is no metrics is passed over: those after it are as good as those before it.
    """
    return (values for line in _raw_lines(path) if (values := _parsed(line)) is not None)


def _raw_lines(path: Path) -> Iterator[bytes]:
    # Bytes: what a crash cut off may end within a character, and a sample may hold U+2028, at which splitlines cuts.
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(line)
        values["step"] = int(values["step"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return values


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of RUN/metrics.jsonl. Raises TwinGPTError if there is no such file."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise TwinGPTError(tr("{path} does not exist", path=path))
    return list(metric_lines(path))


def _json_line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"


class TrainDisplay:
    """The progress bar of `train`, with the evaluations and samples printed above it."""

    def __init__(self, console: Console, start: int, stop: int) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("step"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            # A pipe or a log file gets the lines below, and no bar.
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=stop, completed=start)

    @contextmanager
    def showing(self, reports: Iterable[Report]) -> Iterator[Iterator[Report]]:
        with self._progress:
            yield self._shown(reports)

    def _shown(self, reports: Iterable[Report]) -> Iterator[Report]:
        for report in reports:
            if isinstance(report, StepReport):
                self._step(report)
            elif isinstance(report, EvalReport):
                self._evaluation(report)
            elif not isinstance(report, SaveReport):
                line = tr("step {step}  {aside}", step=report.step, aside=_aside(report))
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            yield report

    def _step(self, report: StepReport) -> None:
        left = timedelta(seconds=round(report.seconds_left))
        speed = tr("{tokens_per_second:,.0f} tokens/s", tokens_per_second=report.tokens_per_second)
        text = tr(
            "epoch {epoch:.2f}  loss {loss:.4f}  {speed}  {left} left",
            epoch=report.epoch,
            loss=report.loss,
            speed=speed,
            left=left,
        )
        if report.skipped:
            text += tr("  {skipped} skipped", skipped=report.skipped)
        self._progress.update(self._task, completed=report.step, description=text)
        if self._progress.disable:
            self._console.print(tr("step {step}  {text}", step=report.step, text=text), highlight=False)

    def _evaluation(self, report: EvalReport) -> None:
        result = report.evaluation
        self._console.print(
            tr(
                "step {step}  validation loss {loss:.4f}  perplexity {perplexity:,.1f}  {bits_per_byte:.4f} bits/byte",
                step=report.step,
                loss=result.loss,
                perplexity=result.perplexity,
                bits_per_byte=result.bits_per_byte,
            ),
            highlight=False,
        )
        if report.average is not None:
            found = report.average
            self._console.print(
                tr(
                    "step {step}  averaged weights: validation loss {loss:.4f}  {bits_per_byte:.4f} bits/byte",
                    step=report.step,
                    loss=found.loss,
                    bits_per_byte=found.bits_per_byte,
                ),
                highlight=False,
            )
        if report.problem is not None:
            line = tr("step {step}  no sample: {problem}", step=report.step, problem=report.problem)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if report.sample and report.sample.strip():
            self._console.print(report.sample.strip(), style="dim", markup=False, highlight=False)


def _aside(report: SpikeReport | MicroBatchReport | DiskReport) -> str:
    if isinstance(report, SpikeReport):
        return tr("loss jumped to {loss:.4f}, from a running mean of {mean:.4f}", loss=report.loss, mean=report.mean)
    if isinstance(report, MicroBatchReport):
        return tr(
            "{problem}; micro-batch {before} -> {after}, the same step again",
            problem=report.problem,
            before=report.before,
            after=report.after,
        )
    return tr(
        "warning: {folder} has {free:,} bytes free, the next checkpoint needs {needed:,}: make space before it is due",
        folder=report.folder,
        free=report.free,
        needed=report.needed,
    )
