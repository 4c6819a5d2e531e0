"""`twingpt prepare` and `twingpt data ...`: from raw text to token files."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twingpt.commands.options import Json, with_settings
from twingpt.console import print_json
from twingpt.core.language import tr
from twingpt.data.prepare.settings import PrepareSettings

if TYPE_CHECKING:
    from twingpt.data.prepare.pipeline import StageName

app = typer.Typer(
    help="The stages of `prepare`, one by one, and a look at what they made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Raw = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, zips or - for stdin: text, KakaoTalk chats, CSV, JSON, HTML, DOCX, HWPX, RTF, subtitles; "
        ".gz, .xz and .zst are unpacked; UTF-8, CP949/EUC-KR and UTF-16 are recognised.",
        metavar="RAW...",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DATA", show_default=False)]
Data = Annotated[Path, typer.Argument(help="Folder of the stages before.", metavar="DATA", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(help="Processes; the result is the same for any.", min=1, show_default="all cores")
]


@with_settings(PrepareSettings)
def prepare(raw: Raw, out: Out, settings: PrepareSettings, workers: Workers = None, as_json: Json = False) -> None:
    """Turn raw text into a tokenizer and token files to train on.

    Runs the stages clean, library, tokenizer, samples and pack. A stage whose input and options are
    unchanged is not run again, so the same command goes on where it was interrupted.
    """
    _run(raw, out, settings, ("clean", "library", "tokenizer", "samples", "pack"), workers, as_json)


@app.command("clean")
@with_settings(
    PrepareSettings,
    "template",
    "separator",
    "keep_layout",
    "contacts",
    "dedup",
    "drop_junk",
    "boilerplate",
    "encoding",
    "max_undecodable",
)
def clean_command(
    raw: Raw, out: Out, settings: PrepareSettings, workers: Workers = None, as_json: Json = False
) -> None:
    """Stage 1: read, repair and clean the text into DATA/cleaned.txt and DATA/contacts.sqlite."""
    _run(raw, out, settings, ("clean",), workers, as_json)


@app.command("tokenizer")
@with_settings(PrepareSettings, "tokenizer", "vocab_size", "tokenizer_megabytes", "template", "seed")
def tokenizer_command(data: Data, settings: PrepareSettings, as_json: Json = False) -> None:
    """Stage 3: learn the vocabulary from DATA/cleaned.txt into DATA/tokenizer.json."""
    _run([], data, settings, ("tokenizer",), 1, as_json)


@app.command("samples")
@with_settings(
    PrepareSettings,
    "block_size",
    "val_fraction",
    "max_samples",
    "samples_per_doc",
    "closed_share",
    "summaries",
    "allow_long",
    "seed",
)
def samples_command(data: Data, settings: PrepareSettings, workers: Workers = None, as_json: Json = False) -> None:
    """Stage 4 (template qa): make questions and answers from the documents into DATA/samples.jsonl."""
    _run([], data, settings, ("samples",), workers, as_json)


@app.command("pack")
@with_settings(PrepareSettings, "block_size", "template", "val_fraction", "mask_prompt", "allow_long", "seed")
def pack_command(data: Data, settings: PrepareSettings, as_json: Json = False) -> None:
    """Stage 5: encode into DATA/train.bin and DATA/val.bin, with DATA/manifest.json."""
    _run([], data, settings, ("pack",), 1, as_json)


@app.command("library")
def library_command(data: Data, as_json: Json = False) -> None:
    """Stage 2: index DATA/cleaned.txt into DATA/library.sqlite, to find passages in.

    For a folder that an older version prepared, and for a text that is newer than the model. For the folder of a run it
    is made of the text of its DATA, or of a cleaned.txt that lies in the run.
    """
    from twingpt.weights.run_folder import text_folder

    text, is_run = text_folder(data)
    _run([], text, PrepareSettings(), ("library",), 1, as_json)
    if is_run:
        from twingpt.weights.run_files import adopt_library

        adopt_library(data, text)


@app.command("inspect")
def inspect_command(
    data: Annotated[Path, typer.Argument(help="Folder that `prepare` wrote.", metavar="DATA", show_default=False)],
    samples: Annotated[int, typer.Option(help="Samples to show.", min=0)] = 3,
    tokens: Annotated[int, typer.Option(help="Longest and most frequent tokens to show.", min=1)] = 20,
    as_json: Json = False,
) -> None:
    """Show samples, token counts, the longest tokens and the coverage of Hangul syllables."""
    from twingpt.data.prepare.inspect import inspect_data

    inspection = inspect_data(data, samples=samples, tokens=tokens)
    if as_json:
        print_json(dataclasses.asdict(inspection))
    else:
        from twingpt.commands.data_tables import show_inspection

        show_inspection(inspection)


def _run(
    raw: Sequence[str],
    out: Path,
    settings: PrepareSettings,
    stages: "Sequence[StageName]",
    workers: int | None,
    as_json: bool,
) -> None:
    from twingpt.commands.data_tables import progress_bars, show_summary
    from twingpt.data.prepare.pipeline import prepare as run

    watcher = progress_bars()
    with _interruptible(), watcher:
        prepared = run(raw, out, settings, stages=stages, workers=workers, watcher=watcher)
    if as_json:
        print_json({**prepared.report, "seconds": prepared.seconds, "reused": prepared.reused})
    else:
        show_summary(prepared, out)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(tr("interrupted: finished stages are kept, the same command goes on from there"), err=True)
        raise typer.Exit(130) from None
