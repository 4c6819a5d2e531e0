"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal

from twingpt.core.errors import UsageError
from twingpt.core.language import tr

ScheduleKind = Literal["constant", "cosine", "wsd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Linear warm-up over warmup_steps to `peak`, then on to step `steps`.

    constant: stays there. cosine: half a cosine down to `floor`. wsd (warm-up, stable, decay: Hu et al., arXiv
    2404.06395): stays there, and goes down in a line to `floor` over the last decay_fraction of `steps`.
    """

    kind: ScheduleKind
    peak: float
    floor: float
    warmup_steps: int
    steps: int
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 <= self.floor <= self.peak:
            raise UsageError(
                tr(
                    "train.min_learning_rate = {floor} must lie between 0 and learning_rate = {peak}",
                    floor=self.floor,
                    peak=self.peak,
                )
            )
        if not 0.0 <= self.decay_fraction <= 1.0:
            raise UsageError(
                tr(
                    "train.decay_fraction = {decay_fraction}: it must lie between 0 and 1",
                    decay_fraction=self.decay_fraction,
                )
            )

    def learning_rate(self, step: int) -> float:
        """The rate of update number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return self.peak
        if self.kind == "wsd":
            decay = max(1.0, self.decay_fraction * self.steps)
            left = min(1.0, max(0.0, (self.steps - step) / decay))
            return self.floor + left * (self.peak - self.floor)
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.floor + 0.5 * (self.peak - self.floor) * (1.0 + math.cos(math.pi * progress))
