"""The time of an update on n machines that share its batch: what docs/en/several-macs.md has on paper, as code.

    step     = compute / n + exposed + copies + update
    compute  = tokens * FLOPs a token / FLOPs a second that training reaches on one machine
    exposed  = what is left of the communication when the last backward pass is over
    update   = the optimizer, which every machine does for itself

Communication is the ring all-reduce of both runtimes: gloo takes it for every size (gloo/allreduce.cc, `ring` unless
an algorithm is asked for, and torch's ProcessGroupGloo asks for none), and so does MLX (mlx/distributed/ring/ring.cpp).
Of b bytes each machine sends 2 (n - 1) / n * b, in 2 (n - 1) hops, to the next one in the ring while it receives as
much from the one before. Both cut the parts into pieces, so that adding up one piece goes on while the next one
travels: it costs nothing as long as memory is faster than the link.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from twingpt.core.backend import BackendName
from twingpt.core.engines import Exchange, find_engine
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.muon import STEPS, matrices_by_shape
from twingpt.core.params import flops_per_token, parameter_count, parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.measure.links import Link
from twingpt.training.config import TrainConfig

FLOAT = 4

UPDATE_BYTES = 40
"""Memory traffic of clipping and AdamW for each parameter: its gradient read for the norm, read and written scaled,
then read with weight and both moments, of which three are written."""

HELPS = 1.1
"""A speed-up below this is none to rely on: the plan's own error is larger."""

MOST = 2**16
"""The largest batch that is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """flops: a second, as training reaches them. memory: bytes a second, read or written. source: of these figures.

    spare_cores: whether the CPU has cores that training leaves alone, as it does when it runs on a GPU. Threads
    that wait for the network and never sleep take, without such cores, as much from the backward pass as it hides.
    """

    name: str
    flops: float
    memory: float
    source: str
    spare_cores: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Seconds of one update on `machines` machines.

    compute: forward and backward passes of one machine's share. communication: all of it; exposed: what the backward
    pass does not hide. copies: of the gradients, into and out of what travels. update: clipping and optimizer.
    tokens: of the whole batch.
    """

    machines: int
    tokens: int
    compute: float
    communication: float
    exposed: float
    copies: float
    update: float

    @property
    def step(self) -> float:
        return self.compute + self.exposed + self.copies + self.update

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step


def exchange_of(backend: BackendName) -> Exchange:
    """Raises UsageError for an engine that trains on one machine alone."""
    exchange = find_engine(backend).exchange
    if exchange is None:
        raise UsageError(tr("backend {backend} trains on one machine alone", backend=backend))
    return exchange


def predict(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, machine: Machine, link: Link, machines: int
) -> Cost:
    """One update of config.batch_size sequences, shared evenly (a fraction of a sequence counts as that).

    config.micro_batch 0: each machine takes its share at once.
    """
    local = config.batch_size / machines
    compute = local * spec.block_size * token_flops(spec, config) / machine.flops
    cost = Cost(
        machines=machines,
        tokens=config.batch_size * spec.block_size,
        compute=compute,
        communication=0.0,
        exposed=0.0,
        copies=0.0,
        update=update_seconds(spec, config, machine),
    )
    if machines == 1:
        return cost
    micro_batches = max(1.0, local / config.micro_batch) if config.micro_batch else 1.0
    hides = machine.spare_cores or exchange_of(backend).sleeps
    window = compute / micro_batches * backward_share(spec, config) if hides else 0.0
    finished = communication = 0.0
    for size, ready in buckets(spec, backend):
        taken = all_reduce_seconds(size, machines, link, backend)
        communication += taken
        finished = max(finished, ready * window) + taken
    gradients = FLOAT * parameter_count(spec)
    return Cost(
        machines=machines,
        tokens=cost.tokens,
        compute=compute,
        communication=communication,
        exposed=finished - window,
        copies=exchange_of(backend).passes * 2 * gradients / machine.memory,
        update=cost.update,
    )


