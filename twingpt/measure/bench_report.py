"""What people see of a measurement: tables for the terminal, and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twingpt.core.engines import find_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.measure.throughput import BLOCKS, PROMPT, SLOTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIB = 1024**2


def print_result(result: dict[str, Any], console: Console) -> None:
    model, train = result["model"], result["train"]
    console.print(
        tr(
            "{chip}, {memory}: {parameters:,} parameters, "
            "{flops_per_token:,.0f} MFLOP a token, batch {batch_size} x {block_size}, "
            "dropout {dropout:g}",
            chip=result["machine"]["chip"],
            memory=result["machine"]["memory"],
            parameters=result["parameters"],
            flops_per_token=result["flops_per_token"] / 1e6,
            batch_size=train["batch_size"],
            block_size=model["block_size"],
            dropout=model["dropout"],
        ),
        highlight=False,
    )
    table = Table("", *(_heading(row) for row in result["engines"]))
    for name, cells in _lines(result["engines"]):
        table.add_row(name, *cells)
    console.print(table)
    for row in result["engines"]:
        if "failed" in row:
            console.print(Text(f"{_heading(row)}: {row['failed']}"), soft_wrap=True)
    limits = next(row for row in result["engines"] if "failed" not in row)["roofline"]
    console.print(
        tr(
            "Limit of training: {training}; of generation: {generation}. Speeds are "
            "medians, of {blocks} blocks in training. Prompts have up to {prompt} tokens. Memory: the device's; on a "
            "CPU, "
            "the process's above its imports.",
            training=limits["training_limit"],
            generation=limits["generation_limit"],
            blocks=BLOCKS,
            prompt=PROMPT,
        ),
        style="dim",
        highlight=False,
    )


def _heading(row: dict[str, Any]) -> str:
    return f"{row['backend']} ({find_engine(row['backend']).title})\n{row['precision']}"


def _lines(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    def cells(show: Any) -> list[str]:
        return ["-" if "failed" in row else show(row) for row in rows]

    lines = [
        (tr("device"), cells(lambda row: row["device"])),
        (tr("sequences at a time"), cells(lambda row: f"{row['micro_batch']}")),
        (tr("training, tokens/s"), cells(lambda row: _speed(row["training"]))),
        (tr("  slowest to fastest"), cells(lambda row: _range(row["training"]))),
        (tr("  share of the limit"), cells(lambda row: f"{row['roofline']['training']:.0%}")),
        (tr("  time of an update"), cells(lambda row: _time(row["training"]["step_seconds"]))),
        (tr("  peak memory"), cells(lambda row: f"{row['peak_bytes'] / MIB:,.0f} MiB")),
        (tr("products, GFLOP/s"), cells(lambda row: f"{row['matmul_flops'] / 1e9:,.0f}")),
        (tr("start until ready"), cells(lambda row: _time(row["start_seconds"]))),
        (tr("first token"), cells(lambda row: _time(row["first_token_seconds"]))),
    ]
    for number, slots in enumerate(SLOTS):
        what = tr("1 text") if slots == 1 else tr("{slots} texts", slots=slots)
        lines += [
            (tr("{what}, tokens/s", what=what), cells(lambda row, n=number: _speed(row["generation"][n]))),
            (tr("  slowest to fastest"), cells(lambda row, n=number: _range(row["generation"][n]))),
            (tr("  share of the limit"), cells(lambda row, n=number: f"{row['roofline']['generation'][n]:.0%}")),
        ]
    return lines


def _speed(speed: dict[str, float]) -> str:
    return f"{speed['tokens_per_second']:,.0f}"


def _range(speed: dict[str, float]) -> str:
    return f"{speed['slowest']:,.0f}-{speed['fastest']:,.0f}"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{seconds * 1000:.1f} ms"


def check_can_draw() -> None:
    """Raises TwinGPTError, before minutes of measuring, if there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TwinGPTError(
            tr("a picture needs matplotlib, which is not installed: pip install 'twingpt[plot]'")
        ) from None


def draw(result: dict[str, Any], path: Path) -> None:
    """Both engines side by side in four panels. Raises TwinGPTError if the file cannot be written."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in result["engines"] if "failed" not in row]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    training, memory, generation, share = figure.subplots(2, 2).flatten()
    texts = [f"{slots} text{'s' if slots > 1 else ''} at a time" for slots in SLOTS]
    _bars(training, rows, "Training, tokens/s", {"": [row["training"] for row in rows]})
    _bars(memory, rows, "Peak memory of training, MiB", {"": [_bar(row["peak_bytes"] / MIB) for row in rows]})
    by_slots = {text: [row["generation"][n] for row in rows] for n, text in enumerate(texts)}
    _bars(generation, rows, "Generation, tokens/s", by_slots)
    shares = {"training": [_bar(100 * row["roofline"]["training"]) for row in rows]} | {
        text: [_bar(100 * row["roofline"]["generation"][n]) for row in rows] for n, text in enumerate(texts)
    }
    limits = dict.fromkeys((rows[0]["roofline"]["training_limit"], rows[0]["roofline"]["generation_limit"]))
    _bars(share, rows, f"Share of the limit, % ({'; '.join(limits)})", shares)
    share.set_ylim(0, max(118, share.get_ylim()[1]))
    share.axhline(100, color="0.5", linewidth=0.8, linestyle="--")
    model = result["model"]
    figure.suptitle(
        f"twingpt on {result['machine']['chip']}: {model['n_layer']} layers x {model['n_embd']}, "
        f"{result['parameters'] / 1e6:,.1f} M parameters, batch {result['train']['batch_size']} x {model['block_size']}"
    )
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise TwinGPTError(tr("{path} cannot be drawn: {error}", path=path, error=error)) from None


def _bar(value: float) -> dict[str, float]:
    return {"tokens_per_second": value}


def _bars(axes: Axes, rows: list[dict[str, Any]], title: str, kinds: dict[str, list[dict[str, float]]]) -> None:
    """A group for each engine and precision, a bar for each kind, with an error bar from slowest to fastest."""
    from matplotlib.patches import Patch

    width = 0.8 / len(kinds)
    fades = [1.0 - 0.35 * number for number in range(len(kinds))]
    for number, values in enumerate(kinds.values()):
        places = [group + (number - (len(kinds) - 1) / 2) * width for group in range(len(rows))]
        heights = [value["tokens_per_second"] for value in values]
        low = [h - value.get("slowest", h) for h, value in zip(heights, values, strict=True)]
        high = [value.get("fastest", h) - h for h, value in zip(heights, values, strict=True)]
        bars = axes.bar(
            places,
            heights,
            width * 0.92,
            color=[find_engine(row["backend"]).colour for row in rows],
            alpha=fades[number],
            yerr=(low, high) if any(low + high) else None,
            capsize=3,
            ecolor="0.25",
        )
        axes.bar_label(bars, [f"{height:,.0f}" for height in heights], padding=3, fontsize=9)
    if len(kinds) > 1:
        handles = [Patch(color="0.2", alpha=fade, label=label) for label, fade in zip(kinds, fades, strict=True)]
        axes.legend(handles=handles, frameon=False, fontsize=9, ncols=len(kinds), loc="upper center")
    axes.set_xticks(
        range(len(rows)), [f"{find_engine(row['backend']).title}\n{row['device']}, {row['precision']}" for row in rows]
    )
    axes.set_xlim(-0.6, len(rows) - 0.4)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.15)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
