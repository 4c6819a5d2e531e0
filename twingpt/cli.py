"""The command line. Each command imports what it needs when it runs: `twingpt --help` loads no framework."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from twingpt import __version__
from twingpt.commands import ask, bench, convert, data, distill, generate, go, plan, report, serve, train
from twingpt.commands.language import SpokenGroup, chosen_language, speak
from twingpt.commands.options import AnyBackend, Device, EngineCommand, Json
from twingpt.console import fail, print_json
from twingpt.core.errors import StoppedError, TwinGPTError
from twingpt.core.language import tr

Details = Annotated[bool, typer.Option("--details", "-v", help="Show everything that was measured, too.")]

app = typer.Typer(
    name="twingpt",
    cls=SpokenGroup,
    help="Train your own GPT from one text file, in PyTorch (MPS) or MLX, with checkpoints that belong to neither.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=EngineCommand)(go.go)
app.command()(data.prepare)
app.command(cls=EngineCommand)(train.train)
app.command(cls=EngineCommand)(distill.distill)
app.command(cls=EngineCommand)(bench.bench)
app.command(cls=EngineCommand)(bench.tune)
app.command(cls=EngineCommand)(plan.plan)
app.command()(report.report)
app.command()(report.compare)
app.command()(convert.convert)
app.command(cls=EngineCommand)(serve.serve)
app.command()(ask.ask)
app.command(cls=EngineCommand)(generate.generate)
app.command("eval", cls=EngineCommand)(generate.evaluate)
app.add_typer(data.app, name="data")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"twingpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
    lang: Annotated[
        Literal["ko", "en"] | None,
        typer.Option(
            help="Language, here or after a command: ko or en.",
            metavar="LANGUAGE",
            show_default="that of this computer",
        ),
    ] = None,
) -> None:
    pass


@app.command()
def parity(
    run: Annotated[Path | None, typer.Argument(help="Check this run's newest checkpoint too.", metavar="RUN")] = None,
    device: Device = "auto",
    details: Details = False,
    as_json: Json = False,
) -> None:
    """Hold the two engines against each other on this machine: names, logits, loss, gradients, updates, text."""
    from twingpt.checks.parity import print_ladder, run_ladder

    rungs = run_ladder(run, device)
    if as_json:
        print_json([rung.to_dict() for rung in rungs])
    else:
        print_ladder(rungs, details=details)
    if not all(rung.passed for rung in rungs):
        raise TwinGPTError(tr("the two engines differ by more than rounding: see the rungs that failed"))


@app.command()
def doctor(device: Device = "auto", details: Details = False, as_json: Json = False) -> None:
    """What is installed, what this chip can do, and whether what it computes is right."""
    from rich.console import Console

    from twingpt.checks.doctor import run_doctor
    from twingpt.checks.findings import print_report

    with Console(stderr=True).status(tr("checking")) as status:
        report = run_doctor(device, lambda text: status.update(tr("checking {text}", text=text)))
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report, details=details)
    if report.failed:
        raise TwinGPTError(
            tr("{checks} checks failed on this machine: see what to do beside each", checks=len(report.failed))
        )


@app.command(cls=EngineCommand)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's data and run.", metavar="FOLDER")] = Path("demo"),
    backend: AnyBackend = None,
    device: Device = "auto",
    minutes: Annotated[float, typer.Option(help="About how long to train.", min=0.1)] = 3.0,
) -> None:
    """Prepare the example text, train on it, go on in the other engine, and answer questions from it.

    The same command goes on where it was interrupted.
    """
    from twingpt.demo import run_demo

    run_demo(out, backend, device, minutes)


def main() -> None:
    """Entry point: a user's mistake is one line and an exit code, never a traceback."""
    try:
        arguments = chosen_language(sys.argv[1:])
        command = typer.main.get_command(app)
        speak(command)
        # A command that starts itself again finds them in its context.
        command(arguments, obj=arguments)
    except TwinGPTError as error:
        fail(error)
    except StoppedError as stopped:
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
