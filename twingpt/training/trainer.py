"""The one training loop, for both engines."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend, SoftTargets
from twingpt.core.errors import NotFiniteError, OutOfMemoryError, RestartError, TwinGPTError
from twingpt.core.language import tr
from twingpt.core.state import initial_state
from twingpt.core.world import Alone, World
from twingpt.data.tokens.batches import BatchSource
from twingpt.training.average import WeightAverage
from twingpt.training.config import CONFIG_FILE, RunConfig
from twingpt.training.estimate import (
    LESS_MEMORY,
    SAVE_BYTES_PER_SECOND,
    TimeEstimate,
    events,
    smaller_micro_batch,
)
from twingpt.training.guards import SpikeDetector, checkpoint_bytes, free_bytes
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
from twingpt.training.soft_targets import StoredTargets
from twingpt.training.validation import Evaluation, evaluate
from twingpt.weights.checkpoint import Checkpoint, CheckpointStore, Progress, read_checkpoint
from twingpt.weights.run_files import record_files

MAX_SKIPPED_IN_A_ROW = 10
WARM_UP_STEPS = 3
READINGS = 20
"""Lines of metrics over which the pace is measured that tells the time left."""
DROPOUT_STREAM = "what drops out"
"""The name in a run's fingerprint: told when it changes, and not refused."""


