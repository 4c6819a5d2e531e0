"""`twingpt prepare` and `twingpt data ...`: from raw text to token files."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from twingpt.data.prepare.inspect import Inspection
    from twingpt.data.prepare.pipeline import Prepared, PrepareSettings, StageName, Watcher

app = typer.Typer(
    help="The stages of `prepare`, one by one, and a look at what they made.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Raw = Annotated[
    list[str],
    typer.Argument(
        help="Text files, folders (.txt, .md, .text) or - for stdin; .gz, .xz and .zst are unpacked; "
        "UTF-8, CP949/EUC-KR and UTF-16 are recognised.",
        metavar="RAW...",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.", metavar="DATA", show_default=False)]
Data = Annotated[Path, typer.Argument(help="Folder of the stages before.", metavar="DATA", show_default=False)]
VocabSize = Annotated[int, typer.Option(help="Tokens in the vocabulary, special ones included.", min=268)]
TokenizerMegabytes = Annotated[
    float, typer.Option(help="MB of text, drawn by document, to learn the vocabulary from; 0: all.", min=0)
]
BlockSize = Annotated[int, typer.Option(help="Tokens that the model sees at once.", min=8)]
Contacts = Annotated[
    Literal["keep", "mask"],
    typer.Option(help="keep: train on contacts in one form (TEL: ...). mask: on placeholders such as \\[TEL_1]."),
]
Template = Annotated[
    Literal["qa", "plain"],
    typer.Option(help="qa: questions and answers made from each document. plain: the documents themselves."),
]
ValFraction = Annotated[
    float, typer.Option(help="Share of the documents held out for validation, 0 to 0.5.", min=0, max=0.5)
]
MaxSamples = Annotated[
    int | None,
    typer.Option(help="Samples in all: 3000 works, 10000 is stable, 30000 is a habit.", min=1, show_default="all"),
]
SamplesPerDoc = Annotated[
    int,
    typer.Option(help="Question samples a document, cut elsewhere as needed; 0: each part once in each form.", min=0),
]
ClosedShare = Annotated[
    float, typer.Option(help="Share of question samples without their document, 0 to 1.", min=0, max=1)
]
Summaries = Annotated[bool, typer.Option(help="Also make samples of document and summary.")]
Seed = Annotated[int, typer.Option(help="Chooses what is drawn: questions, samples, documents for validation.")]
MaskPrompt = Annotated[
    bool, typer.Option("--mask-prompt", help="Train on answers only: question and document do not count.")
]
AllowLong = Annotated[
    bool, typer.Option("--allow-long", help="Keep samples longer than block-size; they are cut at the end of a row.")
]
Dedup = Annotated[bool, typer.Option(help="Drop exact and near duplicates of documents.")]
DropJunk = Annotated[bool, typer.Option("--drop-junk", help="Drop lines of only code, log, URL or emoji.")]
Boilerplate = Annotated[bool, typer.Option(help="Drop lines that stand in 5 % of all documents (20 at least).")]
Encoding = Annotated[str | None, typer.Option(help="Encoding of the input, such as cp949.", show_default="recognised")]
MaxUndecodable = Annotated[
    float, typer.Option(help="Stop if a larger share of the bytes cannot be decoded, 0 to 1.", min=0, max=1)
]
Workers = Annotated[
    int | None, typer.Option(help="Processes; the result is the same for any.", min=1, show_default="all cores")
]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, for a program.")]


def prepare(
    raw: Raw,
    out: Out,
    vocab_size: VocabSize = 16_000,
    tokenizer_megabytes: TokenizerMegabytes = 16,
    block_size: BlockSize = 256,
    template: Template = "qa",
    contacts: Contacts = "keep",
    val_fraction: ValFraction = 0.01,
    max_samples: MaxSamples = None,
    samples_per_doc: SamplesPerDoc = 0,
    closed_share: ClosedShare = 0.5,
    summaries: Summaries = True,
    mask_prompt: MaskPrompt = False,
    allow_long: AllowLong = False,
    dedup: Dedup = True,
    drop_junk: DropJunk = False,
    boilerplate: Boilerplate = True,
    encoding: Encoding = None,
    max_undecodable: MaxUndecodable = 0.01,
    seed: Seed = 0,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Turn raw text into a tokenizer and token files to train on.

    Runs the stages clean, library, tokenizer, samples and pack. A stage whose input and options are
    unchanged is not run again, so the same command goes on where it was interrupted.
    """
    settings = _settings(locals())
    _run(raw, out, settings, ("clean", "library", "tokenizer", "samples", "pack"), workers, json)


