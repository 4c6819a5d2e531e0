"""Work spread over processes with its results in order, and little of it waiting in memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr

# Below this the start of worker processes takes longer than the work.
ALONE_BYTES = 2 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_workers() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def workers_for(size: int, workers: int) -> int:
    """The processes worth starting for `size` bytes of text."""
    return workers if size > ALONE_BYTES else 1


def ordered_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    setup: Callable[..., None] | None = None,
    setup_args: tuple[Any, ...] = (),
) -> Generator[Result, None, None]:
    """work(item) for each item, in the order of the items; with one worker in this process.

    At most two items a worker are waiting or being worked on. `work`, `setup` and what they carry must be picklable.
    Raises what `work` raised, and TwinGPTError if a worker was killed.
    """
    if workers <= 1:
        if setup is not None:
            setup(*setup_args)
        yield from map(work, items)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(setup, setup_args),
    )
    try:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) >= 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise TwinGPTError(
            tr("a worker process was killed, most often because memory ran out: use fewer with --workers")
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(setup: Callable[..., None] | None, setup_args: tuple[Any, ...]) -> None:
    # The parent answers Ctrl-C; a worker outlives no parent, not even one that was killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if setup is not None:
        setup(*setup_args)


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