class Trainer:
    """A run from where it stands to its last step, as a generator of reports.

    Nothing random is carried along: the data order, the learning rate and dropout are functions of (seed, step), so a
    resumed run, another micro-batch, another number of ranks and the other engine all see the same run.

    token_bytes: int32 [vocab_size], bytes that each token stands for. write_sample: text of up to so many tokens, for
    an evaluation, or None.
    fingerprint: what a checkpoint must agree with to be resumed, by name.
    soft: what teachers foretold of the training text, if the run is a student.
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
        soft: StoredTargets | None = None,
        world: World | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._run_dir, self._run_config = run_dir, config
        self._world, self._beat = world or Alone(), beat
        self._local_batch = config.train.batch_size // self._world.size
        self._config = replace(config.train, micro_batch=config.train.micro_batch or self._local_batch)
        self._spec = config.model
        self._backend = backend
        self._train, self._val, self._soft = train, val, soft
        self._token_bytes = token_bytes
        self._write_sample = write_sample
        self._fingerprint = fingerprint
        self._schedule = config.train.lr_schedule()
        self._average: WeightAverage | None = None
        if config.train.average:
            saved = resume_from.average if resume_from else None
            self._average = WeightAverage(config.train.average, config.train.steps, saved)
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
        self._best_loss = math.inf
        self.metrics: MetricsLog | None = None
        self._skipped_in_a_row = self._progress.skipped
        self._skipped_since = self.step + 1 - self._skipped_in_a_row
        if self._world.rank == 0:
            owed = self.owes_evaluation
            self.metrics = MetricsLog(run_dir, self._progress.step, evaluated=not owed)
            if resume_from is not None:
                # What a kill between a save and the clearing up after it left there.
                self._store.stand_on(self.step)
                self._retain()
                self._best_loss = self._store.best_loss(self.step)
        self._stop_requested = False
        # Updates since the last line of metrics: nats, tokens, gradient norm, whether it was applied.
        self._unlogged = [[math.nan if x is None else x for x in update] for update in self._progress.unlogged]
        self._clock, self._lr, self._last = _Clock(0), 0.0, config.train.steps
        self._spikes = SpikeDetector()
        self._asides: deque[Report] = deque()

    @property
    def step(self) -> int:
        """Updates done."""
        return self._progress.step

    @property
    def owes_evaluation(self) -> bool:
        """Whether the run was ended between the save of a step and its evaluation, which comes after it."""
        return self.step > 0 and self._progress.val_loss is None and self._evaluation_due()

    def is_done(self, stop_at: int | None = None) -> bool:
        """Whether nothing is left to do up to step `stop_at` (default: all of them)."""
        return self.step >= min(stop_at or self._config.steps, self._config.steps) and not self.owes_evaluation

    def request_stop(self) -> None:
        """Finish the step under way, save, and end. Safe to call from a signal handler."""
        self._stop_requested = True

    def run(self, stop_at: int | None = None) -> Iterator[Report]:
        """Train up to step `stop_at` (default: all of them), reporting as it goes.

        Raises TwinGPTError if the loss stays non-finite or the weights have become so, a checkpoint cannot be written,
        or not even one sequence at a time fits into memory; RestartError if only a fresh process can go on, with a
        smaller micro-batch.
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
        stops = StopVote(self._world, self.step, config.log_every)
        if self.owes_evaluation:
            yield from self._evaluated()
        self._clock, self._last = _Clock(self.step), last
        while self.step < last and not stops(self.step, self._stop_requested):
            self._lr = self._schedule.learning_rate(self.step)
            yield from self._update(self._lr)
            self._take_average()
            self._clock.count(config.batch_size * self._spec.block_size)
            if self.step == 1 or self.step % config.log_every == 0 or self.step == config.steps:
                self._collect()
                yield self._log(self._step_report())
            # Saved first: what fails in an evaluation, or in the sample after it, must not cost a step.
            if (config.save_every and self.step % config.save_every == 0) or self.step == last:
                with self._clock.paused(self._backend):
                    yield self._save()
            if self._evaluation_due():
                yield from self._evaluated()
        if self._saved_step != self.step:
            yield self._save()
        if self._unlogged:
            yield self._log(self._step_report(partial=True))

    def _evaluation_due(self) -> bool:
        """A run that is stopped earlier evaluates where it would have done so, no more, as after Ctrl-C."""
        every = self._config.eval_every
        return self.step == self._config.steps or bool(every and self.step % every == 0)

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
            evaluations=events(position.step, last, config.eval_every, at_end=last == config.steps),
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
        soft = self._soft.of(self._train.places(done.samples, config.batch_size), targets) if self._soft else None
        while (problem := self._try_update(inputs, targets, lr, tokens, soft)) is not None:
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
        self,
        inputs: NDArray[np.int32],
        targets: NDArray[np.int32],
        lr: float,
        tokens: int,
        soft: SoftTargets | None,
    ) -> OutOfMemoryError | None:
        def own(sequences: NDArray[Any]) -> NDArray[Any]:
            """This rank's, in micro-batches."""
            shape = (-1, self._config.micro_batch, *sequences.shape[1:])
            return sequences[self._world.rank :: self._world.size].reshape(shape)

        own_soft = None if soft is None else SoftTargets(*map(own, soft))
        try:
            self._backend.train_step(own(inputs), own(targets), lr, self.step, tokens, own_soft)
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
                tr(
                    "{problem}, with one sequence at a time: {advice}, or close other programs",
                    problem=problem,
                    advice=tr(LESS_MEMORY),
                )
            ) from None
        return smaller

    def _restart_error(self, problem: OutOfMemoryError) -> TwinGPTError:
        error = RestartError(str(problem), self._smaller_micro_batch(problem))
        # One rank cannot begin again alone.
        return (
            error
            if self._world.size == 1
            else TwinGPTError(tr("rank {rank} ran {error}, on all ranks", rank=self._world.rank, error=error))
        )

    def _set_micro_batch(self, micro_batch: int) -> None:
        """Also for a later --resume, which would run out of memory again."""
        self._config = replace(self._config, micro_batch=micro_batch)
        train = replace(self._run_config.train, micro_batch=micro_batch)
        self._run_config = replace(self._run_config, train=train)
        self._run_config.save(self._run_dir)
        record_files(self._run_dir, [CONFIG_FILE])

    def _collect(self) -> None:
        """Wait for the updates under way, and read how they went, for the next line of metrics.

        Raises TwinGPTError if too many in a row could not be applied.
        """
        stats = self._backend.read_stats()
        updates = zip(stats.loss_sums, stats.tokens, stats.grad_norms, stats.applied, strict=True)
        ended = False
        for number, (nats, tokens, norm, applied) in enumerate(updates, self.step - len(stats.applied) + 1):
            self._unlogged.append([nats, tokens, norm, applied])
            if not tokens:
                continue  # nothing to learn from, and no sign of anything
            if (spike := self._spikes.check(nats / tokens)) is not None:
                self._asides.append(self._log(SpikeReport(number, *spike)))
            self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
            self._skipped_since = number if self._skipped_in_a_row == 1 else self._skipped_since
            ended = ended or self._skipped_in_a_row == MAX_SKIPPED_IN_A_ROW
        if ended:
            self._log(self._step_report(partial=True))
            raise TwinGPTError(
                tr(
                    "the loss or gradient was not finite {steps} steps in a row, from step {first} on: {advice}",
                    steps=MAX_SKIPPED_IN_A_ROW,
                    first=self._skipped_since,
                    advice=self._way_back(),
                )
            )

    def _way_back(self) -> str:
        """What to do where training has diverged."""
        again = (
            tr("start again")
            if self._saved_step < 0
            else tr(
                "go on from {name}, the last one saved, with --resume", name=self._store.path(self._saved_step).name
            )
        )
        return tr(
            "{again} and a lower --learning-rate or --precision float32, or run `twingpt doctor` to check the device",
            again=again,
        )

    def _step_report(self, *, partial: bool = False) -> StepReport:
        """Of the updates since the last line; a partial one leaves them to the next line too."""
        losses, tokens, norms, applied = zip(*self._unlogged, strict=True)
        if not partial:
            self._unlogged = []
        return StepReport(
            step=self.step,
            loss=sum(losses) / sum(tokens) if sum(tokens) else math.nan,
            lr=self._lr,
            grad_norm=norms[-1],
            tokens_per_second=self._clock.rate(),
            seconds_left=self._clock.left(self.step, self._last),
            skipped=applied.count(False),
            epoch=self._progress.samples / self._train.per_epoch,
            samples=self._progress.samples,
            tokens=self._progress.tokens,
            memory=self._backend.memory()[1],
            partial=partial,
        )

    def _evaluated(self) -> Iterator[Report]:
        """Evaluate, and see to it that what was best so far is in a checkpoint, whatever save_every is."""
        try:
            with self._clock.paused(self._backend):
                report = self._evaluate()
        except Exception:
            if self._saved_step != self.step:
                # What happened in the evaluation is what is to be told.
                with contextlib.suppress(TwinGPTError):
                    self._save()
            raise
        yield self._log(report)
        loss = self._progress.lowest_loss
        if self._world.rank == 0 and self._saved_step == self.step:
            self._store.record(self._progress)
            self._retain()
        elif loss < self._best_loss:
            with self._clock.paused(self._backend):
                yield self._save()
        self._best_loss = min(self._best_loss, loss) if math.isfinite(loss) else self._best_loss

    def _evaluate(self) -> EvalReport:
        config = self._config
        result, average = self._evaluation(), self._average_evaluation()
        average_loss = None if average is None else average.loss
        self._progress = replace(self._progress, val_loss=result.loss, average_loss=average_loss)
        sample = problem = None
        if self._write_sample is not None:
            try:
                sample = self._write_sample(config.sample_tokens)
            except OutOfMemoryError:
                raise
            except TwinGPTError as error:
                # A text to look at is not worth a training.
                problem = str(error)
        return EvalReport(self.step, result, sample, problem, average)

    def _evaluation(self) -> Evaluation:
        config, beat = self._config, self._beat
        found = evaluate(
            self._backend, self._val, self._token_bytes, config.micro_batch, config.eval_windows, self._world, beat
        )
        self._beat()
        return found

    def _average_evaluation(self) -> Evaluation | None:
        """Of the averaged weights, which stand in for the others meanwhile; None if there are none."""
        if self._average is None or self._average.state is None:
            return None
        weights = self._backend.export_state(optimizer=False)
        self._backend.load_state(self._average.state)
        try:
            return self._evaluation()
        finally:
            self._backend.load_state(weights)

    def _take_average(self) -> None:
        if self._average is not None and self._average.is_due(self.step):
            self._average.take(self.step, self._backend.export_state(optimizer=False))

    def _save(self) -> SaveReport:
        """Raises TwinGPTError, with nothing saved and nothing deleted, if the state is none to go on from."""
        path = self._store.path(self.step)
        self._collect()
        if self._world.rank > 0:
            self._saved_step = self.step
            return SaveReport(self.step, path)
        unlogged = [list(map(_storable, each)) for each in self._unlogged]
        self._progress = replace(self._progress, unlogged=unlogged, skipped=self._skipped_in_a_row)
        try:
            average = None if self._average is None else self._average.state
            self._store.save(self._spec, self._backend.export_state(), self._progress, average)
        except NotFiniteError as error:
            if self._unlogged:
                self._log(self._step_report(partial=True))
            since = (
                tr(", and no loss has been finite since step {first}", first=self._skipped_since)
                if self._skipped_in_a_row
                else ""
            )
            raise TwinGPTError(
                tr(
                    "step {step} is not saved: {key} holds numbers that are not finite{since}: {advice}",
                    step=self.step,
                    key=error.key,
                    since=since,
                    advice=self._way_back(),
                )
            ) from None
        self._saved_step = self.step
        self._retain()
        needed, free = checkpoint_bytes(self._spec, self._config), free_bytes(path)
        if free < needed and self.step < self._config.steps:
            self._asides.append(DiskReport(self.step, path.parent, needed, free))
        return SaveReport(self.step, path)

    def _retain(self) -> None:
        # Where the last loss was no number, the weights may be of no use though they are finite: older ones stay.
        if not self._skipped_in_a_row:
            self._store.retain(self._config.keep_last)

    def _log(self, report: StepReport | EvalReport | SpikeReport | MicroBatchReport) -> Report:
        if self.metrics is not None:
            self.metrics.write(report.metrics())
        return report


