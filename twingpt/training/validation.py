"""Validation: loss, perplexity and bits per byte."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.world import Alone, World, totals
from twingpt.data.tokens.batches import BatchSource


@dataclass(frozen=True, slots=True)
class Evaluation:
    """nats: summed cross-entropy; tokens: targets counted; text_bytes: UTF-8 bytes that those targets stand for."""

    nats: float
    tokens: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    @property
    def bits_per_byte(self) -> float:
        """Bits spent a byte of text, special tokens' bits included: comparable across tokenizers.

        Infinite if no target stands for text.
        """
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else math.inf


def evaluate(
    backend: Backend,
    batches: BatchSource,
    token_bytes: NDArray[np.int32],
    batch_size: int,
    limit: int = 0,
    world: World | None = None,
    beat: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate up to `limit` windows spread evenly over the split (0: all of it).

    token_bytes: int32 [vocab_size], bytes that each token stands for. world: the ranks that share the windows.
    beat: called after each batch. Raises TwinGPTError if no target is counted.
    """
    world = world or Alone()
    windows = batches.spread(limit)[world.rank :: world.size]
    nats, tokens, text_bytes = 0.0, 0, 0
    for start in range(0, len(windows), batch_size):
        chosen = windows[start : start + batch_size]
        # The last batch is filled up, not cut: a new shape costs Metal a compilation. -1 counts nothing.
        inputs, targets = batches.gather(chosen + chosen[:1] * (batch_size - len(chosen)))
        targets[len(chosen) :] = -1
        batch_nats, batch_tokens = backend.eval_step(inputs, targets)
        beat()
        nats += batch_nats
        tokens += batch_tokens
        text_bytes += int(token_bytes[targets[targets >= 0]].sum())
    nats, all_tokens, all_bytes = totals(world, nats, tokens, text_bytes)
    if all_tokens == 0:
        raise TwinGPTError(tr("the validation split has no counted token: prepare with a larger --val-fraction"))
    return Evaluation(nats, int(all_tokens), int(all_bytes))
