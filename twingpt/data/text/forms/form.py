"""What a form is: a way that text stands in a file, how it is recognised, and how its text is read."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.text.changes import Changes

# Forms that can be understood only as a whole are read up to this size.
LARGEST_WHOLE = 64 << 20


class NotReadError(TwinGPTError):
    """A file in a form that twingpt does not read. kind: what it is; way_out: what to do about it."""

    def __init__(self, name: str, kind: str, way_out: str) -> None:
        super().__init__(tr("{name} is not read ({kind}): {way_out}", name=name, kind=tr(kind), way_out=tr(way_out)))
        self.kind = kind
        self.way_out = way_out


@dataclass
class ReadAs:
    """How one file was read. fields: of a form that has named fields, those whose text was taken, in order.

    records: whether each piece that is read is a record, which has nothing to do with the next one.
    prose: whether the marks of Markdown become text as a person reads it; else they stay as they were written.
    """

    name: str
    form: str = "text"
    fields: list[str] = field(default_factory=list)
    records: bool = False
    prose: bool = False
    changes: Changes = field(default_factory=Changes)


@dataclass(frozen=True)
class TextForm:
    """A form written in characters.

    recognise: whether the first characters of a file (65,536 or more, or all) are of this form. read: pieces of the
    file, cut after line ends, to the text in it; what it drops it counts in `changes`.
    """

    name: str
    recognise: Callable[[str], bool]
    read: Callable[[Iterator[str], ReadAs], Iterator[str]]


@dataclass(frozen=True)
class ZippedForm:
    """A form that is a zip of parts. part: the beginning of a name that only this form has in it."""

    name: str
    part: str
    read: Callable[[IO[bytes], ReadAs], Iterator[str]]


def whole(pieces: Iterable[str], read_as: ReadAs) -> str:
    """All pieces as one text. Raises TwinGPTError for more than fits in memory."""
    found: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > LARGEST_WHOLE:
            raise TwinGPTError(
                tr(
                    "{name} is longer than {most:,} characters, too long for {form}: split it",
                    name=read_as.name,
                    most=LARGEST_WHOLE,
                    form=read_as.form,
                )
            )
        found.append(piece)
    return "".join(found).replace("\r\n", "\n").replace("\r", "\n")


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """The lines of the pieces, without their ends."""
    rest = ""
    for piece in pieces:
        found = (rest + piece).split("\n")
        rest = found.pop()
        yield from (line.removesuffix("\r") for line in found)
    if rest:
        yield rest.removesuffix("\r")
