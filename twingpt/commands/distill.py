"""The command `distill`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from twingpt.commands.options import Device, Json, TrainingBackend, seconds_of, with_given
from twingpt.commands.train import (
    TRAIN_OPTIONS,
    Log,
    MemoryLimit,
    Resume,
    StopAfter,
    StopAt,
    Supervise,
    carry_out,
    supervise_if_wanted,
)
from twingpt.core.spec import GPTSpec
from twingpt.training.recipe import TrainConfig

WEIGHT = 0.5
TOP = 32
MOST_TOP = 1024


@with_given("train", TrainConfig, *TRAIN_OPTIONS)
@with_given("model", GPTSpec, "dropout")
def distill(
    *,
    context: typer.Context,
    teachers: Annotated[
        list[Path],
        typer.Option(
            "--from",
            help="A run to learn from: its newest checkpoint, RUN/best or one checkpoint. Give several of one shape.",
            metavar="RUN",
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder that the runs were trained on.", metavar="DATA")],
    out: Annotated[Path, typer.Option(help="Folder of the student.", metavar="RUN")],
    backend: TrainingBackend = "",
    device: Device = "auto",
    resume: Resume = False,
    weight: Annotated[
        float, typer.Option(help="Share of each target that is what the runs foretell.", min=0.01, max=1.0)
    ] = WEIGHT,
    top: Annotated[
        int, typer.Option(help="Likeliest tokens that are kept of what the runs foretell.", min=1, max=MOST_TOP)
    ] = TOP,
    train: dict[str, Any],
    model: dict[str, Any],
    stop_at: StopAt = None,
    stop_after: StopAfter = None,
    memory_limit: MemoryLimit = None,
    supervise: Supervise = None,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Make one model of several runs: train a student on their text and on what they foretell of it together.

    The student has their shape, and the settings of the first one's training where none is given. First the runs
    foretell every token of the text, one run after another, which is written down; the same command goes on where that
    was interrupted. Ctrl-C saves before it ends, and `train --resume` goes on with a student as with any run.
    """
    arguments: list[str] = context.obj
    seconds = None if stop_after is None else seconds_of(stop_after, "--stop-after")
    supervise_if_wanted(supervise, device, arguments, out, as_json, log)

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    from twingpt.training.session import TrainRequest
    from twingpt.training.teachers import teach

    request = TrainRequest(
        run_dir=out,
        data_dir=data,
        backend=backend,
        device=device,
        resume=resume,
        memory_limit=memory_limit,
        stop_at=stop_at,
        estimate_time=not as_json,
        model=model,
        train=train,
    )
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tokens foretold", total=None, visible=False)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        request = teach(request, teachers, top=top, weight=weight, advance=advance)
    carry_out(request, arguments, seconds, as_json, log)
