"""How near are the memory and time that `twingpt train` announces to what the run then takes?

    python benchmarks/estimates.py [--backend mps mlx] [--device cpu] [--size small medium seed] [--clock wall|cpu]

Trains in a fresh process for each engine and size, on text made up here, with dropout, and prints estimate against
measurement: memory is the peak of the resident set above what importing the framework took (on a GPU the device's own
peak), time is that of the run after its warm-up; --clock cpu counts this process's seconds on the CPU instead, for a
machine that other work shares, and needs OMP_NUM_THREADS=1. Writes results/estimates.json beside this file.
"""

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES: dict[str, dict[str, Any]] = {
    "small": {"vocabulary": 4000, "model": {"n_layer": 4, "n_head": 4, "n_embd": 128}, "batch_size": 8, "steps": 60},
    "medium": {"vocabulary": 8000, "model": {"n_layer": 6, "n_head": 4, "n_embd": 256}, "batch_size": 8, "steps": 24},
    "seed": {"vocabulary": 16_000, "model": {}, "batch_size": 4, "steps": 24},
}
TOLERANCE = 0.25


def make_data(folder: Path, vocabulary: int) -> None:
    """A DATA folder of made-up Korean: words of random syllables, some of them frequent."""
    from twingpt.data.tokens.manifest import Manifest, Split
    from twingpt.data.tokens.tokenizer import train_tokenizer

    generator = np.random.default_rng(0)
    syllables = [chr(0xAC00 + i) for i in generator.choice(11_172, 1500, replace=False)]
    words = ["".join(generator.choice(syllables, generator.integers(1, 5))) for _ in range(30_000)]
    ranks = np.minimum(generator.zipf(1.2, 300_000) - 1, len(words) - 1)
    text = " ".join(words[rank] for rank in ranks)
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(iter([text]), vocabulary)
    tokenizer.save(folder / "tokenizer.json")
    tokens = np.array(tokenizer.encode(text), dtype=np.uint16)
    splits = {}
    for name, part in (("train", tokens[20_000:]), ("val", tokens[:20_000])):
        part.tofile(folder / f"{name}.bin")
        splits[name] = Split(
            file=f"{name}.bin",
            tokens=len(part),
            documents=1,
            text_bytes=len(text.encode()),
            sha256=hashlib.sha256(part.tobytes()).hexdigest(),
        )
    Manifest(
        layout="contiguous",
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        block_size=256,
        pad_id=tokenizer.pad_id,
        template="plain",
        text_sha256="made up",
        tokenizer_sha256=tokenizer.sha256,
        train=splits["train"],
        val=splits["val"],
    ).save(folder)


def measure(data: Path, run: Path, backend: str, device: str, size: str) -> dict[str, Any]:
    """One run in this process."""
    from twingpt.core.engines import find_engine
    from twingpt.core.memory import process_memory
    from twingpt.training.session import TrainRequest, open_session

    find_engine(backend).part("backend")
    imported = process_memory()[0]
    settings = SIZES[size]
    steps = settings["steps"]
    request = TrainRequest(
        run_dir=run,
        data_dir=data,
        backend=backend,
        device=device,  # type: ignore[arg-type]
        model=settings["model"],
        train={
            "steps": steps,
            "batch_size": settings["batch_size"],
            "eval_every": steps // 2,
            "save_every": steps // 2,
            "eval_windows": 16,
            "sample_tokens": 40,
        },
    )
    session = open_session(request)
    estimate = session.trainer.warm_up()
    started = time.perf_counter()
    for _ in session.trainer.run():
        pass
    seconds = time.perf_counter() - started
    peak = session.backend.memory()[1]
    return {
        "device": session.backend.device,
        "memory_estimate": session.memory.estimate.total,
        "memory": peak - imported if session.backend.device == "cpu" else peak,
        "time_estimate": estimate.total,
        "time": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=["mps", "mlx"])
    parser.add_argument("--size", nargs="+", default=list(SIZES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        data, run = map(Path, options.one)
        if options.clock == "cpu":
            time.perf_counter = time.process_time
        print(json.dumps(measure(data, run, options.backend[0], options.device, options.size[0])))
        return

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.size:
            make_data(Path(folder) / size, SIZES[size]["vocabulary"])
            for backend in options.backend:
                rows.append(
                    {"backend": backend, "size": size, **in_a_fresh_process(Path(folder), options, backend, size)}
                )
                report(rows[-1])
    result = {"machine": platform.platform(), "cores": os.cpu_count(), "clock": options.clock, "rows": rows}
    path = Path(__file__).parent / "results" / "estimates.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def in_a_fresh_process(folder: Path, options: argparse.Namespace, backend: str, size: str) -> dict[str, Any]:
    paths = [str(folder / size), str(folder / f"{size}-{backend}")]
    command = [sys.executable, __file__, "--backend", backend, "--size", size, "--device", options.device]
    command += ["--clock", options.clock]
    output = subprocess.run([*command, "--one", *paths], check=True, stdout=subprocess.PIPE, text=True).stdout
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer


def report(row: dict[str, Any]) -> None:
    memory, seconds = row["memory_estimate"] / row["memory"] - 1, row["time_estimate"] / row["time"] - 1
    verdict = "within" if max(abs(memory), abs(seconds)) <= TOLERANCE else "NOT within"
    print(
        f"{row['size']:7} {row['backend']} on {row['device']}: "
        f"memory {row['memory_estimate'] / 1e6:,.0f} MB estimated, {row['memory'] / 1e6:,.0f} taken ({memory:+.0%}); "
        f"time {row['time_estimate']:.1f} s estimated, {row['time']:.1f} taken ({seconds:+.0%}): "
        f"{verdict} {TOLERANCE:.0%}",
        flush=True,
    )


if __name__ == "__main__":
    main()
