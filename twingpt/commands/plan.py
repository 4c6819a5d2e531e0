"""The command `plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twingpt.commands.options import ComparedBackend, Device, Json
from twingpt.console import print_json
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS

if TYPE_CHECKING:
    from twingpt.core.spec import GPTSpec
    from twingpt.measure.cost import Machine
    from twingpt.measure.links import Link
    from twingpt.training.config import TrainConfig


def plan(
    run: Annotated[
        Path | None, typer.Argument(help="Take model and recipe from this run instead.", metavar="RUN")
    ] = None,
    backend: ComparedBackend = "",
    preset: Annotated[str, typer.Option(help=f"Model and recipe: {', '.join(PRESETS)}.")] = "seed",
    config: Annotated[
        Path | None, typer.Option(help="TOML file with settings of model and train.", metavar="FILE")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences an update.", show_default="16", min=1)] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(help="Sequences at a time. 0: a machine's whole share.", show_default="0", min=0),
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Context in tokens.", show_default="the preset's", min=1)
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Tokens in the vocabulary.", show_default="16000", min=2)
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adamw, or muon for the blocks' matrices.", show_default="the preset's")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the updates timed here: float32 or bfloat16.", show_default="float32")
    ] = None,
    chip: Annotated[
        str | None, typer.Option(help='Each machine\'s chip: "M4 Max".', show_default="this machine's", metavar="NAME")
    ] = None,
    gpu_cores: Annotated[
        int | None, typer.Option(help="Of that chip's GPU.", show_default="the most it is sold with", min=1)
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            help="Share of the chip's FLOPs that training reaches (see `bench`).", show_default="0.3", min=0.01, max=1
        ),
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="What one machine was seen to do, instead of chip and share.", min=0.1)
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time some updates here, instead of chip and share.")
    ] = False,
    device: Device = "auto",
    link: Annotated[
        list[str] | None,
        typer.Option(help="thunderbolt5, thunderbolt4, 10gbe, 1gbe or wifi; again for more.", show_default="all"),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Gbit/s of a link of your own, as iperf3 measures them.", min=0.001)
    ] = None,
    latency: Annotated[
        float | None, typer.Option(help="Its latency in ms, one way.", show_default="0.2", min=0)
    ] = None,
    macs: Annotated[
        list[int] | None, typer.Option(help="Machines; again for more.", show_default="2, 4", min=2)
    ] = None,
    as_json: Json = False,
) -> None:
    """Would more machines train this faster, and over which link? A calculation: nothing is sent anywhere."""
    from rich.console import Console

    from twingpt.measure.bench import load_config
    from twingpt.measure.plan_report import PlanRequest, plans, print_plans, to_dict

    if run is not None and config is not None:
        raise UsageError(tr("give either RUN or --config"))
    model = {"block_size": block_size, "vocab_size": vocab_size}
    train = {"batch_size": batch_size, "micro_batch": micro_batch, "optimizer": optimizer, "precision": precision}
    given = [{name: value for name, value in part.items() if value is not None} for part in (model, train)]
    wanted = load_config(preset=preset, config_file=config, run=run, model=given[0], train=given[1])
    links = _links(link, bandwidth, latency)
    with Console(stderr=True).status(tr("planning")) as status:
        machine = _machine(
            wanted.model,
            wanted.train,
            backend,
            device,
            {"chip": chip, "gpu_cores": gpu_cores, "share": share},
            tokens_per_second,
            measure,
            status.update,
        )
    request = PlanRequest(
        spec=wanted.model,
        config=wanted.train,
        backend=backend,
        machine=machine,
        links=links,
        machines=list(dict.fromkeys(macs or [2, 4])),
    )
    found = plans(request)
    if as_json:
        print_json(to_dict(request, found))
    else:
        print_plans(request, found, Console())


def _links(names: list[str] | None, bandwidth: float | None, latency: float | None) -> "list[Link]":
    from twingpt.measure.links import LINKS, find_link, own_link

    if bandwidth is None:
        if latency is not None:
            raise UsageError(tr("--latency belongs to --bandwidth: give both"))
        return list(dict.fromkeys(map(find_link, names))) if names else list(LINKS.values())
    return [*map(find_link, names or []), own_link(bandwidth, 0.2 if latency is None else latency)]


def _machine(
    spec: "GPTSpec",
    config: "TrainConfig",
    backend: str,
    device: Literal["auto", "gpu", "cpu"],
    chip_options: dict[str, Any],
    tokens_per_second: float | None,
    measure: bool,
    stage: Any,
) -> "Machine":
    from twingpt.measure.chips import this_chip
    from twingpt.measure.speeds import from_chip, from_speed, measured_here, named_chip

    name, cores, share = chip_options["chip"], chip_options["gpu_cores"], chip_options["share"]
    if measure and (name or tokens_per_second):
        raise UsageError(tr("--measure times this machine: leave --chip and --tokens-per-second away"))
    if share and (measure or tokens_per_second):
        raise UsageError(tr("--share belongs to a chip of the table: leave it away where the speed is measured"))
    if cores is not None and name is None:
        raise UsageError(tr("--gpu-cores belongs to --chip: give both"))
    chip = named_chip(name, cores) if name else this_chip()
    if tokens_per_second is not None:
        source = tr("as given: {tokens_per_second:,.0f} tokens/s", tokens_per_second=tokens_per_second)
        on_gpu = chip if name or chip.gpu_cores else None
        return from_speed(chip.name, on_gpu, spec, config, tokens_per_second, source)
    if measure or (name is None and chip.flops is None):
        return measured_here(spec, config, backend, device, stage)
    return from_chip(chip, share)
