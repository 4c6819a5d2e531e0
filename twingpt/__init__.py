"""twingpt: one GPT specification, trained in PyTorch (MPS) or in MLX, from one text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from twingpt.answers.answer import Answer
    from twingpt.core.backend import DeviceChoice
    from twingpt.generation.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "ask", "load"]


def ask(path: Path | str, question: str) -> Answer:
    """An answer from the text of a run, or of the DATA that `prepare` made: its lines, their sources, or not found.

    Raises TwinGPTError if there is no library, UsageError if the question is empty.
    """
    from pathlib import Path

    from twingpt.answers.ask import ask_library, library_of
    from twingpt.data.library.search import Library

    with Library(library_of(Path(path))) as library:
        return ask_library(library, question)


def load(path: Path | str, backend: str | None = None, device: DeviceChoice = "auto") -> Model:
    """The model of a RUN (its newest checkpoint), of RUN/best or of one checkpoint, ready to write and to score.

    backend: the engine; by default MLX where it is installed. Raises TwinGPTError if there is no checkpoint, no
    tokenizer or no engine.
    """
    # Nothing heavy is imported until something is loaded.
    from twingpt.generation import model

    return model.load(path, backend, device)
