"""What a run is trained on: DATA that `prepare` wrote, or arrays of tokens."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.files import ARRAYS, CLEANED_FILE, CONTACTS_FILE, LIBRARY_FILE, SAMPLES_FILE, TOKENIZER_FILE
from twingpt.data.prepare.given_tokenizer import note_trained
from twingpt.data.prepare.settings import Contacts, contacts_of
from twingpt.data.prepare.stages import recorded
from twingpt.data.tokens.arrays import ArrayBatches, TokenArrays
from twingpt.data.tokens.batches import Batches, BatchSource
from twingpt.data.tokens.custody import content_of
from twingpt.data.tokens.cut import Cut
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.marks import TEMPLATES, Template
from twingpt.data.tokens.template import Sample
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.data.tokens.windows import Grid
from twingpt.generation.model import Model
from twingpt.training.config import CONFIG_FILE, TrainConfig
from twingpt.weights.run_files import check_file, copy_whole, has_record, record_files
from twingpt.weights.run_folder import load_tokenizer, trained_on_arrays

FILES_OF_A_RUN = (TOKENIZER_FILE, CONTACTS_FILE, LIBRARY_FILE)

WriteSample = Callable[[int], str]
"""Text of up to so many tokens, by the model in training."""


class RunData(Protocol):
    """Where a run's batches come from, and what follows from that for its model and its folder."""

    @property
    def name(self) -> str:
        """What the run's config.toml says of it."""

    @property
    def contacts(self) -> Contacts:
        """As `prepare --contacts` made them."""

    @property
    def template(self) -> Template | Literal[""]:
        """As `prepare --template` made the samples; "" where nobody knows."""

    def fingerprint(self) -> dict[str, str]:
        """Hashes that a checkpoint must agree with to be resumed, by name."""

    def model_settings(self, named: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """(settings that follow from the data, what should be known of them). named: those that are given."""

    def check_model(self, spec: GPTSpec) -> None:
        """Raises UsageError if the model's vocabulary is not that of the data."""

    def check_new_run(self) -> None:
        """Raises TwinGPTError if what a new run would take along from the data is not of one text."""

    def batches(self, block_size: int, seed: int, cut: Cut) -> tuple[BatchSource, BatchSource]:
        """Those to train on, and those to validate with. Raises TwinGPTError if the data are too short for them."""

    def windows(self, block_size: int) -> int:
        """Windows an epoch."""

    def token_bytes(self, vocab_size: int) -> NDArray[np.int32]:
        """Bytes of text that each token stands for."""

    def copy_files(self, run_dir: Path, *, new: bool) -> None:
        """Put beside the checkpoints what the model cannot be used without.

        new: there are none yet, so that what lies there is of a run that came to nothing, and goes.
        """

    def sample_writer(self, backend: Backend, train: TrainConfig) -> WriteSample | None:
        """What writes a sample for each evaluation; None where there is nothing to write with, or none is wanted."""


@dataclass(frozen=True)
class DataFolder:
    """DATA, with what it says of itself."""

    folder: Path
    manifest: Manifest
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Raises TwinGPTError if the folder is not what `prepare` left."""
        manifest, tokenizer = Manifest.load(folder), load_tokenizer(folder)
        for name in (CONTACTS_FILE, LIBRARY_FILE, SAMPLES_FILE):
            check_file(folder, name)
        if tokenizer.sha256 != manifest.tokenizer_sha256:
            raise TwinGPTError(
                tr(
                    "{file} is not what {folder} was packed with: run prepare again",
                    file=folder / TOKENIZER_FILE,
                    folder=folder,
                )
            )
        return cls(folder, manifest, tokenizer)

    @property
    def name(self) -> str:
        return str(self.folder.resolve())

    @property
    def contacts(self) -> Contacts:
        return contacts_of(self.folder)

    @property
    def template(self) -> Template | Literal[""]:
        return next((template for template in TEMPLATES if template == self.manifest.template), "")

    def fingerprint(self) -> dict[str, str]:
        hashes = f"{self.manifest.train.sha256} {self.manifest.val.sha256}"
        data = hashlib.sha256(hashes.encode()).hexdigest()
        found = {"data": data, "tokenizer": self.manifest.tokenizer_sha256}
        masks = [(split.mask_file, split.mask_sha256) for split in (self.manifest.train, self.manifest.val)]
        if all(name is None for name, _ in masks):
            return found | {"mask": "none"}
        if all(sha256 is not None for _, sha256 in masks):
            found["mask"] = hashlib.sha256(" ".join(str(sha256) for _, sha256 in masks).encode()).hexdigest()
        return found

    def model_settings(self, named: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        # The block size that the text was prepared for holds whatever the preset.
        own = {"vocab_size": self.manifest.vocab_size, "block_size": self.manifest.block_size}
        notes = []
        if self.manifest.validation_split == "train":
            notes = [
                tr(
                    "{folder} has no text held out: the validation loss is that of the training text",
                    folder=self.folder,
                )
            ]
        return {name: value for name, value in own.items() if name not in named or name == "vocab_size"}, notes

    def check_model(self, spec: GPTSpec) -> None:
        size = self.manifest.vocab_size
        if spec.vocab_size != size:
            raise UsageError(
                tr(
                    "model.vocab_size = {vocab_size}, but the tokenizer in {folder} has {size}",
                    vocab_size=spec.vocab_size,
                    folder=self.folder,
                    size=size,
                )
            )

    def check_new_run(self) -> None:
        # A `prepare` of another text that was interrupted leaves some files of each, every one whole by itself. A run
        # that goes on has its own files already, and its DATA may have a newer text for `data library`.
        packed = self.manifest.text_sha256
        cleaned = self.folder / CLEANED_FILE
        of = {LIBRARY_FILE: recorded(self.folder, "library", "report", "text")}
        if cleaned.is_file():
            of[CLEANED_FILE] = content_of(cleaned, np.dtype(np.uint8)).sha256
        for name, text in of.items():
            if text is not None and text != packed:
                raise TwinGPTError(
                    tr(
                        "{path} is of another text than {folder}: "
                        "run `twingpt prepare` again, or each stage after the one that made it",
                        path=self.folder / name,
                        folder=self.folder / self.manifest.train.file,
                    )
                )

    def batches(self, block_size: int, seed: int, cut: Cut) -> tuple[BatchSource, BatchSource]:
        bos_id = self.tokenizer.bos_id
        train = Batches(self.folder, self.manifest, "train", block_size, seed, cut=cut, bos_id=bos_id)
        return train, Batches(self.folder, self.manifest, self.manifest.validation_split, block_size)

    def windows(self, block_size: int) -> int:
        stride = block_size + (self.manifest.layout == "rows")
        return Grid(self.manifest.train.tokens, block_size, stride).count

    def token_bytes(self, vocab_size: int) -> NDArray[np.int32]:
        return self.tokenizer.token_bytes()

    def copy_files(self, run_dir: Path, *, new: bool) -> None:
        copied = [name for name in FILES_OF_A_RUN if new or self._is_missing(run_dir / name)]
        kept = [name for name in FILES_OF_A_RUN if name not in copied]
        for name in kept:
            check_file(run_dir, name)
        for name in copied:
            if (self.folder / name).is_file():
                copy_whole(self.folder / name, run_dir / name)
            elif new:
                (run_dir / name).unlink(missing_ok=True)
        note_trained(self.folder)
        # A run of an older version has no record yet: its files count as its own from here on.
        record_files(run_dir, copied if has_record(run_dir) else FILES_OF_A_RUN, self.fingerprint())

    def _is_missing(self, path: Path) -> bool:
        """Also a tokenizer that is not the one that the run was begun with, which DATA has."""
        if not path.is_file() or path.name != TOKENIZER_FILE:
            return not path.is_file()
        return hashlib.sha256(path.read_bytes()).hexdigest() != self.manifest.tokenizer_sha256

    def sample_writer(self, backend: Backend, train: TrainConfig) -> WriteSample | None:
        """Answers the first validation question, or writes on from [BOS] where the text has no questions."""
        if train.sample_tokens == 0:
            return None
        question = self._validation_question() if self.manifest.template == "qa" else None
        model, sampling = Model(backend, self.tokenizer), Sampling(seed=train.seed)

        def write(tokens: int) -> str:
            if question is None:
                return model.generate("", sampling=sampling, max_new_tokens=tokens)
            return f"{question}\n{model.generate(question=question, sampling=sampling, max_new_tokens=tokens)}"

        return write

    def _validation_question(self) -> str | None:
        path = self.folder / SAMPLES_FILE
        if not path.is_file():
            return None
        with path.open(encoding="utf-8") as file:
            for line in file:
                sample = Sample.from_json(line)
                if sample.split == "val" and sample.question is not None:
                    return sample.question
        return None


@dataclass(frozen=True)
class DataArrays:
    """Arrays of tokens, of which nobody here knows the text."""

    arrays: TokenArrays
    name: str = ARRAYS
    contacts: Contacts = "keep"
    template: Template | Literal[""] = ""

    def fingerprint(self) -> dict[str, str]:
        return self.arrays.fingerprint()

    def model_settings(self, named: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        if "vocab_size" in named:
            return {}, []
        size = self.arrays.largest()[0] + 1
        told = tr(
            "vocab_size is {size:,}, for tokens up to {size_2:,}: give model={{'vocab_size': ...}} for a larger one",
            size=size,
            size_2=size - 1,
        )
        return {"vocab_size": size}, [told]

    def check_model(self, spec: GPTSpec) -> None:
        largest, name = self.arrays.largest()
        if largest >= spec.vocab_size:
            raise UsageError(
                tr(
                    "the array {name} holds token {largest:,}, but model.vocab_size = {vocab_size:,}: "
                    "give {needed:,} or more",
                    name=name,
                    largest=largest,
                    vocab_size=spec.vocab_size,
                    needed=largest + 1,
                )
            )
        self.arrays.bytes_of(spec.vocab_size)

    def check_new_run(self) -> None: ...

    def batches(self, block_size: int, seed: int, cut: Cut) -> tuple[BatchSource, BatchSource]:
        train = ArrayBatches(self.arrays.train, block_size, seed, least=block_size + 1, cut=cut)
        return train, ArrayBatches(self.arrays.val, block_size)

    def windows(self, block_size: int) -> int:
        return Grid(len(self.arrays.train), block_size, block_size).count

    def token_bytes(self, vocab_size: int) -> NDArray[np.int32]:
        return self.arrays.bytes_of(vocab_size)

    def copy_files(self, run_dir: Path, *, new: bool) -> None:
        # A tokenizer that the user put there to use the model with stays.
        if new and (run_dir / CONFIG_FILE).is_file() and not trained_on_arrays(run_dir):
            for name in FILES_OF_A_RUN:
                (run_dir / name).unlink(missing_ok=True)

    def sample_writer(self, backend: Backend, train: TrainConfig) -> WriteSample | None:
        return None
