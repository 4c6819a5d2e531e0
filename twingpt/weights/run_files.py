"""RUN/files.json: which library, contacts and settings are the run's own, by their content.

A checkpoint says of itself which tokenizer and data it was trained with. What else lies in a run's folder may be made
anew while the run stays what it is (a library of a newer text), so that its record lies beside the checkpoints. It
names the run that it is of, and a record that came there with the files of another run is found out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.data.files import LIBRARY_FILE, SAMPLES_FILE
from twingpt.data.library.identity import content_of_library
from twingpt.data.prepare.stages import PACKED_FROM, recorded
from twingpt.data.tokens.custody import content_of
from twingpt.weights.checkpoint import CheckpointStore, read_progress
from twingpt.weights.format import write_whole

RECORD_FILE = "files.json"


def identity(path: Path) -> str | None:
    """What a file is known by: a library by the hash of its documents, any other by that of its bytes.

    None for a library that does not say: of an older version, or no library. The hash of the bytes is remembered by
    size and times (data.tokens.custody). Raises TwinGPTError if the file cannot be read.
    """
    return content_of_library(path) if path.name == LIBRARY_FILE else content_of(path, np.dtype(np.uint8)).sha256


def record_files(run_dir: Path, names: Iterable[str], fingerprint: Mapping[str, str] | None = None) -> None:
    """Record these files of a run as they are now, or that they are not there.

    fingerprint: of the run; None for the one of its newest checkpoint. Raises OSError if the disk refuses.
    """
    record = _read(run_dir) or {"run": "", "files": {}}
    fingerprint = _own_fingerprint(run_dir) if fingerprint is None else fingerprint
    if fingerprint is not None and record["run"] != _name_of(fingerprint):
        record = {"run": _name_of(fingerprint), "files": record["files"] if not record["run"] else {}}
    for name in names:
        record["files"].pop(name, None)
        if (run_dir / name).is_file() and (known := identity(run_dir / name)) is not None:
            record["files"][name] = known
    write_whole(run_dir / RECORD_FILE, (json.dumps(record, indent=2, sort_keys=True) + "\n").encode())


def has_record(run_dir: Path) -> bool:
    return _read(run_dir) is not None


def adopt_library(run_dir: Path, source: Path) -> None:
    """Make the library in the folder `source`, which may be the run's own, the run's.

    Raises TwinGPTError if the disk refuses.
    """
    try:
        if source.resolve() != run_dir.resolve():
            copy_whole(source / LIBRARY_FILE, run_dir / LIBRARY_FILE)
        record_files(run_dir, [LIBRARY_FILE])
    except OSError as error:
        raise TwinGPTError(
            tr("{path} cannot be written: {reason}", path=run_dir / LIBRARY_FILE, reason=os_reason(error))
        ) from None


def copy_whole(source: Path, target: Path) -> None:
    """Beside and renamed: an interrupted copy must not stay for good. Raises OSError."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def check_file(folder: Path, name: str) -> None:
    """Raises TwinGPTError if a file of a run, or of DATA, is not the one that the folder's record tells of.

    A file that is missing, and a folder without a record, are for others to speak of.
    """
    if (folder / name).is_file() and not is_recorded(folder, name):
        remedy = tr("run `twingpt prepare` again")
        if has_record(folder):
            remedy = tr("copy it from the DATA that the run was trained on")
        if name == LIBRARY_FILE:
            remedy = tr("make it anew with `twingpt data library {folder}`", folder=folder)
        raise TwinGPTError(
            tr(
                "{path} is not the one that was made for {folder}: {remedy}",
                path=folder / name,
                folder=folder.name,
                remedy=remedy,
            )
        )


def is_recorded(folder: Path, name: str) -> bool:
    """Whether a file that is there is what the record says, or no record says anything of it.

    Raises what `identity` does, and TwinGPTError for a record that is of another run.
    """
    record = _read(folder)
    if record is None:
        wanted = _recorded_in_data(folder, name)
    else:
        own = _own_fingerprint(folder)
        if own is not None and record["run"] not in ("", _name_of(own)):
            raise TwinGPTError(
                tr(
                    "{file} is of another run, as the files beside it may be: copy this run's own back "
                    "from a backup, or, if they are meant to be here, delete it and run `twingpt data library "
                    "{folder}`",
                    file=folder / RECORD_FILE,
                    folder=folder,
                )
            )
        wanted = record["files"].get(name)
    return wanted is None or identity(folder / name) == wanted


def _recorded_in_data(folder: Path, name: str) -> str | None:
    """What the stages of `prepare` recorded of a file; None for another folder, and for one that lost its record."""
    if name == SAMPLES_FILE:
        # What was packed counts, since samples may be edited before that.
        return recorded(folder, "pack", "report", PACKED_FROM)
    if name == LIBRARY_FILE:
        return recorded(folder, "library", "report", "content")
    return recorded(folder, "clean", "files", name)


def _read(folder: Path) -> dict[str, Any] | None:
    """None where there is no record that can be read: of a run of an older version, or of DATA."""
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if isinstance(record, dict) and isinstance(record.get("run"), str) and isinstance(record.get("files"), dict):
            return record
    return None


def _own_fingerprint(run_dir: Path) -> dict[str, str] | None:
    """Of the newest checkpoint that can be read; None where there is none yet."""
    store = CheckpointStore(run_dir)
    for step in reversed(store.steps()):
        with contextlib.suppress(TwinGPTError):
            return read_progress(store.path(step))[0].fingerprint
    return None


def _name_of(fingerprint: Mapping[str, str]) -> str:
    """A run is known here by what it is trained on: two runs of one DATA may have the same library."""
    parts = [fingerprint.get(name, "") for name in ("data", "tokenizer")]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
