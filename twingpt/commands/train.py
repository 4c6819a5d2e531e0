"""The command `train`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twingpt.commands.options import Device, Json, TrainingBackend, seconds_of, with_given
from twingpt.console import print_json
from twingpt.core.engine_settings import DeviceChoice
from twingpt.core.errors import RestartError, UsageError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.training.recipe import TrainConfig

if TYPE_CHECKING:
    from twingpt.training.session import TrainRequest

LEAST = 10.0
"""Seconds: in less nothing is trained."""


TRAIN_OPTIONS = (
    "steps",
    "epochs",
    "cut",
    "batch_size",
    "micro_batch",
    "activation_checkpointing",
    "optimizer",
    "learning_rate",
    "min_learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "decay_epochs",
    "grad_clip",
    "precision",
    "seed",
    "log_every",
    "eval_every",
    "eval_epochs",
    "average",
    "save_every",
    "keep_last",
)
"""Settings of a training that have options: those that people change from run to run."""

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, in either engine.")]
StopAt = Annotated[int | None, typer.Option(help="End early, after this many updates in all.", min=1)]
StopAfter = Annotated[str | None, typer.Option(help="End early, after this long: 90s, 20m, 1h30m.", metavar="TIME")]
Supervise = Annotated[
    bool | None,
    typer.Option(
        "--supervise/--no-supervise",
        help="Train in a process of its own, and go on with half the micro-batch if memory ends it.",
        show_default="on macOS, unless --device is cpu",
    ),
]
MemoryLimit = Annotated[
    float | None, typer.Option(help="GiB that training may use.", show_default="what the device has", min=0)
]
Log = Annotated[
    list[str] | None,
    typer.Option(help="Follow the run in tensorboard, wandb or trackio too; may be given twice.", metavar="NAME"),
]


@with_given("train", TrainConfig, *TRAIN_OPTIONS)
@with_given("model", GPTSpec, "dropout", "block_size")
def train(
    *,
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder of the run.", metavar="RUN")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that `prepare` wrote.", metavar="DATA", show_default="the run's, with --resume"),
    ] = None,
    backend: TrainingBackend = "",
    device: Device = "auto",
    preset: Annotated[
        str | None,
        typer.Option(help=f"Model and recipe: {', '.join(PRESETS)}.", show_default="seed"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file with \\[model] and \\[train] settings.", metavar="FILE")
    ] = None,
    resume: Resume = False,
    start_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin a new run with the weights of this one, for text that came later.",
            metavar="RUN",
            show_default="weights drawn from the seed",
        ),
    ] = None,
    moments: Annotated[bool, typer.Option("--moments", help="With --from: begin with its moments too.")] = False,
    train: dict[str, Any],
    model: dict[str, Any],
    stop_at: StopAt = None,
    stop_after: StopAfter = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--time",
            help="Choose model, updates and what keeps it from learning by heart for this long: 20m, 8h.",
            metavar="TIME",
        ),
    ] = None,
    memory_limit: MemoryLimit = None,
    probe_memory: Annotated[
        bool | None,
        typer.Option(
            "--probe-memory/--no-probe-memory",
            help="Try the micro-batch in a process of its own first, and halve it until it fits.",
            show_default="if --micro-batch is 0 and the device not the CPU",
        ),
    ] = None,
    supervise: Supervise = None,
    mps_fallback: Annotated[
        bool,
        typer.Option(
            "--mps-fallback", help="Let PyTorch run on the CPU, slowly, what has no Metal kernel, instead of stopping."
        ),
    ] = False,
    hosts: Annotated[
        str | None,
        typer.Option(
            help="Train on several machines, or several times on one: addresses with commas between them.",
            metavar="A,B",
        ),
    ] = None,
    rank_timeout: Annotated[
        float, typer.Option(help="Seconds that one of several ranks waits for the others to move.", min=1.0)
    ] = 300.0,
    log: Log = None,
    as_json: Json = False,
) -> None:
    """Train a model, or go on training one. Ctrl-C saves before it ends."""
    arguments: list[str] = context.obj
    seconds = None if stop_after is None else seconds_of(stop_after, "--stop-after")
    if duration is not None:
        given = {"model": model, "train": train, "preset": preset, "config_file": config}
        refused = {"--hosts": hosts, "--resume": resume, "--from": start_from, "--stop-at": stop_at}
        chosen = backend if any(word.startswith("--backend") for word in arguments) else None
        handed_on = [*(["--memory-limit", str(memory_limit)] if memory_limit is not None else [])]
        handed_on += [] if probe_memory is None else ["--probe-memory" if probe_memory else "--no-probe-memory"]
        handed_on += ["--mps-fallback"] if mps_fallback else []
        handed_on += [word for name in log or () for word in ("--log", name)]
        limit = seconds_of(duration, "--time", LEAST)
        train_within(limit, out, data, chosen, device, given=given, refused=refused, options=handed_on)
        return
    if hosts is not None:
        launch_on(hosts, backend, arguments)
        return
    supervise_if_wanted(supervise, device, arguments, out, as_json, log)
    if mps_fallback:
        allow_fallback()

    from twingpt.training.ranks import restarted
    from twingpt.training.session import TrainRequest

    again = restarted(out)
    request = TrainRequest(
        run_dir=out,
        data_dir=data,
        backend=backend,
        device=device,
        preset=preset,
        config_file=config,
        resume=resume or again,
        start_from=None if again else start_from,
        moments=moments and not again,
        memory_limit=memory_limit,
        probe_memory=probe_memory,
        rank_timeout=rank_timeout,
        stop_at=stop_at,
        estimate_time=not as_json,
        model=model,
        train=train,
    )
    carry_out(request, arguments, seconds, as_json, log)


def supervise_if_wanted(
    wanted: bool | None, device: str, arguments: list[str], out: Path, as_json: bool, trackers: list[str] | None
) -> None:
    """Does the whole command in a child, and ends with it, if that is wanted; None: on macOS, unless on the CPU."""
    from rich.console import Console

    from twingpt.core.world import launched_for
    from twingpt.training.trackers import check_trackers

    check_trackers(trackers or ())
    # Several ranks end together, and their launcher is what starts them again.
    usual = sys.platform == "darwin" and device != "cpu" and launched_for() is None
    if not (usual if wanted is None else wanted):
        return
    from twingpt.training.restart import supervise

    console = Console(stderr=as_json)
    code = supervise(arguments, out, console)
    if code == 0:
        from twingpt.training.foreground import say_next

        say_next(out, console)
    raise typer.Exit(code)


def carry_out(
    request: "TrainRequest", arguments: list[str], stop_after: float | None, as_json: bool, trackers: list[str] | None
) -> None:
    """Train what is asked for to its end, in front of the user. stop_after: seconds, if there is a limit."""
    from rich.console import Console

    from twingpt.core.world import launched_for
    from twingpt.training.foreground import run_shown
    from twingpt.training.ranks import leave_at_once, leaving_at_once
    from twingpt.training.restart import restart
    from twingpt.training.session import open_session

    console, out = Console(stderr=as_json), request.run_dir
    one_of_several = launched_for() is not None
    with leaving_at_once() if one_of_several else nullcontext():
        session = open_session(request)
        try:
            run_shown(
                session,
                out,
                request.stop_at,
                console,
                stop_after=stop_after,
                estimate_time=not as_json,
                trackers=trackers or (),
            )
        except RestartError as error:
            console.print(
                tr("{error}; starting a fresh process", error=error), markup=False, highlight=False, soft_wrap=True
            )
            restart(arguments, out, error.micro_batch)
    if as_json and session.world.rank == 0:
        from twingpt.training.log import read_metrics

        print_json({"run": out, "step": session.trainer.step, "metrics": read_metrics(out)[-2:]})
    if one_of_several:
        leave_at_once(0)


def train_within(
    seconds: float,
    out: Path,
    data: Path | None,
    backend: str | None,
    device: DeviceChoice,
    *,
    given: dict[str, Any],
    refused: dict[str, Any],
    options: list[str],
) -> None:
    """Plan and train a run that ends in time, from wherever an earlier call was interrupted.

    backend: None for the fastest one here. given: what the user has decided. refused: options with which --time says
    nothing. options: of every process that trains.
    """
    import time

    from rich.console import Console

    from twingpt.measure.sizing import PRESET, Given
    from twingpt.timed import State, TimedTraining

    for option, value in refused.items():
        if value:
            raise UsageError(
                tr(
                    "{option} and --time do not go together: --time plans a run of its own from its start",
                    option=option,
                )
            )
    if given["train"].get("steps") or given["train"].get("epochs"):
        raise UsageError(tr("--time finds out how many steps there is time for: leave out --steps and --epochs"))
    if data is None:
        raise UsageError(tr("--data is missing: the folder that `twingpt prepare` wrote"))
    started = time.monotonic()
    settings = Given(**{**given, "preset": given["preset"] or PRESET})
    training = TimedTraining(
        folder=out,
        run=out,
        data=data,
        backend=backend,
        device=device,
        console=Console(),
        given=settings,
        options=options,
    )
    state = State.load(out)
    if state is None:
        state = training.plan(lambda: seconds - (time.monotonic() - started))
    training.train(state)


def launch_on(hosts: str, backend: str, arguments: list[str]) -> None:
    """Start the ranks, which does not return, or print what to type on each host."""
    from twingpt.core.engines import find_engine
    from twingpt.training.launch import launch_hosts, start, without_hosts

    launch = launch_hosts([host.strip() for host in hosts.split(",")], backend, without_hosts(arguments))
    lines = start(launch)
    launcher = find_engine(backend).launcher
    assert launcher is not None
    typer.echo(tr("{launcher} starts only the ranks of its own machine. Type, in any order:", launcher=launcher.name))
    for line in lines:
        typer.echo(f"  {line}")


def allow_fallback() -> None:
    """To be called before a framework is imported, which reads it then, and only then."""
    from twingpt.core.engines import engines

    for engine in engines():
        if engine.fallback:
            os.environ[engine.fallback] = "1"
