"""Several ranks on torch.distributed: gloo, and nccl where each has a CUDA device of its own."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from twingpt.backends.torch_mps.engine import BUCKET_BYTES, RESTARTS
from twingpt.core.errors import PeerLostError, TwinGPTError
from twingpt.core.language import tr
from twingpt.core.memory import first_line, is_out_of_memory


class TorchWorld:
    """The ranks that torchrun started, joined when this is made. Raises TwinGPTError if they do not find each other."""

    def __init__(self, timeout: float) -> None:
        """timeout: seconds that a rank waits for the others, now and in every exchange."""
        local_rank, local_size = (int(os.environ.get(f"LOCAL_{name}", "1")) for name in ("RANK", "WORLD_SIZE"))
        with_nccl = torch.cuda.is_available() and torch.cuda.device_count() >= local_size
        if with_nccl:
            torch.cuda.set_device(local_rank % torch.cuda.device_count())
        patience = timedelta(seconds=timeout)
        try:
            store, self.rank, self.size = next(rendezvous("env://", timeout=patience))
            # torchrun keeps the store when it starts the ranks again, with the addresses of those that are gone.
            store = dist.PrefixStore(f"restart-{os.environ.get(RESTARTS, '0')}", store)  # type: ignore[attr-defined]
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if with_nccl else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=patience,
            )
        except (RuntimeError, ValueError) as error:
            raise TwinGPTError(
                tr(
                    "the ranks did not find each other ({error}): check what torchrun was given as "
                    "--nnodes, --node-rank and --master-addr",
                    error=first_line(error),
                )
            ) from None

    def gather(self, data: bytes) -> list[bytes]:
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with peers():
            dist.all_gather(parts, mine)
        return [part.numpy().tobytes() for part in parts]


class GradientSum:
    """Sums gradients over the ranks, bucket by bucket, while the backward pass still works on those before them.

    gloo has no Metal: there a bucket is copied to the CPU, which waits until the device has come that far.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        # The last parameters have their gradients first.
        self._buckets = _buckets(list(reversed(parameters.values())))
        self._bucket_of = {parameter: i for i, bucket in enumerate(self._buckets) for parameter in bucket}
        self._missing: list[int] = []
        self._sums: list[tuple[Tensor, dist.Work]] = []
        self._armed = False
        for parameter in self._bucket_of:
            parameter.register_post_accumulate_grad_hook(self._accumulated)

    def arm(self) -> None:
        """The next backward pass is the update's last: what it makes is what travels."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._sums.clear()
        self._armed = True

    def finish(self, loss: Tensor) -> Tensor:
        """Wait for the sums, which become the parameters' gradients; returns the summed loss."""
        self._armed = False
        with peers():
            total, work = _start_sum(loss)
            for bucket, (flat, bucket_work) in zip(self._buckets, self._sums, strict=True):
                bucket_work.wait()
                parts = flat.to(loss.device).split([parameter.numel() for parameter in bucket])
                for parameter, part in zip(bucket, parts, strict=True):
                    parameter.grad = part.view_as(parameter)
            work.wait()
        self._sums.clear()
        return total.to(loss.device)

    def _accumulated(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        self._missing[self._bucket_of[parameter]] -= 1  # type: ignore[index]
        # In the buckets' own order, which is the same on every rank.
        while len(self._sums) < len(self._buckets) and self._missing[len(self._sums)] == 0:
            bucket = self._buckets[len(self._sums)]
            flat = torch.cat([parameter.grad.flatten() for parameter in bucket if parameter.grad is not None])
            with peers():
                self._sums.append(_start_sum(flat))


def _start_sum(tensor: Tensor) -> tuple[Tensor, dist.Work]:
    tensor = tensor.cpu() if tensor.device.type == "mps" else tensor
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    return tensor, work


def _buckets(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    buckets: list[list[nn.Parameter]] = [[]]
    for parameter in parameters:
        if sum(p.numel() for p in buckets[-1]) * 4 >= BUCKET_BYTES:
            buckets.append([])
        buckets[-1].append(parameter)
    return buckets


@contextlib.contextmanager
def peers() -> Iterator[None]:
    """What gloo and nccl raise when a rank is gone, as our error."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        # gloo begins with the place in its source and goes on with what may be the cause.
        reason = re.sub(r"^\[[^]]*\] ", "", first_line(error)).partition(". ")[0]
        raise PeerLostError(reason) from None


def join(timeout: float) -> TorchWorld:
    return TorchWorld(timeout)
