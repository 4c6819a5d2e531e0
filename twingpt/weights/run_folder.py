"""What lies in a run's folder beside its checkpoints: tokenizer, contacts, library, and what its settings say."""

from __future__ import annotations

import contextlib
import hashlib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.files import ARRAYS, CLEANED_FILE, CONTACTS_FILE, LIBRARY_FILE, TOKENIZER_FILE
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.marks import TEMPLATES, Template
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.weights.checkpoint import CheckpointStore, find_checkpoint, read_progress

if TYPE_CHECKING:
    from twingpt.data.library.contact_store import ContactStore


def trained_on_placeholders(run_dir: Path) -> bool:
    """Whether `prepare --contacts mask` made the text of a run; False for one that does not say so."""
    return bool(_said_of(run_dir, "contacts") == "mask")


def template_of(folder: Path) -> Template | None:
    """What `prepare --template` made of the text of a run, or of DATA; None where nothing says so.

    A run of before it was recorded is known by its DATA, as long as that lies where it did.
    """
    said = _said_of(folder, "template")
    if not said:
        with contextlib.suppress(TwinGPTError, TypeError):
            said = Manifest.load(Path(_said_of(folder, "data") or folder)).template
    return next((template for template in TEMPLATES if template == said), None)


def trained_on_arrays(run_dir: Path) -> bool:
    """Whether a run knows tokens only, and no text."""
    return bool(_said_of(run_dir, "data") == ARRAYS)


def _said_of(run_dir: Path, name: str) -> Any:
    """A setting at the top of a run's config.toml; None where there is none that can be read."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8-sig")).get(name)
    except (OSError, ValueError):
        return None


def load_tokenizer(run_dir: Path) -> Tokenizer:
    """Raises TwinGPTError if the run has no tokenizer, or a damaged one."""
    path = run_dir / TOKENIZER_FILE
    if not path.is_file() and trained_on_arrays(run_dir):
        raise TwinGPTError(
            tr(
                "{run_dir} was trained on arrays of tokens, so it has no tokenizer to read or write text with: "
                "put the {tokenizer_file} there that made the arrays, if twingpt made it",
                run_dir=run_dir,
                tokenizer_file=TOKENIZER_FILE,
            )
        )
    if not path.is_file():
        raise TwinGPTError(
            tr("{path} is missing: copy the tokenizer.json that the model was trained with there", path=path)
        )
    # A prompt is encoded before the fast encoder is ready.
    return Tokenizer.load(path, fast=False)


def check_tokenizer(path: Path, sha256: str, fingerprint: dict[str, str]) -> None:
    """Raises TwinGPTError if a tokenizer is not the one that a checkpoint, with this fingerprint, was trained with.

    path: where it lies. A checkpoint that was trained on arrays of tokens does not say which it was.
    """
    recorded = fingerprint.get("tokenizer", sha256)
    if recorded != sha256:
        raise TwinGPTError(
            tr(
                "{path} is not the tokenizer that the model was trained with ({there}… there, {here}… "
                "here): put the {tokenizer_file} of its own DATA in its place",
                path=path,
                there=recorded[:12],
                here=sha256[:12],
                tokenizer_file=TOKENIZER_FILE,
            )
        )


def open_contacts(run_dir: Path) -> ContactStore | None:
    """The store that `train` copied from DATA, if there is one. Raises TwinGPTError if it is damaged, or
    another run's.
    """
    from twingpt.data.library.contact_store import ContactStore
    from twingpt.weights.run_files import check_file

    path = run_dir / CONTACTS_FILE
    check_file(run_dir, CONTACTS_FILE)
    return ContactStore.open(path) if path.is_file() else None


def library_of(path: Path) -> Path:
    """The library of a run, of a checkpoint's run, or of DATA; which need not have one.

    Raises TwinGPTError for a path that is none of them, for a run that never had a text, and for a folder in which the
    tokenizer or the library is another's.
    """
    # A model writes without either of them, and sooner.
    from twingpt.weights.run_files import check_file

    if not any((path / name).is_file() for name in (LIBRARY_FILE, CLEANED_FILE, "config.toml")):
        path = find_checkpoint(path).parent.parent
    _check_run(path)
    check_file(path, LIBRARY_FILE)
    library = path / LIBRARY_FILE
    if not library.is_file() and trained_on_arrays(path):
        raise TwinGPTError(
            tr(
                "{path} was trained on arrays of tokens, so there is no text to answer from: name the text with --doc, "
                "or a DATA that `twingpt prepare` wrote",
                path=path,
            )
        )
    return library


def text_folder(folder: Path) -> tuple[Path, bool]:
    """(where the cleaned text of DATA or of a run lies, whether it is a run).

    Raises TwinGPTError if a run has no text of its own and the DATA that it names is not there.
    """
    if not (folder / "config.toml").is_file():
        return folder, False
    data = Path(str(_said_of(folder, "data") or ""))
    for text in (folder, data):
        if (text / CLEANED_FILE).is_file():
            return text, True
    raise TwinGPTError(
        tr(
            "{folder} names {data} as its DATA, where there is no {cleaned_file}: run `twingpt prepare` there, or put "
            "the "
            "{cleaned_file} of the text into {folder}",
            folder=folder,
            data=data,
            cleaned_file=CLEANED_FILE,
        )
    )


def _check_run(path: Path) -> None:
    """The tokenizer came there with the library, and the newest checkpoint says which it was."""
    steps = CheckpointStore(path).steps()
    if steps and (path / TOKENIZER_FILE).is_file():
        with contextlib.suppress(OSError):
            sha256 = hashlib.sha256((path / TOKENIZER_FILE).read_bytes()).hexdigest()
            fingerprint = read_progress(CheckpointStore(path).path(steps[-1]))[0].fingerprint
            check_tokenizer(path / TOKENIZER_FILE, sha256, fingerprint)
