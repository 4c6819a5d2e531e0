"""What `prepare` and `data inspect` show: bars while the stages run, tables of what they made."""

import re
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twingpt.core.language import mark, tr

if TYPE_CHECKING:
    from twingpt.data.prepare.inspect import Inspection
    from twingpt.data.prepare.pipeline import Prepared, Watcher


MUCH = 0.05
"""A step that drops more of the text is warned of."""
KEEP_WITH = {
    mark("exact duplicates dropped"): mark("--no-dedup keeps them"),
    mark("near duplicates dropped"): mark("--no-dedup keeps them"),
    mark("boilerplate lines dropped"): mark("--no-boilerplate keeps them"),
    mark("lines of only code, log, URL or emoji dropped"): mark("they stay without --drop-junk"),
}
STAGES = (mark("reading"), mark("clean"), mark("library"), mark("tokenizer"), mark("samples"), mark("pack"))
SPLITS = (mark("train"), mark("val"))
SAMPLE_KINDS = (mark("closed"), mark("open"), mark("summary"))
LINE_EVERY_S = 10.0


class LinesNowAndThen:
    """What was read and how fast, on stderr: for a log, and for an input without an end."""

    def __init__(self) -> None:
        self.start("")

    def start(self, stage: str) -> None:
        self._stage, self._done = stage, 0
        self._started = self._told = time.monotonic()

    def advance(self, size: int) -> None:
        self._done += size
        now = time.monotonic()
        if now - self._told >= LINE_EVERY_S:
            speed = self._done / (now - self._started)
            sys.stderr.write(
                tr(
                    "{stage}: {done:,.1f} MB so far, {speed:,.1f} MB/s\n",
                    stage=self._stage,
                    done=self._done / 1e6,
                    speed=speed / 1e6,
                )
            )
            sys.stderr.flush()
            self._told = now


