"""`twingpt compare`: runs side by side."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from twingpt.core.errors import UsageError
from twingpt.core.language import language, tr
from twingpt.report.history import Figures, History, read_history
from twingpt.report.page import count, duration, figure, require_packages, size, tera, value, write_page
from twingpt.report.plots import SERIES, Line, Panel
from twingpt.report.words import LANGUAGES, WORDS

ROWS: dict[str, Callable[[Figures], str]] = {
    "parameters": lambda it: count(it.parameters),
    "steps": lambda it: f"{it.steps:,} / {it.planned_steps:,}",
    "tokens": lambda it: count(it.tokens),
    "train_loss": lambda it: figure(it.train_loss),
    "best_val_loss": lambda it: _at(it.best_val_loss, it.best_step),
    "best_bits_per_byte": lambda it: figure(it.best_bits_per_byte),
    "last_bits_per_byte": lambda it: figure(it.last_bits_per_byte),
    "tokens_per_second": lambda it: count(None if it.tokens_per_second is None else round(it.tokens_per_second)),
    "flops": lambda it: tera(it.flops),
    "seconds": lambda it: duration(it.seconds),
    "peak_memory": lambda it: size(it.peak_memory),
}
"""Name of a figure, in WORDS too -> how it is written."""

LOWEST = ("train_loss", "best_val_loss", "best_bits_per_byte", "last_bits_per_byte", "seconds", "peak_memory")
HIGHEST = ("tokens_per_second", "flops")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """names: one a run, no two alike. differences: setting -> its value in each run, only where they differ.

    notes: names in WORDS of what to keep in mind.
    """

    names: list[str]
    histories: list[History]
    differences: dict[str, list[str]]
    notes: list[str]

    @property
    def figures(self) -> list[Figures]:
        return [history.figures for history in self.histories]

    def rows(self) -> list[tuple[str, list[str]]]:
        """(name of the figure, its text in each run)."""
        figures = self.figures
        return [(name, [show(each) for each in figures]) for name, show in ROWS.items()]

    def best(self, name: str) -> int | None:
        """The run that stands out in a figure; None where none does."""
        values = [getattr(each, name) for each in self.figures]
        if name not in LOWEST + HIGHEST or any(each is None for each in values) or len(set(values)) == 1:
            return None
        return values.index((min if name in LOWEST else max)(values))

    def to_dict(self) -> dict[str, Any]:
        runs = zip(self.names, self.histories, self.figures, strict=True)
        return {
            "runs": [
                {"name": name, "engine": history.engine or None, "status": history.status, **asdict(figures)}
                for name, history, figures in runs
            ],
            "differences": self.differences,
            "notes": [WORDS[note][0] for note in self.notes],
        }


def compare_runs(run_dirs: list[Path]) -> Comparison:
    """Raises UsageError for fewer than two runs, or more than the pictures have colours for; else as read_history."""
    if not 2 <= len(run_dirs) <= len(SERIES):
        raise UsageError(tr("compare takes 2 to {most} runs, not {runs}", most=len(SERIES), runs=len(run_dirs)))
    histories = [read_history(run_dir) for run_dir in run_dirs]
    return Comparison(
        names=_names(run_dirs),
        histories=histories,
        differences=_differences(histories),
        notes=_notes(histories),
    )


def print_comparison(comparison: Comparison, console: Console) -> None:
    table = Table("", *(Column(header=Text(name)) for name in comparison.names))
    engines = [history.engine or WORDS["not_known"][0] for history in comparison.histories]
    table.add_row(WORDS["engine"][0], *map(Text, engines))
    table.add_row(WORDS["status"][0], *(WORDS[history.status][0] for history in comparison.histories), end_section=True)
    rows = comparison.rows()
    for number, (name, cells) in enumerate(rows, 1):
        best = comparison.best(name)
        texts = [Text(cell, style="bold" if each == best else "") for each, cell in enumerate(cells)]
        table.add_row(WORDS[name][0], *texts, end_section=number == len(rows))
    for setting, values in comparison.differences.items():
        table.add_row(setting, *map(Text, values))
    console.print(table)
    if not comparison.differences:
        console.print(WORDS["no_differences"][0], style="dim")
    for note in comparison.notes:
        console.print(
            tr("note: {note}", note=WORDS[note][LANGUAGES.index(language())]), highlight=False, soft_wrap=True
        )


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """The page and its pictures. Returns the files, the page first. Raises TwinGPTError as write_page does."""
    require_packages()
    return write_page(
        out,
        "compare.html",
        panels(comparison),
        comparison=comparison,
        colours=SERIES,
    )


def panels(comparison: Comparison) -> list[Panel]:
    def panel(name: str, metric: str, over: str, *, prefixes: bool = False) -> Panel:
        lines = []
        for label, history, colour in zip(comparison.names, comparison.histories, SERIES, strict=False):
            points = history.points(metric)
            if over == "tokens":
                points = history.by_tokens(points)
            evaluated = metric in ("val_loss", "bits_per_byte")
            lines.append(
                Line(
                    label=label,
                    points=points,
                    colour=colour,
                    marks=evaluated,
                    smooth=not evaluated and metric == "loss",
                )
            )
        return Panel(name=f"{name}-over-{over}", lines=lines, prefixes=prefixes)

    return [
        *(panel(name, metric, over) for name, metric in CURVES.items() for over in ("steps", "tokens")),
        panel("tokens-per-second", "tokens_per_second", "steps", prefixes=True),
        panel("learning-rate", "lr", "steps"),
    ]


CURVES = {"train-loss": "loss", "val-loss": "val_loss", "bits-per-byte": "bits_per_byte"}


def _at(loss: float | None, step: int | None) -> str:
    return figure(loss) if step is None else f"{figure(loss)} ({step:,})"


def _names(run_dirs: list[Path]) -> list[str]:
    """The folders' names, with those above them where two would be alike, and a number where they are the same run."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    depth = next((n for n in range(1, max(map(len, parts)) + 1) if len({each[-n:] for each in parts}) == len(parts)), 1)
    names = ["/".join(each[-depth:]) for each in parts]
    return [f"{name} #{n}" if names.count(name) > 1 else name for n, name in enumerate(names, 1)]


def _differences(histories: list[History]) -> dict[str, list[str]]:
    settings = [
        {
            **{f"model.{name}": setting for name, setting in history.config.model.to_dict().items()},
            **{f"train.{name}": setting for name, setting in asdict(history.config.train).items()},
        }
        for history in histories
    ]
    return {
        name: [value(each[name]) for each in settings]
        for name in settings[0]
        if any(each[name] != settings[0][name] for each in settings)
    }


def _notes(histories: list[History]) -> list[str]:
    def differ(of: Callable[[History], Any]) -> bool:
        return len({each for history in histories if (each := of(history))}) > 1

    notes = []
    if differ(lambda history: history.fingerprint.get("tokenizer")):
        notes.append("other_tokenizer")
    if differ(lambda history: history.fingerprint.get("data")):
        notes.append("other_data")
    if differ(lambda history: history.sessions[-1].machine.get("chip") if history.sessions else None):
        notes.append("other_machine")
    return notes
