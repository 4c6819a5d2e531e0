"""Packed files held by their content against the manifest that was written with them.

A file that is read whole at every start would be felt, so what was found in it is remembered, by where it lies, its
size and its times. The memory is in the user's cache folder (or TWINGPT_CACHE) and not in DATA, which may be read-only
or somebody else's, and in which a command that is refused leaves no trace. Where the cache refuses, the file is read
anew every time.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.data.files import MANIFEST_FILE

BLOCK_BYTES = 1 << 22
SETTLED_SECONDS = 2.0
"""A file that changed within this time may change again without its times telling: it is not remembered yet."""


@dataclass(frozen=True, slots=True)
class Content:
    """sha256 of a file, and the largest number in it (-1 where there is none)."""

    sha256: str
    largest: int


def check_content(path: Path, dtype: np.dtype[np.generic], sha256: str | None, below: int) -> None:
    """Raises TwinGPTError if a file is not the one that its manifest tells of, or holds a number too large.

    sha256: None where the manifest has none. below: what every number in it has to be less than: an engine looks a
    token up without asking, and MLX does so outside its memory.
    """
    found = content_of(path, dtype)
    if sha256 is not None and found.sha256 != sha256:
        raise TwinGPTError(
            tr(
                "{path} is not the file that {file} was written with: run `twingpt prepare` again",
                path=path,
                file=path.parent / MANIFEST_FILE,
            )
        )
    if found.largest >= below:
        raise TwinGPTError(
            tr(
                "{path} holds {largest:,} where all is below {below:,}: run `twingpt prepare` again",
                path=path,
                largest=found.largest,
                below=below,
            )
        )


def content_of(path: Path, dtype: np.dtype[np.generic]) -> Content:
    """What a file of numbers holds, remembered or read. Raises TwinGPTError if it cannot be read."""
    memory = _memory_of(path)
    try:
        before = _identity(path, dtype)
        if (known := _recall(memory, before)) is not None:
            return known
        started = time.time()
        content = _read(path, dtype)
        if _identity(path, dtype) == before and started - max(before[-2:]) / 1e9 > SETTLED_SECONDS:
            _remember(memory, before, content)
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be read: {reason}", path=path, reason=os_reason(error))) from None
    return content


def _read(path: Path, dtype: np.dtype[np.generic]) -> Content:
    digest, largest = hashlib.sha256(), -1
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            numbers = np.frombuffer(block, dtype=dtype, count=len(block) // dtype.itemsize)
            largest = max(largest, int(numbers.max(initial=0)))
    return Content(digest.hexdigest(), largest)


def _identity(path: Path, dtype: np.dtype[np.generic]) -> list[int]:
    """What changes when a file does, or how it is read. Its last time no program can set."""
    found = path.stat()
    return [dtype.itemsize, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _memory_of(path: Path) -> Path | None:
    """Where it is remembered what a file holds; None where there is no place for it."""
    try:
        name = f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
        if chosen := os.environ.get("TWINGPT_CACHE"):
            return Path(chosen) / "checked" / name
        usual = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        return Path(os.environ.get("XDG_CACHE_HOME") or usual) / "twingpt" / "checked" / name
    except (OSError, RuntimeError):
        return None


def _recall(memory: Path | None, identity: list[int]) -> Content | None:
    if memory is None:
        return None
    try:
        known = json.loads(memory.read_bytes())
        if known["identity"] != identity:
            return None
        content = Content(**known["content"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return content if isinstance(content.sha256, str) and isinstance(content.largest, int) else None


def _remember(memory: Path | None, identity: list[int], content: Content) -> None:
    """A folder that refuses is no reason to stop: the file will be read again."""
    if memory is None:
        return
    temporary = memory.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"identity": identity, "content": asdict(content)}), encoding="utf-8")
        temporary.replace(memory)
