"""The records of the engines, and how they are found.

An engine is a folder. Its engine.py has a record, `ENGINE`, which an entry point of the group `twingpt.backends` names.
The record says everything that depends on the engine, so that no code outside of the folder has to know its name.
This module imports only the standard library, because the command line reads records before anything is computed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.memory import Footprint, first_line

if TYPE_CHECKING:
    from twingpt.core.backend import DeviceChoice, Precision
    from twingpt.core.measured import Arrays, Operations
    from twingpt.core.world import Launcher

GROUP = "twingpt.backends"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What it costs an engine to add up gradients over several machines.

    bucket_bytes: how many bytes of gradients are sent together. hop_seconds: what a hop takes beside the time on the
    wire. passes: how often the gradients are read and written beside the all-reduce. sleeps: whether threads sleep
    while they wait for the network; if not, they take cores that a backward pass on the CPU needs.
    """

    bucket_bytes: int
    hop_seconds: float
    passes: int
    sleeps: bool = True


def _nothing() -> None:
    pass


def _no_notes() -> list[str]:
    return []


def _unnamed(device: str) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """Everything that depends on an engine.

    name: of `--backend`. aliases: other names that it can be asked for by. title: what people call it. about: what else
    `--help` says of it. order: engines are listed from the lowest to the highest.
    package: its folder as a package, whose modules `part` imports. framework: the module without which there is no
    engine. extra: of twingpt, which brings it. packages: whose versions belong to what the engine computes.
    prepare: sets the environment that the framework reads when it is imported; done before every import by `part`.
    compared: whether it is measured and held against others: its folder has measured.py, the record `exchange`.
    by_hand: whether its derivatives are written out by hand, a further opinion where engines are compared.
    footprint: (device, dropout) -> the memory of a training step.
    launcher: what starts its ranks; None for an engine that trains in one process. joins_mpi: whether ranks that MPI
    starts are its ranks.
    device_name: (device) -> the name of a device that is no part of the machine's own chip.
    chip_device: the device that is the chip's own GPU, whose speed stands in a table.
    fallback: variable that lets the CPU do what the GPU cannot. variables: others that the framework reads.
    notes: what is worth knowing about the environment, a line each. advice: to be tried when its products are wrong.
    colour: in pictures.
    """

    name: str
    package: str
    title: str
    framework: str
    footprint: Callable[[str, bool], Footprint]
    aliases: tuple[str, ...] = ()
    about: str = ""
    order: int = 100
    extra: str = ""
    packages: tuple[str, ...] = ()
    prepare: Callable[[], None] = _nothing
    compared: bool = False
    by_hand: bool = False
    launcher: Launcher | None = None
    joins_mpi: bool = False
    exchange: Exchange | None = None
    device_name: Callable[[str], str | None] = _unnamed
    chip_device: str = ""
    fallback: str = ""
    variables: tuple[str, ...] = ()
    notes: Callable[[], list[str]] = _no_notes
    advice: str = ""
    colour: str = "#777777"

    @property
    def installed(self) -> bool:
        return framework_installed(self.framework)

    def check_installed(self) -> None:
        """Raises TwinGPTError that names what is missing."""
        if not self.installed:
            how = f": pip install 'twingpt[{self.extra}]'" if self.extra else ""
            needs = self.extra or self.framework
            raise TwinGPTError(
                tr("backend {name} needs {needs}, which is not installed{how}", name=self.name, needs=needs, how=how)
            )

    def part(self, module: str) -> ModuleType:
        """A module of its folder, and with it the framework. Raises TwinGPTError if that is not installed."""
        self.check_installed()
        self.prepare()
        return importlib.import_module(f"{self.package}.{module}")

    def operations(self, choice: DeviceChoice) -> Operations:
        """Raises TwinGPTError if the framework lacks the device, and whatever a broken framework raises."""
        opened: Operations = self.part("measured").open_operations(choice)
        return opened

    def arrays(self, choice: DeviceChoice, precision: Precision) -> Arrays:
        opened: Arrays = self.part("measured").open_arrays(choice, precision)
        return opened


