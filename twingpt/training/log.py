"""What a run reports: the reports themselves, metrics.jsonl, and the progress bar."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from twingpt.core.errors import TwinGPTError
from twingpt.training.validation import Evaluation
from twingpt.weights.format import write_whole

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class StepReport:
    """The updates since the last report, ending with number `step`.

    loss: nats a counted token over all of them; grad_norm: of the last one, before clipping;
    tokens_per_second: tokens that went through the model, padding included, evaluations and saves left out.
    memory: peak bytes on the device, or of the process on the CPU.
    """

    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    skipped: int
    samples: int
    tokens: int
    memory: int

    def metrics(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class EvalReport:
    """A validation at `step`; sample: text that the model wrote there, prompt included."""

    step: int
    evaluation: Evaluation
    sample: str | None

    def metrics(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "val_loss": self.evaluation.loss,
            "perplexity": self.evaluation.perplexity,
            "bits_per_byte": self.evaluation.bits_per_byte,
            "sample": self.sample,
        }


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

    def __init__(self, run_dir: Path, step: int) -> None:
        """Keep the lines up to `step`, drop what an interrupted run wrote beyond its last checkpoint."""
        self.path = run_dir / METRICS_FILE
        self._watchers: list[Callable[[dict[str, Any]], None]] = []
        kept = [line for line in metric_lines(self.path) if line["step"] <= step] if step else []
        with self._writing():
            write_whole(self.path, "".join(_json_line(line) for line in kept).encode())

    def write(self, values: dict[str, Any]) -> None:
        with self._writing(), self.path.open("a", encoding="utf-8") as file:
            file.write(_json_line(values))
        for watcher in self._watchers:
            watcher(values)

    def watch(self, watcher: Callable[[dict[str, Any]], None]) -> None:
        """Hand every line that is written from now on to `watcher` as well."""
        self._watchers.append(watcher)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TwinGPTError(
                f"{self.path} cannot be written ({error.strerror}): mend that, then go on with --resume"
            ) from None


def metric_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a metrics.jsonl, none if there is no such file; also of one that is still written."""
    if not path.exists():
        return
    # Bytes: what a crash cut off may end within a character, and a sample may hold U+2028, at which splitlines cuts.
    with path.open("rb") as file:
        for line in file:
            try:
                values = json.loads(line)
                values["step"] = int(values["step"])
            except (ValueError, TypeError, KeyError):
                return  # the line that a crash cut off; nothing whole comes after it
            yield values


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of RUN/metrics.jsonl. Raises TwinGPTError if there is no such file."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise TwinGPTError(f"{path} does not exist")
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
            TextColumn("ETA"),
            TimeRemainingColumn(),
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
                line = f"step {report.step}  {_aside(report)}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            yield report

    def _step(self, report: StepReport) -> None:
        text = f"loss {report.loss:.4f}  {report.tokens_per_second:,.0f} tokens/s"
        if report.skipped:
            text += f"  {report.skipped} skipped"
        self._progress.update(self._task, completed=report.step, description=text)
        if self._progress.disable:
            self._console.print(f"step {report.step}  {text}", highlight=False)

    def _evaluation(self, report: EvalReport) -> None:
        result = report.evaluation
        self._console.print(
            f"step {report.step}  validation loss {result.loss:.4f}  perplexity {result.perplexity:,.1f}  "
            f"{result.bits_per_byte:.4f} bits/byte",
            highlight=False,
        )
        if report.sample and report.sample.strip():
            self._console.print(report.sample.strip(), style="dim", markup=False, highlight=False)


def _aside(report: SpikeReport | MicroBatchReport | DiskReport) -> str:
    if isinstance(report, SpikeReport):
        return f"loss jumped to {report.loss:.4f}, from a running mean of {report.mean:.4f}"
    if isinstance(report, MicroBatchReport):
        return f"{report.problem}; micro-batch {report.before} -> {report.after}, the same step again"
    return (
        f"warning: {report.folder} has {report.free:,} bytes free, the next checkpoint needs {report.needed:,}: "
        "make space before it is due"
    )
