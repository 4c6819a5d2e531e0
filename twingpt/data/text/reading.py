"""Text out of files, folders, compressed files and stdin, whatever they are encoded in.

Korean notes come as UTF-8, as CP949 (the Windows and EUC-KR encoding), as UTF-16, and as UTF-8 that some program once
read as CP1252 and wrote again. All of them leave here as the same text.
"""

import codecs
import gzip
import hashlib
import lzma
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.text.changes import Changes

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
# A line longer than this is handed on in pieces, so that one endless line fits in memory.
LINE_BYTES = 4 << 20
TEXT_SUFFIXES = (".txt", ".md", ".text")
PACKED_SUFFIXES = (".gz", ".xz", ".zst")

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@dataclass(frozen=True)
class Source:
    """One input: name is what the user typed, or the file found in the folder they typed."""

    name: str
    path: Path


def find_sources(inputs: Sequence[str]) -> list[Source]:
    """The files behind the arguments, folders searched in the order of their paths.

    Raises TwinGPTError for what is missing and for a folder without a text file.
    """
    sources: list[Source] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if _is_text_name(file) and file.is_file())
            if not found:
                raise TwinGPTError(
                    f"{given} holds no {', '.join(TEXT_SUFFIXES)} file (packed ones too): name the files"
                )
            sources += [Source(str(file), file) for file in found]
        elif path.exists() and not path.is_file():
            raise TwinGPTError(f"{given} is a pipe or a device, which cannot be read twice: give - and text on stdin")
        elif path.exists():
            sources.append(Source(given, path))
        else:
            raise TwinGPTError(f"{given} does not exist")
    return sources


def _is_text_name(file: Path) -> bool:
    name = file.name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(TEXT_SUFFIXES) and not file.name.startswith(".")


@dataclass(frozen=True)
class Fingerprint:
    """size: bytes on disk. sha256 of them."""

    name: str
    size: int
    sha256: str


def fingerprint(source: Source) -> Fingerprint:
    """Raises TwinGPTError for an unreadable file."""
    try:
        with source.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return Fingerprint(source.name, file.tell(), digest)
    except OSError as error:
        raise TwinGPTError(f"{source.name} cannot be read: {error.strerror}") from None


