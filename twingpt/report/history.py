"""What a run's folder tells of it, also while it trains or after it was killed."""

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any, Literal, TypeGuard

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.params import flops_per_token, parameter_count
from twingpt.data.prepare.pipeline import load_report
from twingpt.data.tokens.manifest import Manifest
from twingpt.training.config import RunConfig
from twingpt.training.log import METRICS_FILE, metric_lines
from twingpt.training.record import SessionRecord, read_sessions
from twingpt.training.restart import RunningMark
from twingpt.weights.checkpoint import CheckpointStore, read_progress

Status = Literal["finished", "running", "killed", "stopped"]
Point = tuple[float, float]


EVALUATED = ("val_loss", "perplexity", "bits_per_byte", "average_val_loss", "average_bits_per_byte")
"""What lines of evaluations hold."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run was trained on. name: of the folder, without its path. same: whether it holds what was trained on."""

    name: str
    manifest: Manifest
    report: dict[str, Any]
    same: bool

    @property
    def inputs(self) -> list[str]:
        """The raw files, without their folders."""
        return [PurePath(given).name for given in self.report.get("inputs", [])]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A run in numbers. Losses in nats a token, memory in bytes, seconds of updates alone; None where nothing tells it.

    tokens: targets counted in the loss. tokens_per_second: median over the lines of metrics, padding included.
    """

    parameters: int
    steps: int
    planned_steps: int
    tokens: int | None
    train_loss: float | None
    best_val_loss: float | None
    best_step: int | None
    best_bits_per_byte: float | None
    last_bits_per_byte: float | None
    tokens_per_second: float | None
    flops: float | None
    seconds: float | None
    peak_memory: int | None
    skipped: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class History:
    """A run. updates, evaluations, asides: the lines of metrics.jsonl of each kind, steps rising."""

    name: str
    config: RunConfig
    updates: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    asides: list[dict[str, Any]]
    sessions: list[SessionRecord]
    status: Status
    checkpoints: list[int]
    best_checkpoint: int | None
    fingerprint: dict[str, str]

    def points(self, name: str) -> list[Point]:
        """(step, value) wherever the log has a finite `name`."""
        lines = self.evaluations if name in EVALUATED else self.updates
        return [(line["step"], line[name]) for line in lines if _finite(line.get(name))]

    def best_points(self, name: str) -> list[Point]:
        """The same of the weights or of their average, whichever is better at that step."""
        averaged = dict(self.points(f"average_{name}"))
        return [(step, min(found, averaged.get(step, found))) for step, found in self.points(name)]

    def by_tokens(self, points: Sequence[Point]) -> list[Point]:
        """The same points over the tokens that had been counted by then; none in a log without such counts."""
        known = [(line["step"], line["tokens"]) for line in self.updates if _finite(line.get("tokens"))]
        if not known:
            return []
        steps, tokens = zip(*[(0, 0), *known], strict=True)
        return [(float(np.interp(step, steps, tokens)), value) for step, value in points]

    @property
    def samples(self) -> list[tuple[int, str]]:
        return [
            (line["step"], line["sample"].strip()) for line in self.evaluations if (line.get("sample") or "").strip()
        ]

    @property
    def engine(self) -> str:
        """The engines and devices that trained it, in their order; empty if that was not recorded."""
        return ", ".join(dict.fromkeys(f"{each.backend} ({each.device})" for each in self.sessions))

    @property
    def handovers(self) -> list[int]:
        """Steps from which another engine or device went on."""
        pairs = zip(self.sessions, self.sessions[1:], strict=False)
        return [b.step for a, b in pairs if (a.backend, a.device) != (b.backend, b.device)]

    @property
    def figures(self) -> Figures:
        spec, updates = self.config.model, self.updates
        last = updates[-1] if updates else {}
        losses, bits = self.best_points("val_loss"), self.best_points("bits_per_byte")
        best = min(losses, key=lambda point: point[1], default=None)
        speeds = [value for _, value in self.points("tokens_per_second")]
        speed = statistics.median(speeds) if speeds else None
        memory = [value for _, value in self.points("memory")]
        return Figures(
            parameters=parameter_count(spec),
            steps=max((line["step"] for line in (*updates, *self.evaluations)), default=0),
            planned_steps=self.config.train.steps,
            tokens=last.get("tokens"),
            train_loss=self.points("loss")[-1][1] if self.points("loss") else None,
            best_val_loss=best[1] if best else None,
            best_step=int(best[0]) if best else None,
            best_bits_per_byte=min((value for _, value in bits), default=None),
            last_bits_per_byte=bits[-1][1] if bits else None,
            tokens_per_second=speed,
            flops=None if speed is None else speed * flops_per_token(spec),
            seconds=self._seconds(),
            peak_memory=int(max(memory)) if memory else None,
            skipped=sum(line.get("skipped") or 0 for line in updates),
        )

    def _seconds(self) -> float | None:
        """Of the updates that are logged: the sequences of each line over its speed."""
        total, done = 0.0, 0
        for line in self.updates:
            samples, speed = line.get("samples"), line.get("tokens_per_second")
            if not isinstance(samples, int) or not _finite(speed) or speed <= 0:
                return None
            total += (samples - done) * self.config.model.block_size / speed
            done = samples
        return total if self.updates else None


def read_history(run_dir: Path) -> History:
    """Raises TwinGPTError if there is no such run, or nothing was logged in it yet."""
    if not run_dir.is_dir():
        raise TwinGPTError(
            tr("{run_dir} does not exist: give the folder that `twingpt train --out` wrote", run_dir=run_dir)
        )
    config = RunConfig.load(run_dir)
    lines = list(metric_lines(run_dir / METRICS_FILE))
    updates = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "val_loss" in line]
    if not updates and not evaluations:
        raise TwinGPTError(
            tr(
                "{run_dir} has logged nothing yet: {metrics_file} gets its first line after the first update; "
                "go on with `twingpt train --resume`, or wait for it",
                run_dir=run_dir,
                metrics_file=METRICS_FILE,
            )
        )
    store = CheckpointStore(run_dir)
    checkpoints = store.steps()
    last = max(line["step"] for line in (*updates, *evaluations))
    return History(
        name=run_dir.resolve().name,
        config=config,
        updates=updates,
        evaluations=evaluations,
        asides=[line for line in lines if "spike_loss" in line or "problem" in line],
        sessions=read_sessions(run_dir),
        status=_status(run_dir, last >= config.train.steps),
        checkpoints=checkpoints,
        best_checkpoint=store.best_step(),
        fingerprint=_fingerprint(store, checkpoints),
    )


def read_data(history: History, data_dir: Path | None) -> Data | None:
    """DATA, or where the run says that it was, if that can still be read. Raises TwinGPTError only for DATA itself."""
    folder = data_dir or Path(history.config.data or "?")
    try:
        manifest = Manifest.load(folder)
    except TwinGPTError:
        if data_dir is not None:
            raise
        return None
    try:
        report = load_report(folder)
    except TwinGPTError:
        report = {}
    found = {
        "data": hashlib.sha256(f"{manifest.train.sha256} {manifest.val.sha256}".encode()).hexdigest(),
        "tokenizer": manifest.tokenizer_sha256,
    }
    same = all(history.fingerprint.get(name, value) == value for name, value in found.items())
    return Data(name=folder.resolve().name, manifest=manifest, report=report, same=same)


def _status(run_dir: Path, complete: bool) -> Status:
    mark = RunningMark.read(run_dir)
    if mark is not None:
        return "running" if mark.alive else "killed"
    return "finished" if complete else "stopped"


def _fingerprint(store: CheckpointStore, steps: list[int]) -> dict[str, str]:
    for step in reversed(steps):
        try:
            return read_progress(store.path(step))[0].fingerprint
        except TwinGPTError:
            continue
    return {}


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
