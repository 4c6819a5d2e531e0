"""Which tokenizer `prepare` encodes with where it does not learn one: one that was named, or one that must stay.

A model reads only what its own tokenizer made. A tokenizer that a run was trained with, and one that somebody put into
DATA, is therefore never replaced by one that was learned anew, unless that is asked for.
"""

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import mark, tr
from twingpt.data.files import TOKENIZER_FILE
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.prepare.stages import STATE_FOLDER, recorded
from twingpt.data.tokens.tokenizer import Tokenizer

NEW = "new"
"""As --tokenizer: learn one, whatever lies in DATA."""
LEARNED_FILE, TRAINED_FILE = "tokenizer.learned", "tokenizer.trained"
"""In DATA/.stages: the sha256 of the tokenizer that was learned there last; of each that a run was trained with."""


@dataclass(frozen=True)
class GivenTokenizer:
    """source: the file that it was read from, as the user would name it. why: it is taken, in words."""

    tokenizer: Tokenizer
    source: str
    why: str


def choose_tokenizer(data: Path, settings: PrepareSettings) -> GivenTokenizer | None:
    """The tokenizer that was named, else the one in DATA that must stay; None where one is to be learned.

    Raises TwinGPTError for a tokenizer that cannot be used, UsageError for a --vocab-size that it does not have.
    """
    if settings.tokenizer == NEW:
        return None
    if settings.tokenizer is not None:
        path = Path(settings.tokenizer)
        path = path / TOKENIZER_FILE if path.is_dir() else path
        if not path.is_file():
            raise TwinGPTError(
                tr(
                    "--tokenizer {tokenizer}: {path} is not there: name a RUN, DATA or tokenizer.json",
                    tokenizer=settings.tokenizer,
                    path=path,
                )
            )
        given = GivenTokenizer(Tokenizer.load(path), str(path), mark("it was named"))
    else:
        kept = _must_stay(data)
        if kept is None:
            return None
        given = kept
    size = given.tokenizer.vocab_size
    if settings.vocab_size not in (None, size):
        raise UsageError(
            tr(
                "--vocab-size {vocab_size}, but {source} has {size} tokens ({why}): leave it out, "
                "or learn another tokenizer with --tokenizer {new}",
                vocab_size=settings.vocab_size,
                source=given.source,
                size=size,
                why=given.why,
                new=NEW,
            )
        )
    return given


def _must_stay(data: Path) -> GivenTokenizer | None:
    path = data / TOKENIZER_FILE
    try:
        tokenizer = Tokenizer.load(path)
    except TwinGPTError:
        # There is none, or what is there is of no use to any model.
        return None
    if tokenizer.sha256 in _lines(data, TRAINED_FILE):
        return GivenTokenizer(tokenizer, str(path), mark("a run was trained with it"))
    named = recorded(data, "tokenizer", "report", "taken_from")
    learned = [] if named else [recorded(data, "tokenizer", "files", TOKENIZER_FILE)]
    if tokenizer.sha256 in (*learned, *_lines(data, LEARNED_FILE)):
        return None
    return GivenTokenizer(tokenizer, str(path), mark("it was put there"))


def note_learned(data: Path, sha256: str) -> None:
    """Before a learned tokenizer is put into DATA: a `prepare` that is killed then knows it again as its own."""
    (data / STATE_FOLDER / LEARNED_FILE).write_text(f"{sha256}\n", encoding="utf-8")


def note_trained(data: Path) -> None:
    """A run begins to be trained with the tokenizer of DATA. A folder that cannot be written to needs no note."""
    if not (data / STATE_FOLDER).is_dir():
        return  # what was copied there without its records counts as put there
    with contextlib.suppress(OSError):
        sha256 = hashlib.sha256((data / TOKENIZER_FILE).read_bytes()).hexdigest()
        known = _lines(data, TRAINED_FILE)
        if sha256 not in known:
            temporary = data / STATE_FOLDER / f"{TRAINED_FILE}.{os.getpid()}"
            temporary.write_text("".join(f"{line}\n" for line in (*known, sha256)), encoding="utf-8")
            temporary.replace(data / STATE_FOLDER / TRAINED_FILE)


def _lines(data: Path, name: str) -> list[str]:
    try:
        return (data / STATE_FOLDER / name).read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return []