def fingerprint_of_all(files: Iterable[Fingerprint]) -> str:
    """sha256 over the files' hashes and lengths in their order; their names do not matter."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(bytes.fromhex(file.sha256) + file.size.to_bytes(8, "little"))
    return whole.hexdigest()


def read_source(
    source: Source, changes: Changes, *, encoding: str | None = None, max_undecodable: float = 0.01
) -> Iterator[tuple[str, int]]:
    """The text of one file in pieces that end at a line end, each with the bytes on disk read for it.

    An endless line comes in several pieces. Bytes that cannot be decoded come as U+FFFD and are counted in `changes`.
    Raises TwinGPTError if the file cannot be read, is binary, or more than max_undecodable (0 to 1) of it is lost.
    """
    try:
        with source.path.open("rb") as raw:
            yield from _read_stream(source.name, raw, changes, encoding, max_undecodable)
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        raise TwinGPTError(f"{source.name} is damaged, it cannot be unpacked: {error}") from None
    except OSError as error:
        raise TwinGPTError(f"{source.name} cannot be read: {error.strerror or error}") from None


def _read_stream(
    name: str, raw: IO[bytes], changes: Changes, encoding: str | None, max_undecodable: float
) -> Iterator[tuple[str, int]]:
    stream = _unpacked(name, raw)
    head = _read_full(stream, HEAD_BYTES)
    if not head:
        changes.count("empty files")
        return
    if encoding is None:
        encoding, skip = detect_encoding(head, name)
    else:
        skip = next((len(bom) for bom, of in _BOMS if head.startswith(bom) and of in encoding.lower()), 0)
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise UsageError(
                f"--encoding {encoding} is not an encoding that Python knows (utf-8, cp949, ...)"
            ) from None
    if encoding != "utf-8" or skip:
        changes.count(f"files read as {encoding}{' with a byte-order mark' if skip else ''}")
    blocks = _blocks(head[skip:], stream)
    pieces = _decode_utf8(blocks, changes) if encoding == "utf-8" else _decode_other(blocks, encoding)
    lost, total, told = 0, 0, 0
    for text, size, bad, example in pieces:
        total += size
        lost += bad
        if bad:
            changes.count("undecodable bytes", bad)
            changes.example("undecodable bytes", example, "")
        if total >= HEAD_BYTES:
            _check_lost(name, encoding, lost, total, max_undecodable, example)
        position = raw.tell()
        yield repair_mojibake(text, changes), position - told
        told = position
    _check_lost(name, encoding, lost, total, max_undecodable, "")


def _check_lost(name: str, encoding: str, lost: int, total: int, limit: float, example: str) -> None:
    if lost > limit * total:
        shown = f", for example in {example!r}" if example else ""
        raise TwinGPTError(
            f"{name}: {lost:,} of {total:,} bytes ({lost / total:.1%}) are not {encoding}{shown}: "
            f"name its encoding with --encoding, or accept that with --max-undecodable {lost / total + 0.01:.2f}"
        )


def _unpacked(name: str, raw: IO[bytes]) -> IO[bytes]:
    """The stream unpacked, told by its first bytes and not by its name."""
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if magic == b"\xfd7zXZ\x00":
        return cast(IO[bytes], lzma.LZMAFile(raw))
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return cast(IO[bytes], _ZstdFile(raw))
    return raw


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
                    raise EOFError("it breaks off")
                return b""
            try:
                text = self._frame.decompress(packed)
            except self._error as error:
                raise EOFError(str(error)) from None
            self._inside = True
            if text:
                return bytes(text)


def _read_full(stream: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = stream.read(size)
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _blocks(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    yield head
    while block := _read_full(stream, BLOCK_BYTES):
        yield block


def detect_encoding(head: bytes, name: str) -> tuple[str, int]:
    """The encoding of a file by its first bytes, and the length of its byte-order mark.

    Raises TwinGPTError for what is no text at all.
    """
    for bom, encoding in _BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    if utf16 := _utf16_without_bom(head):
        return utf16, 0
    controls = len(head) - len(head.translate(None, bytes([*range(1, 9), *range(14, 27), *range(28, 32), 127])))
    if controls > 0.02 * len(head) or head.count(0) > 0.3 * len(head):
        raise TwinGPTError(f"{name} looks like a binary file, not like text: give a text file")
    lost_utf8, lost_cp949 = _share_lost(head, "utf-8"), _share_lost(head, "cp949")
    if lost_utf8 <= max(lost_cp949, 0.05):
        return "utf-8", 0
    if lost_cp949 <= 0.2:
        return "cp949", 0
    import charset_normalizer

    best = charset_normalizer.from_bytes(head[:65536]).best()
    return (best.encoding.replace("_", "-") if best is not None else "utf-8"), 0


def _utf16_without_bom(head: bytes) -> str | None:
    """utf-16-le or -be if every other byte of the blanks and ASCII characters is zero and the rest reads as text."""
    even, odd = head[0::2].count(0), head[1::2].count(0)
    if max(even, odd) < 0.02 * len(head) or min(even, odd) > 0.1 * max(even, odd):
        return None
    encoding = "utf-16-le" if odd > even else "utf-16-be"
    text = head[: len(head) // 2 * 2].decode(encoding, errors="replace")
    readable = sum(1 for c in text[:4096] if c.isprintable() or c in "\r\n\t")
    return encoding if readable > 0.9 * len(text[:4096]) else None


def _share_lost(head: bytes, encoding: str) -> float:
    """The share of the bytes above 127 that the encoding cannot read."""
    high = len(head) - len(head.translate(None, bytes(range(128, 256))))
    if high == 0:
        return 0.0
    kept = codecs.getincrementaldecoder(encoding)(errors="ignore").decode(head).encode(encoding)
    return 1 - len(kept.translate(None, bytes(range(128)))) / high


_Piece = tuple[str, int, int, str]  # text, bytes, undecodable bytes, an example of them


def _decode_utf8(blocks: Iterable[bytes], changes: Changes) -> Iterator[_Piece]:
    for data in _whole_lines(blocks):
        try:
            yield data.decode("utf-8"), len(data), 0, ""
        except UnicodeDecodeError:
            yield _decode_mixed(data, changes)


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, cut after a newline; an endless line is cut between two characters."""
    rest: list[bytes] = []
    waiting = 0
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if cut == 0 and waiting + len(block) < LINE_BYTES:
            rest.append(block)
            waiting += len(block)
            continue
        data = b"".join([*rest, block[:cut] if cut else block])
        left = block[cut:] if cut else b""
        if not cut:
            end = len(data)
            while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
                end -= 1
            if data[end - 1] >= 0xC0:
                data, left = data[: end - 1], data[end - 1 :]
        yield data
        rest, waiting = [left], len(left)
    if data := b"".join(rest):
        yield data


