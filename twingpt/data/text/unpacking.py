"""Packed files as streams of bytes, read a part at a time and no further than text can have grown."""

import gzip
import lzma
from collections.abc import Callable
from typing import IO, cast

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr

# Text shrinks to a tenth, a log of equal lines to a hundredth. Smaller files may be as odd as they like.
BOMB_RATIO = 200
BOMB_BYTES = 64 << 20


_GZIP, _XZ, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
_ZIP = b"PK\x03\x04"


def is_packed(head: bytes) -> bool:
    """Whether a file that starts so is read although it is no text: what is in it may be."""
    return head.startswith((_GZIP, _XZ, _ZSTD, _ZIP))


def unpacked(name: str, raw: IO[bytes]) -> IO[bytes]:
    """The stream unpacked, told by its first bytes and not by its name.

    Reading it raises TwinGPTError once it has grown beyond all measure.
    """
    magic = raw.read(6)
    raw.seek(0)
    stream: object = None
    if magic.startswith(_GZIP):
        stream = gzip.GzipFile(fileobj=raw)
    elif magic == _XZ:
        stream = lzma.LZMAFile(raw)  # noqa: SIM115 - whoever opened `raw` closes it
    elif magic.startswith(_ZSTD):
        stream = _ZstdFile(raw)
    return raw if stream is None else cast(IO[bytes], Measured(name, cast(IO[bytes], stream), raw.tell))


class Measured:
    """A packed stream as it is unpacked, refused once it is a bomb.

    packed: how many packed bytes have been read so far.
    """

    def __init__(self, name: str, stream: IO[bytes], packed: Callable[[], int]) -> None:
        self._name = name
        self._stream = stream
        self._packed = packed
        self._read = 0

    def read(self, size: int) -> bytes:
        """Raises TwinGPTError for a bomb."""
        data = self._stream.read(size)
        self._read += len(data)
        check_growth(self._name, self._read, self._packed())
        return data

    def tell(self) -> int:
        """Bytes unpacked so far."""
        return self._read


def check_growth(name: str, unpacked: int, packed: int) -> None:
    """Raises TwinGPTError for bytes that have grown as text does not."""
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise TwinGPTError(
            tr(
                "{name} grows to more than {bomb_ratio} times its packed size ({unpacked:,} bytes of {packed:,} so "
                "far), "
                "as no text does: unpack it yourself and give what is inside",
                name=name,
                bomb_ratio=BOMB_RATIO,
                unpacked=unpacked,
                packed=packed,
            )
        )


class _ZstdFile:
    """Frames one after another. `zstandard`'s own reader takes a file that breaks off for one that ends."""

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self._raw = raw
        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._error = zstandard.ZstdError
        self._inside = False

    def read(self, size: int) -> bytes:
        """Some bytes, not more than a block packed for each of `size`; b"" at the end of the last frame."""
        while True:
            packed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._inside = self._new_frame(), False
            packed = packed or self._raw.read(min(size, 1 << 16))
            if not packed:
                if self._inside:
                    raise EOFError(tr("it breaks off"))
                return b""
            try:
                text = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._inside = True
            if text:
                return bytes(text)


def read_full(stream: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = stream.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
