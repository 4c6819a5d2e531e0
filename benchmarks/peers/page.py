"""Write RESULTS.md and its pictures from the results files.

    python benchmarks/peers/page.py [--results FOLDER] [--page FILE]

Reads what the scripts beside this file, checkpoint_stall.py and startup.py wrote; a file that is missing is left out
and named. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from pairs import RESULTS, Row

OURS, PEER, LIMIT = "#2a6f97", "#b8b8b8", "#d08c60"
HEAD = """# Beside the peers

Made by `python benchmarks/peers/page.py` from the files in [results/](results): each section names the script that
measured it. Candidates ran in turn, every one in a fresh process; figures are medians, and a ratio is taken round by
round (median, least to greatest). None of the peers' code is in this repository.
"""


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def promises(result: Row) -> str:
    rows = []
    for line in result["targets"]:
        measured = f"{line['median']:.2f} ({line['least']:.2f} to {line['greatest']:.2f})"
        wanted = f"≥ {line['at_least']:g}" if line["at_least"] is not None else f"≤ {line['at_most']:g}"
        rows.append([line["what"], measured, wanted, "yes" if line["met"] else "**no**"])
    return table(["", "measured", "wanted", "met"], rows)


def machine_line(result: Row) -> str:
    machine, versions = result["machine"], result["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "mlx", "numpy") if name in versions)
    return (
        f"{machine['chip']}, {machine['cores']} cores, {machine['memory']}; {versions['system']}; {packages}; "
        f"{result['date']}, load before the start {result['load']:.1f}.\n"
    )


def bars(axes: Axes, values: dict[str, float], title: str) -> None:
    names = list(values)[::-1]
    colours = [LIMIT if name == "sgemm" else OURS if name.startswith("twingpt") else PEER for name in names]
    drawn = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(drawn, labels=[number(values[name]) for name in names], padding=4)
    axes.margins(x=0.15)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def picture(path: Path, panels: list[tuple[str, dict[str, float]]]) -> str:
    """Bars side by side, in one file; returns the Markdown that shows it."""
    longest = max(len(values) for _, values in panels)
    figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 0.9 + 0.42 * longest), squeeze=False)
    for place, (title, values) in zip(axes[0], panels, strict=True):
        bars(place, values, title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return f"![{'; '.join(title for title, _ in panels)}](results/{path.name})\n"


def train_torch(result: Row, pictures: Path) -> list[str]:
    batches = result["batches"]
    panels = [(f"tokens/s, batch {batch} x 256", batches[batch]["tokens_per_second"]) for batch in batches]
    panels += [
        (f"peak MB above the imports, batch {batch} x 256", batches[batch]["peak_megabytes"]) for batch in batches
    ]
    rows = [
        [
            f"{name}, batch {batch}",
            number(speed),
            number(measured["peak_megabytes"][name]) if name in measured["peak_megabytes"] else "",
            f"{measured['speed_ratio'][name]['median']:.2f}" if name in measured["speed_ratio"] else "",
            f"{measured['memory_ratio'][name]['median']:.2f}" if name in measured["memory_ratio"] else "",
        ]
        for batch, measured in batches.items()
        for name, speed in measured["tokens_per_second"].items()
    ]
    return [
        picture(pictures / "train_torch_speed.png", panels[:2]),
        picture(pictures / "train_torch_memory.png", panels[2:]),
        table(["", "tokens/s", "peak MB", "twingpt's speed / its", "twingpt's memory / its"], rows),
        "`sgemm` is no trainer: torch.mm at the shapes of the step's products and nothing else.\n",
    ]


def train_mlx(result: Row, pictures: Path) -> list[str]:
    speed, memory = result["tokens_per_second"], result["peak_megabytes"]
    panels = [("tokens/s, batch 4 x 256", speed), ("peak MB above the imports", memory)]
    rows = [[name, number(speed[name]), number(memory[name])] for name in speed]
    return [picture(pictures / "train_mlx.png", panels), table(["", "tokens/s", "peak MB"], rows)]


def generate(result: Row, pictures: Path) -> list[str]:
    speed, first = result["tokens_per_second"], result["one_token_seconds"]
    rows = [[name, number(speed[name]), f"{1000 * first[name]:.0f}"] for name in speed]
    return [
        picture(pictures / "generate.png", [("tokens/s, 200 tokens from a prompt of 56", speed)]),
        table(["", "tokens/s, all prompts", "prompt and first token, ms"], rows),
    ]


def checkpoint_stall(result: Row, pictures: Path) -> list[str]:
    rows = [
        [
            name,
            f"{row['step_seconds']:.2f}",
            f"{row['stall_seconds']:.2f}",
            f"{row['stall_in_steps']['median']:.2f}",
            f"{row['whole_in_steps']['median']:.2f}",
        ]
        for name, row in result["rows"].items()
    ]
    heads = ["", "a step, s", "a save holds up, s", "in steps", "all that it costs, in steps"]
    return [table(heads, rows)]


def startup(result: Row, pictures: Path) -> list[str]:
    rows = [[name, f"{value['median']:.2f}"] for name, value in result["seconds"].items()]
    imported = [f"`{what}` imports {', '.join(names) or 'none'}" for what, names in result["imported"].items()]
    return [table(["", "seconds"], rows), f"Of numpy, torch and mlx, {'; '.join(imported)}.\n"]


SECTIONS: dict[str, tuple[str, str, Callable[[Row, Path], list[str]]]] = {
    "train_torch": ("Training in PyTorch", "peers/train_torch.py", train_torch),
    "train_mlx": ("Training in MLX", "peers/train_mlx.py", train_mlx),
    "generate": ("Generation", "peers/generate.py", generate),
    "checkpoint_stall": ("How long a checkpoint holds up training", "checkpoint_stall.py", checkpoint_stall),
    "startup": ("Start-up", "startup.py", startup),
}


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--results", type=Path, default=RESULTS)
    made.add_argument("--page", type=Path, default=RESULTS.parent / "RESULTS.md")
    options = made.parse_args()

    parts = [HEAD]
    for name, (title, script, section) in SECTIONS.items():
        path = options.results / f"{name}.json"
        if not path.is_file():
            print(f"{path} is missing: python benchmarks/{script}")
            continue
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts += [f"## {title}\n", f"`python benchmarks/{script}` on {machine_line(result)}", promises(result)]
        parts += section(result, options.results)
    options.page.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