def _decode_mixed(data: bytes, changes: Changes) -> _Piece:
    """UTF-8 with lines that are not: CP949 ones, as in files put together from several, and damaged ones."""
    lines: list[str] = []
    lost, example = 0, ""
    for line in data.split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
            continue
        except UnicodeDecodeError:
            pass
        if _share_lost(line, "utf-8") > 0.5:
            try:
                text = line.decode("cp949")
            except UnicodeDecodeError:
                pass
            else:
                changes.count("lines read as cp949")
                changes.example("lines read as cp949", ascii(line[:30]), text[:60])
                lines.append(text)
                continue
        text = line.decode("utf-8", errors="surrogateescape")
        escaped, bad = re.subn("[\udc80-\udcff]", "\ufffd", text)
        lost += bad
        at = escaped.find("\ufffd")
        example = example or escaped[max(0, at - 20) : at + 20]
        lines.append(escaped)
    return "\n".join(lines), len(data), lost, example


def _decode_other(blocks: Iterable[bytes], encoding: str) -> Iterator[_Piece]:
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    rest = ""
    size = 0
    for block in blocks:
        size += len(block)
        rest += decoder.decode(block)
        cut = rest.rfind("\n") + 1
        if not cut and len(rest) >= LINE_BYTES:
            cut = len(rest)
        if cut:
            yield _piece(rest[:cut], size)
            rest, size = rest[cut:], 0
    rest += decoder.decode(b"", final=True)
    if rest:
        yield _piece(rest, size)


def _piece(text: str, size: int) -> _Piece:
    lost = text.count("\ufffd")
    at = text.find("\ufffd")
    return text, size, lost, text[max(0, at - 20) : at + 20].replace("\n", " ") if lost else ""


_CP1252_HIGH = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
# Latin-1 is CP1252 but for these; programs read the five bytes that CP1252 leaves out as Latin-1.
_CP1252_BYTES = {ord(c): c.encode("cp1252")[0] for c in _CP1252_HIGH}
_FOLLOWING = f"\u0080-\u00bf{_CP1252_HIGH}"
# UTF-8's three-byte characters (Hangul, most symbols) and four-byte ones (emoji) as CP1252 or Latin-1 shows them.
_MOJIBAKE = re.compile(f"[\u00e0-\u00ef][{_FOLLOWING}]{{2}}|[\u00f0-\u00f4][{_FOLLOWING}]{{3}}")
_LATIN_RUN = re.compile(f"[\u0000-\u00ff{_CP1252_HIGH}]+")
_LATIN_PAIR = re.compile(f"[\u00c2-\u00df][{_FOLLOWING}]")


def repair_mojibake(text: str, changes: Changes) -> str:
    """Undo UTF-8 that was read as CP1252 or Latin-1, line by line; characters whose bytes were lost become U+FFFD.

    Hangul is undone here, run by run, since a line of notes may hold both kinds and lost bytes; `ftfy`, which weighs
    whether a line of Latin letters is meant as it stands, decides on the rest.
    """
    if not _MOJIBAKE.search(text) and not _LATIN_PAIR.search(text):
        return text
    import ftfy

    lines = text.split("\n")
    for number, line in enumerate(lines):
        if _MOJIBAKE.search(line):
            repaired = _LATIN_RUN.sub(_undo_run, line)
        elif _LATIN_PAIR.search(line):
            repaired = ftfy.fix_encoding(line)
        else:
            continue
        if repaired != line:
            changes.count("mojibake lines repaired")
            changes.example("mojibake lines repaired", line[:60], repaired[:60])
            lines[number] = repaired
            if lost := repaired.count("\ufffd") - line.count("\ufffd"):
                changes.count("characters that mojibake had lost", lost)
    return "\n".join(lines)


def _undo_run(match: re.Match[str]) -> str:
    run = match.group()
    if not _MOJIBAKE.search(run):
        return run
    from ftfy.fixes import restore_byte_a0

    data = run.translate(_CP1252_BYTES).encode("latin-1")
    # The byte A0 became a no-break blank, which some programs then made an ordinary one.
    for candidate in (data, restore_byte_a0(data)):
        try:
            return candidate.decode("utf-8")
        except UnicodeDecodeError:
            continue
    text = data.decode("utf-8", errors="replace")
    made = sum(1 for c in text if c > "\u07ff" and c != "\ufffd")
    return text if 2 * made >= text.count("\ufffd") else run
