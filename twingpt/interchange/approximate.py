"""What it costs to compute a model a little differently: the logits of both ways, on the same text."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import numpy as np

from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engines import how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL

WINDOWS, WINDOW = 4, 128


@dataclass(frozen=True)
class LogitError:
    """largest: absolute. spread: standard deviation of the exact logits. same: of `tokens` places, those where both
    ways find the same token the likeliest."""

    largest: float
    spread: float
    same: int
    tokens: int

    def __str__(self) -> str:
        return tr(
            "logits differ by up to {largest:.2g} (their spread is {spread:.2g}); "
            "the likeliest token is the same at {same} of {tokens} places",
            largest=self.largest,
            spread=self.spread,
            same=self.same,
            tokens=self.tokens,
        )


def activation_error(
    weights: Weights, exact: GPTSpec, other: GPTSpec, encode: Callable[[str], list[int]] | None
) -> LogitError:
    """Over the shipped example text, or over random tokens if there is no tokenizer to encode it with.

    Raises TwinGPTError if no engine is installed to compute it.
    """
    engines = installed_backends()
    if not engines:
        raise TwinGPTError(tr("measuring the error needs an engine: {advice}", advice=how_to_install()))
    window = min(WINDOW, exact.block_size)
    if encode is None:
        tokens = np.random.default_rng(0).integers(0, exact.vocab_size, WINDOWS * window)
    else:
        text = (resources.files("twingpt.examples") / "ph_life_ko.txt").read_text(encoding="utf-8")
        tokens = np.array(encode(text[: 16 * WINDOWS * window])[: WINDOWS * window])
    batch = tokens[: len(tokens) // window * window].reshape(-1, window).astype(np.int32)
    logits = []
    for spec in (exact, other):
        engine = create_backend(engines[-1], spec, EngineConfig(device="cpu"))
        engine.load_state({MODEL + name: weight for name, weight in weights.items()})
        logits.append(engine.logits(batch))
    same = logits[0].argmax(-1) == logits[1].argmax(-1)
    return LogitError(
        largest=float(np.abs(logits[0] - logits[1]).max()),
        spread=float(logits[0].std()),
        same=int(same.sum()),
        tokens=same.size,
    )
