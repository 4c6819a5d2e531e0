"""Files read a part at a time: cleaned.txt as a sequence of documents, and tables of rows of one size."""

import hashlib
import os
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr

SEPARATOR = b"\n\n"
BEGIN = b"\f"
"""Before a part with which a document of several parts begins. Cleaning leaves no form feed in any text."""
_BLOCK_BYTES = 4 << 20
_PART_BYTES = 1 << 20


def seeded_order(count: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [count]: 0 .. count - 1 in an order that the seed alone decides, now and with later versions of NumPy."""
    key = seed.to_bytes(8, "little", signed=True)
    drawn = (hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=key).digest() for number in range(count))
    values = (int.from_bytes(one, "little") for one in drawn)
    return np.argsort(np.fromiter(values, dtype=np.uint64, count=count), kind="stable").astype(np.int64)


class Documents(Sequence[str]):
    """The documents of a file in which exactly one blank line stands between two of them.

    In a file of plain text the blank line stands between two parts (paragraphs), and BEGIN before each of them with
    which a document begins; everything here is then about parts. A document may be larger than memory, a part is not.

    Holds 8 bytes a document, never the text, and reads with `pread`: what a mapping has touched would count as memory
    of this process. Raises TwinGPTError if the file is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDONLY)
            self._close = weakref.finalize(self, os.close, self._fd)
            size = os.fstat(self._fd).st_size
            if size == 0:
                raise TwinGPTError(tr("{path} is empty: make it again with `twingpt data clean`", path=path))
            self._bounds = _starts(self._fd, size)
            self._marked = self._find_marks(size)
        except FileNotFoundError:
            raise TwinGPTError(tr("{path} does not exist: make it with `twingpt data clean`", path=path)) from None
        except OSError as error:
            raise TwinGPTError(tr("{path} cannot be read: {reason}", path=path, reason=os_reason(error))) from None
        self.path = path

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        start, end = self.span(index)
        return read_text(
            self._fd, start, end, tr("{path} is not UTF-8 in document {index}", path=self.path, index=index)
        )

    def span(self, index: int) -> tuple[int, int]:
        """Where in the file the document's text begins and ends. Raises IndexError past the last document."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = int(self._bounds[index]) + (len(BEGIN) if self._marked is not None and self._marked[index] else 0)
        return start, int(self._bounds[index + 1]) - len(SEPARATOR)

    @property
    def begins(self) -> npt.NDArray[np.bool_]:
        """bool [parts]: whether a document begins with the part; True for all where nothing is marked."""
        return np.ones(len(self), dtype=np.bool_) if self._marked is None else self._marked

    def sizes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document, int64 [documents]."""
        sizes: npt.NDArray[np.int64] = np.diff(self._bounds) - len(SEPARATOR)
        return sizes if self._marked is None else sizes - len(BEGIN) * self._marked

    def batches(self, size: int) -> Iterator[range]:
        """Neighbouring documents of about `size` bytes together, at least one each."""
        first = 0
        while first < len(self):
            last = max(first + 1, bisect_right(range(len(self)), size, lo=first, key=partial(self._bytes_to, first)))
            yield range(first, last)
            first = last

    def _bytes_to(self, first: int, last: int) -> int:
        """Of the texts from first to last, without what stands between them."""
        between = len(SEPARATOR) * (last + 1 - first)
        return int(self._bounds[last + 1]) - int(self._bounds[first]) - between

    def close(self) -> None:
        self._close()

    def _find_marks(self, size: int) -> npt.NDArray[np.bool_] | None:
        """Which parts have BEGIN before them; None for a file that has it nowhere: of questions, or an older one.

        Such a file begins with it, since its first part begins a document.
        """
        if os.pread(self._fd, len(BEGIN), 0) != BEGIN:
            return None
        starts, marked = self._bounds[:-1], np.zeros(len(self), dtype=np.bool_)
        for at in range(0, size, _BLOCK_BYTES):
            block = np.frombuffer(os.pread(self._fd, _BLOCK_BYTES, at), dtype=np.uint8)
            found = np.flatnonzero(block == BEGIN[0]) + at
            part = np.minimum(np.searchsorted(starts, found), len(starts) - 1)
            marked[part[starts[part] == found]] = True
        return marked


