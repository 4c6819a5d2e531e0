"""One sampler for both engines: logits in, a token out. The same seed gives the same text."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.setting import check_bounds, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """temperature 0 is greedy. top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off.

    The filters act in this order: repetition penalty, temperature, top-k, top-p (Holtzman et al., arXiv 1904.09751),
    min-p (Nguyen et al., arXiv 2407.01082). The penalty (Keskar et al., arXiv 1909.05858) divides a positive logit of
    every token already seen and multiplies a negative one.
    """

    temperature: float = setting(0.8, "0: always the likeliest token.", least=0, most=100)
    top_k: int = setting(50, "Choose among the K likeliest tokens. 0: off.", least=0, most=2**31 - 1)
    top_p: float = setting(1.0, "Choose among tokens of this probability together. 1: off.", above=0, most=1)
    min_p: float = setting(0.0, "Drop tokens below this share of the likeliest. 0: off.", least=0, most=1)
    repetition_penalty: float = setting(1.0, "Above 1 discourages repeating. 1: off.", above=0, most=1000)
    seed: int = setting(0, "The same seed gives the same text.", least=0, most=2**64 - 1)

    def __post_init__(self) -> None:
        check_bounds(self)


def sample(
    logits: NDArray[np.float32],
    sampling: Sampling,
    position: int,
    seen: NDArray[np.integer] | None = None,
    allowed: NDArray[np.bool_] | None = None,
) -> int:
    """The next token from logits [V].

    position: how many tokens this sequence has been given so far; with the seed it keys the random number, so a
    sequence does not depend on its neighbours in a batch.
    seen: tokens that the repetition penalty applies to.
    allowed: bool [V], the only tokens that may be chosen; at least one. None = all.
    Raises TwinGPTError if the logits are not finite.
    """
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1.0 and seen is not None and len(seen):
        unique = np.unique(seen)
        penalty = sampling.repetition_penalty
        scores[unique] = np.where(scores[unique] > 0, scores[unique] / penalty, scores[unique] * penalty)
    if allowed is not None:
        if not allowed.any():
            raise ValueError("no token is allowed")
        scores[~allowed] = -np.inf
    highest = scores.max()
    if not np.isfinite(highest):
        raise TwinGPTError(tr("the model's logits are not finite: its training diverged, or the device computes wrong"))
    if sampling.temperature == 0.0:
        return int(scores.argmax())

    # Before the division, which a tiny temperature would make infinite for the highest too.
    with np.errstate(over="ignore"):
        scores = (scores - highest) / sampling.temperature
    if 0 < sampling.top_k < scores.size:
        candidates = np.argpartition(scores, -sampling.top_k)[-sampling.top_k :]
    else:
        candidates = np.arange(scores.size)
    # Most likely first, ties by token id: the order decides which token a random number falls on.
    candidates = candidates[np.lexsort((candidates, -scores[candidates]))]
    probabilities = np.exp(scores[candidates])
    probabilities /= probabilities.sum()

    keep = probabilities >= sampling.min_p * probabilities[0]
    # The token that carries the sum over top_p stays, and so the first always does.
    keep &= np.cumsum(probabilities) - probabilities < sampling.top_p
    cumulative = np.cumsum(probabilities * keep)
    uniform = np.random.Generator(np.random.PCG64([sampling.seed, position])).random()
    return int(candidates[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])
