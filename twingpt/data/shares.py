"""A stage's work dealt out to several machines: what a share's folder says of itself, and which shares fit together."""

import dataclasses
import json
import platform
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from twingpt import __version__
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data.reading import Fingerprint
from twingpt.data.stages import Report, file_sha256, key_of

SHARE_FILE = "share.json"
FORMAT_VERSION = 1

# Packages whose version decides what a stage makes of a text.
_PACKAGES = {
    "clean": ("charset-normalizer", "ftfy", "kiwipiepy", "kiwipiepy_model", "phonenumbers", "rensa"),
    "samples": ("kiwipiepy", "kiwipiepy_model", "phonenumbers"),
}


@dataclass(frozen=True)
class Shard:
    """Share `number`, from 1, of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """ "2/3". Raises UsageError for anything else."""
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UsageError(f"--shard {text} cannot be meant: give 2/3 for the second of three machines")
        return cls(int(match[1]), int(match[2]))

    @property
    def dealt(self) -> tuple[int, int]:
        """The first piece that is this share's, counted from 0, and how many pieces further on its next one is."""
        return self.number - 1, self.of

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True, kw_only=True)
class Share:
    """share.json.

    versions: what made it, by name. settings: those of the stage. inputs: sha256 by name of what it was made from;
    sources: the raw files, of the stage clean. report: what the merge has to know. files: sha256 of the other files.
    """

    stage: str
    shard: Shard
    versions: dict[str, str]
    settings: dict[str, Any]
    inputs: dict[str, str]
    sources: list[Fingerprint]
    report: Report
    files: dict[str, str] = dataclasses.field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Beside the share's files, which it names with their hashes."""
        files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
        raw = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self), "shard": str(self.shard), "files": files}
        raw["sha256"] = key_of(raw)
        (folder / SHARE_FILE).write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Share":
        """Raises TwinGPTError if the folder holds no share that this twingpt reads."""
        path = folder / SHARE_FILE
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = raw.pop("format_version")
            if version != FORMAT_VERSION:
                raise TwinGPTError(
                    f"{path} has format version {version}, this twingpt reads {FORMAT_VERSION}: make the share again"
                )
            if raw.pop("sha256") != key_of({"format_version": version, **raw}):
                raise ValueError("it does not have the hash that it names")
            sources = [Fingerprint(**source) for source in raw["sources"]]
            return cls(**{**raw, "shard": Shard.parse(raw["shard"]), "sources": sources})
        except FileNotFoundError:
            raise TwinGPTError(
                f"{folder} holds no share: make one with `twingpt data clean` or `twingpt data samples` and --shard"
            ) from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError, UsageError) as error:
            raise TwinGPTError(f"{path} is damaged ({error}): make the share again") from None


def versions(stage: str, counted: int, template: str) -> dict[str, str]:
    """Whatever makes another text of the same input: twingpt, the stage's own version, Unicode's tables, packages.

    Kiwi reckons with floats, which two kinds of processor may round otherwise.
    """
    qa = template == "qa"
    packages = [name for name in _PACKAGES[stage] if qa or not name.startswith("kiwi")]
    return {
        "twingpt": __version__,
        f"the stage {stage}": str(counted),
        "Python's Unicode": unicodedata.unidata_version,
        **{name: metadata.version(name) for name in packages},
        **({"the processor": platform.machine()} if qa else {}),
    }


def fitting(folders: Sequence[Path]) -> list[tuple[Path, Share]]:
    """The shares of these folders in their order, if they are all the shares of one piece of work, and whole.

    Raises TwinGPTError that names the share which is missing, given twice, damaged, or made otherwise than the first.
    """
    shares = [(folder, Share.load(folder)) for folder in folders]
    if not shares:
        raise UsageError("no share given: name the folders that were written with --shard")
    first_folder, first = shares[0]
    for folder, share in shares[1:]:
        if (difference := _difference(share, first)) is not None:
            raise TwinGPTError(f"{folder} does not fit {first_folder}: {difference}")
    by_number: dict[int, tuple[Path, Share]] = {}
    for folder, share in shares:
        if share.shard.number in by_number:
            other = by_number[share.shard.number][0]
            raise TwinGPTError(f"{other} and {folder} are both share {share.shard}: give one of them")
        by_number[share.shard.number] = folder, share
    missing = [f"{number}/{first.shard.of}" for number in range(1, first.shard.of + 1) if number not in by_number]
    if missing:
        raise TwinGPTError(f"share {', '.join(missing)} is missing: give its folder too, or make it with --shard")
    for folder, share in shares:
        _check_whole(folder, share)
    return [by_number[number] for number in sorted(by_number)]


def _difference(share: Share, first: Share) -> str | None:
    """How a share was made otherwise than the first, as the end of a sentence."""
    if share.stage != first.stage:
        return f"it is a share of {share.stage}, not of {first.stage}: give the shares of one stage"
    if share.shard.of != first.shard.of:
        return f"it is share {share.shard}, not one of {first.shard.of}: make the shares again with the same number"
    if name := _differing(share.versions, first.versions):
        return f"it was made with {unlike(name, share.versions, first.versions)}"
    if name := _differing(share.settings, first.settings):
        mine_is, other_is = share.settings.get(name), first.settings.get(name)
        return f"it was made with --{name.replace('_', '-')} {mine_is}, not {other_is}: make one of them again"
    for number, (mine, other) in enumerate(zip(share.sources, first.sources, strict=False), 1):
        if (mine.sha256, mine.size) != (other.sha256, other.size):
            return f"its file {number}, {mine.name}, is another than {other.name} there: give all machines the same"
    if len(share.sources) != len(first.sources):
        return f"it was made from {len(share.sources)} files, not {len(first.sources)}: give all machines the same"
    if name := _differing(share.inputs, first.inputs):
        return f"it was made from another {name}: copy the same DATA to all machines, then make it again"
    return None


def unlike(name: str, mine: Mapping[str, str], other: Mapping[str, str]) -> str:
    return f"{name} {mine.get(name)}, not {other.get(name)}: all machines need the same"


def _differing(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    return next((name for name in {**mine, **other} if mine.get(name) != other.get(name)), None)


def _check_whole(folder: Path, share: Share) -> None:
    for name, sha256 in share.files.items():
        try:
            whole = file_sha256(folder / name) == sha256
        except OSError:
            whole = False
        if not whole:
            raise TwinGPTError(
                f"{folder}: {name} is not the file that {SHARE_FILE} tells of: copy the share again, "
                "or run the command that made it again"
            )


def dealt_out(pieces: int, shares: int) -> list[int]:
    """How many of so many pieces each share has."""
    return [(pieces - number + shares - 1) // shares for number in range(shares)]


def check_target(out: Path, stage: str, shard: Shard, taken: Iterable[str]) -> None:
    """Raises TwinGPTError if `out` holds something that a share there would destroy or be mixed with.

    taken: names of files that are no share's.
    """
    found = next((name for name in taken if (out / name).exists()), None)
    if found is not None:
        raise TwinGPTError(f"{out} holds {found}: a share needs a folder of its own, give another --out")
    try:
        share = Share.load(out)
    except TwinGPTError:
        return  # none, or one that is to be made again
    if (share.stage, share.shard) != (stage, shard):
        raise TwinGPTError(f"{out} holds share {share.shard} of {share.stage}: give another --out, or delete it")