class WholeDocuments(Sequence[str]):
    """The documents of a file of plain text put together of their parts, each up to LOOKED_AT bytes of it.

    It is what documents are compared by, so that no document has to fit into memory.
    """

    LOOKED_AT = 1 << 20

    def __init__(self, parts: Documents) -> None:
        self._parts = parts
        self.first = np.append(np.flatnonzero(parts.begins), len(parts))
        """int64 [documents + 1]: the number of the part that each begins with."""

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        found: list[str] = []
        size = 0
        for part in range(int(self.first[index]), int(self.first[index + 1])):
            found.append(self._parts[part])
            size += len(found[-1])
            if size > self.LOOKED_AT:
                break
        return "\n\n".join(found)

    def sizes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of the parts of each document, int64 [documents]."""
        return np.add.reduceat(self._parts.sizes(), self.first[:-1])


def read_text(fd: int, start: int, end: int, fault: str) -> str:
    """The text of bytes start to end of an open file. Raises TwinGPTError, with `fault`, if it is not UTF-8."""
    try:
        return os.pread(fd, end - start, start).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TwinGPTError(
            tr("{fault} ({reason}): run `twingpt data clean` again", fault=fault, reason=error.reason)
        ) from None


def _starts(fd: int, size: int) -> npt.NDArray[np.int64]:
    """Where each document starts, and where one after the last would."""
    found: list[npt.NDArray[np.int64]] = [np.zeros(1, dtype=np.int64)]
    at, last, tail = 0, -len(SEPARATOR), b""
    while block := os.pread(fd, _BLOCK_BYTES, at):
        data = np.frombuffer(tail + block, dtype=np.uint8)
        pairs = np.flatnonzero((data[:-1] == ord("\n")) & (data[1:] == ord("\n"))) + (at - len(tail))
        if len(pairs) and (pairs[0] == last + 1 or (np.diff(pairs) == 1).any()):
            # More than one blank line: the separators are those that do not overlap, from left to right.
            pairs = _apart(pairs, last)
        if len(pairs):
            found.append(pairs + len(SEPARATOR))
            last = int(pairs[-1])
        at += len(block)
        tail = block[-1:]
    with_final_newline = os.pread(fd, 1, size - 1) == b"\n"
    found.append(np.asarray([size - with_final_newline + len(SEPARATOR)], dtype=np.int64))
    return np.concatenate(found)


def _apart(pairs: npt.NDArray[np.int64], last: int) -> npt.NDArray[np.int64]:
    kept: list[int] = []
    for pair in pairs.tolist():
        if pair >= last + len(SEPARATOR):
            kept.append(pair)
            last = pair
    return np.asarray(kept, dtype=np.int64)


class Table:
    """Rows of `width` numbers in a file, read a part at a time; the file stays open as long as its owner keeps it."""

    def __init__(self, file: IO[bytes], dtype: Any, width: int = 1) -> None:
        self._file = file
        self.dtype = np.dtype(dtype)
        self._width = width
        self._bytes = self.dtype.itemsize * width
        self._count: int = os.fstat(file.fileno()).st_size // self._bytes

    def __len__(self) -> int:
        return self._count

    def rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """[stop - start, width]"""
        data = os.pread(self._file.fileno(), (stop - start) * self._bytes, start * self._bytes)
        return np.frombuffer(data, dtype=self.dtype).reshape(-1, self._width)

    def parts(self) -> Iterator[tuple[int, npt.NDArray[Any]]]:
        """All rows in order, about a MB at a time, each part with the number of its first row."""
        size = max(1, _PART_BYTES // self._bytes)
        for start in range(0, self._count, size):
            yield start, self.rows(start, min(start + size, self._count))

    def take(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """[len(indices), width]: the rows of these numbers."""
        number, size = self._file.fileno(), self._bytes
        data = b"".join(os.pread(number, size, index * size) for index in indices.tolist())
        return np.frombuffer(data, dtype=self.dtype).reshape(-1, self._width)
