"""`twingpt bench` and `twingpt tune`: what this machine does with a model, and how to train it here."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from twingpt.commands.options import ComparedBackends, Device, Json
from twingpt.console import print_json
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.presets import PRESETS

if TYPE_CHECKING:
    from rich.console import Console

    from twingpt.measure.tune import Candidate
    from twingpt.training.config import RunConfig

Precisions = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        help="float32 or bfloat16; give it twice for both.",
        show_default="float32, and bfloat16 too on a GPU",
    ),
]
PresetOption = Annotated[str, typer.Option(help=f"Model and recipe: {', '.join(PRESETS)}.")]
ConfigFile = Annotated[Path | None, typer.Option(help="TOML file with settings of model and train.", metavar="FILE")]
RunFolder = Annotated[Path | None, typer.Option(help="Take model and recipe from this run instead.", metavar="RUN")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences an update.", show_default="16", min=1)]
BlockSize = Annotated[int | None, typer.Option(help="Context in tokens.", show_default="the preset's", min=1)]
VocabSize = Annotated[int | None, typer.Option(help="Tokens in the vocabulary.", show_default="16000", min=2)]
Dropout = Annotated[float | None, typer.Option(help="0: off.", show_default="the preset's")]
Seed = Annotated[int | None, typer.Option(help="Of weights, tokens and dropout.", show_default="0", min=0)]


def bench(
    backend: ComparedBackends = "all",
    device: Device = "auto",
    preset: PresetOption = "seed",
    config: ConfigFile = None,
    run: RunFolder = None,
    precision: Precisions = None,
    batch_size: BatchSize = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Sequences at a time. 0: what fits into memory.", show_default="0", min=0)
    ] = None,
    block_size: BlockSize = None,
    vocab_size: VocabSize = None,
    dropout: Dropout = None,
    seed: Seed = None,
    seconds: Annotated[float, typer.Option(help="About how long to time training, for each row.", min=0.1)] = 10.0,
    save: Annotated[
        Path | None, typer.Option(help="Add the answer to this file, as one line of JSON.", metavar="FILE")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it, as .png, .svg or .pdf.", metavar="FILE")] = None,
    as_json: Json = False,
) -> None:
    """Measure each engine: training, memory, generation, and the share of what this chip can do at most."""
    from rich.console import Console

    from twingpt.measure.bench import BenchRequest, append, chosen_backends, run_bench
    from twingpt.measure.bench_report import check_can_draw, draw, print_result

    if picture is not None:
        check_can_draw()
    shape = {"block_size": block_size, "vocab_size": vocab_size, "dropout": dropout}
    recipe = {"batch_size": batch_size, "micro_batch": micro_batch, "seed": seed}
    wanted = _config(preset, config, run, shape, recipe)
    request = BenchRequest(
        spec=wanted.model,
        config=wanted.train,
        backends=chosen_backends(backend),
        device=device,
        precisions=_precisions(precision),
        seconds=seconds,
    )
    with Console(stderr=True).status(tr("measuring")) as status:
        result = run_bench(request, status.update)
    if save is not None:
        append(save, result)
    if as_json:
        print_json(result)
    else:
        print_result(result, Console())
    if picture is not None:
        draw(result, picture)


def tune(
    out: Annotated[Path, typer.Option(help="TOML file to write, for `train --config`.", metavar="FILE")] = Path(
        "tuned.toml"
    ),
    backend: ComparedBackends = "all",
    device: Device = "auto",
    preset: PresetOption = "seed",
    config: ConfigFile = None,
    run: RunFolder = None,
    precision: Precisions = None,
    batch_size: BatchSize = None,
    block_size: BlockSize = None,
    vocab_size: VocabSize = None,
    dropout: Dropout = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB that training may use.", show_default="what the device has", min=0)
    ] = None,
    steps: Annotated[int, typer.Option(help="Updates of each trial; the first is not timed.", min=2)] = 3,
    as_json: Json = False,
) -> None:
    """Find the engine, precision and micro-batch that train fastest here, each tried in a process of its own."""
    from dataclasses import asdict

    from rich.console import Console

    from twingpt.measure.bench import chosen_backends
    from twingpt.measure.tune import TuneRequest, best_of, candidates, train_command, write_config

    if out.exists():
        raise UsageError(tr("{out} exists: give another --out, or remove it", out=out))
    shape = {"block_size": block_size, "vocab_size": vocab_size, "dropout": dropout}
    wanted = _config(preset, config, run, shape, {"batch_size": batch_size})
    request = TuneRequest(
        spec=wanted.model,
        config=wanted.train,
        backends=chosen_backends(backend),
        device=device,
        precisions=_precisions(precision),
        steps=steps,
        memory_limit=memory_limit,
    )
    console = Console(stderr=as_json)
    tried: list[Candidate] = []
    with console.status(tr("trying")) as status:
        for candidate in candidates(request, status.update):
            tried.append(candidate)
            _print_candidate(candidate, console)
    best = best_of(tried)
    write_config(out, request, best)
    command = train_command(out, request, best)
    if as_json:
        print_json({"best": asdict(best), "tried": [asdict(each) for each in tried], "file": out, "train": command})
        return
    console.print(
        tr(
            "fastest: {backend}, {precision}, {micro_batch} sequences at a time: "
            "{tokens_per_second:,.0f} tokens/s. Wrote {out}",
            backend=best.backend,
            precision=best.precision,
            micro_batch=best.micro_batch,
            tokens_per_second=best.tokens_per_second,
            out=out,
        ),
        highlight=False,
        soft_wrap=True,
    )
    console.print(command, highlight=False, soft_wrap=True, markup=False)


def _config(
    preset: str, config_file: Path | None, run: Path | None, model: dict[str, Any], train: dict[str, Any]
) -> "RunConfig":
    from twingpt.measure.bench import load_config

    if run is not None and config_file is not None:
        raise UsageError(tr("give either --run or --config"))
    given = [{name: value for name, value in part.items() if value is not None} for part in (model, train)]
    return load_config(preset=preset, config_file=config_file, run=run, model=given[0], train=given[1])


def _precisions(names: list[str] | None) -> list[Any]:
    """Checked here: deep in a measurement it would be one of many errors."""
    from typing import get_args

    from twingpt.core.backend import Precision

    for name in names or []:
        if name not in get_args(Precision):
            raise UsageError(
                tr("--precision {name}: choose one of {choices}", name=name, choices=", ".join(get_args(Precision)))
            )
    return list(dict.fromkeys(names or []))


def _print_candidate(candidate: "Candidate", console: "Console") -> None:
    what = tr(
        "{backend} on {device}, {precision}, {micro_batch} at a time: ",
        backend=candidate.backend,
        device=candidate.device,
        precision=candidate.precision,
        micro_batch=candidate.micro_batch,
    )
    if candidate.fits:
        what += f"{candidate.tokens_per_second:,.0f} tokens/s, {candidate.peak_bytes / 1024**2:,.0f} MiB"
    else:
        what += tr("does not fit: {reason}", reason=candidate.reason)
    console.print(what, highlight=False, markup=False, soft_wrap=True)