def progress_bars() -> Any:
    """A Watcher that draws on stderr, as a context manager."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from twingpt.data.prepare.pipeline import Watcher

    class Bars(Watcher):
        def __init__(self) -> None:
            console = Console(file=sys.stderr)
            self._progress = Progress(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
            )
            self._task = self._progress.add_task("", visible=False)
            # Where no bar can move, a line now and then says that work goes on.
            self._lines = None if console.is_terminal else LinesNowAndThen()

        def __enter__(self) -> "Watcher":
            self._progress.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self._progress.__exit__(*error)

        def start(self, stage: str, total: int | None) -> None:
            before = self._progress.tasks[self._task]
            if before.total is None:
                self._progress.update(self._task, total=before.completed)
            self._task = self._progress.add_task(tr(stage), total=total)
            if self._lines:
                self._lines.start(tr(stage))

        def advance(self, size: int) -> None:
            self._progress.advance(self._task, size)
            if self._lines:
                self._lines.advance(size)

        def finish(self, result: Any) -> None:
            total = self._progress.tasks[self._task].total
            note = tr(" (kept)") if result.reused else ""
            description = f"{self._progress.tasks[self._task].description}{note}"
            self._progress.update(self._task, completed=total, description=description)

    return Bars()


def show_summary(prepared: "Prepared", out: Path) -> None:
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
        console.print(Text(tr("\nWhat cleaning changed"), style="bold"))
    shares: dict[str, float] = report["clean"].get("dropped_shares", {}) if changes else {}
    for kind, change in changes.items():
        share = tr(" ({share:.1%} of the text)", share=shares[kind]) if kind in shares else ""
        console.print(Text(f"  {change['count']:>9,}  {_shown_change(kind)}{share}"))
        for before, after in change["examples"][:1]:
            after = _line(after) or tr("(dropped)")
            console.print(Text(f"             {_line(before)} -> {after}", style="dim"))
    for kind, gone in shares.items():
        if gone > MUCH:
            keep = f": {tr(KEEP_WITH[kind])}" if kind in KEEP_WITH else ""
            console.print(
                Text(
                    tr(
                        "warning: {kind}: {gone:.1%} of the text is gone{keep}",
                        kind=_shown_change(kind),
                        gone=gone,
                        keep=keep,
                    ),
                    style="yellow",
                ),
                soft_wrap=True,
            )
    shown: list[Any] = []
    if "pack" in prepared.seconds or "samples" in prepared.seconds:
        # Samples that were edited by hand are not those of the report any more.
        shown = (report.get("samples") or report["pack"]).get("shown", [])
    for number, sample in enumerate(shown, 1):
        console.print(Text(tr("\nSample {number}", number=number), style="bold"))
        console.print(Text(_sample_text(sample)))
    seconds = ", ".join(
        tr("{stage} {seconds:.1f} s", stage=tr(name), seconds=taken) + (tr(" (kept)") if prepared.reused[name] else "")
        for name, taken in prepared.seconds.items()
    )
    console.print(Text(f"\n{out}: {seconds}"))
    if "pack" in prepared.seconds:
        folder = shlex.quote(str(out))
        # A run beside DATA, and not in the folder where the command happens to be typed.
        run = shlex.quote(str(out.with_name("run" if out.name == "data" else f"{out.name}-run")))
        console.print(
            Text(
                tr(
                    'next: twingpt ask {folder} "..."\nnext: twingpt train --data {folder} --out {run}',
                    folder=folder,
                    run=run,
                )
            )
        )


def _summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    clean, library, tokenizer, samples, pack = (
        report.get(name) for name in ("clean", "library", "tokenizer", "samples", "pack")
    )
    if clean:
        rows += _form_rows(clean)
        rows.append(
            (
                tr("documents"),
                tr(
                    "{documents:,} ({cleaned_bytes:,} bytes of {raw_bytes:,})",
                    documents=clean["documents"],
                    cleaned_bytes=clean["cleaned_bytes"],
                    raw_bytes=clean["raw_bytes"],
                ),
            )
        )
        rows.append(
            (
                tr("duplicates"),
                tr(
                    "{exact_duplicates:,} exact, {near_duplicates:,} near, dropped",
                    exact_duplicates=clean["exact_duplicates"],
                    near_duplicates=clean["near_duplicates"],
                ),
            )
        )
        of = (
            tr(" (numbers of {country} where the text names no other country)", country=clean["country"])
            if "country" in clean
            else ""
        )
        rows.append((tr("contacts"), f"{clean['contacts']:,}{of}"))
    if library:
        rows.append((tr("passages to find"), f"{library['passages']:,}"))
    if tokenizer:
        taken = ""
        if "taken_from" in tokenizer:
            taken = tr(
                " of {taken_from}, as {why}; --tokenizer new learns another",
                taken_from=tokenizer["taken_from"],
                why=tr(tokenizer["why"]),
            )
        rows.append(
            (tr("vocabulary"), tr("{vocab_size:,} tokens{taken}", vocab_size=tokenizer["vocab_size"], taken=taken))
        )
    if samples:
        kinds = ", ".join(
            tr("{number:,} {kind}", number=number, kind=tr(kind)) for kind, number in samples["by_kind"].items()
        )
        rows.append(
            (
                tr("samples"),
                tr(
                    "{samples:,} ({kinds}) from {documents_used:,} documents",
                    samples=samples["samples"],
                    kinds=kinds,
                    documents_used=samples["documents_used"],
                ),
            )
        )
    if pack:
        rows.append(
            (
                tr("block size"),
                tr("{block_size:,} tokens that the model sees at once", block_size=report["settings"]["block_size"]),
            )
        )
        share = tr(" ({val_share:.1%} of the text)", val_share=pack["val_share"]) if "val_share" in pack else ""
        rows.append(
            (
                tr("tokens"),
                tr(
                    "{train_tokens:,} to train on, {val_tokens:,} to validate{share}",
                    train_tokens=pack["train_tokens"],
                    val_tokens=pack["val_tokens"],
                    share=share,
                ),
            )
        )
        rows.append((tr("bytes a token"), f"{pack['bytes_per_token']:.2f}"))
        if pack["layout"] == "rows":
            rows.append(
                (
                    tr("samples that fit"),
                    tr("{fitting:.1%} (longest {longest:,} tokens)", fitting=pack["fitting"], longest=pack["longest"]),
                )
            )
            rows.append((tr("padding"), tr("{waste:.1%} of the tokens", waste=pack["waste"])))
        if pack["counted_share"] < 1:
            rows.append((tr("counted"), tr("{counted_share:.1%} of the tokens", counted_share=pack["counted_share"])))
    return rows


def _form_rows(clean: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each form that was read, unless all is plain text, and one for each that was not."""
    read: dict[tuple[str, str], list[int]] = {}
    for one in clean.get("read_as", []):
        fields = tr(", text of {fields}", fields=", ".join(one["fields"])) if "fields" in one else ""
        read.setdefault((one["form"], fields), []).append(one["documents"])
    unread: dict[tuple[str, str], list[str]] = {}
    for one in clean.get("not_read", []):
        unread.setdefault((one["kind"], one["way_out"]), []).append(Path(one["name"]).name)
    rows = [
        (
            tr("read as {form}", form=tr(form)),
            tr(
                "{files}, {documents:,} documents{fields}",
                files=_files(len(documents)),
                documents=sum(documents),
                fields=fields,
            ),
        )
        for (form, fields), documents in read.items()
        if len(read) > 1 or form != "text"
    ]
    for (kind, way_out), names in unread.items():
        more = ", ..." if len(names) > 3 else ""
        shown = f"{_files(len(names))} ({', '.join(names[:3])}{more})"
        rows.append((tr("not read: {kind}", kind=tr(kind)), f"{shown}: {tr(way_out)}"))
    return rows


