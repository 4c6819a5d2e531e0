"""A long campaign of attacks, which can be stopped at any moment and goes on where it was.

    python -m tests.attacks kills --count 500 --seed 0 --out kills.jsonl
    python -m tests.attacks mutations --count 5000 --seed 0 --out mutations.jsonl

Each attack is drawn from its number and the seed alone, and is a line of the file that is written: what was done, and
what was broken by it. The same command again does the numbers that the file does not have yet. Exits with 1 if the file
tells of anything broken.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.attacks.faulty import Mode
from tests.attacks.mutations import bombarded
from tests.attacks.scenarios import SCENARIOS, BrokenError, at_work, strike

Told = tuple[int, str, str | None]
"""The number of an attack, what was done, and what it broke."""


def kills(numbers: Iterable[int], seed: int, names: list[str], modes: list[Mode]) -> Iterator[Told]:
    """Blows at commands, the place in each drawn evenly over its calls."""
    with tempfile.TemporaryDirectory() as folder:
        # What this process remembers of files it has read goes with them.
        os.environ["TWINGPT_CACHE"] = str(Path(folder) / "reader")
        with at_work(Path(folder)) as place:
            for number in numbers:
                rng = random.Random(f"{seed}/{number}")
                name, mode = names[number % len(names)], rng.choice(modes)
                try:
                    yield number, strike(place, name, mode, rng.random()), None
                except BrokenError as broken:
                    yield number, f"{name}, {mode}", str(broken)


def mutations(numbers: Iterable[int], seed: int) -> Iterator[Told]:
    """Damaged files of every format that is read."""
    with tempfile.TemporaryDirectory() as folder:
        yield from bombarded(Path(folder), numbers, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("kills", "mutations"))
    parser.add_argument("--count", type=int, required=True, help="attacks in all, those of the file included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS), help="commands to kill")
    parser.add_argument("--modes", nargs="*", choices=("kill", "tear", "full"), default=["kill", "tear"])
    options = parser.parse_args()

    done = _read(options.out)
    numbers = [number for number in range(options.count) if number not in done]
    attacks = (
        kills(numbers, options.seed, options.only, options.modes)
        if options.kind == "kills"
        else mutations(numbers, options.seed)
    )
    with options.out.open("a", encoding="utf-8") as file:
        for number, what, broken in attacks:
            file.write(json.dumps({"number": number, "what": what, "broken": broken}, ensure_ascii=False) + "\n")
            file.flush()
            done[number] = (what, broken)
            if broken:
                sys.stdout.write(f"{number}: {broken}\n")
    for kind, count in sorted(Counter(what.split(",")[0] for what, _ in done.values()).items()):
        sys.stdout.write(f"{count:6,}  {kind}\n")
    faults = sum(broken is not None for _, broken in done.values())
    sys.stdout.write(f"{len(done):,} attacks, {faults:,} of them broke something\n")
    raise SystemExit(int(faults > 0))


def _read(path: Path) -> dict[int, tuple[str, str | None]]:
    """The attacks that a file tells of; a last line that was cut off is none."""
    done: dict[int, tuple[str, str | None]] = {}
    if path.is_file():
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        if rest:
            path.write_text(whole + "\n", encoding="utf-8")
        for line in whole.split("\n"):
            told = json.loads(line)
            done[told["number"]] = (told["what"], told["broken"])
    return done


if __name__ == "__main__":
    main()
