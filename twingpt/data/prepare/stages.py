"""Stages whose results are kept: each made whole or not at all, and again only if what it depends on changed."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr

STATE_FOLDER = ".stages"
PACKED_FROM = "packed_from"
"""In the report of "pack": the sha256 of the file that was packed."""

Report = dict[str, Any]


@dataclass(frozen=True)
class StageResult:
    """seconds: what making it took, also when it was reused."""

    report: Report
    seconds: float
    reused: bool


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded(folder: Path, stage: str, *names: str) -> str | None:
    """What a stage of DATA recorded under these names ("files" or "report", then another); None where it did not."""
    try:
        found = json.loads((folder / STATE_FOLDER / f"{stage}.json").read_text(encoding="utf-8"))
        for name in names:
            found = found[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


def key_of(parts: Mapping[str, Any]) -> str:
    """sha256 of settings and input hashes."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Workspace:
    """DATA with its stages' records in DATA/.stages. One process at a time writes in it.

    A record names the sha256 of every file that its stage made, and is written after them: what a kill leaves behind
    has no record that fits it, so the stage is made again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = folder / STATE_FOLDER

    @property
    def scratch(self) -> Path:
        """A folder for what is needed only while the workspace is locked."""
        return self._state

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises TwinGPTError if the folder cannot be made, or, touching nothing, if another process writes in it."""
        made = not self.folder.exists()
        try:
            self._state.mkdir(parents=True, exist_ok=True)
            lock = (self._state / "lock").open("w")
        except OSError as error:
            raise TwinGPTError(
                tr("{folder} cannot be written to: {reason}", folder=self.folder, reason=os_reason(error))
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise TwinGPTError(
                tr("{folder} is being written by another twingpt: wait, or give another --out", folder=self.folder)
            ) from None
        try:
            yield
        finally:
            lock.close()
            if not any(self._state.glob("*.json")):
                shutil.rmtree(self._state, ignore_errors=True)
                if made:
                    with contextlib.suppress(OSError):
                        self.folder.rmdir()

    def run(
        self,
        name: str,
        key: Mapping[str, Any],
        make: Callable[[Path], Report],
        *,
        needed: int,
    ) -> StageResult:
        """The stage's kept result if its key and files are unchanged, else make(folder) and keep what it wrote there.

        needed: bytes that the stage writes, about, for the message when the disk is full. Raises what make raised, with
        nothing of it left behind.
        """
        digest = key_of(key)
        record = self._kept(name, digest)
        if record is not None:
            return StageResult(record["report"], record["seconds"], reused=True)
        started = time.monotonic()
        work = self._state / f"{name}.tmp"
        with _disk_errors(self.folder, name, needed):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                report = make(work)
                files = {path.name: file_sha256(path) for path in sorted(work.iterdir())}
                for file in files:
                    _sync(work / file)
                for file in files:
                    (work / file).replace(self.folder / file)
                seconds = time.monotonic() - started
                self._write(name, {"key": digest, "files": files, "seconds": round(seconds, 3), "report": report})
            finally:
                shutil.rmtree(work, ignore_errors=True)
        return StageResult(report, seconds, reused=False)

    def has(self, name: str, key: Mapping[str, Any]) -> bool:
        """Whether the stage's result for this key is kept, its files unchanged."""
        return self._kept(name, key_of(key)) is not None

    def _kept(self, name: str, digest: str) -> dict[str, Any] | None:
        record = self._read(name)
        return record if record is not None and record["key"] == digest and self._intact(record["files"]) else None

    def remove(self, files: Sequence[str]) -> None:
        """Files that the present settings do not make."""
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def write_text(self, file: str, text: str) -> None:
        """Atomically."""
        with _disk_errors(self.folder, file, len(text.encode())):
            temporary = self._state / f"{file}.tmp"
            try:
                temporary.write_text(text, encoding="utf-8")
                _sync(temporary)
                temporary.replace(self.folder / file)
            finally:
                temporary.unlink(missing_ok=True)

    def report(self, name: str) -> Report | None:
        """The report of a stage whose files are as it left them."""
        record = self._read(name)
        return record["report"] if record is not None and self._intact(record["files"]) else None

    def _intact(self, files: Mapping[str, str]) -> bool:
        try:
            return all(file_sha256(self.folder / file) == digest for file, digest in files.items())
        except OSError:
            return False

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            record = json.loads((self._state / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.keys() >= {"key", "files", "seconds", "report"} else None

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        temporary = self._state / f"{name}.json.tmp"
        temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1), encoding="utf-8")
        _sync(temporary)
        temporary.replace(self._state / f"{name}.json")


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _disk_errors(folder: Path, what: str, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free
        raise TwinGPTError(
            tr(
                "the disk of {folder} is full: {what} needs about {needed:,} bytes, {free:,} are free; "
                "free some or give another --out, then run the same command again (finished stages are kept)",
                folder=folder,
                what=what,
                needed=needed,
                free=free,
            )
        ) from None
