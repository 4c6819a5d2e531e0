"""HWPX, the zip of XML that Hancom Office writes: paragraphs, tables by rows, notes after their paragraph."""

import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, tr
from twingpt.data.text.forms.form import LARGEST_WHOLE, NotReadError, ReadAs, ZippedForm

_SECTION = re.compile(r"Contents/section(\d+)\.xml")
_BETWEEN = {"lineBreak": "\n", "tab": "\t", "nbSpace": " ", "fwSpace": " ", "hyphen": "-"}
# Not part of what the pages say: running heads, and text that a reader of the document does not see.
_LEFT_OUT = frozenset(("header", "footer", "hiddenComment", "secPr", "newNum", "shapeComment"))


def _read(file: IO[bytes], read_as: ReadAs) -> Iterator[str]:
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        with zipfile.ZipFile(file) as archive:
            if _locked(archive):
                raise NotReadError(read_as.name, mark("HWPX locked with a password"), mark("save it without one"))
            sections = sorted(
                (int(match[1]), info) for info in archive.infolist() if (match := _SECTION.fullmatch(info.filename))
            )
            for _, info in sections:
                if info.file_size > LARGEST_WHOLE:
                    raise TwinGPTError(
                        tr(
                            "{name} holds a section of {size:,} bytes: split it",
                            name=read_as.name,
                            size=info.file_size,
                        )
                    )
                root = etree.fromstring(archive.read(info), parser)
                for child in root:
                    yield from (f"{text}\n" for text in _paragraph(child))
                yield "\n"
    except (etree.XMLSyntaxError, zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise TwinGPTError(
            tr("{name} is damaged, it cannot be read as HWPX: {error}", name=read_as.name, error=error)
        ) from None


def _locked(archive: zipfile.ZipFile) -> bool:
    name = "META-INF/manifest.xml"
    return name in archive.namelist() and b"encryption-data" in archive.open(name).read(1 << 20)


def _kind(element: Any) -> str:
    tag = getattr(element, "tag", "")
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def _paragraph(element: Any) -> Iterator[str]:
    """The text of a paragraph, then what hangs on it: tables, notes, text boxes."""
    spoken: list[str] = []
    hanging: list[str] = []
    _gather(element, spoken, hanging)
    text = "".join(spoken)
    yield from [text, *hanging] if text.strip() or not hanging else hanging


def _gather(element: Any, spoken: list[str], hanging: list[str]) -> None:
    for child in element:
        kind = _kind(child)
        if kind == "t":
            spoken.append(_characters(child))
        elif kind == "tbl":
            hanging += _rows(child)
        elif kind == "subList":
            hanging += (text for inner in child for text in _paragraph(inner))
        elif kind and kind not in _LEFT_OUT:
            _gather(child, spoken, hanging)


def _characters(element: Any) -> str:
    parts = [element.text or ""]
    for child in element:
        parts += [_BETWEEN.get(_kind(child), ""), child.tail or ""]
    return "".join(parts)


def _rows(table: Any) -> Iterator[str]:
    for row in table:
        if _kind(row) != "tr":
            continue
        cells = ("\n".join(text for text in _paragraph(cell) if text.strip()) for cell in row)
        # A cell of several lines is a text of its own, and not a value among others.
        found = [cell for cell in cells if cell]
        yield ("\n" if any("\n" in cell for cell in found) else " ").join(found)


HWPX = ZippedForm("HWPX", "Contents/section0.xml", _read)
