"""The language of the command line: the option --lang, and the help and the refusals of click and typer."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup
from typer.exceptions import TyperException

from twingpt.core.errors import UsageError
from twingpt.core.language import DOMAIN, FOLDER, LANGUAGES, choose, language, mark, tr

if TYPE_CHECKING:
    from rich.text import Text

OPTION = "--lang"


def chosen_language(arguments: list[str]) -> list[str]:
    """The arguments without --lang, which may stand anywhere before a `--`. Raises UsageError for an unknown language.

    It is taken out before click looks at the arguments: also what is wrong with them is said in this language.
    """
    left: list[str] = []
    given = iter(arguments)
    for argument in given:
        name, sign, value = argument.partition("=")
        if argument == "--":
            left += [argument, *given]
        elif name != OPTION:
            left.append(argument)
        else:
            wanted = value if sign else next(given, "")
            if wanted not in LANGUAGES:
                choices = ", ".join(LANGUAGES)
                raise UsageError(tr("--lang {language}: choose one of {choices}", language=wanted, choices=choices))
            choose(wanted)
    return left


def speak(command: Any) -> None:
    """Bring the help of a command, and of those under it, into the chosen language; click and typer follow it."""
    if language() == "en":
        return
    import gettext

    from rich.text import Text

    gettext.bindtextdomain(DOMAIN, str(FOLDER))
    gettext.textdomain(DOMAIN)
    # Gettext looks there first.
    os.environ["LANGUAGE"] = language()
    for part, attribute in help_texts(command):
        setattr(part, attribute, tr(getattr(part, attribute)))
    for each in _commands(command):
        each.get_usage = partial(_usage, each.get_usage)
        each.get_help_option = partial(_help_option, each.get_help_option)
    Text.rstrip_end = _rstrip_end  # type: ignore[method-assign, assignment]


def _commands(command: Any) -> Iterator[Any]:
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from _commands(each)


def _usage(usage: Callable[[Any], str], context: Any) -> str:
    return usage(context).replace("Usage:", tr("Usage:"), 1)


def _help_option(option: Callable[[Any], Any], context: Any) -> Any:
    found = option(context)
    if found is not None:
        found.help = tr("Show this message and exit.")
    return found


def _rstrip_end(text: "Text", size: int) -> None:
    """Take blanks away where a line is wrapped. Rich counts characters there, where it is the width that counts: a
    Hangul syllable is two wide, and the last one of a line was cut off instead of the blank after it.
    """
    blanks = len(text.plain) - len(text.plain.rstrip())
    if (over := min(blanks, text.cell_len - size)) > 0:
        text.right_crop(over)


def help_texts(command: Any) -> Iterator[tuple[Any, str]]:
    """(what has a text of help, the attribute that holds it), for a command and those under it."""
    for each in _commands(command):
        for part in (each, *each.params):
            for attribute in ("help", "short_help", "show_default"):
                if isinstance(getattr(part, attribute, None), str):
                    yield part, attribute


SAID_BY_TYPER = (
    mark("Arguments"),
    mark("Options"),
    mark("Commands"),
    mark("Error"),
    mark("Aborted."),
    mark("[default: {}]"),
    mark("[env var: {}]"),
    mark("[required]"),
    mark("(deprecated) "),
    mark("Try [blue]'{command_path} {help_option}'[/] for help."),
    mark("Missing command."),
)
"""Typer looks these up in the catalogue by itself."""

REFUSALS = (
    mark("Missing argument {name}."),
    mark("Missing option {name}."),
    mark("No such command {name}. Did you mean {others}?"),
    mark("No such command {name}."),
    mark("No such option: {name} (Possible options: {others})"),
    mark("No such option: {name}"),
    mark("Got unexpected extra argument(s) ({name})"),
    mark("Option {name} requires an argument."),
    mark("Option {name} does not take a value."),
    mark("Invalid value for {name}: {problem}"),
    mark("Value error, {problem}"),
    mark("{value} is not one of {others}."),
    mark("Input should be a valid integer, unable to parse string as an integer"),
    mark("Input should be a valid number, unable to parse string as a number"),
    mark("Input should be greater than or equal to {bound}"),
    mark("Input should be less than or equal to {bound}"),
    mark("Input should be greater than {bound}"),
    mark("Input should be less than {bound}"),
    mark("Input should be {others}"),
)
"""What typer says of arguments, and pydantic of their values, in English only: recognised, and said again."""


def refusal(text: str) -> str:
    """A refusal of typer's in the reader's language; as it is if it is not one of REFUSALS."""
    for message in REFUSALS:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(message))
        if match := re.fullmatch(pattern, text, re.DOTALL):
            return tr(message, **{name: refusal(value) for name, value in match.groupdict().items()})
    return text


class SpokenGroup(TyperGroup):
    """The commands together, whose refusals are in the reader's language."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _refusing():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: Any) -> Any:
        with _refusing():
            return super().invoke(ctx)


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except TyperException as error:
        if language() != "en" and hasattr(error, "format_message"):
            said = refusal(error.format_message())
            error.format_message = lambda: said  # type: ignore[method-assign]
        raise
