"""What a run will need, before it starts: memory from the shapes, time from a few steps, disk from the spec."""

from dataclasses import dataclass

from twingpt.core.backend import BackendName
from twingpt.core.engines import find_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, tr
from twingpt.core.params import HEAD, TOKEN_EMBEDDING, parameter_count, parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import state_bytes
from twingpt.training.config import TrainConfig

FLOAT = 4
MIB = 1024**2
GIB = 1024**3

USABLE = 0.8
"""Share of the machine's memory that a run may plan with; the rest is the system's and other programs'."""

SAVE_BYTES_PER_SECOND = 400e6
"""Hashing and writing a checkpoint: 193 MB took 0.5 s on the development machine. A guess for other disks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes at the peak of a step: of its backward pass, its update, or the copy for a save, whichever is highest."""

    weights: int
    gradients: int
    moments: int
    activations: int
    logits: int
    framework: int
    updating: int
    saving: int

    @property
    def total(self) -> int:
        fixed = self.weights + self.moments + self.framework
        return fixed + max(self.gradients + self.activations + self.logits, self.updating, self.saving)


def estimate_memory(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, device: str, micro_batch: int
) -> MemoryEstimate:
    """Peak memory of a training process above what importing the framework takes."""
    kept = find_engine(backend).footprint(device, spec.dropout > 0.0)
    tokens = micro_batch * spec.block_size
    layer = FLOAT * tokens * (kept.width * spec.n_embd + kept.hidden * spec.hidden)
    layer += FLOAT * kept.square * micro_batch * spec.n_head * spec.block_size**2
    half = config.precision == "bfloat16"
    layer *= kept.half if half else 1.0
    stream = FLOAT * tokens * spec.n_embd
    activations = spec.n_layer * layer
    if config.activation_checkpointing:
        activations = spec.n_layer * stream + min(spec.n_layer, kept.recomputed) * layer
    passing = stream * kept.passing
    weights = FLOAT * parameter_count(spec)
    # The loss is over when the backward pass begins, and without accumulation there is no gradient before it.
    head = FLOAT * parameter_table(spec)[TOKEN_EMBEDDING if spec.tie_embeddings else HEAD].size
    rows = min(kept.logits * min(config.loss_chunk, tokens), kept.all_logits * tokens)
    logits = head + FLOAT * rows * spec.vocab_size
    gradients = weights if micro_batch < config.batch_size else max(0, weights - int(activations))
    return MemoryEstimate(
        weights=weights + (weights // 2 if half else 0),
        gradients=gradients,
        # The average of the weights lies in the machine's memory, which on a Mac is the device's too.
        moments=state_bytes(spec, config.optimizer) - weights + (weights if config.average else 0),
        activations=int(activations + max(0.0, passing - logits)),
        logits=int(logits),
        framework=int(kept.framework * MIB),
        updating=int((1 + kept.update) * weights),
        saving=3 * weights,
    )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What was chosen, why, and what is left to say. limit: bytes that the run may plan with."""

    micro_batch: int
    estimate: MemoryEstimate
    limit: int

    @property
    def fits(self) -> bool:
        return self.estimate.total <= self.limit


def plan_memory(
    spec: GPTSpec, config: TrainConfig, backend: BackendName, device: str, limit: int, *, strict: bool
) -> MemoryPlan:
    """The micro-batch asked for, or for 0 the largest divisor of the batch whose estimate stays within `limit` bytes.

    If not even one sequence fits: with `strict` (the user's own limit) TwinGPTError, else a plan that does not fit.
    """
    sizes = [config.micro_batch] if config.micro_batch else divisors(config.batch_size)
    plans = [MemoryPlan(size, estimate_memory(spec, config, backend, device, size), limit) for size in sizes]
    plan = next((plan for plan in plans if plan.fits), plans[-1])
    if strict and not plan.fits:
        raise TwinGPTError(
            tr(
                "--memory-limit {limit:.2f} GiB: {micro_batch} x {block_size} tokens at a time need about "
                "{total:.2f} GiB: {advice}",
                limit=limit / GIB,
                micro_batch=plan.micro_batch,
                block_size=spec.block_size,
                total=plan.estimate.total / GIB,
                advice=tr(LESS_MEMORY),
            )
        )
    return plan


LESS_MEMORY = mark(
    "use --activation-checkpointing, --precision bfloat16, a smaller --micro-batch or --block-size, or a smaller model"
)


def divisors(batch_size: int) -> list[int]:
    """Micro-batches that divide a batch evenly, largest first."""
    return [size for size in range(batch_size, 0, -1) if batch_size % size == 0]


def smaller_micro_batch(batch_size: int, micro_batch: int) -> int | None:
    """The largest even cut of at most half the size; None if there is none."""
    return next((size for size in divisors(batch_size) if size <= micro_batch // 2), None)


@dataclass(frozen=True, slots=True)
class TimeEstimate:
    """Seconds: of one update, one evaluation (with its sample), one save, and the numbers of each to come."""

    step: float
    evaluation: float
    save: float
    steps: int
    evaluations: int
    saves: int

    @property
    def total(self) -> float:
        return self.steps * self.step + self.evaluations * self.evaluation + self.saves * self.save


def events(start: int, last: int, every: int, *, at_end: bool = True) -> int:
    """How often something happens in updates start + 1 .. last that happens `every` updates (0: never).

    at_end: whether it also happens after the last.
    """
    regular = last // every - start // every if every else 0
    return regular + (1 if at_end and not (every and last % every == 0) else 0)
