"""A batch and an update in parts, each on a stream of its own.

MLX computes on one thread a stream, and only OpenBLAS's products use more. With a thread a part, everything else does
too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import operator
from collections.abc import Callable, Iterator
from typing import TypeVar

import mlx.core as mx

from twingpt.backends.mlx.linux_cpu import blas
from twingpt.backends.mlx.ops import Each, LossAndGrads, Soft

Item = TypeVar("Item")

MOST_PARTS = 4
"""Each part has weight gradients of its own."""


class Parts:
    def __init__(self, threads: int, openblas: ctypes.CDLL | None) -> None:
        """threads: those that OpenBLAS computes with; openblas: None where MLX multiplies with another BLAS."""
        self.threads = threads
        self.streams = [mx.new_thread_local_stream(mx.Device(mx.cpu)) for _ in range(min(threads, MOST_PARTS))]
        self._openblas = openblas

    def take_threads(self, number: int | None = None) -> None:
        """Let every product use so many threads, all of them if no number is given."""
        if self._openblas:
            self._openblas.openblas_set_num_threads(number or self.threads)

    def in_turn(self, items: list[Item]) -> Iterator[list[Item]]:
        """The items in their order, a run of them for each part, whose stream is the default one meanwhile."""
        if len(self.streams) == 1:
            yield items
            return
        for part, stream in enumerate(self.streams):
            own = items[part * len(items) // len(self.streams) : (part + 1) * len(items) // len(self.streams)]
            if own:
                with mx.stream(stream):
                    yield own

    def each(self, sizes: dict[str, int]) -> Each:
        """What is done to every parameter alone, done on the parts' streams: about as many numbers on each."""
        loads = [0] * len(self.streams)
        part_of: dict[str, int] = {}
        for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
            part = part_of[name] = loads.index(min(loads))
            loads[part] += size

        def run(function: Callable[[str, mx.array], mx.array], arrays: dict[str, mx.array]) -> dict[str, mx.array]:
            results = {}
            for name, array in arrays.items():
                with mx.stream(self.streams[part_of[name]]):
                    results[name] = function(name, array)
            return results

        return run

    def micro_step(self, loss_and_grads: LossAndGrads) -> LossAndGrads:
        """A summed loss and its gradients, of as many parts of a micro-batch at once as there are threads."""
        keep_freed_memory()
        compute = mx.compile(loss_and_grads)

        def run(
            weights: dict[str, mx.array],
            inputs: mx.array,
            targets: mx.array,
            keys: mx.array | None,
            soft: Soft | None = None,
        ) -> tuple[mx.array, dict[str, mx.array]]:
            rows, parts = len(inputs), len(self.streams)
            if not 1 < self.threads == parts <= rows:
                self.take_threads()
                return compute(weights, inputs, targets, keys, soft)
            self.take_threads(1)
            losses, grads = [], []
            for part, stream in enumerate(self.streams):
                own = slice(part * rows // parts, (part + 1) * rows // parts)
                with mx.stream(stream):
                    own_keys = None if keys is None else keys[own]
                    own_soft = None if soft is None else (soft[0][own], soft[1][own])
                    loss, grad = compute(weights, inputs[own], targets[own], own_keys, own_soft, parts)
                losses.append(loss)
                grads.append(grad)
            # MLX hands out one part's work to the end before the next one's, unless it is asked for little at a time.
            mx.async_eval(losses)
            for name in reversed(weights):
                mx.async_eval([grad[name] for grad in grads])
            add = functools.partial(functools.reduce, operator.add)
            return add(losses), {name: add([grad[name] for grad in grads]) for name in weights}

        return run


@functools.cache
def parts_of_this_machine() -> Parts:
    """The same for every engine of the process, as the threads of OpenBLAS are."""
    openblas = blas.load()
    return Parts(openblas.openblas_get_num_threads() if openblas else 1, openblas)


def keep_freed_memory() -> None:
    """glibc would hand a step's memory back to the system, which clears every page of it for the next one."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt, trim_threshold, mmap_threshold = ctypes.CDLL(None).mallopt, -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**30)
