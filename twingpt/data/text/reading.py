"""Text out of files of every form and encoding: what leaves here is text alone, a part at a time.

Korean notes come as UTF-8, as CP949 (the Windows and EUC-KR encoding) and as UTF-16. All of them leave here as the
same text.
"""

import codecs
import csv
import gzip
import lzma
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import IO

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import mark, os_reason, tr
from twingpt.data.text.changes import Changes
from twingpt.data.text.encodings import BOMS, decode_other, decode_utf8, detect_encoding
from twingpt.data.text.forms.form import NotReadError, ReadAs
from twingpt.data.text.forms.registry import ZIPPED_FORMS, form_of
from twingpt.data.text.forms.unread import unread_form, unread_zip
from twingpt.data.text.inputs import ZIP_MAGIC, Source
from twingpt.data.text.unpacking import check_growth, read_full, unpacked

BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
# By so many characters, or all there are, a form is recognised.
FORM_CHARS = 1 << 16
# What the libraries that read forms raise for a file that is not as it should be.
_FAULTS = (ValueError, LookupError, OverflowError, csv.Error)


def read_source(
    source: Source,
    changes: Changes,
    *,
    encoding: str | None = None,
    max_undecodable: float = 0.01,
    read_as: ReadAs | None = None,
    forms: bool = True,
) -> Iterator[tuple[str, int]]:
    """The text of one file in pieces that end at a line end, each with the bytes on disk read for it.

    An endless line comes in several pieces. Bytes that cannot be decoded come as U+FFFD and are counted in `changes`.
    read_as: is told the form that the file turned out to have. forms: False to take every file as the text it is.
    Raises TwinGPTError if the file cannot be read, is binary or in a form that is not read, or more than
    max_undecodable (0 to 1) of it is lost.
    """
    told = read_as or ReadAs(source.name)
    told.changes = changes
    try:
        with source.open() as raw:
            at = 0
            for text in _read_stream(told, raw, encoding, max_undecodable, forms=forms):
                position = raw.tell()
                yield text, max(0, position - at)
                at = max(at, position)
    except (lzma.LZMAError, EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile) as error:
        raise TwinGPTError(
            tr("{name} is damaged, it cannot be unpacked: {error}", name=source.name, error=error)
        ) from None
    except OSError as error:
        raise TwinGPTError(tr("{name} cannot be read: {reason}", name=source.name, reason=os_reason(error))) from None


def _read_stream(
    told: ReadAs, raw: IO[bytes], encoding: str | None, max_undecodable: float, *, forms: bool
) -> Iterator[str]:
    stream = unpacked(told.name, raw)
    head = read_full(stream, HEAD_BYTES)
    if not head:
        told.changes.count(mark("empty files"))
        return
    if head.startswith(ZIP_MAGIC):
        yield from _read_zipped(told, head, stream)
        return
    if unread := unread_form(told.name, head):
        raise NotReadError(told.name, unread.kind, unread.way_out)
    decoded = _decoded(told, head, stream, encoding, max_undecodable)
    first = ""
    # The last line of a short file comes by itself, and a form is known by all of that file.
    while len(first) < FORM_CHARS and (piece := next(decoded, "")):
        first += piece
    pieces = chain([first], decoded)
    form = form_of(first) if forms else None
    if form is None:
        yield from pieces
        return
    told.form = form.name
    try:
        yield from form.read(pieces, told)
    except _FAULTS as error:
        reason = " ".join(str(error).split())[:100]
        raise TwinGPTError(
            tr(
                "{told} is damaged, it cannot be read as {form}: {reason}: save it again, or as plain text",
                told=told.name,
                form=form.name,
                reason=reason,
            )
        ) from None


def _read_zipped(told: ReadAs, head: bytes, stream: IO[bytes]) -> Iterator[str]:
    """A document that is a zip; one that came packed once more is unpacked first, since it is read from its end."""
    with tempfile.NamedTemporaryFile() as file:
        for block in _blocks(head, stream):
            file.write(block)
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        names = [info.filename for info in infos]
        check_growth(told.name, sum(info.file_size for info in infos), sum(info.compress_size for info in infos))
        form = next((form for form in ZIPPED_FORMS if any(name.startswith(form.part) for name in names)), None)
        if form is None:
            unread = unread_zip(told.name, names)
            kind, way_out = (
                (unread.kind, unread.way_out) if unread else (mark("zip within a packed file"), mark("unpack it"))
            )
            raise NotReadError(told.name, kind, way_out)
        told.form = form.name
        file.seek(0)
        yield from form.read(file, told)


def _decoded(
    told: ReadAs, head: bytes, stream: IO[bytes], encoding: str | None, max_undecodable: float
) -> Iterator[str]:
    name, changes = told.name, told.changes
    if encoding is None:
        encoding, skip = detect_encoding(head, name)
    else:
        skip = next((len(bom) for bom, of in BOMS if head.startswith(bom) and of in encoding.lower()), 0)
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise UsageError(
                tr("--encoding {encoding} is not an encoding that Python knows (utf-8, cp949, ...)", encoding=encoding)
            ) from None
    if encoding != "utf-8" or skip:
        changes.count(f"files read as {encoding}{' with a byte-order mark' if skip else ''}")
    blocks = _blocks(head[skip:], stream)
    pieces = decode_utf8(blocks, changes) if encoding == "utf-8" else decode_other(blocks, encoding)
    lost, total = 0, 0
    for text, size, bad, example in pieces:
        total += size
        lost += bad
        if bad:
            changes.count(mark("undecodable bytes"), bad)
            changes.example(mark("undecodable bytes"), example, "")
        if total >= HEAD_BYTES:
            _check_lost(name, encoding, lost, total, max_undecodable, example)
        yield text
    _check_lost(name, encoding, lost, total, max_undecodable, "")


def _check_lost(name: str, encoding: str, lost: int, total: int, limit: float, example: str) -> None:
    if lost > limit * total:
        shown = tr(", for example in {example!r}", example=example) if example else ""
        raise TwinGPTError(
            tr(
                "{name}: {lost:,} of {total:,} bytes ({share:.1%}) are not {encoding}{shown}: "
                "name its encoding with --encoding, or accept that with --max-undecodable {accepted:.2f}",
                name=name,
                lost=lost,
                total=total,
                share=lost / total,
                encoding=encoding,
                shown=shown,
                accepted=lost / total + 0.01,
            )
        )


def _blocks(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    yield head
    while block := read_full(stream, BLOCK_BYTES):
        yield block
