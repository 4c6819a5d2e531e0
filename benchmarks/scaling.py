"""Does the cost of training grow as it should, with the batch, the context and the width?

    python benchmarks/scaling.py [--backend mps mlx] [--device auto] [--rounds 3] [--dropout 0] [--clock wall|cpu]
    python benchmarks/scaling.py --draw      # the picture once more, from the figures

Trains a small model on random tokens, one setting changed at a time, and holds tokens/s against the model of the cost:
the FLOPs of twingpt.core.params.flops_per_token at the speed of that shape's products, measured in the same process.
The engines take turns, each in a fresh process a round; what is told is the median over the rounds. --clock cpu counts
the process's seconds on the CPU instead, for a machine that other work shares, and needs OMP_NUM_THREADS=1 and
OPENBLAS_NUM_THREADS=1. Writes results/scaling.json and results/scaling.png beside this file.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BASE = {"n_layer": 4, "n_head": 4, "n_embd": 192, "block_size": 256, "vocab_size": 4000}
BATCH = 4
AXES: dict[str, list[int]] = {
    "batch_size": [1, 2, 4, 8, 16],
    "block_size": [64, 128, 256, 512],
    "n_embd": [64, 128, 192, 256, 384],
}
LABELS = {
    "batch_size": "batch size, sequences",
    "block_size": "context (block_size), tokens",
    "n_embd": "width (n_embd)",
}
TITLES = {"mps": "PyTorch", "mlx": "MLX"}
COLOURS = {"mps": "#d1495b", "mlx": "#2e6f95"}
UPDATES = 2
RESULTS = Path(__file__).parent / "results"


def points() -> Iterator[tuple[str, int]]:
    for axis, values in AXES.items():
        for value in values:
            yield axis, value


def measure(backend: Any, device: Any, dropout: float) -> list[dict[str, Any]]:
    """Every point once, in this process."""
    from twingpt.core.backend import EngineConfig, create_backend
    from twingpt.core.engines import find_engine
    from twingpt.core.init import initial_weights
    from twingpt.core.params import flops_per_token
    from twingpt.core.spec import GPTSpec
    from twingpt.core.state import MODEL
    from twingpt.measure.products import matmul_speed

    arrays = find_engine(backend).arrays(device, "float32")
    config = EngineConfig(device=device)
    rows = []
    for axis, value in points():
        settings: dict[str, Any] = {**BASE, "batch_size": BATCH, axis: value}
        batch = settings.pop("batch_size")
        spec = GPTSpec(**settings, dropout=dropout)
        engine = create_backend(backend, spec, config)
        engine.load_state({MODEL + name: weight for name, weight in initial_weights(spec, 0).items()})
        tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (1, batch, spec.block_size + 1), dtype=np.int32)
        seconds = []
        for step in range(1 + UPDATES):
            start = time.perf_counter()
            engine.train_step(tokens[..., :-1], tokens[..., 1:], 3e-4, step)
            engine.read_stats()
            seconds.append(time.perf_counter() - start)
        rows.append(
            {
                "axis": axis,
                "value": value,
                "device": engine.device,
                "tokens_per_second": batch * spec.block_size / statistics.mean(seconds[1:]),
                "matmul_flops": matmul_speed(arrays, spec, batch * spec.block_size, config.loss_chunk),
                "flops_per_token": flops_per_token(spec),
            }
        )
    return rows


def in_a_fresh_process(backend: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--one", "--backend", backend, "--device", options.device]
    command += ["--dropout", str(options.dropout), "--clock", options.clock]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows: list[dict[str, Any]] = json.loads(output.splitlines()[-1])
    return rows


def medians(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row a point from the same row of every round."""
    rows = []
    for same in zip(*rounds, strict=True):
        row = dict(same[0])
        for name in ("tokens_per_second", "matmul_flops"):
            row[name] = statistics.median(each[name] for each in same)
        row["slowest"] = min(each["tokens_per_second"] for each in same)
        row["fastest"] = max(each["tokens_per_second"] for each in same)
        row["model_tokens_per_second"] = row["matmul_flops"] / row["flops_per_token"]
        rows.append(row)
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """Tokens/s over each axis with the cost model beside it, and below what share of the model is reached."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    figure = Figure(figsize=(12, 7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(AXES), sharex="col", sharey="row", height_ratios=[2, 1])
    for column, (axis, values) in enumerate(AXES.items()):
        speeds, shares = grid[0][column], grid[1][column]
        for backend, rows in result["engines"].items():
            rows = [row for row in rows if row["axis"] == axis]
            xs = [row["value"] for row in rows]
            ys = [row["tokens_per_second"] for row in rows]
            model = [row["model_tokens_per_second"] for row in rows]
            colour, title = COLOURS[backend], TITLES[backend]
            spread = (
                [row["tokens_per_second"] - row["slowest"] for row in rows],
                [row["fastest"] - row["tokens_per_second"] for row in rows],
            )
            speeds.errorbar(xs, ys, yerr=spread, color=colour, marker="o", capsize=3, label=f"{title}, measured")
            speeds.plot(xs, model, color=colour, linestyle="--", label=f"{title}, FLOPs at the speed of its products")
            shares.plot(xs, [100 * y / m for y, m in zip(ys, model, strict=True)], color=colour, marker="o")
        for axes in (speeds, shares):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(values))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.grid(alpha=0.25, which="both")
            axes.spines[["top", "right"]].set_visible(False)
        shares.set_xlabel(LABELS[axis])
    grid[0][0].set_yscale("log")
    grid[0][0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    grid[0][0].yaxis.set_minor_locator(NullLocator())
    grid[0][0].yaxis.set_major_formatter("{x:,.0f}")
    grid[0][0].set_ylabel("training, tokens/s")
    grid[1][0].set_ylabel("measured / model, %")
    # MLX on a CPU can pass its products: OpenBLAS shares out each of them, the engine the batch, which scales better.
    grid[1][0].set_ylim(0, max(105.0, *(1.05 * axes.dataLim.ymax for axes in grid[1])))
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(result["engines"]), frameon=False)
    figure.suptitle(
        f"{BASE['n_layer']} layers x {BASE['n_embd']}, batch {BATCH} x {BASE['block_size']}, vocabulary "
        f"{BASE['vocab_size']:,}, float32, one setting changed at a time\n"
        f"{result['chip']}, {result['cores']} cores{', seconds of one core' if result['clock'] == 'cpu' else ''}"
    )
    figure.savefig(path, dpi=140)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=["mps", "mlx"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--draw", action="store_true", help="only draw results/scaling.json again")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        if options.clock == "cpu":
            time.perf_counter = time.process_time
        print(json.dumps(measure(options.backend[0], options.device, options.dropout)))
        return
    figures, picture = RESULTS / "scaling.json", RESULTS / "scaling.png"
    if not options.draw:
        from twingpt.checks.machine import machine, versions

        rounds: dict[str, list[list[dict[str, Any]]]] = {backend: [] for backend in options.backend}
        for number in range(options.rounds):
            # Whoever comes second meets a warmer machine: they change places.
            for backend in options.backend if number % 2 == 0 else reversed(options.backend):
                rounds[backend].append(in_a_fresh_process(backend, options))
                print(f"round {number + 1} of {options.rounds}: {backend}", flush=True)
        result = {
            "machine": platform.platform(),
            "chip": machine()["chip"],
            "cores": os.cpu_count(),
            "versions": versions(),
            "clock": options.clock,
            "dropout": options.dropout,
            "rounds": options.rounds,
            "engines": {backend: medians(rows) for backend, rows in rounds.items()},
        }
        RESULTS.mkdir(exist_ok=True)
        figures.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    result = json.loads(figures.read_text(encoding="utf-8"))
    draw(result, picture)
    for backend, rows in result["engines"].items():
        for row in rows:
            share = row["tokens_per_second"] / row["model_tokens_per_second"]
            print(
                f"{backend} {row['axis']:10} {row['value']:4}: {row['tokens_per_second']:9,.0f} tokens/s, "
                f"model {row['model_tokens_per_second']:9,.0f} ({share:.0%})"
            )


if __name__ == "__main__":
    main()
