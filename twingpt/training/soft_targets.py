"""RUN/soft_targets.bin: what teachers foretold of every token that a student is trained on, looked up by its place.

A row a token: the ids of the likeliest tokens by the mean of the teachers' probabilities, and these as float16, which
is right to a two-thousandth of each. With 32 of them and a vocabulary of up to 65,536 tokens a row takes 128 bytes.
RUN/soft_targets.json tells whose they are, of which data, how far they have come, and by which content they are known.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import SoftTargets
from twingpt.core.errors import TwinGPTError
from twingpt.data.tokens.custody import content_of
from twingpt.data.tokens.windows import MostContext, Places
from twingpt.weights.format import fsync, write_whole

ROWS_FILE = "soft_targets.bin"
RECORD_FILE = "soft_targets.json"
TEACHERS = "teachers"
"""The name in the fingerprint of a run that is a student."""
VERSION = 1
READ_BYTES = 1 << 22
NOTHING = hashlib.sha256().hexdigest()

Rows = NDArray[Any]
"""[tokens] of `row_type`."""


def row_type(vocab_size: int, top: int) -> np.dtype[Any]:
    ids = "<u2" if vocab_size <= 1 << 16 else "<u4"
    return np.dtype([("ids", ids, (top,)), ("probabilities", "<f2", (top,))])


@dataclass(frozen=True, kw_only=True)
class Record:
    """What RUN/soft_targets.json holds.

    teachers: the checkpoint of each, and the digest of the weights that it answers with. weight: the share of each
    target that the teachers have. data: the hash by which a run knows DATA. rows: whether the file of tokens has rows
    of samples, and not one stream. done: of how many of the windows in which the teachers read it all is written.
    sha256: of what is written.
    """

    teachers: dict[str, str]
    weight: float
    top: int
    data: str
    tokens: int
    vocab_size: int
    block_size: int
    rows: bool
    done: int = 0
    sha256: str = NOTHING
    version: int = VERSION

    @classmethod
    def read(cls, run_dir: Path) -> Record | None:
        """None where there is none. Raises TwinGPTError if it cannot be read."""
        path = run_dir / RECORD_FILE
        try:
            record = cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise TwinGPTError(f"{path} cannot be read ({error}): delete it, and distill again") from None
        if record.version != VERSION:
            raise TwinGPTError(
                f"{path} has version {record.version}, this twingpt reads {VERSION}: delete it, and distill again"
            )
        return record

    def write(self, run_dir: Path) -> None:
        write_whole(run_dir / RECORD_FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @property
    def windows(self) -> MostContext:
        return MostContext(self.tokens, self.block_size, rows=self.rows)

    @property
    def is_complete(self) -> bool:
        return self.done == self.windows.count

    @property
    def row_type(self) -> np.dtype[Any]:
        return row_type(self.vocab_size, self.top)

    def bytes_after(self, windows: int) -> int:
        """Of the rows, when so many windows are done."""
        tokens = self.tokens if windows == self.windows.count else self.windows.first(windows)
        return tokens * self.row_type.itemsize

    def same_rows(self, other: Record) -> bool:
        """Whether both ask for the same rows. A teacher that was moved is the same, and their order changes no mean."""
        mine, theirs = ({**asdict(each), "teachers": each.weights} for each in (self, other))
        return all(mine[name] == theirs[name] for name in mine if name not in ("weight", "done", "sha256"))

    @property
    def weights(self) -> list[str]:
        return sorted(self.teachers.values())


class Writer:
    """Adds rows to RUN/soft_targets.bin, each block on the disk before the record counts it.

    It goes on where an interrupted one stopped: what the record does not count is written over, and if what it counts
    is not what it says, all is written anew. Raises TwinGPTError if the folder holds other soft targets.
    """

    def __init__(self, run_dir: Path, wanted: Record) -> None:
        self.run_dir, self._path = run_dir, run_dir / ROWS_FILE
        self.record, self._digest = replace(wanted, done=0, sha256=NOTHING), hashlib.sha256()
        found = Record.read(run_dir)
        if found is None:
            return
        if not found.same_rows(wanted):
            raise TwinGPTError(
                f"{run_dir} holds what other teachers foretold, or of another DATA or --top: choose another --out, or "
                f"delete {RECORD_FILE} in it"
            )
        digest = _digest_of_the_first(found.bytes_after(found.done), self._path)
        if digest is not None and digest.hexdigest() == found.sha256:
            self.record = replace(self.record, done=found.done, sha256=found.sha256)
            self._digest = digest

    def append(self, rows: Rows, windows: int) -> None:
        """The rows of the next windows, after which so many are done. Raises OSError."""
        with self._path.open("r+b" if self.record.done else "wb") as file:
            file.truncate(self.record.bytes_after(self.record.done))
            file.seek(0, 2)
            rows.tofile(file)
        fsync(self._path)
        self._digest.update(np.ascontiguousarray(rows).view(np.uint8).data)
        self.record = replace(self.record, done=windows, sha256=self._digest.hexdigest())
        self.record.write(self.run_dir)


def _digest_of_the_first(size: int, path: Path) -> Any:
    """A SHA-256, to go on with, of so many bytes of a file; None if it has not so many."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while size and (block := file.read(min(size, READ_BYTES))):
                digest.update(block)
                size -= len(block)
    except OSError:
        return None
    return None if size else digest


