"""Do answers about documents that the model never saw keep their form?

    python benchmarks/held_out.py --out FOLDER [--seeds 0 1] [--prompts 110]

The example text with 150 questions a document, 14 of its documents held out. Trains 4 layers x 128 for 3,000 updates of
4 x 256 tokens by preset `modern` (once a seed) and, beside it, by preset `seed` as the user wrote it (first seed). Asks
each about the held-out documents in both engines, greedily: as the model writes, and with --format answer
--fill-contacts. Runs that stand in FOLDER already are gone on with, or taken as they are. Some 20 core minutes a model.
Writes results/held_out.json beside this file, and every answer to FOLDER.
"""

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import tomli_w

EXAMPLE = Path(__file__).parents[1] / "twingpt" / "examples" / "ph_life_ko.txt"
BACKENDS = ("mps", "mlx")
STEPS = 3000
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128}
RECIPES: dict[str, dict[str, Any]] = {
    # Batches of 4 want half the rate of preset modern's 16, and the matrices more of it.
    "modern": {"batch_size": 4, "learning_rate": 1e-2, "muon_lr_scale": 0.3},
    "seed": {"batch_size": 4},
}
FORMS: dict[str, list[str]] = {"as written": [], "structured": ["--format", "answer", "--fill-contacts"]}
FIGURES = ("in_order", "all_sections", "numbers", "invented_numbers", "contact_precision", "contact_recall")


def command(*arguments: object) -> str:
    words = [sys.executable, "-m", "twingpt", *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(folder: Path, name: str, seed: int) -> Path:
    """The run of one recipe and seed, from where it stands."""
    run, config = folder / f"{name}-{seed}", folder / f"{name}.toml"
    config.write_bytes(tomli_w.dumps({"model": MODEL, "train": RECIPES[name]}).encode())
    if (run / "checkpoints" / f"step-{STEPS:08d}").is_dir():
        return run
    options = ["--resume"] if (run / "checkpoints").is_dir() else ["--data", folder / "data", "--config", config]
    command("train", "--out", run, "--preset", name, "--steps", STEPS, "--seed", seed, "--eval-every", 0, *options)
    return run


def ask(run: Path, data: Path, backend: str, form: str, prompts: int) -> dict[str, Any]:
    """The figures of one engine's answers, and the file that has them."""
    samples = run.parent / f"{run.name}-{backend}-{form.replace(' ', '-')}.txt"
    options = ["--prompts", prompts, "--samples", samples, *FORMS[form]]
    found = json.loads(command("eval", run, "--data", data, "--backend", backend, "--json", *options))
    answers = found["answers"]["all"]
    return {
        "backend": backend,
        "form": form,
        "loss": found["loss"],
        "bits_per_byte": found["bits_per_byte"],
        "answers": answers["answers"],
        **{figure: answers[figure] for figure in FIGURES},
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--prompts", type=int, default=110)
    options = parser.parse_args()
    data = options.out / "data"
    if not (data / "manifest.json").is_file():
        text: list[object] = [EXAMPLE, "--vocab-size", 3000, "--val-fraction", 0.15, "--samples-per-doc", 150]
        command("prepare", *text, "--out", data)

    rows: list[dict[str, Any]] = []
    for name in RECIPES:
        for seed in options.seeds if name == "modern" else options.seeds[:1]:
            run = train(options.out, name, seed)
            for form in FORMS:
                found = [ask(run, data, backend, form, options.prompts) for backend in BACKENDS]
                texts = [one.pop("samples").read_bytes() for one in found]
                for one in found:
                    rows.append({"recipe": name, "seed": seed, **one, "same_texts": texts[0] == texts[1]})
                    told = {figure: one[figure] for figure in FIGURES if one[figure] is not None}
                    figures = ", ".join(f"{figure} {value:.3g}" for figure, value in told.items())
                    print(f"{name} {seed}, {one['backend']}, {form}: {figures}", flush=True)
                print(f"the same texts in both engines: {texts[0] == texts[1]}", flush=True)
    result = {"machine": platform.platform(), "rows": rows}
    path = Path(__file__).parent / "results" / "held_out.json"
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
