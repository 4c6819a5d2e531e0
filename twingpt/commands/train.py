"""The command `train`."""

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from twingpt.commands.options import Device, Json, TrainingBackend, seconds_of, with_given
from twingpt.console import print_json
from twingpt.core.errors import RestartError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.training.recipe import TrainConfig


@with_given(
    "train",
    TrainConfig,
    "steps",
    "batch_size",
    "micro_batch",
    "activation_checkpointing",
    "optimizer",
    "learning_rate",
    "min_learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "grad_clip",
    "precision",
    "seed",
    "log_every",
    "eval_every",
    "save_every",
    "keep_last",
)
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, in either engine.")
    ] = False,
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
    stop_at: Annotated[int | None, typer.Option(help="End early, after this many updates in all.", min=1)] = None,
    stop_after: Annotated[
        str | None, typer.Option(help="End early, after this long: 90s, 20m, 1h30m.", metavar="TIME")
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB that training may use.", show_default="what the device has", min=0)
    ] = None,
    probe_memory: Annotated[
        bool | None,
        typer.Option(
            "--probe-memory/--no-probe-memory",
            help="Try the micro-batch in a process of its own first, and halve it until it fits.",
            show_default="if --micro-batch is 0 and the device not the CPU",
        ),
    ] = None,
    supervise: Annotated[
        bool | None,
        typer.Option(
            "--supervise/--no-supervise",
            help="Train in a process of its own, and go on with half the micro-batch if memory ends it.",
            show_default="on macOS, unless --device is cpu",
        ),
    ] = None,
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
    log: Annotated[
        list[str] | None,
        typer.Option(help="Follow the run in tensorboard, wandb or trackio too; may be given twice.", metavar="NAME"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model, or go on training one. Ctrl-C saves before it ends."""
    from rich.console import Console

    arguments: list[str] = context.obj
    seconds = None if stop_after is None else seconds_of(stop_after, "--stop-after")
    if hosts is not None:
        launch_on(hosts, backend, arguments)
        return
    from twingpt.core.world import launched_for
    from twingpt.training.trackers import check_trackers

    console = Console(stderr=as_json)
    one_of_several = launched_for() is not None
    check_trackers(log or ())
    if supervise is None:
        # Several ranks end together, and their launcher is what starts them again.
        supervise = sys.platform == "darwin" and device != "cpu" and not one_of_several
    if supervise:
        from twingpt.training.restart import supervise as train_in_a_child

        code = train_in_a_child(arguments, out, console)
        if code == 0:
            from twingpt.training.foreground import say_next

            say_next(out, console)
        raise typer.Exit(code)
    if mps_fallback:
        allow_fallback()

    from twingpt.training.foreground import run_shown
    from twingpt.training.ranks import leave_at_once, leaving_at_once, restarted
    from twingpt.training.restart import restart
    from twingpt.training.session import TrainRequest, open_session

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
    with leaving_at_once() if one_of_several else nullcontext():
        session = open_session(request)
        try:
            run_shown(session, out, stop_at, console, stop_after=seconds, estimate_time=not as_json, trackers=log or ())
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
