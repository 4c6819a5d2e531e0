"""The one thread that owns the engine: jobs come in over a queue, their text goes out by callbacks.

An MLX stream belongs to the thread that made it, and one thread is also what decoding in batches wants.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import InitVar, dataclass, field

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Batcher, Event, FinishReason, Logprobs, Request, prompt_logprobs
from twingpt.generation.pieces import Piece, TextWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finished:
    """reason: None where `problem` says why there is no answer. tokens: written, stop tokens left out."""

    reason: FinishReason | None
    tokens: int
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The log-probability of each token of the prompt; None for the first."""

    logprobs: tuple[Logprobs | None, ...]


Update = Prompt | Piece | Finished


@dataclass(slots=True, eq=False)
class Job:
    """A request in the queue and at work.

    client: whose turn it takes in the queue. emit: gets a Prompt where `echo` asks for it, each Piece and at last one
    Finished, in the engine's thread; it must not block. deadline: on time.monotonic(). echo: log-probabilities, where
    the request wants them, are given of the prompt's tokens too, and of a stop token. prompt_only: nothing is written.
    id: of the HTTP request, for the log.
    """

    request: Request
    tokenizer: InitVar[Tokenizer]
    client: str
    deadline: float
    emit: Callable[[Update], None]
    echo: bool = False
    prompt_only: bool = False
    id: str = "-"
    writer: TextWriter = field(init=False)
    written: int = 0
    handle: int | None = None
    ended: bool = False

    def __post_init__(self, tokenizer: Tokenizer) -> None:
        self.writer = TextWriter(tokenizer, self.request.stops, self.request.contacts)


class QueueFullError(Exception):
    """More jobs wait than the server wants to promise."""


class FairQueue:
    """Waiting jobs, one of each client in turn, however many a client has."""

    def __init__(self) -> None:
        self._by_client: OrderedDict[str, deque[Job]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, job: Job) -> None:
        self._by_client.setdefault(job.client, deque()).append(job)
        self._count += 1

    def pop(self) -> Job:
        client, jobs = next(iter(self._by_client.items()))
        job = jobs.popleft()
        self._count -= 1
        if jobs:
            self._by_client.move_to_end(client)
        else:
            del self._by_client[client]
        return job

    def discard(self, job: Job) -> None:
        jobs = self._by_client.get(job.client)
        if jobs is not None and job in jobs:
            jobs.remove(job)
            self._count -= 1
            if not jobs:
                del self._by_client[job.client]

    def overdue(self, now: float) -> list[Job]:
        return [job for jobs in self._by_client.values() for job in jobs if job.deadline <= now]


@dataclass(frozen=True, slots=True)
class Load:
    active: int
    waiting: int


@dataclass(slots=True)
class _Reload:
    done: "Future[None]" = field(default_factory=Future)


