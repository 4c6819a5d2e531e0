"""Several ranks on mx.distributed: a ring over TCP or Thunderbolt, or JACCL, MPI or NCCL where the user has them."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.nn import average_gradients

from twingpt.backends.mlx.engine import BUCKET_BYTES
from twingpt.core.errors import PeerLostError, TwinGPTError
from twingpt.core.language import tr
from twingpt.core.memory import first_line
from twingpt.core.world import Alone, World

_BACKENDS = ("[ring]", "[jaccl]", "[mpi]", "[nccl]")


class MLXWorld:
    """The ranks that mlx.launch started, joined when this is made.

    stream: of every exchange, one for all: the ring and JACCL put what comes on the same sockets, in the order in which
    it comes, which has to be the same on all ranks. None leaves it to NCCL.
    Raises TwinGPTError if they do not find each other.
    """

    def __init__(self) -> None:
        try:
            self.group = mx.distributed.init(strict=True)
        except (RuntimeError, ValueError) as error:
            raise TwinGPTError(
                tr(
                    "the ranks did not find each other ({error}): check what mlx.launch was given as "
                    "--hosts or --hostfile",
                    error=first_line(error),
                )
            ) from None
        self.rank, self.size = self.group.rank(), self.group.size()
        # Not the default one: on a CPU the backward pass would wait for the network.
        self.stream = None if mx.cuda.is_available() else mx.new_stream(mx.Device(mx.cpu))

    def gather(self, data: bytes) -> list[bytes]:
        try:
            mine = mx.array(np.frombuffer(data, dtype=np.uint8))
            gathered = mx.distributed.all_gather(mine, group=self.group, stream=self.stream)
            mx.eval(gathered)
            self.wait()
            rows = np.array(gathered).reshape(self.size, len(data))
        except RuntimeError as error:
            raise PeerLostError(first_line(error)) from None
        return [row.tobytes() for row in rows]

    def wait(self) -> None:
        """Only this raises what an exchange met: without it, a lost rank's part is made up."""
        mx.synchronize(self.stream or mx.default_stream(mx.default_device()))


class GradientSum:
    """Sums gradients over the ranks, in groups, each as soon as the backward pass has made it."""

    def __init__(self, world: World) -> None:
        assert isinstance(world, MLXWorld)
        self._world = world

    def __call__(self, grads: dict[str, mx.array], loss: mx.array) -> tuple[dict[str, mx.array], mx.array]:
        """(summed gradients, summed loss). Waits for them, but with NCCL.

        What follows on a GPU must not wait for the network: Metal ends a command buffer that has waited about five
        seconds (ml-explore/mlx-examples#1185). So all of it is the CPU's, and there before the GPU is given more.
        """
        # The last parameters have their gradients first.
        names = list(reversed(grads))
        arrays = [*(grads[name] for name in names), loss[None]]
        size, stream = self._world.size, self._world.stream
        with mx.stream(stream) if stream else contextlib.nullcontext():
            means = average_gradients(arrays, self._world.group, BUCKET_BYTES, stream)
            *sums, total = [mean * size for mean in means]
        if stream:
            mx.eval(sums, total)
            self._world.wait()
        by_name = dict(zip(names, sums, strict=True))
        return {name: by_name[name] for name in grads}, total[0]


def is_peer_lost(error: BaseException) -> bool:
    """Whether what MLX raised, from whichever call came next, says that a rank is gone."""
    return str(error).startswith(_BACKENDS)


def join(timeout: float) -> World:
    """MLX has no timeouts of its own: the trainer's watchdog keeps the time, but for this call.

    It waits for the others with the interpreter's lock in its hands, so that only C code can end the process, which
    cannot say why: that is said before.
    """
    if _ring_of_one():
        return Alone()
    sys.stderr.write(
        tr(
            "waiting for the other ranks: start them within half a minute of each other (MLX's own limit); "
            "after {timeout:g} s this one ends\n",
            timeout=timeout,
        )
    )
    sys.stderr.flush()
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(timeout, exit=True, file=nowhere)
        try:
            return MLXWorld()
        finally:
            faulthandler.cancel_dump_traceback_later()


def _ring_of_one() -> bool:
    """mlx.launch writes an empty host file for one host, and MLX can read neither that nor a ring of one."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if not hosts or not Path(hosts).is_file():
        return False
    text = Path(hosts).read_text().strip()
    return not text or len(json.loads(text)) < 2