def _files(number: int) -> str:
    return tr("{number:,} file", number=number) if number == 1 else tr("{number:,} files", number=number)


_READ_AS = re.compile(r"files read as (\S+?)( with a byte-order mark)?")


def _shown_change(kind: str) -> str:
    """What a report calls a change, in the reader's language."""
    if (match := _READ_AS.fullmatch(kind)) is None:
        return tr(kind)
    if match[2]:
        return tr("files read as {encoding} with a byte-order mark", encoding=match[1])
    return tr("files read as {encoding}", encoding=match[1])


def _line(text: str) -> str:
    shown = text.replace("\n", "⏎")
    return shown if len(shown) <= 60 else shown[:59] + "…"


def _sample_text(sample: Any) -> str:
    if isinstance(sample, str):
        return sample
    from twingpt.data.tokens.template import Sample, sample_segments

    return "".join(segment.text for segment in sample_segments(Sample(**sample)))


def show_inspection(inspection: "Inspection") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for number, sample in enumerate(inspection.samples, 1):
        console.print(Text(tr("Sample {number}", number=number), style="bold"))
        console.print(Text(sample + "\n"))
    splits = Table(
        tr("part"), tr("tokens"), tr("of text"), tr("special"), tr("padding"), tr("documents"), tr("bytes a token")
    )
    for name, split in inspection.splits.items():
        numbers = [split[key] for key in ("tokens", "text_tokens", "special_tokens", "padding", "documents")]
        splits.add_row(tr(name), *(f"{number:,}" for number in numbers), f"{split['bytes_per_token']:.2f}")
    console.print(splits)
    for title, tokens in (
        (tr("longest tokens"), inspection.longest_tokens),
        (tr("most frequent tokens"), inspection.most_frequent_tokens),
    ):
        table = Table("id", tr("text"), tr("bytes"), tr("in the data"), title=title)
        for token in tokens:
            table.add_row(str(token["id"]), Text(repr(token["text"])), str(token["bytes"]), f"{token['count']:,}")
        console.print(table)
    console.print(
        tr(
            "{vocab_size:,} tokens in the vocabulary, {unused_tokens:,} of them not in the data\n"
            "{everyday_syllables:,} of the {everyday_syllables_of:,} everyday Hangul syllables "
            "(KS X 1001) are one token\n"
            "{distinct_syllables_in_text:,} distinct syllables in the data; "
            "{share_of_syllables_whole:.1%} of all syllables lie whole in one token",
            vocab_size=inspection.vocab_size,
            unused_tokens=inspection.unused_tokens,
            everyday_syllables=inspection.everyday_syllables,
            everyday_syllables_of=inspection.everyday_syllables_of,
            distinct_syllables_in_text=inspection.distinct_syllables_in_text,
            share_of_syllables_whole=inspection.share_of_syllables_whole,
        )
    )
