"""What `prepare` and `data inspect` show: bars while the stages run, tables of what they made."""

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twingpt.data.prepare.inspect import Inspection
    from twingpt.data.prepare.pipeline import Prepared, Watcher


MUCH = 0.05
"""A step that drops more of the text is warned of."""
KEEP_WITH = {
    "exact duplicates dropped": "--no-dedup keeps them",
    "near duplicates dropped": "--no-dedup keeps them",
    "boilerplate lines dropped": "--no-boilerplate keeps them",
    "lines of only code, log, URL or emoji dropped": "they stay without --drop-junk",
}
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
            sys.stderr.write(f"{self._stage}: {self._done / 1e6:,.1f} MB so far, {speed / 1e6:,.1f} MB/s\n")
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
            self._task = self._progress.add_task(stage, total=total)
            if self._lines:
                self._lines.start(stage)

        def advance(self, size: int) -> None:
            self._progress.advance(self._task, size)
            if self._lines:
                self._lines.advance(size)

        def finish(self, result: Any) -> None:
            total = self._progress.tasks[self._task].total
            note = " (kept)" if result.reused else ""
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
        console.print(Text("\nWhat cleaning changed", style="bold"))
    shares: dict[str, float] = report["clean"].get("dropped_shares", {}) if changes else {}
    for kind, change in changes.items():
        share = f" ({shares[kind]:.1%} of the text)" if kind in shares else ""
        console.print(Text(f"  {change['count']:>9,}  {kind}{share}"))
        for before, after in change["examples"][:1]:
            console.print(Text(f"             {_line(before)} -> {_line(after) or '(dropped)'}", style="dim"))
    for kind, gone in shares.items():
        if gone > MUCH:
            keep = f": {KEEP_WITH[kind]}" if kind in KEEP_WITH else ""
            console.print(
                Text(f"warning: {kind}: {gone:.1%} of the text is gone{keep}", style="yellow"), soft_wrap=True
            )
    shown: list[Any] = []
    if "pack" in prepared.seconds or "samples" in prepared.seconds:
        # Samples that were edited by hand are not those of the report any more.
        shown = (report.get("samples") or report["pack"]).get("shown", [])
    for number, sample in enumerate(shown, 1):
        console.print(Text(f"\nSample {number}", style="bold"))
        console.print(Text(_sample_text(sample)))
    seconds = ", ".join(
        f"{name} {taken:.1f} s{' (kept)' if prepared.reused[name] else ''}" for name, taken in prepared.seconds.items()
    )
    console.print(Text(f"\n{out}: {seconds}"))
    if "pack" in prepared.seconds:
        folder = shlex.quote(str(out))
        # A run beside DATA, and not in the folder where the command happens to be typed.
        run = shlex.quote(str(out.with_name("run" if out.name == "data" else f"{out.name}-run")))
        console.print(Text(f'next: twingpt ask {folder} "..."\nnext: twingpt train --data {folder} --out {run}'))


def _summary_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    clean, library, tokenizer, samples, pack = (
        report.get(name) for name in ("clean", "library", "tokenizer", "samples", "pack")
    )
    if clean:
        rows += _form_rows(clean)
        rows.append(
            ("documents", f"{clean['documents']:,} ({clean['cleaned_bytes']:,} bytes of {clean['raw_bytes']:,})")
        )
        rows.append(("duplicates", f"{clean['exact_duplicates']:,} exact, {clean['near_duplicates']:,} near, dropped"))
        of = f" (numbers of {clean['country']} where the text names no other country)" if "country" in clean else ""
        rows.append(("contacts", f"{clean['contacts']:,}{of}"))
    if library:
        rows.append(("passages to find", f"{library['passages']:,}"))
    if tokenizer:
        taken = ""
        if "taken_from" in tokenizer:
            taken = f" of {tokenizer['taken_from']}, as {tokenizer['why']}; --tokenizer new learns another"
        rows.append(("vocabulary", f"{tokenizer['vocab_size']:,} tokens{taken}"))
    if samples:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in samples["by_kind"].items())
        rows.append(("samples", f"{samples['samples']:,} ({kinds}) from {samples['documents_used']:,} documents"))
    if pack:
        rows.append(("block size", f"{report['settings']['block_size']:,} tokens that the model sees at once"))
        share = f" ({pack['val_share']:.1%} of the text)" if "val_share" in pack else ""
        rows.append(("tokens", f"{pack['train_tokens']:,} to train on, {pack['val_tokens']:,} to validate{share}"))
        rows.append(("bytes a token", f"{pack['bytes_per_token']:.2f}"))
        if pack["layout"] == "rows":
            rows.append(("samples that fit", f"{pack['fitting']:.1%} (longest {pack['longest']:,} tokens)"))
            rows.append(("padding", f"{pack['waste']:.1%} of the tokens"))
        if pack["counted_share"] < 1:
            rows.append(("counted", f"{pack['counted_share']:.1%} of the tokens"))
    return rows


def _form_rows(clean: dict[str, Any]) -> list[tuple[str, str]]:
    """A line for each form that was read, unless all is plain text, and one for each that was not."""
    read: dict[tuple[str, str], list[int]] = {}
    for one in clean.get("read_as", []):
        fields = f", text of {', '.join(one['fields'])}" if "fields" in one else ""
        read.setdefault((one["form"], fields), []).append(one["documents"])
    unread: dict[tuple[str, str], list[str]] = {}
    for one in clean.get("not_read", []):
        unread.setdefault((one["kind"], one["way_out"]), []).append(Path(one["name"]).name)
    rows = [
        (f"read as {form}", f"{len(documents):,} {_files(len(documents))}, {sum(documents):,} documents{fields}")
        for (form, fields), documents in read.items()
        if len(read) > 1 or form != "text"
    ]
    for (kind, way_out), names in unread.items():
        more = ", ..." if len(names) > 3 else ""
        shown = f"{len(names):,} {_files(len(names))} ({', '.join(names[:3])}{more})"
        rows.append((f"not read: {kind}", f"{shown}: {way_out}"))
    return rows


def _files(number: int) -> str:
    return "file" if number == 1 else "files"


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