@app.command("clean")
def clean_command(
    raw: Raw,
    out: Out,
    template: Template = "qa",
    contacts: Contacts = "keep",
    dedup: Dedup = True,
    drop_junk: DropJunk = False,
    boilerplate: Boilerplate = True,
    encoding: Encoding = None,
    max_undecodable: MaxUndecodable = 0.01,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Stage 1: read, repair and clean the text into DATA/cleaned.txt and DATA/contacts.sqlite."""
    _run(raw, out, _settings(locals()), ("clean",), workers, json)


@app.command("tokenizer")
def tokenizer_command(
    data: Data,
    vocab_size: VocabSize = 16_000,
    tokenizer_megabytes: TokenizerMegabytes = 16,
    template: Template = "qa",
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Stage 3: learn the vocabulary from DATA/cleaned.txt into DATA/tokenizer.json."""
    _run([], data, _settings(locals()), ("tokenizer",), 1, json)


@app.command("samples")
def samples_command(
    data: Data,
    block_size: BlockSize = 256,
    val_fraction: ValFraction = 0.01,
    max_samples: MaxSamples = None,
    samples_per_doc: SamplesPerDoc = 0,
    closed_share: ClosedShare = 0.5,
    summaries: Summaries = True,
    allow_long: AllowLong = False,
    seed: Seed = 0,
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Stage 4 (template qa): make questions and answers from the documents into DATA/samples.jsonl."""
    _run([], data, _settings(locals()), ("samples",), workers, json)


@app.command("pack")
def pack_command(
    data: Data,
    block_size: BlockSize = 256,
    template: Template = "qa",
    val_fraction: ValFraction = 0.01,
    mask_prompt: MaskPrompt = False,
    allow_long: AllowLong = False,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Stage 5: encode into DATA/train.bin and DATA/val.bin, with DATA/manifest.json."""
    _run([], data, _settings(locals()), ("pack",), 1, json)


@app.command("library")
def library_command(data: Data, json: Json = False) -> None:
    """Stage 2: index DATA/cleaned.txt into DATA/library.sqlite, to find passages in.

    For a folder that an older version prepared, and for a text that is newer than the model.
    """
    from twingpt.data.prepare.settings import PrepareSettings

    _run([], data, PrepareSettings(), ("library",), 1, json)


@app.command("inspect")
def inspect_command(
    data: Annotated[Path, typer.Argument(help="Folder that `prepare` wrote.", metavar="DATA", show_default=False)],
    samples: Annotated[int, typer.Option(help="Samples to show.", min=0)] = 3,
    tokens: Annotated[int, typer.Option(help="Longest and most frequent tokens to show.", min=1)] = 20,
    json: Json = False,
) -> None:
    """Show samples, token counts, the longest tokens and the coverage of Hangul syllables."""
    from twingpt.data.prepare.inspect import inspect_data

    inspection = inspect_data(data, samples=samples, tokens=tokens)
    if json:
        _print_json(dataclasses.asdict(inspection))
    else:
        _show_inspection(inspection)


def _settings(options: dict[str, Any]) -> "PrepareSettings":
    from twingpt.data.prepare.pipeline import PrepareSettings

    names = {field.name for field in dataclasses.fields(PrepareSettings)}
    return PrepareSettings(**{name: value for name, value in options.items() if name in names})


def _run(
    raw: Sequence[str],
    out: Path,
    settings: "PrepareSettings",
    stages: "Sequence[StageName]",
    workers: int | None,
    as_json: bool,
) -> None:
    from twingpt.data.prepare.pipeline import prepare as run

    watcher = _progress_bars()
    with _interruptible(), watcher:
        prepared = run(raw, out, settings, stages=stages, workers=workers, watcher=watcher)
    if as_json:
        _print_json({**prepared.report, "seconds": prepared.seconds, "reused": prepared.reused})
    else:
        _show_summary(prepared, out)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted: finished stages are kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _print_json(value: Any) -> None:
    import json

    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _progress_bars() -> Any:
    """A Watcher that draws on stderr, as a context manager."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from twingpt.data.prepare.pipeline import Watcher

    class Bars(Watcher):
        def __init__(self) -> None:
            self._progress = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=Console(file=sys.stderr),
            )
            self._task = self._progress.add_task("", visible=False)

        def __enter__(self) -> "Watcher":
            self._progress.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._progress.__exit__(*error)

        def start(self, stage: str, total: int) -> None:
            self._task = self._progress.add_task(stage, total=total)

        def advance(self, size: int) -> None:
            self._progress.advance(self._task, size)

        def finish(self, result: Any) -> None:
            total = self._progress.tasks[self._task].total
            note = " (kept)" if result.reused else ""
            description = f"{self._progress.tasks[self._task].description}{note}"
            self._progress.update(self._task, completed=total, description=description)

    return Bars()


def _show_summary(prepared: "Prepared", out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    report = prepared.report
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in _summary_rows(report):
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)
    changes: dict[str, Any] = report["clean"]["changes"] if "clean" in prepared.seconds else {}
    if changes:
        console.print(Text("\nWhat cleaning changed", style="bold"))
    for kind, change in changes.items():
        console.print(Text(f"  {change['count']:>9,}  {kind}"))
        for before, after in change["examples"][:1]:
            console.print(Text(f"             {_line(before)} -> {_line(after) or '(dropped)'}", style="dim"))
    shown: list[Any] = []
    if "pack" in prepared.seconds or "samples" in prepared.seconds:
        shown = (report.get("samples") or report["pack"])["shown"]
    for number, sample in enumerate(shown, 1):
        console.print(Text(f"\nSample {number}", style="bold"))
        console.print(Text(_sample_text(sample)))
    seconds = ", ".join(
        f"{name} {taken:.1f} s{' (kept)' if prepared.reused[name] else ''}" for name, taken in prepared.seconds.items()
    )
    console.print(Text(f"\n{out}: {seconds}"))


def _summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    clean, library, tokenizer, samples, pack = (
        report.get(name) for name in ("clean", "library", "tokenizer", "samples", "pack")
    )
    if clean:
        rows.append(
            ("documents", f"{clean['documents']:,} ({clean['cleaned_bytes']:,} bytes of {clean['raw_bytes']:,})")
        )
        rows.append(("duplicates", f"{clean['exact_duplicates']:,} exact, {clean['near_duplicates']:,} near, dropped"))
        rows.append(("contacts", f"{clean['contacts']:,}"))
    if library:
        rows.append(("passages to find", f"{library['passages']:,}"))
    if tokenizer:
        rows.append(("vocabulary", f"{tokenizer['vocab_size']:,} tokens"))
    if samples:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in samples["by_kind"].items())
        rows.append(("samples", f"{samples['samples']:,} ({kinds}) from {samples['documents_used']:,} documents"))
    if pack:
        rows.append(("tokens", f"{pack['train_tokens']:,} to train on, {pack['val_tokens']:,} to validate"))
        rows.append(("bytes a token", f"{pack['bytes_per_token']:.2f}"))
        if pack["layout"] == "rows":
            rows.append(("samples that fit", f"{pack['fitting']:.1%} (longest {pack['longest']:,} tokens)"))
            rows.append(("padding", f"{pack['waste']:.1%} of the tokens"))
        if pack["counted_share"] < 1:
            rows.append(("counted", f"{pack['counted_share']:.1%} of the tokens"))
    return rows


def _line(text: str) -> str:
    shown = text.replace("\n", "⏎")
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _sample_text(sample: Any) -> str:
    if isinstance(sample, str):
        return sample
    from twingpt.data.tokens.template import Sample, sample_segments

    return "".join(segment.text for segment in sample_segments(Sample(**sample)))


def _show_inspection(inspection: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for number, sample in enumerate(inspection.samples, 1):
        console.print(Text(f"Sample {number}", style="bold"))
        console.print(Text(sample + "\n"))
    splits = Table("part", "tokens", "of text", "special", "padding", "documents", "bytes a token")
    for name, split in inspection.splits.items():
        numbers = [split[key] for key in ("tokens", "text_tokens", "special_tokens", "padding", "documents")]
        splits.add_row(name, *(f"{number:,}" for number in numbers), f"{split['bytes_per_token']:.2f}")
    console.print(splits)
    for title, tokens in (
        ("longest tokens", inspection.longest_tokens),
        ("most frequent tokens", inspection.most_frequent_tokens),
    ):
        table = Table("id", "text", "bytes", "in the data", title=title)
        for token in tokens:
            table.add_row(str(token["id"]), Text(repr(token["text"])), str(token["bytes"]), f"{token['count']:,}")
        console.print(table)
    console.print(
        f"{inspection.vocab_size:,} tokens in the vocabulary, {inspection.unused_tokens:,} of them not in the data\n"
        f"{inspection.everyday_syllables:,} of the {inspection.everyday_syllables_of:,} everyday Hangul syllables "
        f"(KS X 1001) are one token\n"
        f"{inspection.distinct_syllables_in_text:,} distinct syllables in the data; "
        f"{inspection.share_of_syllables_whole:.1%} of all syllables lie whole in one token"
    )
