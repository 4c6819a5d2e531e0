"""The engine's thread: turns in the queue, slots that come free, and failures that end no more than they must."""

import logging
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import make_engine
from twingpt.core.backend import Backend
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Request
from twingpt.generation.pieces import Piece
from twingpt.serve.worker import FairQueue, Finished, Job, QueueFullError, Update, Worker


@dataclass
class Reader:
    """Collects what a job emits."""

    updates: list[Update] = field(default_factory=list)

    @property
    def end(self) -> Finished | None:
        return next((update for update in self.updates if isinstance(update, Finished)), None)

    @property
    def text(self) -> str:
        return "".join(update.text for update in self.updates if isinstance(update, Piece))

    def wait(self) -> Finished:
        until(lambda: self.end is not None)
        assert self.end is not None
        return self.end


def until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def engine_spec(tokenizer: Tokenizer) -> GPTSpec:
    return GPTSpec(vocab_size=tokenizer.vocab_size, block_size=64, n_layer=1, n_head=2, n_embd=16, dropout=0.0)


@pytest.fixture
def worker(engine_spec: GPTSpec) -> Iterator[Worker]:
    worker = Worker(lambda: lambda: make_engine("mlx", engine_spec), slots=2, max_waiting=4)
    worker.start()
    yield worker
    worker.stop()


def job(tokenizer: Tokenizer, reader: Reader, tokens: int, **options: Any) -> Job:
    settings = {"prompt": [2, 40], "client": "a", "deadline": time.monotonic() + 60, **options}
    request = Request(settings.pop("prompt"), Sampling(seed=1), tokens)
    return Job(request, tokenizer, emit=reader.updates.append, **settings)


def test_each_client_has_its_turn(tokenizer: Tokenizer) -> None:
    fair = FairQueue()
    jobs = {name: job(tokenizer, Reader(), 1, client=name[0]) for name in ("a1", "a2", "a3", "b1", "b2", "c1")}
    for one in jobs.values():
        fair.push(one)
    fair.discard(jobs["a2"])
    names = {id(one): name for name, one in jobs.items()}
    assert len(fair) == 5
    assert [names[id(fair.pop())] for _ in range(5)] == ["a1", "b1", "c1", "a3", "b2"]
    assert len(fair) == 0


@pytest.mark.parametrize("name", ["mps", "mlx"])
def test_answers_come_and_slots_are_reused(name: str, engine_spec: GPTSpec, tokenizer: Tokenizer) -> None:
    worker = Worker(lambda: lambda: make_engine(name, engine_spec), slots=2, max_waiting=10)
    worker.start()
    readers = [Reader() for _ in range(6)]
    for reader in readers:
        worker.submit(job(tokenizer, reader, 30))
    ends = [reader.wait() for reader in readers]
    assert [end.reason for end in ends] == ["length"] * 6
    assert [end.tokens for end in ends] == [30] * 6
    assert len({reader.text for reader in readers}) == 1
    assert readers[0].text
    worker.stop()


def test_a_cancelled_job_frees_its_slot_and_says_no_more(worker: Worker, tokenizer: Tokenizer) -> None:
    long = [job(tokenizer, Reader(), 100_000) for _ in range(2)]
    for one in long:
        worker.submit(one)
    until(lambda: worker.load.active == 2)
    after = Reader()
    worker.submit(job(tokenizer, after, 5))
    until(lambda: worker.load.waiting == 1)
    worker.cancel(long[0])
    assert after.wait().reason == "length"
    assert long[0].ended
    assert worker.load.active == 1
    worker.cancel(long[0])
    worker.cancel(long[1])
    until(lambda: worker.load.active == 0)


def test_a_queue_has_an_end_and_opens_again(worker: Worker, tokenizer: Tokenizer) -> None:
    jobs = [job(tokenizer, Reader(), 100_000) for _ in range(6)]
    for one in jobs:
        worker.submit(one)
    with pytest.raises(QueueFullError):
        worker.submit(job(tokenizer, Reader(), 1))
    for one in jobs:
        worker.cancel(one)
    until(lambda: all(one.ended for one in jobs))
    for _ in range(2):
        readers = [Reader() for _ in range(6)]
        for reader in readers:
            worker.submit(job(tokenizer, reader, 2))
        assert [reader.wait().reason for reader in readers] == ["length"] * 6


def test_time_runs_out_for_those_that_write_and_those_that_wait(worker: Worker, tokenizer: Tokenizer) -> None:
    soon = time.monotonic() + 0.3
    readers = [Reader() for _ in range(3)]
    for reader in readers:
        worker.submit(job(tokenizer, reader, 100_000, deadline=soon))
    for reader in readers:
        end = reader.wait()
        assert end.reason is None
        assert end.problem is not None
        assert "time limit" in end.problem
    until(lambda: worker.load.active == 0)


