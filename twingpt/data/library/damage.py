"""A file that opens as a database may be damaged further inside, where only a search finds it."""

import functools
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr


class _OfFile(Protocol):
    path: Path


Owner = TypeVar("Owner", bound=_OfFile)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Method = Callable[Concatenate[Owner, Arguments], Result]


def damage_told(remedy: str) -> Callable[[Method[Owner, Arguments, Result]], Method[Owner, Arguments, Result]]:
    """For a method that reads the file `path` of its object: damage becomes TwinGPTError that names the remedy."""

    def decorate(method: Method[Owner, Arguments, Result]) -> Method[Owner, Arguments, Result]:
        @functools.wraps(method)
        def told(owner: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return method(owner, *args, **kwargs)
            except (sqlite3.Error, ValueError, TypeError, ArithmeticError) as error:
                raise TwinGPTError(
                    tr("{owner} is damaged ({error}): {remedy}", owner=owner.path, error=error, remedy=remedy)
                ) from None

        return told

    return decorate