class StoredTargets:
    """The soft targets of a student, ready to be trained on."""

    def __init__(self, rows: Rows, record: Record) -> None:
        self._rows, self.record = rows, record

    @classmethod
    def open(cls, run_dir: Path) -> StoredTargets | None:
        """None where a run has none. Raises TwinGPTError if they are not whole, or not what was written."""
        record = Record.read(run_dir)
        if record is None:
            return None
        path = run_dir / ROWS_FILE
        if not record.is_complete or not path.is_file():
            raise TwinGPTError(
                f"{path} is not whole: run the `twingpt distill` again that began it, and it goes on from there"
            )
        if content_of(path, np.dtype(np.uint8)).sha256 != record.sha256:
            raise TwinGPTError(f"{path} is damaged: delete it and run the `twingpt distill` again that made it")
        return cls(np.memmap(path, dtype=record.row_type, mode="r"), record)

    @property
    def fingerprint(self) -> str:
        """By which a run knows its teachers: their weights, what was kept of their answers, and how much it counts."""
        record = self.record
        parts = [*record.weights, str(record.top), repr(record.weight), record.sha256]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @property
    def note(self) -> str:
        """What should be known of a run that learns from them."""
        return (
            f"a student: {self.record.weight:g} of each target is what {len(self.record.teachers)} runs foretold "
            "together, and the training loss is against that"
        )

    def of(self, places: Places, targets: NDArray[np.int32]) -> SoftTargets:
        """What the targets [B, T] of windows at these places [B, T + 1] are learned as.

        The likeliest tokens get their probabilities times the weight, and the target that came gets the rest: its own
        share, and what the teachers gave to tokens that are not kept. To leave that out and scale up the others would
        teach that no other token can come (Anshumann et al., arXiv 2503.16870), while the text itself shows which do. A
        token that was foretold nowhere is learned as what it is.
        """
        rows = self._rows[np.maximum(places[:, 1:], 0)]
        probabilities = rows["probabilities"].astype(np.float32)
        # Rounded to float16 they may be a little more than one.
        total = np.maximum(probabilities.sum(axis=-1, keepdims=True), np.float32(1.0))
        shares = probabilities * (np.float32(self.record.weight) / total)
        ids = np.concatenate([np.maximum(targets, 0)[..., None], rows["ids"].astype(np.int32)], axis=-1)
        rest = np.float32(1.0) - shares.sum(axis=-1, keepdims=True)
        return SoftTargets(ids, np.concatenate([rest, shares], axis=-1))


def stored_targets(
    run_dir: Path, own: Mapping[str, str], recorded: Mapping[str, str] | None, *, new_student: bool, resume: bool
) -> StoredTargets | None:
    """What teachers foretold for a run; None if it is no student.

    own: the fingerprint of the run by its DATA. recorded: that of the checkpoint where it goes on, if there is one.
    Raises TwinGPTError if a student has no soft targets, or those of another DATA, and if a run that is none has some.
    """
    is_student, there = new_student, (run_dir / RECORD_FILE).exists()
    if recorded is not None:
        is_student = TEACHERS in recorded
    elif resume:
        is_student = there
    if not is_student:
        if there:
            raise TwinGPTError(
                f"{run_dir / RECORD_FILE} is what teachers foretold for a student, which this run is not: go on with "
                "`twingpt distill`, choose another --out, or delete the file"
            )
        return None
    soft = StoredTargets.open(run_dir)
    if soft is None:
        raise TwinGPTError(
            f"{run_dir} is a student, and {RECORD_FILE} is missing there: run the `twingpt distill` again that began "
            "it, with --resume"
        )
    if soft.record.data != own["data"]:
        raise TwinGPTError(
            f"{run_dir / ROWS_FILE} was made for another DATA: a student is trained on the text of its teachers"
        )
    return soft
