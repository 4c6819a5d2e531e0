"""What a run will need, before it starts: memory from the shapes, time from a few steps, disk from the spec."""

from dataclasses import dataclass, replace

from twingpt.core.backend import BackendName
from twingpt.core.errors import TwinGPTError
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
class Footprint:
    """Float32 values that a training step keeps, beside weights, gradients and moments.

    For its gradient a layer keeps `width` x [B, T, n_embd], `hidden` x [B, T, hidden] and `square` x
    [B, n_head, T, T]. The backward pass needs `passing` x [B, T, n_embd] once more. The loss needs `logits` x
    [loss_chunk, vocab_size], and no more than `all_logits` x [B * T, vocab_size]. half: factor on a layer's share in
    bfloat16. framework: MiB that the framework takes when it starts to work, after its import. recomputed: layers alive
    at a time with activation checkpointing, more than one as freed blocks leave holes in the C library's heap. update:
    copies of the weights that the optimizer makes beside the gradients.
    """

    width: float
    hidden: float
    square: float
    passing: float
    logits: float
    all_logits: float
    half: float
    framework: float
    recomputed: float
    update: float


# Fitted to peak resident memory on a CPU (x86-64, torch 2.13, mlx 0.32.4) with n_embd 64 to 384, 2 and 6 layers, T 64
# and 256, mlp_ratio 1 and 4, vocabulary 512 and 16,000: 30 measurements, -11 to +7 % of the total; 4 more with
# activation checkpointing, -5 to +11 %. SQUARE is MPS's attention, measured by turning the fused one off on the CPU;
# nothing here was measured on a Mac. `python benchmarks/estimates.py` holds whole runs against it.
_TORCH = {
    "hidden": 2.0,
    "logits": 3.0,
    "all_logits": 3.0,
    "half": 0.6,
    "framework": 88,
    "recomputed": 3.8,
    "update": 0.0,
}
FLASH = Footprint(width=9.8, square=0.0, passing=19.0, **_TORCH)
SQUARE = Footprint(width=11.0, square=2.0, passing=19.0, **_TORCH)
SQUARE_DROPOUT = Footprint(width=14.5, square=4.0, passing=20.0, **_TORCH)
# MLX on the CPU hands out work, and memory for it, some ten chunks of the loss ahead.
_MLX = {
    "width": 14.0,
    "hidden": 4.0,
    "logits": 10.5,
    "all_logits": 2.5,
    "half": 0.6,
    "framework": 6,
    "recomputed": 2.3,
    "update": 2.5,
}
MLX = Footprint(square=1.0, passing=40.0, **_MLX)
MLX_DROPOUT = Footprint(square=2.5, passing=40.0, **_MLX)
# Its own exponentials on the CPU need room of their own, and a part of a batch for every thread its own gradients:
# 45 and 207 MB more than before with a vocabulary of 4,000 and 16,000.
_CPU = {"logits": 22.0, "all_logits": 5.0}
MLX_CPU, MLX_CPU_DROPOUT = replace(MLX, **_CPU), replace(MLX_DROPOUT, **_CPU)
# NumPy keeps every layer's arrays until the next pass, whether they are wanted again or not. Set above what tracemalloc
# counted on three small models, not fitted.
NUMPY = Footprint(
    width=24.0,
    hidden=4.0,
    square=3.0,
    passing=10.0,
    logits=5.0,
    all_logits=5.0,
    half=1.0,
    framework=6,
    recomputed=float("inf"),
    update=1.0,
)


def footprint(backend: BackendName, device: str, dropout: bool) -> Footprint:
    """Which kernels an engine takes for attention: PyTorch's CPU has a fused one without dropout, MPS never."""
    if backend == "reference":
        return NUMPY
    if backend == "mlx":
        if device == "cpu":
            return MLX_CPU_DROPOUT if dropout else MLX_CPU
        return MLX_DROPOUT if dropout else MLX
    if device == "cuda" or (device == "cpu" and not dropout):
        return FLASH
    return SQUARE_DROPOUT if dropout else SQUARE


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
    kept = footprint(backend, device, spec.dropout > 0.0)
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
        moments=state_bytes(spec, config.optimizer) - weights,
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
            f"--memory-limit {limit / GIB:.2f} GiB: {plan.micro_batch} x {spec.block_size} tokens at a time need about "
            f"{plan.estimate.total / GIB:.2f} GiB: {LESS_MEMORY}"
        )
    return plan


LESS_MEMORY = (
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


def events(start: int, last: int, every: int) -> int:
    """How often something happens in updates start + 1 .. last that happens `every` updates and after the last."""
    regular = last // every - start // every if every else 0
    return regular + (0 if every and last % every == 0 else 1)
