"""The one training loop, for both engines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.state import MODEL
from twingpt.data.batches import Batches
from twingpt.train.config import RunConfig
from twingpt.train.evaluate import Evaluation, evaluate
from twingpt.train.log import EvalReport, MetricsLog, Report, SaveReport, StepReport
from twingpt.weights.checkpoint import Checkpoint, CheckpointStore, Progress

MAX_SKIPPED_IN_A_ROW = 10


class Trainer:
    """A run from where it stands to its last step, as a generator of reports.

    Nothing random is carried along: the data order, the learning rate and dropout are functions of (seed, step), so a
    resumed run, another micro-batch and the other engine all see the same run.

    token_bytes: int32 [vocab_size], bytes that each token stands for. write_sample: text at an evaluation, or None.
    fingerprint: what a checkpoint must agree with to be resumed, by name.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        backend: Backend,
        train: Batches,
        val: Batches,
        *,
        token_bytes: NDArray[np.int32],
        fingerprint: dict[str, str],
        write_sample: Callable[[], str] | None = None,
        resume_from: Checkpoint | None = None,
    ) -> None:
        self._config = config.train
        self._spec = config.model
        self._backend = backend
        self._train, self._val = train, val
        self._token_bytes = token_bytes
        self._write_sample = write_sample
        self._fingerprint = fingerprint
        self._schedule = config.train.lr_schedule()
        self._store = CheckpointStore(run_dir)
        if resume_from is None:
            weights = initial_weights(config.model, config.train.seed)
            backend.load_state({MODEL + name: weight for name, weight in weights.items()})
            self._progress = Progress(step=0, fingerprint=fingerprint)
        else:
            check_resumable(config, fingerprint, resume_from)
            backend.load_state(resume_from.state)
            self._progress = resume_from.progress
        self._saved_step = self._progress.step if resume_from else -1
        self._metrics = MetricsLog(run_dir, self._progress.step)
        self._stop_requested = False
        self._skipped_in_a_row = 0

    @property
    def step(self) -> int:
        """Updates done."""
        return self._progress.step

    def request_stop(self) -> None:
        """Finish the step under way, save, and end. Safe to call from a signal handler."""
        self._stop_requested = True

    def run(self, stop_at: int | None = None) -> Iterator[Report]:
        """Train up to step `stop_at` (default: all of them), reporting as it goes.

        Raises TwinGPTError if the loss stays non-finite, or a checkpoint cannot be written.
        """
        config, last = self._config, min(stop_at or self._config.steps, self._config.steps)
        evaluated = -1
        clock = _Clock()
        while self.step < last and not self._stop_requested:
            lr = self._schedule.learning_rate(self.step)
            self._update(lr)
            clock.count(config.batch_size * self._spec.block_size)
            if self.step == 1 or self.step % config.log_every == 0 or self.step == last:
                yield self._log(self._read_stats(lr, clock))
            if config.eval_every and self.step % config.eval_every == 0:
                with clock.paused(self._backend):
                    yield self._log(self._evaluate())
                evaluated = self.step
            if config.save_every and self.step % config.save_every == 0:
                with clock.paused(self._backend):
                    yield self._save()
        if self.step == last and evaluated != last and self._saved_step != last:
            yield self._log(self._evaluate())
        if self._saved_step != self.step:
            yield self._save()

    def _update(self, lr: float) -> None:
        done, config = self._progress, self._config
        inputs, targets = self._train.batch(done.samples, config.batch_size)
        shape = (config.accumulation, -1, self._spec.block_size)
        self._backend.train_step(inputs.reshape(shape), targets.reshape(shape), lr, done.step)
        self._progress = Progress(
            step=done.step + 1,
            samples=done.samples + config.batch_size,
            tokens=done.tokens + int((targets >= 0).sum()),
            fingerprint=self._fingerprint,
        )

    def _read_stats(self, lr: float, clock: "_Clock") -> StepReport:
        stats = self._backend.read_stats()
        for applied in stats.applied:
            self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
            if self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                raise TwinGPTError(
                    f"the loss or gradient was not finite {MAX_SKIPPED_IN_A_ROW} steps in a row, to step {self.step}: "
                    "lower --learning-rate, use --precision float32, or run `twingpt doctor` to check the device"
                )
        return StepReport(
            step=self.step,
            loss=stats.loss,
            lr=lr,
            grad_norm=stats.grad_norms[-1],
            tokens_per_second=clock.rate(),
            skipped=stats.applied.count(False),
            samples=self._progress.samples,
            tokens=self._progress.tokens,
        )

    def _evaluate(self) -> EvalReport:
        config = self._config
        result: Evaluation = evaluate(
            self._backend,
            self._val,
            self._token_bytes,
            config.micro_batch or config.batch_size,
            config.eval_windows,
        )
        self._progress = replace(self._progress, val_loss=result.loss)
        return EvalReport(self.step, result, self._write_sample() if self._write_sample else None)

    def _save(self) -> SaveReport:
        path = self._store.save(self._spec, self._backend.export_state(), self._progress)
        self._saved_step = self.step
        self._store.retain(self._config.keep_last)
        return SaveReport(self.step, path)

    def _log(self, report: StepReport | EvalReport) -> Report:
        self._metrics.write(report.metrics())
        return report


class _Clock:
    """Tokens a second since the last reading, pauses left out."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._tokens = 0

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self._tokens / (now - self._start)
        self._start, self._tokens = now, 0
        return rate

    @contextmanager
    def paused(self, backend: Backend) -> Iterator[None]:
        # Updates still under way on the device belong to the training time.
        backend.synchronize()
        paused_at = time.perf_counter()
        yield
        self._start += time.perf_counter() - paused_at


def check_resumable(config: RunConfig, fingerprint: dict[str, str], checkpoint: Checkpoint) -> None:
    """Raises TwinGPTError, showing the difference, if the checkpoint belongs to another model, data or tokenizer."""
    # Dropout is no shape: a run may go on with another rate.
    differences = [d for d in config.model.differences(checkpoint.spec) if not d.startswith("dropout ")]
    if differences:
        raise TwinGPTError(
            f"{checkpoint.path} is of another model (asked for / in the checkpoint): {', '.join(differences)}"
        )
    recorded = checkpoint.progress.fingerprint
    for name, value in fingerprint.items():
        if recorded.get(name, value) != value:
            raise TwinGPTError(
                f"{checkpoint.path} was trained with other {name} ({recorded[name][:12]}… there, {value[:12]}… here): "
                "resume with what the run was started with, or start a new run with another --out"
            )
