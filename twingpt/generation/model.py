"""A model that writes: the one way from a RUN, or a checkpoint, to its texts, scores and logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, create_backend, installed_backends
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.generation.writing import load_tokenizer, stream_text
from twingpt.weights.checkpoint import load_checkpoint


@dataclass(frozen=True)
class Model:
    """A trained model in an engine, with its tokenizer.

    checkpoint: the folder that the weights were read from. step: how many updates it was trained for.
    """

    engine: Backend
    tokenizer: Tokenizer
    checkpoint: Path
    step: int

    @property
    def spec(self) -> GPTSpec:
        return self.engine.spec

    @property
    def run_dir(self) -> Path:
        return self.checkpoint.parent.parent

    def stream(
        self,
        text: str | None = None,
        *,
        question: str | None = None,
        doc: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 400,
    ) -> Iterator[str]:
        """Write on from a text, or answer a question, from a document if one is given; whole characters as they come.

        Raises UsageError unless one of text and question is given, TwinGPTError if the prompt leaves no room.
        """
        if (text is None) == (question is None):
            raise UsageError("give a text to write on from, or a question")
        if text is not None:
            prompt = text_prompt(self.tokenizer, text)
        else:
            prompt = question_prompt(self.tokenizer, question or "", doc, self.spec.block_size)
        yield from stream_text(self.engine, self.tokenizer, prompt, sampling or Sampling(), max_new_tokens)

    def generate(
        self,
        text: str | None = None,
        *,
        question: str | None = None,
        doc: str | None = None,
        sampling: Sampling | None = None,
        max_new_tokens: int = 400,
    ) -> str:
        """What `stream` writes, whole."""
        return "".join(self.stream(text, question=question, doc=doc, sampling=sampling, max_new_tokens=max_new_tokens))

    def logits(self, text: str) -> NDArray[np.float32]:
        """[T, vocab_size]: after [BOS] and after each token of the text, the logits of what follows.

        Raises UsageError if the text is longer than the context.
        """
        tokens = text_prompt(self.tokenizer, text)
        if len(tokens) > self.spec.block_size:
            raise UsageError(f"the text takes {len(tokens)} tokens, the model's context is {self.spec.block_size}")
        logits: NDArray[np.float32] = self.engine.logits(np.array([tokens], dtype=np.int32))[0]
        return logits

    def score(self, text: str) -> tuple[float, int]:
        """(log-probability of the text in nats, how many tokens it is). Raises UsageError as `logits` does."""
        tokens = text_prompt(self.tokenizer, text)
        logits = self.logits(text)[:-1].astype(np.float64)
        peak = logits.max(axis=-1, keepdims=True)
        log_z = peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=-1))
        return float((logits[np.arange(len(logits)), tokens[1:]] - log_z).sum()), len(tokens) - 1


def load(path: Path | str, backend: str | None = None, device: DeviceChoice = "auto") -> Model:
    """The model of a RUN (its newest checkpoint), of RUN/best or of one checkpoint.

    backend: the engine; by default the last one installed, MLX where it is, since it starts faster. The optimizer's
    state is not read. Raises TwinGPTError if there is no checkpoint, no tokenizer or no engine.
    """
    if backend is None:
        installed = installed_backends()
        if not installed:
            raise TwinGPTError("no engine is installed: pip install 'twingpt[torch]' or 'twingpt[mlx]'")
        backend = installed[-1]
    checkpoint = load_checkpoint(Path(path), optimizer=False)
    tokenizer = load_tokenizer(checkpoint.path.parent.parent)
    engine = create_backend(backend, checkpoint.spec, EngineConfig(device=device))
    engine.load_state(checkpoint.state)
    return Model(engine, tokenizer, checkpoint.path, checkpoint.progress.step)
