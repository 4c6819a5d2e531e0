"""How much memory does `twingpt prepare` take, and what of it grows with the text?

    python benchmarks/prepare_memory.py RAW.txt [--megabytes 30 60 125] [--template plain] [--by-line] [--json FILE]

The first megabytes of RAW.txt are prepared, each size in a folder of its own, each stage in a process of its own,
without worker processes. The figure is the peak of resident memory of that process (`ru_maxrss`); its growth is that of
the largest size over the smallest one, by MB of text. --by-line makes a document of each line: short documents are the
hardest case, since a little is kept of each document and nothing of its text.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STAGES = {"plain": ("clean", "tokenizer", "pack"), "qa": ("clean", "tokenizer", "samples", "pack")}

CHILD = """
import json, resource, sys
from pathlib import Path
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
raw, out, template, stage, vocab_size = sys.argv[1:]
separator = "blank-line" if template == "plain" else "file"
settings = PrepareSettings(template=template, separator=separator, vocab_size=int(vocab_size))
report = prepare([raw], Path(out), settings, stages=[stage], workers=1).report
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak": peak, "documents": report["clean"]["documents"]}))
"""


def write_beginning(raw: Path, target: Path, size: int, by_line: bool) -> None:
    """The first lines of raw, about `size` bytes of them."""
    written = 0
    with raw.open("rb") as source, target.open("wb") as file:
        for line in source:
            file.write(line + b"\n" if by_line else line)
            written += len(line)
            if written >= size:
                return


def peaks(raw: Path, out: Path, template: str, vocab_size: int) -> dict[str, Any]:
    """Bytes by stage, and the number of documents."""
    found: dict[str, Any] = {}
    for stage in STAGES[template]:
        command = [sys.executable, "-c", CHILD, str(raw), str(out), template, stage, str(vocab_size)]
        made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        found[stage] = made["peak"]
        found["documents"] = made["documents"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", type=Path)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[30, 60, 125])
    parser.add_argument("--template", choices=list(STAGES), default="plain")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--by-line", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.megabytes:
            raw = Path(folder) / f"{size:g}.txt"
            write_beginning(options.raw, raw, int(size * 1e6), options.by_line)
            found = peaks(raw, Path(folder) / f"data {size:g}", options.template, options.vocab_size)
            rows.append({"megabytes": raw.stat().st_size / 1e6, **found})
            shown = ", ".join(f"{stage} {found[stage] / 1e6:.0f} MB" for stage in STAGES[options.template])
            print(f"{rows[-1]['megabytes']:.0f} MB, {found['documents']:,} documents: {shown}", flush=True)
    first, last = rows[0], rows[-1]
    growth = {
        stage: (last[stage] - first[stage]) / 1e6 / max(1e-9, last["megabytes"] - first["megabytes"])
        for stage in STAGES[options.template]
    }
    print("growth, MB for each MB of text: " + ", ".join(f"{stage} {each:.2f}" for stage, each in growth.items()))
    if options.json:
        result = {
            "template": options.template,
            "by_line": options.by_line,
            "machine": platform.platform(),
            "sizes": rows,
            "growth": growth,
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
