"""What a GPU that is lent for a few minutes shows: each figure is written as soon as it is known.

    python benchmarks/gpu.py TEXT --out FOLDER [--minutes 8] [--device gpu]

Runs, one after another and each with a limit of its own, so that one that hangs costs no other: `doctor`, `parity` and
`bench` (float32 and bfloat16) of each engine that is installed, then runs of fixed_text.py on ten times the text, for
as long as there is time. Writes FOLDER/gpu.json after each. `--device cpu` tries the script itself.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LIMITS = {"doctor": 90.0, "parity": 120.0, "bench": 60.0}
"""Seconds for each command at the most: the first call of an engine on a GPU compiles kernels."""
LEAST = 20.0
"""Seconds below which nothing more is begun."""
SHAPE = ["--preset", "modern", "--batch-size", "16"]


def commands(text: Path, out: Path, device: str) -> list[tuple[str, float | None, list[str]]]:
    """(name, seconds at the most, command): what costs little first. None: all that is left."""
    twingpt = [sys.executable, "-m", "twingpt"]
    found: list[tuple[str, float | None, list[str]]] = [
        ("doctor", LIMITS["doctor"], [*twingpt, "doctor", "--device", device, "--details"])
    ]
    for precision in ("float32", "bfloat16"):
        for engine in ("mps", "mlx"):
            words = [
                "bench",
                "--backend",
                engine,
                "--device",
                device,
                "--precision",
                precision,
                *SHAPE,
                "--seconds",
                "5",
            ]
            found.append((f"bench {engine} {precision}", LIMITS["bench"], [*twingpt, *words, "--json"]))
    found.append(("parity", LIMITS["parity"], [*twingpt, "parity", "--device", device, "--details"]))
    script = Path(__file__).parent / "fixed_text.py"
    size = ["--megabytes", "30", "--width", "384", "--device", device]
    results = ["--results", str(out / "fixed_text.json")]
    found.append(("fixed text", None, [sys.executable, str(script), str(text), "--out", str(out), *size, *results]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"machine": platform.platform(), "device": options.device}
    for name, limit, command in commands(options.text, options.out, options.device):
        left = ends - time.monotonic()
        if left < LEAST:
            found[name] = "no time was left"
            continue
        started = time.monotonic()
        # What a command printed until its time was over counts too.
        with (options.out / f"{name.replace(' ', '-')}.txt").open("w+", encoding="utf-8") as output:
            try:
                code: int | str = subprocess.run(
                    command, stdout=output, stderr=subprocess.STDOUT, timeout=min(left, limit or left), check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = "ended by its limit"
            output.seek(0)
            found[name] = {
                "code": code,
                "seconds": round(time.monotonic() - started, 1),
                "output": output.read()[-4000:],
            }
        (options.out / "gpu.json").write_text(json.dumps(found, indent=1, ensure_ascii=False), encoding="utf-8")
        print(f"{name}: {found[name]['code']}, {found[name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
