"""An average of the weights over the last part of a run, kept beside them: what it predicts is often the better.

The averaged weights of a run are those of no step, but they lie in the middle of where the last steps jump about
(Polyak and Juditsky, 1992; with a decay: Tarvainen and Valpola, arXiv 1703.01780). The average is taken in NumPy from
what the engine hands out, so that it is the same rule for every engine.
"""

import math

import numpy as np

from twingpt.core.backend import State

EVERY = 10
"""Updates from one look at the weights to the next: a look costs a copy, and neighbours hardly differ."""


class WeightAverage:
    """average <- average + a (weights - average) every EVERY updates, with a = 1 - exp(-EVERY / reach), or 1 / n at the
    n-th look while that is more: until it has seen `reach` updates, it is their plain mean.

    share: of the run's `steps` that it reaches back. state: as it was saved; None before the first look.
    """

    def __init__(self, share: float, steps: int, state: State | None = None) -> None:
        # What was read from a file cannot be written to.
        self.state = None if state is None else {key: array.copy() for key, array in state.items()}
        self._share_of_a_look = 1.0 - math.exp(-EVERY / (share * steps))

    def is_due(self, step: int) -> bool:
        return step % EVERY == 0

    def take(self, step: int, weights: State) -> None:
        """Take in the weights after `step` updates; they are kept, and not copied, at the first look."""
        if self.state is None:
            self.state = weights
            return
        share = np.float32(max(EVERY / step, self._share_of_a_look))
        for key, average in self.state.items():
            average += share * (weights[key] - average)
