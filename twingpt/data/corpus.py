"""cleaned.txt as a sequence of documents, read in place."""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError

SEPARATOR = b"\n\n"


def seeded_order(count: int, seed: int) -> npt.NDArray[np.int64]:
    """int64 [count]: 0 .. count - 1 in an order that the seed alone decides, now and with later versions of NumPy."""
    key = seed.to_bytes(8, "little", signed=True)
    drawn = [hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=key).digest() for number in range(count)]
    return np.argsort(np.frombuffer(b"".join(drawn), dtype="<u8"), kind="stable").astype(np.int64)


class Documents(Sequence[str]):
    """The documents of a file in which exactly one blank line stands between two of them.

    Holds the file mapped and 16 bytes a document, never the text. Raises TwinGPTError if the file is missing or empty.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise TwinGPTError(f"{path} does not exist: make it with `twingpt data clean`") from None
        except ValueError:
            raise TwinGPTError(f"{path} is empty: make it again with `twingpt data clean`") from None
        except OSError as error:
            raise TwinGPTError(f"{path} cannot be read: {error.strerror}") from None
        self.path = path
        starts = [0]
        at = self._map.find(SEPARATOR)
        while at != -1:
            starts.append(at + len(SEPARATOR))
            at = self._map.find(SEPARATOR, at + len(SEPARATOR))
        end = len(self._map) - (1 if self._map[-1:] == b"\n" else 0)
        self._starts: npt.NDArray[np.int64] = np.asarray(starts, dtype=np.int64)
        self._ends = np.append(self._starts[1:] - len(SEPARATOR), end)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        try:
            return self._map[self._starts[index] : self._ends[index]].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TwinGPTError(
                f"{self.path} is not UTF-8 in document {index} ({error.reason}): run `twingpt data clean` again"
            ) from None

    def sizes(self) -> npt.NDArray[np.int64]:
        """UTF-8 bytes of each document, int64 [documents]."""
        return self._ends - self._starts

    def batches(self, size: int) -> Iterator[range]:
        """Neighbouring documents of about `size` bytes together, at least one each."""
        sizes = self.sizes()
        first = 0
        while first < len(self):
            last, total = first, 0
            while last < len(self) and (last == first or total + sizes[last] <= size):
                total += int(sizes[last])
                last += 1
            yield range(first, last)
            first = last

    def close(self) -> None:
        self._map.close()
