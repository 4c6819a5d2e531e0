"""The encoding of a file, told by its bytes, and its text in pieces that end at a line end."""

import codecs
import re
from collections.abc import Iterable, Iterator

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, tr
from twingpt.data.text.changes import Changes

# A line longer than this is handed on in pieces, so that one endless line fits in memory.
LINE_BYTES = 4 << 20

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def detect_encoding(head: bytes, name: str) -> tuple[str, int]:
    """The encoding of a file by its first bytes, and the length of its byte-order mark.

    Raises TwinGPTError for what is no text at all.
    """
    for bom, encoding in BOMS:
        if head.startswith(bom):
            return encoding, len(bom)
    if utf16 := _utf16_without_bom(head):
        return utf16, 0
    if is_binary(head):
        raise TwinGPTError(tr("{name} looks like a binary file, not like text: give a text file", name=name))
    lost_utf8, lost_cp949 = _share_lost(head, "utf-8"), _share_lost(head, "cp949")
    if lost_utf8 <= max(lost_cp949, 0.05):
        return "utf-8", 0
    if lost_cp949 <= 0.2:
        return "cp949", 0
    import charset_normalizer

    best = charset_normalizer.from_bytes(head[:65536]).best()
    return (best.encoding.replace("_", "-") if best is not None else "utf-8"), 0


def is_binary(head: bytes) -> bool:
    """Whether bytes look like no text in any encoding."""
    if any(head.startswith(bom) for bom, _ in BOMS) or _utf16_without_bom(head):
        return False
    controls = len(head) - len(head.translate(None, bytes([*range(1, 9), *range(14, 27), *range(28, 32), 127])))
    return controls > 0.02 * len(head) or head.count(0) > 0.3 * len(head)


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


Piece = tuple[str, int, int, str]  # text, bytes, undecodable bytes, an example of them


def decode_utf8(blocks: Iterable[bytes], changes: Changes) -> Iterator[Piece]:
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


def _decode_mixed(data: bytes, changes: Changes) -> Piece:
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
                changes.count(mark("lines read as cp949"))
                changes.example(mark("lines read as cp949"), ascii(line[:30]), text[:60])
                lines.append(text)
                continue
        text = line.decode("utf-8", errors="surrogateescape")
        escaped, bad = re.subn("[\udc80-\udcff]", "\ufffd", text)
        lost += bad
        at = escaped.find("\ufffd")
        example = example or escaped[max(0, at - 20) : at + 20]
        lines.append(escaped)
    return "\n".join(lines), len(data), lost, example


def decode_other(blocks: Iterable[bytes], encoding: str) -> Iterator[Piece]:
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


def _piece(text: str, size: int) -> Piece:
    lost = text.count("\ufffd")
    at = text.find("\ufffd")
    return text, size, lost, text[max(0, at - 20) : at + 20].replace("\n", " ") if lost else ""
