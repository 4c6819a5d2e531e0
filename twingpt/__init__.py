"""twingpt: one GPT specification, trained in PyTorch (MPS) or in MLX, from one text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from twingpt.core.backend import DeviceChoice
    from twingpt.generation.model import Model

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Path | str, backend: str | None = None, device: DeviceChoice = "auto") -> Model:
    """The model of a RUN (its newest checkpoint), of RUN/best or of one checkpoint, ready to write and to score.

    backend: the engine; by default MLX where it is installed. Raises TwinGPTError if there is no checkpoint, no
    tokenizer or no engine.
    """
    # Nothing heavy is imported until something is loaded.
    from twingpt.generation import model

    return model.load(path, backend, device)
