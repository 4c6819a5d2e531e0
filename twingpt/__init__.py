"""twingpt: one GPT specification, trained in PyTorch (MPS) or in MLX, from one text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Unpack

    from twingpt.answers.answer import Answer
    from twingpt.core.backend import DeviceChoice
    from twingpt.data.tokens.arrays import Tokens
    from twingpt.generation.model import Model
    from twingpt.training.recipe import TrainSettings
    from twingpt.training.run import Data, TrainingRun

__version__ = "0.1.0"
__all__ = ["__version__", "ask", "load", "train"]


def ask(path: Path | str, question: str) -> Answer:
    """An answer from the text of a run, or of the DATA that `prepare` made: its lines, their sources, or not found.

    Raises TwinGPTError if there is no library, UsageError if the question is empty.
    """
    from pathlib import Path

    from twingpt.answers.ask import ask_library
    from twingpt.data.library.search import Library
    from twingpt.weights.run_folder import library_of

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


def train(
    run: Path | str,
    *,
    data: Data = None,
    backend: str | None = None,
    device: DeviceChoice = "auto",
    preset: str | None = None,
    config: Path | str | None = None,
    resume: bool = False,
    start_from: Path | str | None = None,
    moments: bool = False,
    model: dict[str, Any] | None = None,
    token_bytes: Tokens | None = None,
    stop_at: int | None = None,
    memory_limit: float | None = None,
    probe_memory: bool | None = None,
    **settings: Unpack[TrainSettings],
) -> TrainingRun:
    """Train a model in the folder RUN, or go on training one: what `twingpt train` does, for a program.

    Returns an iterator of reports, which trains while it is read; its `finish()` reads it to the end. data: a DATA
    folder, or (train_tokens, val_tokens), 1-D integer arrays; None goes on with the run's own DATA. model, settings: of
    the fields of GPTSpec and TrainConfig those that differ from the preset and the config file. token_bytes: for
    arrays, how many bytes of text each token stands for; None: 1 each. start_from: a run with whose weights, and with
    `moments` its optimizer's state, a new one begins (`--from`). The other arguments are the options of the
    command by the same names. Ctrl-C ends the program where it is, with what was saved last.

    Raises TwinGPTError or UsageError, with nothing written, if that cannot be done; reading the reports raises
    RestartError if memory runs out in a way that only a fresh process, with its micro_batch, survives.
    """
    from pathlib import Path

    from twingpt.core.engines import default_engine
    from twingpt.training.run import data_of, start
    from twingpt.training.session import TrainRequest

    folder, arrays = data_of(data, token_bytes)
    request = TrainRequest(
        run_dir=Path(run),
        data_dir=folder,
        arrays=arrays,
        backend=backend or default_engine(),
        device=device,
        preset=preset,
        config_file=None if config is None else Path(config),
        resume=resume,
        start_from=None if start_from is None else Path(start_from),
        moments=moments,
        memory_limit=memory_limit,
        probe_memory=probe_memory,
        stop_at=stop_at,
        model=model or {},
        train=dict(settings),
    )
    return start(request)
