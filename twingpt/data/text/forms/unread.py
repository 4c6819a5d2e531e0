"""Forms that are not read: what they are called, and the way out of them."""

from dataclasses import dataclass

from twingpt.core.language import mark

_PICTURE = (mark("picture"), mark("type its text, or recognise it with a program for that (OCR)"))
_SOUND = (mark("sound or video"), mark("write down what is said, or give its subtitles"))
_ARCHIVE = (mark("archive that is no zip"), mark("unpack it, or pack it as .zip"))
_PROGRAM = (mark("program text or settings"), mark("name the file itself to have it read as text"))
_OLD_OFFICE = (mark("file of an old Office"), mark("save it as DOCX, a table as CSV"))
_HWP = ("HWP", mark("save it as HWPX or as text in Hancom Office"))

# First bytes, and how far into the file they stand.
_MAGIC: tuple[tuple[int, bytes, tuple[str, str]], ...] = (
    (0, b"%PDF-", ("PDF", mark("export it as text or DOCX first"))),
    (0, b"HWP Document File", _HWP),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OLD_OFFICE),
    (0, b"\x89PNG", _PICTURE),
    (0, b"\xff\xd8\xff", _PICTURE),
    (0, b"GIF8", _PICTURE),
    (0, b"II*\x00", _PICTURE),
    (0, b"MM\x00*", _PICTURE),
    (8, b"WEBP", _PICTURE),
    (4, b"ftyphei", _PICTURE),
    (4, b"ftypmif", _PICTURE),
    (4, b"ftyp", _SOUND),
    (8, b"WAVE", _SOUND),
    (8, b"AVI ", _SOUND),
    (0, b"ID3", _SOUND),
    (0, b"OggS", _SOUND),
    (0, b"fLaC", _SOUND),
    (0, b"\x1aE\xdf\xa3", _SOUND),
    (0, b"7z\xbc\xaf'\x1c", _ARCHIVE),
    (0, b"Rar!", _ARCHIVE),
    (257, b"ustar", _ARCHIVE),
    (0, b"SQLite format 3", (mark("database"), mark("export its tables as CSV"))),
)
# Names that a zip of this form has in it.
_ZIPPED: tuple[tuple[str, tuple[str, str]], ...] = (
    ("xl/workbook.xml", (mark("Excel table"), mark("save it as CSV"))),
    ("ppt/presentation.xml", (mark("PowerPoint slides"), mark("export them as text or DOCX"))),
    ("META-INF/container.xml", (mark("EPUB book"), mark("convert it to HTML or text first"))),
    ("content.xml", (mark("OpenDocument file"), mark("save it as DOCX, a table as CSV"))),
)
_PICTURES = "png jpg jpeg gif bmp webp heic tif tiff svg ico"
_SOUNDS = "mp3 m4a wav mp4 mov avi mkv"
_PROGRAMS = (
    "py pyi js mjs ts tsx jsx css scss c h cc cpp hpp java kt swift go rs rb php sh bat ps1 sql r ipynb"
    " yaml yml toml ini cfg conf xml plist lock log"
)
_SUFFIXES = {
    suffix: told
    for suffixes, told in ((_PICTURES, _PICTURE), (_SOUNDS, _SOUND), (_PROGRAMS, _PROGRAM))
    for suffix in suffixes.split()
}


@dataclass(frozen=True)
class Unread:
    """A file that was passed over, what it is, and what to do about it."""

    name: str
    kind: str
    way_out: str


def unread_form(name: str, head: bytes) -> Unread | None:
    """What a file is by its first bytes (300 or more), if that is a form that is not read."""
    for at, magic, told in _MAGIC:
        if head.startswith(magic, at):
            if told is _OLD_OFFICE and ("HWP Document File".encode("utf-16-le") in head or _suffix(name) == "hwp"):
                told = _HWP
            return Unread(name, *told)
    return None


def unread_zip(name: str, parts: list[str]) -> Unread | None:
    """The same of a zip by the names in it."""
    return next((Unread(name, *told) for part, told in _ZIPPED if part in parts), None)


def unread_suffix(name: str) -> Unread | None:
    """What a file in a folder is by its name alone: text too, but not what somebody wrote to be read."""
    told = _SUFFIXES.get(_suffix(name))
    return None if told is None else Unread(name, *told)


def _suffix(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""