def all_reduce_seconds(size: float, machines: int, link: Link, backend: BackendName) -> float:
    """A ring all-reduce of `size` bytes. Over shared air every machine waits for every other one's bytes too."""
    sent = 2 * (machines - 1) / machines * size * (machines if link.shared else 1)
    hops = 2 * (machines - 1)
    return sent / (link.gbits * 1e9 / 8) + hops * (link.latency_ms / 1000 + exchange_of(backend).hop_seconds)


def buckets(spec: GPTSpec, backend: BackendName) -> Iterator[tuple[int, float]]:
    """(bytes, share of the backward pass after which they are known) of each group of gradients, first to last.

    In the engines' order, the last parameters first: the head's gradient is made with the loss, the embeddings' at the
    very end.
    """
    size, ready, full = 0, 0.0, exchange_of(backend).bucket_bytes
    for name, param in reversed(parameter_table(spec).items()):
        if size >= full:
            yield size, ready
            size = 0
        size += FLOAT * param.size
        ready = max(ready, _known_after(name, spec))
    yield size, ready


def _known_after(name: str, spec: GPTSpec) -> float:
    part, _, rest = name.partition(".")
    if part == "blocks":
        return (spec.n_layer - int(rest.partition(".")[0])) / spec.n_layer
    return 0.0 if part in ("head", "ln_f") else 1.0


def token_flops(spec: GPTSpec, config: TrainConfig) -> float:
    """Activation checkpointing runs the blocks' forward pass, a third of their work, once more."""
    again = _block_flops(spec) / 3 if config.activation_checkpointing else 0.0
    return flops_per_token(spec) + again


def backward_share(spec: GPTSpec, config: TrainConfig) -> float:
    """Of a micro-batch's time, what comes after the loss: the head's gradients are made with it."""
    forward = _block_flops(spec) / 3
    return 1.0 - (forward + 6 * spec.vocab_size * spec.n_embd) / token_flops(spec, config)


def _block_flops(spec: GPTSpec) -> int:
    return flops_per_token(spec) - 6 * spec.vocab_size * spec.n_embd


def update_seconds(spec: GPTSpec, config: TrainConfig, machine: Machine) -> float:
    return update_flops(spec, config) / machine.flops + UPDATE_BYTES * parameter_count(spec) / machine.memory


def update_flops(spec: GPTSpec, config: TrainConfig) -> float:
    """Those of Muon's iteration: for r <= c, X X' and A X take 2 r^2 c each, A A 2 r^3. AdamW has next to none."""
    if config.optimizer != "muon":
        return 0.0
    flops = 0.0
    for shape, matrices in matrices_by_shape(parameter_table(spec)).items():
        rows, columns = sorted(shape)
        flops += len(matrices) * STEPS * (4.0 * rows * rows * columns + 2.0 * rows**3)
    return flops


def reached_flops(spec: GPTSpec, config: TrainConfig, step_seconds: float, memory: float) -> float:
    """FLOPs a second of a machine that was seen to take `step_seconds` for an update of config.batch_size sequences."""
    work = config.batch_size * spec.block_size * token_flops(spec, config) + update_flops(spec, config)
    # Where nearly all of it is the optimizer's memory traffic, that estimate must not eat the rest.
    return work / max(step_seconds - UPDATE_BYTES * parameter_count(spec) / memory, step_seconds / 10)


def helps_from(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, machine: Machine, link: Link, machines: int
) -> int | None:
    """The smallest batch that the machines share evenly and do at least HELPS times as fast as one; None above MOST."""

    def helps(shares: int) -> bool:
        larger = replace(config, batch_size=shares * machines, micro_batch=0)
        together, alone = (predict(spec, larger, backend, machine, link, n) for n in (machines, 1))
        return speed_up(together, alone) >= HELPS

    most = MOST // machines
    if not helps(most):
        return None
    # More compute for the same gradients: once they help, they go on helping.
    return machines * (1 + bisect_left(range(1, most), True, key=helps))


def speed_up(together: Cost, alone: Cost) -> float:
    return alone.step / together.step
