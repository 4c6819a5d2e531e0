"""The one training loop, for both engines."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend
from twingpt.core.errors import OutOfMemoryError, RestartError, TwinGPTError
from twingpt.core.state import initial_state, state_bytes
from twingpt.core.world import Alone, World
from twingpt.data.tokens.batches import BatchSource
from twingpt.training.config import RunConfig
from twingpt.training.estimate import (
    LESS_MEMORY,
    SAVE_BYTES_PER_SECOND,
    TimeEstimate,
    events,
    smaller_micro_batch,
)
from twingpt.training.guards import SpikeDetector, free_bytes
from twingpt.training.log import (
    DiskReport,
    EvalReport,
    MetricsLog,
    MicroBatchReport,
    Report,
    SaveReport,
    SpikeReport,
    StepReport,
)
from twingpt.training.ranks import StopVote
from twingpt.training.validation import Evaluation, evaluate
from twingpt.weights.checkpoint import Checkpoint, CheckpointStore, Progress, read_checkpoint

MAX_SKIPPED_IN_A_ROW = 10
WARM_UP_STEPS = 3


class Trainer:
    """A run from where it stands to its last step, as a generator of reports.

    Nothing random is carried along: the data order, the learning rate and dropout are functions of (seed, step), so a
    resumed run, another micro-batch, another number of ranks and the other engine all see the same run.

    token_bytes: int32 [vocab_size], bytes that each token stands for. write_sample: text of up to so many tokens, for
    an evaluation, or None.
    fingerprint: what a checkpoint must agree with to be resumed, by name.
    world: the ranks that share each batch; rank 0 alone writes. beat: called whenever the loop has moved.
    """

    def __init__(
        self,
        run_dir: Path,
        config: RunConfig,
        backend: Backend,
        train: BatchSource,
        val: BatchSource,
        *,
        token_bytes: NDArray[np.int32],
        fingerprint: dict[str, str],
        write_sample: Callable[[int], str] | None = None,
        resume_from: Checkpoint | None = None,
        world: World | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._run_dir, self._run_config = run_dir, config
        self._world, self._beat = world or Alone(), beat
        self._local_batch = config.train.batch_size // self._world.size
        self._config = replace(config.train, micro_batch=config.train.micro_batch or self._local_batch)
        self._spec = config.model
        self._backend = backend
        self._train, self._val = train, val
        self._token_bytes = token_bytes
        self._write_sample = write_sample
        self._fingerprint = fingerprint
        self._schedule = config.train.lr_schedule()
        self._store = CheckpointStore(run_dir)
        self._origin = resume_from.path if resume_from else None
        if resume_from is None:
            self._load_start()
            self._progress = Progress(step=0, fingerprint=fingerprint)
        else:
            check_resumable(config, fingerprint, resume_from)
            backend.load_state(resume_from.state)
            self._progress = resume_from.progress
        self._saved_step = self._progress.step if resume_from else -1
        self.metrics = MetricsLog(run_dir, self._progress.step) if self._world.rank == 0 else None
        self._stop_requested = False
        self._skipped_in_a_row = 0
        self._spikes = SpikeDetector()
        self._asides: deque[Report] = deque()

    @property
    def step(self) -> int:
        """Updates done."""
        return self._progress.step

    def request_stop(self) -> None:
        """Finish the step under way, save, and end. Safe to call from a signal handler."""
        self._stop_requested = True

    def run(self, stop_at: int | None = None) -> Iterator[Report]:
        """Train up to step `stop_at` (default: all of them), reporting as it goes.

        Raises TwinGPTError if the loss stays non-finite, a checkpoint cannot be written, or not even one sequence at a
        time fits into memory; RestartError if only a fresh process can go on, with a smaller micro-batch.
        """
        try:
            for report in self._run(stop_at):
                yield report
                while self._asides:
                    yield self._asides.popleft()
        except OutOfMemoryError as error:
            raise self._restart_error(error) from None

    def _run(self, stop_at: int | None) -> Iterator[Report]:
        config, last = self._config, min(stop_at or self._config.steps, self._config.steps)
        evaluated, start = -1, self.step
        clock, stops = _Clock(), StopVote(self._world, start, config.log_every)
        while self.step < last and not stops(self.step, self._stop_requested):
            lr = self._schedule.learning_rate(self.step)
            yield from self._update(lr)
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
        if self.step == last and evaluated != last and self.step > start:
            yield self._log(self._evaluate())
        if self._saved_step != self.step:
            yield self._save()

    def warm_up(self, stop_at: int | None = None) -> TimeEstimate:
        """Time the coming steps, an evaluation and a sample on the run's own batches, then put everything back.

        Costs WARM_UP_STEPS steps and leaves no trace: weights, moments, data order and dropout are functions of the
        step, and the state is loaded once more. Raises what `run` raises.
        """
        config, position = self._config, self._progress
        try:
            seconds = [self._timed_step() for _ in range(WARM_UP_STEPS)]
            evaluation = self._timed_evaluation() + self._timed_sample()
        except OutOfMemoryError as error:
            raise self._restart_error(error) from None
        started = time.perf_counter()
        size = sum(array.nbytes for array in self._backend.export_state().values())
        save = time.perf_counter() - started + size / SAVE_BYTES_PER_SECOND
        self._load_start()
        self._progress = position
        last = min(stop_at or config.steps, config.steps)
        return TimeEstimate(
            # The first one compiles kernels and fills caches.
            step=sum(seconds[1:]) / (WARM_UP_STEPS - 1),
            evaluation=evaluation,
            save=save,
            steps=last - position.step,
            evaluations=events(position.step, last, config.eval_every),
            saves=events(position.step, last, config.save_every),
        )

    def _load_start(self) -> None:
        """The state that the run begins with: its checkpoint, or initial weights and zero moments."""
        if self._origin is not None:
            self._backend.load_state(read_checkpoint(self._origin).state)
            return
        self._backend.load_state(initial_state(self._spec, self._config.seed, self._config.optimizer))

    def _timed_step(self) -> float:
        started = time.perf_counter()
        self._asides.extend(self._update(self._schedule.learning_rate(self.step)))
        self._backend.read_stats()
        return time.perf_counter() - started

    def _timed_evaluation(self) -> float:
        """Seconds of a whole evaluation, from two of its batches."""
        size = self._config.micro_batch
        windows = self._val.spread(self._config.eval_windows)
        inputs, targets = self._val.gather((windows * size)[:size])
        self._backend.eval_step(inputs, targets)
        started = time.perf_counter()
        self._backend.eval_step(inputs, targets)
        return (time.perf_counter() - started) * -(-len(windows) // size)

    def _timed_sample(self) -> float:
        if self._write_sample is None:
            return 0.0
        times = []
        for tokens in (1, 1, 9):
            started = time.perf_counter()
            self._write_sample(tokens)
            times.append(time.perf_counter() - started)
        a_token = max(0.0, times[2] - times[1]) / 8
        return times[1] + a_token * (self._config.sample_tokens - 1)

    def _update(self, lr: float) -> Iterator[Report]:
        """One update, in smaller pieces if memory runs out, each cut reported."""
        done, config = self._progress, self._config
        inputs, targets = self._train.batch(done.samples, config.batch_size)
        tokens = int((targets >= 0).sum())
        while (problem := self._try_update(inputs, targets, lr, tokens)) is not None:
            before = self._config.micro_batch
            self._set_micro_batch(self._smaller_micro_batch(problem))
            report = MicroBatchReport(done.step + 1, before, self._config.micro_batch, str(problem))
            yield self._log(report)
        self._progress = Progress(
            step=done.step + 1,
            samples=done.samples + config.batch_size,
            tokens=done.tokens + tokens,
            fingerprint=self._fingerprint,
        )
        self._beat()

    def _try_update(
        self, inputs: NDArray[np.int32], targets: NDArray[np.int32], lr: float, tokens: int
    ) -> OutOfMemoryError | None:
        shape = (-1, self._config.micro_batch, self._spec.block_size)
        inputs, targets = (rows[self._world.rank :: self._world.size].reshape(shape) for rows in (inputs, targets))
        try:
            self._backend.train_step(inputs, targets, lr, self.step, tokens)
        except OutOfMemoryError as error:
            # Some of its gradients may be with the other ranks already.
            if not error.retry or self._world.size > 1:
                raise
            # The traceback would keep the failed attempt's arrays alive.
            return error.with_traceback(None)
        return None

    def _smaller_micro_batch(self, problem: OutOfMemoryError) -> int:
        smaller = smaller_micro_batch(self._local_batch, self._config.micro_batch)
        if smaller is None:
            raise TwinGPTError(
                f"{problem}, with one sequence at a time: {LESS_MEMORY}, or close other programs"
            ) from None
        return smaller

    def _restart_error(self, problem: OutOfMemoryError) -> TwinGPTError:
        error = RestartError(str(problem), self._smaller_micro_batch(problem))
        # One rank cannot begin again alone.
        return error if self._world.size == 1 else TwinGPTError(f"rank {self._world.rank} ran {error}, on all ranks")

    def _set_micro_batch(self, micro_batch: int) -> None:
        """Also for a later --resume, which would run out of memory again."""
        self._config = replace(self._config, micro_batch=micro_batch)
        train = replace(self._run_config.train, micro_batch=micro_batch)
        self._run_config = replace(self._run_config, train=train)
        self._run_config.save(self._run_dir)

    def _read_stats(self, lr: float, clock: "_Clock") -> StepReport:
        stats = self._backend.read_stats()
        first = self.step - len(stats.applied) + 1
        for number, (nats, tokens) in enumerate(zip(stats.loss_sums, stats.tokens, strict=True), first):
            if tokens and (spike := self._spikes.check(nats / tokens)) is not None:
                self._asides.append(self._log(SpikeReport(number, *spike)))
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
            memory=self._backend.memory()[1],
        )

    def _evaluate(self) -> EvalReport:
        config = self._config
        result: Evaluation = evaluate(
            self._backend,
            self._val,
            self._token_bytes,
            config.micro_batch,
            config.eval_windows,
            self._world,
            self._beat,
        )
        self._beat()
        self._progress = replace(self._progress, val_loss=result.loss)
        return EvalReport(self.step, result, self._write_sample(config.sample_tokens) if self._write_sample else None)

    def _save(self) -> SaveReport:
        path = self._store.path(self.step)
        self._saved_step = self.step
        if self._world.rank > 0:
            return SaveReport(self.step, path)
        self._store.save(self._spec, self._backend.export_state(), self._progress)
        self._store.retain(self._config.keep_last)
        needed, free = state_bytes(self._spec, self._config.optimizer), free_bytes(path)
        if free < needed and self.step < self._config.steps:
            self._asides.append(DiskReport(self.step, path.parent, needed, free))
        return SaveReport(self.step, path)

    def _log(self, report: StepReport | EvalReport | SpikeReport | MicroBatchReport) -> Report:
        if self.metrics is not None:
            self.metrics.write(report.metrics())
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
