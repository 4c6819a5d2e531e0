"""The command `go`."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from twingpt.commands.options import AnyBackend, Device, seconds_of
from twingpt.core.engine_settings import DeviceChoice
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import padded, tr

PORT = 8000
PAGE = f"http://127.0.0.1:{PORT}/"
LEAST = 10.0
"""Seconds: in less nothing is trained."""


def go(
    raw: Annotated[
        list[str],
        typer.Argument(help="Text files or folders, as `prepare` reads them.", metavar="RAW...", show_default=False),
    ],
    duration: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="How long all of it may take: 90s, 20m, 1h30m.",
            metavar="TIME",
            show_default="asked for on a terminal",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all that is made.", metavar="FOLDER", show_default="RAW-twingpt, beside RAW"),
    ] = None,
    backend: AnyBackend = None,
    device: Device = "auto",
    open_page: Annotated[
        bool,
        typer.Option("--open/--no-open", help="Open the page at the end; without a terminal it is only named."),
    ] = True,
) -> None:
    """The whole way in one command: prepare the text, train for the time given, say what came of it, open the page.

    Engine, model, batch and number of updates are chosen by the size of the text and the speed of this machine. The
    same command goes on where it was interrupted.
    """
    from rich.console import Console

    from twingpt.commands.data_tables import progress_bars
    from twingpt.go import Journey, begun
    from twingpt.go import go as go_all_the_way

    folder = out or default_folder(raw)
    given = None if duration is None else seconds_of(duration, "--time", LEAST)
    # What is wrong with the text or the folder is said before anything is asked.
    state = begun(raw, folder)
    if given is None:
        given = state.seconds if state else _asked()
    console = Console()
    watcher = progress_bars()
    journey = Journey(raw=raw, out=folder, backend=backend, device=device, console=console, watcher=watcher)
    try:
        go_all_the_way(journey, given)
    except KeyboardInterrupt:
        console.print(tr("interrupted: the same command goes on from here"), markup=False)
        raise typer.Exit(130) from None
    import shlex

    page = f"twingpt serve {shlex.quote(str(journey.run))}"
    if open_page and sys.stdin.isatty() and sys.stdout.isatty():
        _open(journey.run, backend, device, page)
    else:
        console.print(padded(tr("page"), 8) + f" {page}   ({PAGE})", markup=False, highlight=False, soft_wrap=True)


def _open(run: Path, backend: str | None, device: DeviceChoice, page: str) -> None:
    """Serve the run until Ctrl-C. All of the work is done by now: what is in the way of the page fails nothing."""
    from twingpt.commands.serve import serve

    try:
        # Ctrl-C is how the page ends, and nothing is cut short by it.
        with contextlib.suppress(KeyboardInterrupt):
            serve(run, backend=backend, device=device, port=PORT if _is_free(PORT) else 0, open_page=True)
    except TwinGPTError as error:
        typer.echo(tr("no page: {error}; later: {page}", error=error, page=page), err=True)


def _is_free(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def default_folder(raw: list[str]) -> Path:
    first = Path(raw[0])
    return first.with_name(f"{first.stem if first.is_file() else first.resolve().name}-twingpt")


def _asked() -> float:
    if not sys.stdin.isatty():
        raise UsageError(tr("--time is missing: say how long all of it may take, such as --time 20m"))
    while True:
        try:
            return seconds_of(input(tr("How long may all of it take? (90s, 20m, 1h30m) ")), "--time", LEAST)
        except UsageError as error:
            sys.stderr.write(f"{error}\n")
        except EOFError:
            raise UsageError(tr("--time is missing: say how long all of it may take, such as --time 20m")) from None