def test_an_engine_that_fails_ends_the_answers_under_way_and_serves_the_next(
    engine_spec: GPTSpec, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("mlx", engine_spec)
    broken = [True]
    decode = engine.decode

    def failing(*args: Any) -> Any:
        if broken.pop() if broken else False:
            raise RuntimeError("the device is gone")
        return decode(*args)

    monkeypatch.setattr(engine, "decode", failing)
    worker = Worker(lambda: lambda: engine, slots=2, max_waiting=4)
    worker.start()
    first, second = Reader(), Reader()
    worker.submit(job(tokenizer, first, 5))
    assert first.wait().problem == "the engine failed: the device is gone"
    worker.submit(job(tokenizer, second, 5))
    assert second.wait().reason == "length"
    worker.stop()


def test_a_cache_that_cannot_be_had_again_is_told_and_a_reload_mends_it(
    engine_spec: GPTSpec, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("mlx", engine_spec)
    caches: list[weakref.ref[Any]] = []
    full = False
    new_cache, decode = engine.new_cache, engine.decode

    def allocate(*args: Any) -> Any:
        assert not any(cache() for cache in caches), "the old cache is still there"
        if full:
            raise RuntimeError("out of memory")
        cache = new_cache(*args)
        caches.append(weakref.ref(cache))
        return cache

    def failing(*args: Any) -> Any:
        if full:
            raise RuntimeError("out of memory")
        return decode(*args)

    # pytest keeps what is logged, and with the traceback the frames that hold the cache.
    monkeypatch.setattr(logging.getLogger("twingpt.serve.worker"), "disabled", True)
    monkeypatch.setattr(engine, "new_cache", allocate)
    monkeypatch.setattr(engine, "decode", failing)
    worker = Worker(lambda: lambda: engine, slots=2, max_waiting=4)
    worker.start()
    long, waits, after = Reader(), Reader(), Reader()
    worker.submit(job(tokenizer, long, 100_000))
    until(lambda: worker.load.active == 1)
    full = True
    assert long.wait().problem == "the engine failed: out of memory"
    until(lambda: not worker.ready)
    worker.submit(job(tokenizer, waits, 5))
    assert waits.wait().problem == "no model is loaded: out of memory; POST /api/reload tries again"
    full = False
    worker.reload().result(timeout=60)
    worker.submit(job(tokenizer, after, 5))
    assert after.wait().reason == "length"
    worker.stop()


def test_a_defect_in_one_turn_leaves_the_thread_alive(worker: Worker, tokenizer: Tokenizer) -> None:
    def emit(update: Update) -> None:
        if isinstance(update, Piece):
            raise ValueError("nobody listens")

    bad, good = job(tokenizer, Reader(), 5), Reader()
    bad.emit = emit
    worker.submit(bad)
    until(lambda: bad.ended)
    worker.submit(job(tokenizer, good, 5))
    assert good.wait().reason == "length"


def test_a_reload_waits_for_the_answers_under_way(engine_spec: GPTSpec, tokenizer: Tokenizer) -> None:
    opened: list[Backend] = []

    def open_engine() -> Backend:
        opened.append(make_engine("mlx", engine_spec))
        return opened[-1]

    worker = Worker(lambda: open_engine, slots=2, max_waiting=4)
    worker.start()
    before, after = Reader(), Reader()
    worker.submit(job(tokenizer, before, 60))
    until(lambda: worker.load.active == 1)
    done = worker.reload()
    worker.submit(job(tokenizer, after, 5))
    done.result(timeout=60)
    assert before.end is not None
    assert before.end.tokens == 60
    assert after.wait().reason == "length"
    assert len(opened) == 2
    worker.stop()


def test_without_a_model_a_job_is_told_so(tokenizer: Tokenizer) -> None:
    worker = Worker(lambda: None, slots=2, max_waiting=4)
    worker.start()
    assert not worker.ready
    reader = Reader()
    worker.submit(job(tokenizer, reader, 5))
    assert "no model is loaded" in (reader.wait().problem or "")
    worker.stop()


def test_what_loading_raises_reaches_the_caller() -> None:
    def failing() -> Backend:
        raise ValueError("no such weights")

    with pytest.raises(ValueError, match="no such weights"):
        Worker(lambda: failing, slots=1, max_waiting=1).start()


def test_stopping_ends_every_answer(engine_spec: GPTSpec, tokenizer: Tokenizer) -> None:
    worker = Worker(lambda: lambda: make_engine("mlx", engine_spec), slots=1, max_waiting=4)
    worker.start()
    readers = [Reader(), Reader()]
    for reader in readers:
        worker.submit(job(tokenizer, reader, 100_000))
    until(lambda: worker.load.active == 1)
    worker.stop()
    assert [reader.end.problem for reader in readers if reader.end] == ["the server is shutting down"] * 2
