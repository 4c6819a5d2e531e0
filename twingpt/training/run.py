"""A run that a Python program trains: `twingpt.train`."""

import logging
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from twingpt.core.engines import find_engine
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.world import launched_for
from twingpt.data.tokens.arrays import TokenArrays
from twingpt.data.tokens.windows import Tokens
from twingpt.training.config import RunConfig
from twingpt.training.log import EvalReport, MicroBatchReport, Report
from twingpt.training.record import record_session
from twingpt.training.restart import RunningMark, marked
from twingpt.training.session import Session, TrainRequest, open_session
from twingpt.training.validation import Evaluation
from twingpt.weights.checkpoint import CheckpointStore

Data = Path | str | tuple[Tokens, Tokens] | None
"""DATA that `prepare` wrote, (tokens to train on, tokens to validate with), or, to go on, what the run has."""


class TrainingRun(Iterator[Report]):
    """A run in training, as an iterator of its reports: each `next` trains until there is something to report.

    It has its folder to itself until it ends: at the last report, by an error, by `close`, or as a context manager.
    Whatever ends it, a later run resumes from its newest checkpoint.
    """

    def __init__(self, session: Session, folder: Path, stop_at: int | None = None) -> None:
        self.folder = folder
        self.evaluation: Evaluation | None = None
        """The newest one; None before the first."""
        self._session = session
        self._reports = self._train(stop_at)

    @property
    def config(self) -> RunConfig:
        """All settings, also those that were not given."""
        return self._session.config

    @property
    def notes(self) -> list[str]:
        """What should be known of the run before it starts, a line each."""
        return self._session.notes

    @property
    def step(self) -> int:
        """Updates done."""
        return self._session.trainer.step

    def __next__(self) -> Report:
        return next(self._reports)

    def finish(self, *callbacks: Callable[[Report], None]) -> Path:
        """Train to the end, and tell each callback of every report; returns the last checkpoint, for `twingpt.load`."""
        for report in self:
            for callback in callbacks:
                callback(report)
        return CheckpointStore(self.folder).path(self.step)

    def stop(self) -> None:
        """Let it end after the step under way: the reports that follow are the last ones, of what is saved then."""
        self._session.trainer.request_stop()

    def close(self) -> None:
        """End without saving anything more, and leave the folder to others."""
        self._reports.close()
        if self._session.lock is not None:
            self._session.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _train(self, stop_at: int | None) -> Generator[Report, None, None]:
        session, trainer = self._session, self._session.trainer
        try:
            if trainer.is_done(stop_at):
                RunningMark.remove(self.folder)
                return
            mark = RunningMark(os.getpid(), session.memory.micro_batch, session.config.train.batch_size)
            with marked(self.folder, mark):
                record_session(
                    self.folder, trainer.step, session.backend, session.world.size, session.memory.micro_batch
                )
                for report in trainer.run(stop_at):
                    if isinstance(report, EvalReport):
                        self.evaluation = report.evaluation
                    elif isinstance(report, MicroBatchReport):
                        replace(mark, micro_batch=report.after).write(self.folder)
                    yield report
        finally:
            if session.lock is not None:
                session.lock.release()


def start(request: TrainRequest) -> TrainingRun:
    """Check and open what is asked for; nothing is trained yet. Notes are logged as warnings.

    Raises TwinGPTError or UsageError, with nothing written, if the request cannot be carried out.
    """
    if launched_for() is not None:
        raise UsageError(tr("several ranks are trained by the command `twingpt train`, not by twingpt.train"))
    session = open_session(replace(request, backend=find_engine(request.backend).name))
    for note in session.notes:
        logging.getLogger(__name__).warning(note)
    return TrainingRun(session, request.run_dir, request.stop_at)


def data_of(data: Data, token_bytes: Tokens | None) -> tuple[Path | None, TokenArrays | None]:
    """(the folder, the arrays) that were given; one of them, or neither. Raises UsageError for anything else."""
    if isinstance(data, tuple | list):
        if len(data) != 2:
            raise UsageError(tr("data holds {arrays} arrays: give (train_tokens, val_tokens)", arrays=len(data)))
        return None, TokenArrays(data[0], data[1], token_bytes)
    if token_bytes is not None:
        raise UsageError(tr("token_bytes belongs to arrays: a DATA folder has a tokenizer that knows them"))
    if data is None or isinstance(data, str | Path):
        return None if data is None else Path(data), None
    raise UsageError(tr("data is {kind}: give a DATA folder, or (train_tokens, val_tokens)", kind=type(data).__name__))