class Worker:
    """find_weights: reads and checks the newest weights, and returns what puts them into an engine, or None while there
    are none.

    Both are called in the worker's thread, at the start and for every reload, which waits for the answers under way.
    """

    def __init__(
        self, find_weights: Callable[[], Callable[[], Backend] | None], *, slots: int, max_waiting: int
    ) -> None:
        self.slots = slots
        self._max_waiting = max_waiting
        self._find_weights = find_weights
        self._inbox: queue.SimpleQueue[Job | _Reload | tuple[Job] | None] = queue.SimpleQueue()
        self._admitted = threading.Semaphore(slots + max_waiting)
        self._waiting = FairQueue()
        self._live: dict[int, Job] = {}
        self._batcher: Batcher | None = None
        self._missing = tr("the run has no checkpoint yet")
        self._reloads: deque[_Reload] = deque()
        self._loading: Future[None] | None = None
        self._stopping = False
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Returns when the model is loaded; raises what loading it raised."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Ends every answer and the thread."""
        self.close()
        self._thread.join()

    def close(self) -> None:
        """What `stop` does, without waiting for it."""
        self._inbox.put(None)

    @property
    def ready(self) -> bool:
        """A model is loaded."""
        return self._batcher is not None

    @property
    def loading(self) -> "Future[None] | None":
        """Done when the weights that are being loaded just now are loaded, or cannot be; None at other times."""
        return self._loading

    @property
    def problem(self) -> str:
        """Why there is no model, where there is none."""
        return tr("no model is loaded: {missing}", missing=self._missing)

    @property
    def load(self) -> Load:
        return Load(len(self._live), len(self._waiting))

    def submit(self, *jobs: Job) -> None:
        """All of them, or none and QueueFullError. Callable from any thread, as are cancel and reload."""
        for number in range(len(jobs)):
            if not self._admitted.acquire(blocking=False):
                if number:
                    self._admitted.release(number)
                raise QueueFullError
        for job in jobs:
            self._inbox.put(job)

    def cancel(self, job: Job) -> None:
        """Nobody wants the rest: the job's slot goes to the next. It emits no more; an ended job is left alone."""
        self._inbox.put((job,))

    def reload(self) -> "Future[None]":
        """Load the newest weights when the answers under way are complete; those that wait get the new ones."""
        request = _Reload()
        self._inbox.put(request)
        return request.done

    def _run(self) -> None:
        try:
            self._open()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        while not self._stopping:
            try:
                self._turn()
            except Exception as error:
                # Without this thread whoever waits would wait for ever.
                logger.exception("the engine's thread met a defect")
                self._fail_all(tr("the server failed: {error}", error=_message(error)))
        self._fail_all(tr("the server is shutting down"))
        for request in self._reloads:
            request.done.cancel()

    def _turn(self) -> None:
        self._read_inbox(block=not self._live and not self._waiting)
        self._expire()
        if self._reloads and not self._live:
            self._reload()
        self._admit()
        if self._live:
            self._step()

    def _open(self) -> None:
        # Weights that cannot be read leave the old model at work.
        load = self._find_weights()
        # The old cache and weights go first: two models at once may not fit.
        self._batcher = None
        if load is not None:
            self._new_batcher(load)

    def _new_batcher(self, load: Callable[[], Backend]) -> None:
        """Raises what `load` and the allocation of the cache raise, after which there is no model."""
        try:
            self._batcher = Batcher(load(), self.slots)
        except Exception as error:
            self._missing = tr("{error}; POST /api/reload tries again", error=_message(error))
            raise

    def _read_inbox(self, block: bool) -> None:
        while True:
            try:
                message = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if message is None:
                self._stopping = True
            elif isinstance(message, Job):
                self._waiting.push(message)
            elif isinstance(message, _Reload):
                self._reloads.append(message)
            else:
                self._drop(message[0])

    def _drop(self, job: Job) -> None:
        if not job.ended:
            self._release(job)

    def _release(self, job: Job) -> None:
        """Take a job out of wherever it stands, and let the next one in."""
        job.ended = True
        self._admitted.release()
        if job.handle is None:
            self._waiting.discard(job)
        else:
            self._live.pop(job.handle, None)
            if self._batcher is not None:
                self._batcher.remove(job.handle)

    def _end(self, job: Job, reason: FinishReason | None, problem: str | None = None) -> None:
        self._release(job)
        if problem is None and (piece := job.writer.finish()) is not None:
            job.emit(piece)
        job.emit(Finished(reason, job.written, problem))

    def _expire(self) -> None:
        now = time.monotonic()
        overdue = self._waiting.overdue(now) + [job for job in self._live.values() if job.deadline <= now]
        for job in overdue:
            self._end(job, None, tr("the time limit of this server was reached before the answer was complete"))

    def _reload(self) -> None:
        requests, self._reloads = self._reloads, deque()
        problem: Exception | None = None
        loading: Future[None] = Future()
        self._loading = loading
        try:
            self._open()
        except Exception as error:
            problem = error
            logger.exception(tr("the checkpoint could not be loaded"))
        finally:
            self._loading = None
            loading.set_result(None)
        for request in requests:
            if problem is None:
                request.done.set_result(None)
            else:
                request.done.set_exception(problem)

    def _admit(self) -> None:
        """Fill the free slots. While a reload waits for the live jobs to end, no new one starts."""
        while self._waiting and len(self._live) < self.slots and not self._reloads:
            job = self._waiting.pop()
            if self._batcher is None:
                self._end(job, None, self.problem)
                continue
            if self._begin(job, self._batcher):
                continue
            try:
                job.handle = self._batcher.add(job.request)
            except TwinGPTError as error:
                self._end(job, None, error.problem)
                continue
            self._live[job.handle] = job

    def _begin(self, job: Job, batcher: Batcher) -> bool:
        """What comes before the first token; whether the job ends with it."""
        request = job.request
        if job.echo and request.top_logprobs is not None:
            try:
                job.emit(Prompt(tuple(prompt_logprobs(batcher.backend, request.prompt, request.top_logprobs))))
            except Exception as error:
                # Nothing of it is in the cache, so that the others go on.
                logger.exception("request %s: the prompt could not be scored", job.id)
                self._end(job, None, tr("the engine failed: {error}", error=_message(error)))
                return True
        if job.prompt_only:
            self._end(job, "length")
        return job.prompt_only

    def _step(self) -> None:
        assert self._batcher is not None
        try:
            events = self._batcher.step()
        except Exception as error:
            logger.exception("the engine failed; under way: %s", " ".join(job.id for job in self._live.values()))
            problem = tr("the engine failed: {error}", error=_message(error))
        else:
            for event in events:
                self._pass_on(self._live[event.handle], event)
            return
        # Out here the exception is gone, and with it the last that would keep the old cache beside the new one.
        self._begin_again(problem)

    def _begin_again(self, problem: str) -> None:
        """What the cache holds is unknown: those under way cannot go on, those that wait can, with a new one."""
        assert self._batcher is not None
        backend, self._batcher = self._batcher.backend, None
        for job in list(self._live.values()):
            self._end(job, None, problem)
        try:
            self._new_batcher(lambda: backend)
        except Exception:
            logger.exception("the cache could not be allocated again")

    def _pass_on(self, job: Job, event: Event) -> None:
        if event.token is not None:
            job.written += 1
            if (piece := job.writer.push(event.token, event.logprobs)) is not None:
                job.emit(piece)
        elif job.echo and event.end is not None and event.logprobs is not None:
            # Whoever adds up the prompt's log-probabilities leaves out one entry a token asked for: there must be one.
            job.writer.end(event.end, event.logprobs)
        if job.writer.stopped:
            self._end(job, "stop")
        elif event.finish_reason is not None:
            self._end(job, event.finish_reason)

    def _fail_all(self, problem: str) -> None:
        for job in list(self._live.values()):
            self._end(job, None, problem)
        while self._waiting:
            self._end(self._waiting.pop(), None, problem)


def _message(error: Exception) -> str:
    return (error.problem if isinstance(error, TwinGPTError) else str(error)) or type(error).__name__
