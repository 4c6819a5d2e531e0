"""`twingpt report` and `twingpt compare`: pages about runs."""

from pathlib import Path
from typing import Annotated

import typer

from twingpt.commands.options import Json
from twingpt.console import print_json
from twingpt.core.language import tr


def report(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, also of one that still trains or was killed.", metavar="RUN")
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="What it was trained on.", metavar="DATA", show_default="where the run says that it was"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Page to write, its pictures beside it.", metavar="FILE", show_default="RUN/report.html"),
    ] = None,
) -> None:
    """Write one page about a run: curves, data, model, machine, samples, and how to use it."""
    from twingpt.report.run_page import write_report

    files = write_report(run, data, out)
    typer.echo(tr("wrote {file} and {pictures} pictures beside it", file=files[0], pictures=len(files) - 1))


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Two runs or more.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="Write a page too, its pictures beside it.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Lay runs side by side: what differs in model and recipe, how far each came, and how fast."""
    from rich.console import Console

    from twingpt.report.compare import compare_runs, print_comparison, write_comparison

    comparison = compare_runs(runs)
    if out is not None:
        files = write_comparison(comparison, out)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison, Console())
    if out is not None:
        typer.echo(
            tr("wrote {file} and {pictures} pictures beside it", file=files[0], pictures=len(files) - 1), err=as_json
        )
