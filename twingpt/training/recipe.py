"""How a model is trained. The command line makes options of these, so nothing heavy is imported here."""

import dataclasses
from dataclasses import dataclass
from typing import Self, TypedDict

from twingpt.core.engine_settings import DeviceChoice, EngineConfig, EngineSettings, OptimizerName, Precision
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.schedule import Schedule, ScheduleKind
from twingpt.core.setting import setting
from twingpt.data.tokens.cut import Cut

LARGEST_COUNT = 10**12
"""Of steps: more than anybody trains, and few enough that every figure made from them is one."""
LARGEST_EPOCHS = 10.0**6
LEAST_DECAY_UPDATES = 100
"""Of a small text an epoch is a few updates, in which no weight can be forgotten and learned again."""
LARGEST_BATCH = 2**20
"""Sequences: of a batch of which the windows alone would fill a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(EngineSettings):
    """Defaults are the user's recipe: AdamW at a constant 3e-4.

    schedule, decay_fraction: see core.schedule. The engine's own settings: see core.engine_settings.EngineSettings.
    """

    steps: int = setting(20_000, "Updates in all; defines the schedule.", least=1, most=LARGEST_COUNT)
    epochs: float = setting(
        0.0, "Passes over the text, in place of --steps. 0: as many as --steps makes.", least=0, most=LARGEST_EPOCHS
    )
    decay_epochs: float = setting(
        0.0,
        "Epochs in which weight decay pulls a weight down by 1 / e, in place of --weight-decay. 0: as that says.",
        least=0,
        most=LARGEST_EPOCHS,
    )
    cut: Cut = setting("anew", "What each epoch has anew: documents and window borders (anew), or their order (fixed).")
    batch_size: int = setting(16, "Sequences an update.", least=1, most=LARGEST_BATCH)
    micro_batch: int = setting(
        0, "Sequences at a time; divides --batch-size. 0: what fits into memory.", least=0, most=LARGEST_BATCH
    )
    learning_rate: float = setting(3e-4, "Peak.", above=0, most=1e3)
    min_learning_rate: float = setting(0.0, "Where cosine and wsd end.", least=0, most=1e3)
    schedule: ScheduleKind = setting("constant", "constant, cosine or wsd, after the warm-up.")
    warmup_steps: int = setting(0, "Updates of linear warm-up.", least=0, most=LARGEST_COUNT)
    decay_fraction: float = setting(0.2, "Share of the steps over which wsd falls.", least=0, most=1)
    eval_every: int = setting(500, "Steps between evaluations. 0: only at the end.", least=0, most=LARGEST_COUNT)
    eval_epochs: float = setting(
        0.0, "Epochs between evaluations, in place of --eval-every. 0: as that says.", least=0, most=LARGEST_EPOCHS
    )
    save_every: int = setting(500, "Steps between checkpoints. 0: only at the end.", least=0, most=LARGEST_COUNT)
    log_every: int = setting(10, "Steps a line of metrics.", least=1, most=LARGEST_COUNT)
    average: float = setting(
        0.0,
        "Share of the steps that an average of the weights reaches back, kept beside them. 0: none.",
        least=0,
        most=1,
    )
    eval_windows: int = setting(
        100, "Validation windows of an evaluation, spread evenly. 0: all.", least=0, most=LARGEST_COUNT
    )
    keep_last: int = setting(3, "Checkpoints kept besides the best. 0: all.", least=0, most=LARGEST_COUNT)
    sample_tokens: int = setting(
        120, "Longest text that an evaluation has the model write. 0: none.", least=0, most=1_000_000
    )

    def __post_init__(self) -> None:
        EngineSettings.__post_init__(self)
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise UsageError(
                tr(
                    "train.micro_batch = {micro_batch} does not divide batch_size = {batch_size}",
                    micro_batch=self.micro_batch,
                    batch_size=self.batch_size,
                )
            )
        # What they cannot mean together is asked now, not when training begins.
        self.lr_schedule()

    @property
    def accumulation(self) -> int:
        """Micro-batches an update."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    def lr_schedule(self) -> Schedule:
        return Schedule(
            kind=self.schedule,
            peak=self.learning_rate,
            floor=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            steps=self.steps,
            decay_fraction=self.decay_fraction,
        )

    def in_steps(self, windows: int) -> Self:
        """These settings with `steps`, `eval_every` and `weight_decay` as the epochs say, of so many windows each.

        Decay pulls a weight towards 0 with a time of tau = B / (lr x decay x D) epochs, of B tokens an update and D
        tokens of text (Wang and Aitchison, arXiv 2405.13698; Bergsma and others, arXiv 2505.13738): what is good for
        one batch and one text is good for others with the same tau.
        """
        an_epoch = windows / self.batch_size
        steps = max(1, round(self.epochs * an_epoch)) if self.epochs else self.steps
        eval_every = max(1, round(self.eval_epochs * an_epoch)) if self.eval_epochs else self.eval_every
        weight_decay = self.weight_decay
        if self.decay_epochs:
            updates = max(self.decay_epochs * an_epoch, LEAST_DECAY_UPDATES)
            weight_decay = 1 / (self.learning_rate * updates)
        return dataclasses.replace(self, steps=steps, eval_every=eval_every, weight_decay=weight_decay)

    def engine(self, device: DeviceChoice) -> EngineConfig:
        shared = [field.name for field in dataclasses.fields(EngineSettings)]
        return EngineConfig(device=device, **{name: getattr(self, name) for name in shared})


class TrainSettings(TypedDict, total=False):
    """The fields of TrainConfig, any of which may be given by name: what a type checker and an editor know of them."""

    precision: Precision
    optimizer: OptimizerName
    muon_lr_scale: float
    muon_momentum: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
    loss_chunk: int
    activation_checkpointing: bool
    seed: int
    steps: int
    epochs: float
    decay_epochs: float
    cut: Cut
    batch_size: int
    micro_batch: int
    learning_rate: float
    min_learning_rate: float
    schedule: ScheduleKind
    warmup_steps: int
    decay_fraction: float
    eval_every: int
    eval_epochs: float
    save_every: int
    log_every: int
    average: float
    eval_windows: int
    keep_last: int
    sample_tokens: int
