"""twingpt: one GPT specification, trained in PyTorch (MPS) or in MLX, from one text file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twingpt.core.errors import TwinGPTError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any, Literal, Unpack

    from twingpt.answers.answer import Answer
    from twingpt.core.backend import DeviceChoice
    from twingpt.data.prepare.pipeline import Prepared
    from twingpt.data.prepare.settings import PrepareOptions
    from twingpt.data.tokens.windows import Tokens
    from twingpt.evaluation.evaluate import Evaluated
    from twingpt.generation.model import Model
    from twingpt.training.recipe import TrainSettings
    from twingpt.training.run import Data, TrainingRun
    from twingpt.weights.foreign import Source
    from twingpt.weights.targets import Target

__version__ = "0.1.0"
__all__ = [
    "TwinGPTError",
    "UsageError",
    "__version__",
    "ask",
    "convert",
    "evaluate",
    "load",
    "prepare",
    "train",
]
"""The surface that semantic versioning is about, with what these functions take and return."""


def prepare(
    inputs: Path | str | Sequence[Path | str],
    out: Path | str,
    *,
    workers: int | None = None,
    **settings: Unpack[PrepareOptions],
) -> Prepared:
    """Make DATA in the folder `out` of files and folders of text: what `twingpt prepare` does, for a program.

    workers: processes at a time; None: as many as there are cores. settings: of the fields of PrepareSettings those
    that differ from their defaults. What is up to date is not made again. A text of more than 2 MB is worked on by
    processes that begin anew: a script calls this under `if __name__ == "__main__":`, or with one worker. Raises
    TwinGPTError or UsageError for what is wrong with the text, the settings or the disk.
    """
    from pathlib import Path

    from twingpt.data.prepare.pipeline import prepare as prepare_data
    from twingpt.data.prepare.settings import PrepareSettings

    paths = [inputs] if isinstance(inputs, Path | str) else inputs
    return prepare_data([str(path) for path in paths], Path(out), PrepareSettings(**settings), workers=workers)


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

    Returns an iterator of reports, which trains while it is read; its `finish()` reads it to the end and
    tells callbacks of each. data: a DATA
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


def evaluate(
    run: Path | str,
    data: Path | str,
    *,
    backend: str | None = None,
    device: DeviceChoice = "auto",
    questions: int = 100,
    max_new_tokens: int = 400,
    temperature: float = 0.0,
    seed: int = 0,
    structured: bool = False,
    fill_contacts: bool = False,
    batch_size: int = 8,
) -> Evaluated:
    """Loss, perplexity and bits per byte over the validation split of DATA, and answers about its documents, measured.

    run: as in `load`. questions: how many to answer, drawn by the seed; 0 for none. structured: each answer has all its
    sections in their order. The other arguments are the options of `twingpt eval` by the same names. Raises
    TwinGPTError or UsageError if that cannot be measured.
    """
    from pathlib import Path

    from twingpt.core.sampling import Sampling
    from twingpt.evaluation.evaluate import evaluate_model
    from twingpt.evaluation.held_out import AnswerSettings

    settings = AnswerSettings(
        sampling=Sampling(temperature=temperature, seed=seed),
        max_new_tokens=max_new_tokens,
        structured=structured,
        fill_contacts=fill_contacts,
        slots=batch_size,
    )
    model = load(run, backend, device)
    return evaluate_model(
        model, Path(data), questions=questions, seed=seed, settings=settings, batch_size=batch_size, named=str(run)
    )


def convert(
    source: Path | str,
    target: Path | str,
    to: Target,
    *,
    tokenizer: Path | str | None = None,
    dtype: str | None = None,
    approximate: Literal["gelu"] | None = None,
    source_format: Source | None = None,
    language: str | None = None,
    license: str | None = None,
    figures: Path | str | None = None,
) -> list[str]:
    """Write a model for transformers ("hf"), "mlx-lm", llama.cpp ("gguf") or, brought in from elsewhere, "native".

    source: a run, a checkpoint, a folder of Hugging Face, a ckpt.pt, or OWNER/NAME in the Hub's local cache. target:
    the folder to write. The other arguments are the options of `twingpt convert` by the same names. Returns what the
    owner of the model should know, in lines. Raises TwinGPTError or UsageError, with nothing written, if it cannot be
    done.
    """
    from pathlib import Path

    from twingpt.interchange.convert import convert_model
    from twingpt.interchange.model_card import CardOptions

    card = CardOptions(language=language, license=license, figures=None if figures is None else Path(figures))
    return convert_model(
        Path(source),
        Path(target),
        to,
        None if tokenizer is None else Path(tokenizer),
        dtype=dtype,
        approximate=approximate,
        expect=source_format,
        card=card,
    )