def _storable(value: Any) -> Any:
    """JSON has no number that is none."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Clock:
    """Tokens a second since the last reading, pauses left out; and how long the rest takes, pauses included."""

    def __init__(self, step: int) -> None:
        self._start = time.perf_counter()
        self._tokens = 0
        self._readings: deque[tuple[float, int]] = deque([(self._start, step)], maxlen=READINGS)
        self._warm = False

    def count(self, tokens: int) -> None:
        self._tokens += tokens

    def rate(self) -> float:
        now = time.perf_counter()
        rate = self._tokens / (now - self._start)
        self._start, self._tokens = now, 0
        return rate

    def left(self, step: int, last: int) -> float:
        """Seconds until step `last`, at the pace of the last readings."""
        now = time.perf_counter()
        since, first = self._readings[0]
        if not self._warm:
            # The first updates compile kernels and fill caches: no later estimate counts them.
            self._readings.clear()
            self._warm = True
        self._readings.append((now, step))
        return (last - step) * (now - since) / max(step - first, 1)

    @contextlib.contextmanager
    def paused(self, backend: Backend) -> Iterator[None]:
        # Updates still under way on the device belong to the training time.
        backend.synchronize()
        paused_at = time.perf_counter()
        yield
        self._start += time.perf_counter() - paused_at


def check_resumable(config: RunConfig, fingerprint: dict[str, str], checkpoint: Checkpoint) -> None:
    """Raises TwinGPTError, showing the difference, if the checkpoint belongs to another model, data or tokenizer."""
    # Dropout is no shape: a run may go on with another rate, and with other masks.
    differences = [d for d in config.model.differences(checkpoint.spec) if not d.startswith("dropout ")]
    if differences:
        raise TwinGPTError(
            tr(
                "{checkpoint} is of another model (asked for / in the checkpoint): {differences}",
                checkpoint=checkpoint.path,
                differences=", ".join(differences),
            )
        )
    recorded = checkpoint.progress.fingerprint
    for name, value in fingerprint.items():
        if name != DROPOUT_STREAM and recorded.get(name, value) != value:
            raise TwinGPTError(
                tr(
                    "{checkpoint} was trained with other {name} ({there}… there, {here}… here): "
                    "resume with what the run was started with, or start a new run with another --out",
                    checkpoint=checkpoint.path,
                    name=name,
                    there=recorded[name][:12],
                    here=value[:12],
                )
            )