def framework_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def _found() -> tuple[dict[str, Engine], dict[str, str]]:
    """(name -> record, in their order; name of an entry point -> why there is no record). Read once."""
    from importlib.metadata import entry_points

    records: list[Engine] = []
    broken: dict[str, str] = {}
    for entry in entry_points(group=GROUP):
        # Whatever is wrong with one engine, made by whoever, the others must go on working.
        try:
            record: Any = entry.load()
        except Exception as error:
            broken[entry.name] = f"{type(error).__name__}: {first_line(error)}"
            continue
        if isinstance(record, Engine):
            records.append(record)
        else:
            broken[entry.name] = f"{entry.value} is no engine"
    records.sort(key=lambda engine: (engine.order, engine.name))
    return {engine.name: engine for engine in records}, broken


@functools.cache
def _own(name: str) -> Engine | None:
    """The engine that twingpt itself brings under this name, without a look at whatever else is installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        entries = distribution("twingpt").entry_points.select(group=GROUP, name=name)
        records = [entry.load() for entry in entries]
    except (PackageNotFoundError, ImportError, AttributeError):
        return None
    return next((record for record in records if isinstance(record, Engine) and record.name == name), None)


def engines() -> list[Engine]:
    """All of them, whether their framework is installed or not. Raises TwinGPTError if none is found."""
    records, _ = _found()
    if not records:
        raise TwinGPTError(tr("no engine is registered as {group}: install twingpt again", group=GROUP))
    return list(records.values())


def engine_names() -> list[str]:
    return [engine.name for engine in engines()]


def find_engine(name: str) -> Engine:
    """The engine of this name or alias.

    Raises UsageError for a name that is no engine, TwinGPTError for one whose record cannot be loaded.
    """
    if (own := _own(name)) is not None:
        return own
    for engine in engines():
        if name == engine.name or name in engine.aliases:
            return engine
    _, broken = _found()
    if name in broken:
        raise TwinGPTError(tr("backend {name} cannot be loaded: {reason}", name=name, reason=broken[name]))
    raise UsageError(
        tr("unknown backend {name!r}: choose one of {choices}", name=name, choices=", ".join(engine_names()))
    )


def compared() -> tuple[str, ...]:
    """The engines that are measured and held against each other."""
    return tuple(engine.name for engine in engines() if engine.compared)


def find_compared(name: str, *others: str) -> Engine:
    """The compared engine of this name or alias. Raises UsageError, which offers `others` as well, if there is none."""
    for engine in map(find_engine, compared()):
        if name == engine.name or name in engine.aliases:
            return engine
    raise UsageError(
        tr("unknown backend {name!r}: choose one of {choices}", name=name, choices=", ".join((*others, *compared())))
    )


def default_engine() -> str:
    """The one that trains where none is asked for. Raises TwinGPTError if there is none."""
    return compared()[0]


def installed_backends() -> list[str]:
    """Of the compared engines those whose framework is installed."""
    return [name for name in compared() if find_engine(name).installed]


def how_to_install() -> str:
    return "pip install " + tr(" or ").join(f"'twingpt[{find_engine(name).extra}]'" for name in compared())


def described(names: list[str], *more: str) -> str:
    """For a line of help: each engine with what it is, and what else can be chosen."""
    shown = [_described(find_engine(name)) for name in names] + list(more)
    *first, last = shown
    if not first:
        return last
    listed = ", ".join(first) + ("," if len(first) > 1 else "")
    return tr("{listed} or {last}", listed=listed, last=last)


def _described(engine: Engine) -> str:
    title = "" if engine.title.lower() == engine.name else engine.title
    one = len(engine.aliases) == 1
    names = tr(" and ").join(engine.aliases)
    same = tr("{names} means the same", names=names) if one else tr("{names} mean the same", names=names)
    inside = "; ".join(part for part in (title, same if engine.aliases else "") if part)
    inside = ": ".join(part for part in (inside, tr(engine.about)) if part)
    return f"{engine.name} ({inside})" if inside else engine.name
