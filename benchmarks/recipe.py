"""How many tokens, and how much time, does preset `modern` need for what preset `seed` learns in 900 updates?

    python benchmarks/recipe.py TEXT --out FOLDER [--backend mps] [--seeds 0 1]

TEXT is a plain Korean text of some 60 MB. Prepares it (vocabulary 8,000), trains 4 layers x 256 in batches of 12 x 256
tokens by three recipes (`seed` as the user wrote it for 900 updates; `modern` for a quarter of them, its schedule sized
to that; nanoGPT's, one seed, for as many as `modern`), evaluates each on the whole validation split, and times updates
of `seed` and `modern` in turn. Runs that stand in FOLDER already are gone on with, or taken as they are. About an hour
on two cores. Writes results/recipe.json beside this file.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 256}
NANOGPT = {
    "model": {"bias": False, "tie_embeddings": True, "dropout": 0.0, "residual_init": "scaled"},
    "train": {
        "learning_rate": 6e-4,
        "min_learning_rate": 6e-5,
        "schedule": "cosine",
        "warmup_steps": 100,
        "beta2": 0.95,
        "weight_decay": 0.1,
    },
}
"""train.py's defaults; its warm-up of 2,000 updates would not end here."""

RECIPES: dict[str, dict[str, Any]] = {
    "seed": {"preset": "seed", "steps": 900, "config": {}},
    "modern": {"preset": "modern", "steps": 225, "config": {}},
    "nanogpt": {"preset": "seed", "steps": 225, "config": NANOGPT},
}
BATCH = 12


def command(*arguments: object) -> str:
    words = [sys.executable, "-m", "twingpt", *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(folder: Path, name: str, seed: int, backend: str) -> Path:
    """The run of one recipe and seed, from where it stands."""
    recipe, run = RECIPES[name], folder / f"{name}-{seed}"
    config = folder / f"{name}.toml"
    content = {"model": {**MODEL, **recipe["config"].get("model", {})}, "train": recipe["config"].get("train", {})}
    config.write_bytes(tomli_w.dumps(content).encode())
    if (run / "checkpoints" / f"step-{recipe['steps']:08d}").is_dir():
        return run
    options = ["--resume"] if (run / "checkpoints").is_dir() else ["--data", folder / "data", "--config", config]
    options += ["--preset", recipe["preset"], "--steps", recipe["steps"], "--batch-size", BATCH, "--seed", seed]
    command("train", "--out", run, "--backend", backend, *options, "--eval-every", 75, "--json")
    return run


def seconds_per_update(folder: Path, names: list[str], backend: str, rounds: int) -> dict[str, list[float]]:
    """Of the recipes in turn, each in a fresh process, compilation and first update left out."""
    from twingpt.training.config import make_config
    from twingpt.training.probe import probe

    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            config = make_config(
                preset=RECIPES[name]["preset"],
                config_file=folder / f"{name}.toml",
                model={"vocab_size": 8000},
                train={"batch_size": BATCH},
                data="",
            )

            taken[name].append(probe(config.model, config.train, backend, "auto", BATCH, 5).seconds_per_step)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backend", default="mps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.out / "data"
    if not (data / "manifest.json").is_file():
        command(
            "prepare",
            options.text,
            "--out",
            data,
            "--template",
            "plain",
            "--separator",
            "blank-line",
            "--vocab-size",
            8000,
            "--no-dedup",
        )

    rows = []
    for name, recipe in RECIPES.items():
        for seed in options.seeds if name != "nanogpt" else options.seeds[:1]:
            run = train(options.out, name, seed, options.backend)
            found = json.loads(
                command("eval", run, "--data", data, "--backend", options.backend, "--prompts", 0, "--json")
            )
            rows.append(
                {
                    "recipe": name,
                    "seed": seed,
                    "updates": recipe["steps"],
                    "tokens": recipe["steps"] * BATCH * MODEL["block_size"],
                    "val_loss": found["loss"],
                    "bits_per_byte": found["bits_per_byte"],
                }
            )
            print(f"{name} {seed}: {recipe['steps']} updates, {found['bits_per_byte']:.4f} bits per byte", flush=True)
    times = seconds_per_update(options.out, ["seed", "modern"], options.backend, options.rounds)
    update = statistics.median(m / s for s, m in zip(times["seed"], times["modern"], strict=True))
    steps = RECIPES["modern"]["steps"] / RECIPES["seed"]["steps"]
    print(
        f"an update of modern takes {update:.2f} x seed's; {steps:.2f} of the tokens, {steps * update:.2f} of the time"
    )
    result = {
        "machine": platform.platform(),
        "backend": options.backend,
        "rows": rows,
        "seconds_per_update": times,
        "time_ratio": steps * update,
    }
    path = Path(__file__).parent / "results" / "recipe.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
