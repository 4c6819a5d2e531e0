"""The files behind what a user names: files, folders, and zips, which are read as folders."""

import contextlib
import hashlib
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import mark, os_reason, tr
from twingpt.data.text.encodings import is_binary
from twingpt.data.text.forms.form import NotReadError
from twingpt.data.text.forms.registry import ZIPPED_FORMS
from twingpt.data.text.forms.unread import Unread, unread_form, unread_suffix, unread_zip
from twingpt.data.text.unpacking import check_growth, read_full, unpacked

ZIP_MAGIC = b"PK\x03\x04"
NO_FILE = mark("is a pipe or a device")
_PACKED_SUFFIXES = (".gz", ".xz", ".zst")
_LOOK_BYTES = 1 << 16
# A zip with more files than this is no folder of notes.
_MOST_FILES = 100_000
_UTF8_NAME, _LOCKED = 0x800, 0x1


@dataclass(frozen=True)
class Source:
    """One input: name is what the user typed, or the file found in the folder they typed; member: of the zip `path`."""

    name: str
    path: Path
    member: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Its bytes. Raises OSError, and zipfile.BadZipFile for a damaged zip."""
        with self.path.open("rb") as file:
            if self.member is None:
                yield file
                return
            with zipfile.ZipFile(file) as archive, archive.open(self.member) as member:
                yield member


@dataclass
class Found:
    """sources: what is read, in order. unread: what is not."""

    sources: list[Source] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


@dataclass(frozen=True)
class Fingerprint:
    """size: bytes on disk, of a file in a zip unpacked ones. sha256 of them."""

    name: str
    size: int
    sha256: str


def find_sources(inputs: Sequence[str]) -> Found:
    """The files behind the arguments, folders searched in the order of their paths.

    Raises TwinGPTError for what is missing, for a folder or zip without a file to read, and for a bomb.
    """
    found = Found()
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            inside = _in_folder(path)
            if not inside.sources:
                raise TwinGPTError(
                    tr("{given} holds no file that is read{listed}", given=given, listed=_listed(inside.unread))
                )
        elif path.exists() and not path.is_file():
            raise TwinGPTError(
                tr(
                    "{given} {no_file}, which cannot be read twice: give - and text on stdin",
                    given=given,
                    no_file=tr(NO_FILE),
                )
            )
        elif path.exists():
            inside = Found()
            _add(inside, Source(given, path), by_name=False)
            if not inside.sources and inside.unread:
                raise NotReadError(given, inside.unread[0].kind, inside.unread[0].way_out)
        else:
            raise TwinGPTError(tr("{given} does not exist", given=given))
        found.sources += inside.sources
        found.unread += inside.unread
    return found


def _listed(unread: Sequence[Unread]) -> str:
    if not unread:
        return tr(": name the files")
    more = tr(", and {number} more", number=len(unread) - 3) if len(unread) > 3 else ""
    return (
        ": "
        + "; ".join(
            tr("{name} is a {kind}, {way_out}", name=one.name, kind=tr(one.kind), way_out=tr(one.way_out))
            for one in unread[:3]
        )
        + more
    )


def _in_folder(folder: Path) -> Found:
    found = Found()
    # A Mac names files in NFD: the same folder is read in the same order there.
    for file in sorted(folder.rglob("*"), key=lambda path: [unicodedata.normalize("NFC", part) for part in path.parts]):
        inner = file.relative_to(folder).parts
        if any(part.startswith(".") for part in inner) or file.is_dir():
            continue
        if not file.is_file():
            kind = mark("pipe or device") if file.exists() else mark("link to nothing")
            found.unread.append(Unread(str(file), kind, mark("save what it gives as a file")))
        else:
            _add(found, Source(str(file), file), by_name=True)
    return found


def _add(found: Found, source: Source, *, by_name: bool) -> None:
    """Put a file where it belongs; a zip becomes the files in it. by_name: whether its name alone may rule it out."""
    try:
        with source.open() as raw:
            head = read_full(unpacked(source.name, raw), _LOOK_BYTES)
            raw.seek(0)
            if head.startswith(ZIP_MAGIC) and zipfile.is_zipfile(raw):
                _add_zip(found, source, raw)
                return
    except (OSError, EOFError, zipfile.BadZipFile, RuntimeError, ValueError, TwinGPTError) as error:
        if isinstance(error, TwinGPTError):
            raise
        # Whoever reads it says what is wrong with it.
        found.sources.append(source)
        return
    name = source.name.lower()
    for suffix in _PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    unread = unread_form(source.name, head) or (unread_suffix(name) if by_name else None)
    if unread is None and by_name and is_binary(head):
        unread = Unread(source.name, mark("binary file"), mark("save what is in it as text"))
    if unread is None:
        found.sources.append(source)
    else:
        found.unread.append(unread if unread.name == source.name else Unread(source.name, unread.kind, unread.way_out))


def _add_zip(found: Found, source: Source, file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        names = [info.filename for info in infos]
        if any(name.startswith(form.part) for form in ZIPPED_FORMS for name in names):
            found.sources.append(source)
            return
        if unread := unread_zip(source.name, names):
            found.unread.append(unread)
            return
        if source.member is not None:
            found.unread.append(Unread(source.name, mark("zip within a zip"), mark("unpack it")))
            return
        _check_zip(source.name, infos)
        for info in sorted(infos, key=_shown_name):
            parts = _shown_name(info).split("/")
            # What macOS puts beside the files is none of them.
            if any(part.startswith(".") for part in parts) or parts[0] == "__MACOSX":
                continue
            name = f"{source.name}/{_shown_name(info)}"
            if info.flag_bits & _LOCKED:
                found.unread.append(Unread(name, mark("file locked with a password"), mark("unpack the zip")))
            else:
                _add(found, Source(name, source.path, info.filename), by_name=True)


def _check_zip(name: str, infos: Sequence[zipfile.ZipInfo]) -> None:
    """Raises TwinGPTError for a bomb. No file gives more bytes than its entry says: `zipfile` stops there."""
    if len(infos) > _MOST_FILES:
        raise TwinGPTError(
            tr(
                "{name} holds {files:,} files, more than {most:,}: unpack it",
                name=name,
                files=len(infos),
                most=_MOST_FILES,
            )
        )
    check_growth(name, sum(info.file_size for info in infos), sum(info.compress_size for info in infos))


def _shown_name(info: zipfile.ZipInfo) -> str:
    """The name of a file in a zip in NFC; Windows wrote Korean ones in CP949 without saying so."""
    name = info.filename
    if not info.flag_bits & _UTF8_NAME:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("cp949")
    return unicodedata.normalize("NFC", name)


def size_of_all(sources: Iterable[Source]) -> int | None:
    """Their bytes on disk; None where some lie in zips, which tell less than what is read of them."""
    size = 0
    for source in sources:
        if source.member is not None:
            return None
        with contextlib.suppress(OSError):  # whoever reads it says what is wrong with it
            size += source.path.stat().st_size
    return size


def fingerprint(source: Source, advance: Callable[[int], None] = lambda size: None) -> Fingerprint:
    """advance: is told the bytes read. Raises TwinGPTError for an unreadable file."""
    try:
        with source.open() as file:
            whole = hashlib.sha256()
            size = 0
            while block := file.read(1 << 20):
                whole.update(block)
                size += len(block)
                advance(len(block))
            return Fingerprint(source.name, size, whole.hexdigest())
    except OSError as error:
        raise TwinGPTError(tr("{name} cannot be read: {reason}", name=source.name, reason=os_reason(error))) from None
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise TwinGPTError(
            tr("{name} is damaged, it cannot be unpacked: {error}", name=source.name, error=error)
        ) from None


def fingerprint_of_all(files: Iterable[Fingerprint]) -> str:
    """sha256 over the files' hashes and lengths in their order; their names do not matter."""
    whole = hashlib.sha256()
    for file in files:
        whole.update(bytes.fromhex(file.sha256) + file.size.to_bytes(8, "little"))
    return whole.hexdigest()
