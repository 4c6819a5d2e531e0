"""`twingpt convert`: whole models with their tokenizer, from one format to another."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.data.stages import file_sha256
from twingpt.data.template import BOS, EOS, PAD, UNK
from twingpt.data.tokenizer import Tokenizer
from twingpt.generate import TOKENIZER_FILE
from twingpt.train.config import RunConfig, TrainConfig
from twingpt.weights.checkpoint import CheckpointStore, Progress, find_checkpoint, read_checkpoint
from twingpt.weights.convert import detect_format, export_hf, import_hf, import_torch, load_pickle
from twingpt.weights.format import load_tensors

TARGETS = ("native", "hf")


@dataclass(frozen=True)
class Model:
    """A model without its optimizer. tokenizer: the tokenizer.json that lay beside it, if any."""

    spec: GPTSpec
    weights: Weights
    step: int
    tokenizer: Path | None


def convert_model(source: Path, target: Path, to: str, tokenizer: Path | None) -> None:
    """Read `source`, whatever it is, and write the folder `target`.

    Raises UsageError for a format that is none, TwinGPTError if the source cannot be read or the target exists;
    nothing is left at `target` then.
    """
    if to not in TARGETS:
        raise UsageError(f"--to {to}: choose one of {', '.join(TARGETS)}")
    if target.exists():
        raise UsageError(f"{target} exists: choose another folder, or delete it first")
    model = read_model(source)
    tokenizer = tokenizer or model.tokenizer
    if tokenizer is not None and not tokenizer.is_file():
        raise TwinGPTError(f"{tokenizer} does not exist")
    with _folder_in_one_piece(target) as folder:
        if to == "native":
            _write_native(folder, model, tokenizer)
        else:
            _write_hf(folder, model, tokenizer)
        if tokenizer is not None:
            shutil.copyfile(tokenizer, folder / TOKENIZER_FILE)


def read_model(source: Path) -> Model:
    """Raises TwinGPTError, or UsageError if `source` is nothing that twingpt knows."""
    kind = detect_format(source)
    if kind == "torch":
        spec, weights, step = import_torch(source, load_pickle)
        return Model(spec, weights, step, _beside(source.parent))
    if kind == "hf":
        spec, weights = import_hf(source)
        return Model(spec, weights, 0, _beside(source))
    if source.is_file():
        spec, tensors, _ = load_tensors(source)
        return Model(spec, tensors, 0, _beside(source.parent))
    checkpoint = read_checkpoint(find_checkpoint(source))
    weights = {k.removeprefix(MODEL): v for k, v in checkpoint.state.items() if k.startswith(MODEL)}
    return Model(checkpoint.spec, weights, checkpoint.progress.step, _beside(checkpoint.path.parent.parent))


def _beside(folder: Path) -> Path | None:
    path = folder / TOKENIZER_FILE
    return path if path.is_file() else None


def _write_native(folder: Path, model: Model, tokenizer: Path | None) -> None:
    state = {MODEL + name: weight for name, weight in model.weights.items()}
    # Resuming on data of another tokenizer would train on with tokens that mean something else.
    fingerprint = {"tokenizer": file_sha256(tokenizer)} if tokenizer is not None else {}
    CheckpointStore(folder).save(model.spec, state, Progress(step=model.step, fingerprint=fingerprint))
    RunConfig(model=model.spec, train=TrainConfig(), data="").save(folder)


def _write_hf(folder: Path, model: Model, tokenizer: Path | None) -> None:
    token_ids: dict[str, int] = {}
    if tokenizer is not None:
        loaded = Tokenizer.load(tokenizer)
        if loaded.vocab_size != model.spec.vocab_size:
            raise TwinGPTError(
                f"{tokenizer} has {loaded.vocab_size} tokens, the model's vocabulary is {model.spec.vocab_size}"
            )
        token_ids = {
            "bos_token_id": loaded.bos_id,
            "eos_token_id": loaded.eos_id,
            "pad_token_id": loaded.pad_id,
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "model_max_length": model.spec.block_size,
            "clean_up_tokenization_spaces": False,
        }
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    export_hf(folder, model.spec, model.weights, token_ids)


@contextmanager
def _folder_in_one_piece(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is whole."""
    writing = target.with_name(f".writing-{target.name}")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        yield writing
        writing.rename(target)
    except OSError as error:
        raise TwinGPTError(f"{target} could not be written: {error}") from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
