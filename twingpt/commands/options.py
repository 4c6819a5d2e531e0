"""Options that several commands have."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS
from twingpt.core.setting import option_name

Run = Annotated[
    Path, typer.Argument(help="A run's folder, RUN/best, or one checkpoint: RUN/checkpoints/step-...", metavar="RUN")
]


_ALL, _COMPARED, _COMPARED_OR_ALL = "{all}", "{compared}", "{compared or all}"
"""What stands in a help text for the engines: reading their records would slow every command down."""


class EngineCommand(TyperCommand):
    """A command with an option --backend, whose help names the engines that are there."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from twingpt.core.engines import compared, default_engine, described, engine_names

        option = next(param for param in self.params if param.name == "backend")
        listed = {
            _ALL: described(engine_names()),
            _COMPARED: described(list(compared())),
            _COMPARED_OR_ALL: described(list(compared()), tr("all that are installed")),
        }
        text: str = option.help  # type: ignore[attr-defined]
        for placeholder, engines in listed.items():
            text = text.replace(placeholder, engines)
        option.help = text  # type: ignore[attr-defined]
        if option.default == "":
            option.default = default_engine()
        super().format_help(ctx, formatter)


def _engine_name(value: str | None) -> str | None:
    """An alias becomes the engine's name here, so that nothing behind the command line knows aliases."""
    from twingpt.core.engines import find_engine

    return None if value is None else find_engine(value).name


def _training_engine(value: str) -> str:
    """Which engine trains where none is asked for is known only now."""
    from twingpt.core.engines import default_engine, find_engine

    return find_engine(value or default_engine()).name


def _compared_engine(value: str) -> str:
    from twingpt.core.engines import default_engine, find_compared

    return find_compared(value or default_engine()).name


_HELP = f"Engine: {_ALL}."
AnyBackend = Annotated[
    str | None, typer.Option("--backend", help=_HELP, show_default="the one installed", callback=_engine_name)
]
TrainingBackend = Annotated[str, typer.Option("--backend", help=_HELP, callback=_training_engine)]
ComparedBackend = Annotated[str, typer.Option("--backend", help=f"Engine: {_COMPARED}.", callback=_compared_engine)]
ComparedBackends = Annotated[str, typer.Option("--backend", help=f"Engine: {_COMPARED_OR_ALL}.")]
Device = Annotated[
    Literal["auto", "gpu", "cpu"],
    typer.Option(help="auto: Metal, else CUDA, else the CPU. cpu: for parity checks on a Mac."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]


_PARTS = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
MOST_SECONDS = 1e7
"""Four months: more than anybody means."""


def seconds_of(duration: str, option: str, least: float = 1.0) -> float:
    """Seconds of a time such as 90s, 20m or 1h30m. Raises UsageError, which names the option, for what is none."""
    parts = _PARTS.fullmatch(duration.strip().lower())
    if parts is None or not parts[0]:
        raise UsageError(
            tr("{option} {duration} is no time: write it like 90s, 20m or 1h30m", option=option, duration=duration)
        )
    hours, minutes, seconds = (float(part or 0) for part in parts.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if not least <= total <= MOST_SECONDS:
        most = f"{MOST_SECONDS / 3600:,.0f}h"
        raise UsageError(
            tr(
                "{option} {duration} cannot be meant: give {least:.0f}s or more, up to {most}",
                option=option,
                duration=duration,
                least=least,
                most=most,
            )
        )
    return total


Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def with_settings(kind: type[Any], *names: str) -> Decorator:
    """For a command with a parameter `settings`: it gets one of this dataclass, made from options.

    names: of the fields that are options; all of them if none is named. Default, type and help are the field's.
    """
    options = [_option(each, annotation) for each, annotation in _fields(kind, names)]
    return _with_options("settings", options, lambda chosen: kind(**chosen))


def with_given(parameter: str, kind: type[Any], *names: str) -> Decorator:
    """For a command with a parameter of this name: it gets those settings of this dataclass that were given, by name.

    What is not given stays out, so that presets, a config file or a run can have it; so they too are told as its
    default, where a preset has the setting, and else the field's own. names: of the fields that are options.
    """
    options = [_option_or_none(each, annotation) for each, annotation in _fields(kind, names)]
    return _with_options(
        parameter, options, lambda chosen: {name: value for name, value in chosen.items() if value is not None}
    )


def _with_options(parameter: str, options: list[inspect.Parameter], made: Callable[[dict[str, Any]], Any]) -> Decorator:
    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            chosen = {option.name: given.pop(option.name) for option in options}
            command(**{parameter: made(chosen)}, **given)

        shown = []
        for each in inspect.signature(command).parameters.values():
            shown += options if each.name == parameter else [each]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        # typer reads this instead of the parameters of `run`.
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in shown]
        )
        return run

    return decorate


def _fields(kind: type[Any], names: tuple[str, ...]) -> list[tuple["dataclasses.Field[Any]", Any]]:
    """Fields with their types, in the order of the names, or all of them in their own."""
    types, known = get_type_hints(kind), {each.name: each for each in dataclasses.fields(kind)}
    return [(known[name], types[name]) for name in names or known]


def _option(setting: "dataclasses.Field[Any]", annotation: Any) -> inspect.Parameter:
    # A switch that is off needs no option to turn it off.
    return _parameter(setting, annotation, setting.default, setting.default is True, setting.metadata["none"] or True)


def _option_or_none(setting: "dataclasses.Field[Any]", annotation: Any) -> inspect.Parameter:
    if setting.metadata["none"]:
        default = setting.metadata["none"]
    elif any(setting.name in {**preset.model, **preset.train} for preset in PRESETS.values()):
        default = "the preset's"
    else:
        default = "no" if setting.default is False else str(setting.default)
    # A name of several is checked where the config file's are, which answers in one line.
    kind = str if get_origin(annotation) is Literal else annotation
    return _parameter(setting, kind | None, None, annotation is bool, default)


def _parameter(
    setting: "dataclasses.Field[Any]", annotation: Any, default: Any, switch: bool, shown: str | bool
) -> inspect.Parameter:
    """switch: there is also an option to turn it off."""
    name = option_name(setting)
    flags = f"{name}/--no-{name[2:]}" if switch else name
    # What stands in brackets would be read as a style.
    option = typer.Option(flags, help=setting.metadata["help"].replace("[", "\\["), show_default=shown)
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[annotation, option],
    )
