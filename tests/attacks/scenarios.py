"""Commands that write, each with the folder it starts from, and what must hold of that folder after any blow.

All of them work at one place, since a run remembers where its DATA lies, and what is compared is compared byte by byte.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.faulty import KILLED, Host, Mode, host
from twingpt.core.errors import TwinGPTError
from twingpt.data.files import LIBRARY_FILE
from twingpt.data.library.search import Library
from twingpt.training.sources import DataFolder
from twingpt.weights.checkpoint import CheckpointStore, read_checkpoint
from twingpt.weights.run_folder import library_of

EXAMPLE = Path(__file__).parents[2] / "twingpt" / "examples" / "ph_life_ko.txt"
RAW, OTHER, SHORT = "raw.txt", "other.txt", "short.txt"
EVAL_EVERY, KEEP_LAST = 3, 1
CONFIG = f"""
[model]
n_layer = 1
n_head = 2
n_embd = 16
block_size = 32
dropout = 0.1
[train]
batch_size = 2
steps = 6
save_every = 2
eval_every = {EVAL_EVERY}
eval_windows = 2
log_every = 2
keep_last = {KEEP_LAST}
sample_tokens = 2
"""
# Of one text and two versions of another: what is in each is known, and a mixture of them can be told.
PREPARE = ("--template", "plain", "--vocab-size", "400")
MEASURED = ("tokens_per_second", "memory", "seconds")
"""What a line of metrics or a stage's record says of the machine, and not of the work."""

Files = dict[str, bytes]
Command = Callable[[Path], list[str]]


class BrokenError(Exception):
    """A promise that did not hold."""


@dataclass(frozen=True)
class Scenario:
    """command: what is typed, given the folder as it stands. check: raises BrokenError if what lies there after a blow
    passes for whole and is not; given the folder, the files before the command, and after it where nothing struck.
    """

    name: str
    before: Path
    command: Command
    check: Callable[[Path, Files, Files], None]


def files_of(folder: Path) -> Files:
    """Every file under a folder by its path there, without what was measured."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        # One line for each time that someone sat down to the run.
        if path.is_file() and path.name != "sessions.jsonl":
            found[str(path.relative_to(folder))] = _without_measures(path)
    return found


def _without_measures(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "metrics.jsonl" or (path.parent.name == ".stages" and path.suffix == ".json"):
        lines = content.splitlines() if path.suffix == ".jsonl" else [content]
        values = [json.loads(line) for line in lines]
        kept = [{name: value for name, value in each.items() if name not in MEASURED} for each in values]
        return json.dumps(kept, sort_keys=True).encode()
    return content


def difference(first: Files, second: Files) -> str | None:
    """One line about the first difference, or None."""
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            return f"{name} is only in the {'second' if name not in first else 'first'}"
        if first[name] != second[name]:
            return f"{name} differs ({len(first[name])} and {len(second[name])} bytes)"
    return None


# What must hold


def check_data(work: Path, before: Files, after: Files) -> None:
    """DATA that can be trained on, or asked, is all of one `prepare`."""
    now = files_of(work)
    data = work / "data"
    for reader, names in ((_open_to_train, _TRAINED_ON), (_open_to_ask, (LIBRARY_FILE,))):
        try:
            reader(data)
        except TwinGPTError as refusal:
            _check_line(str(refusal))
            continue
        found = {f"data/{name}": now.get(f"data/{name}") for name in names}
        if all(found != {name: files.get(name) for name in found} for files in (before, after)):
            known = ((before, "old"), (after, "new"))
            of = [
                f"{name}: {next((word for files, word in known if files.get(name) == content), 'neither')}"
                for name, content in found.items()
            ]
            raise BrokenError(f"{reader.__name__} takes a mixed folder: {', '.join(of)}")


_TRAINED_ON = ("train.bin", "val.bin", "manifest.json", "tokenizer.json", LIBRARY_FILE, "contacts.sqlite")


def _open_to_train(data: Path) -> None:
    found = DataFolder.open(data)
    found.check_new_run()
    found.batches(found.manifest.block_size, 0, "anew")


def _open_to_ask(data: Path) -> None:
    with Library(library_of(data)) as library:
        library.search("비자 연장")


def check_run(work: Path, before: Files, after: Files) -> None:
    """Every checkpoint that has a name is whole, and none that is owed is gone."""
    store = CheckpointStore(work / "run")
    steps = store.steps()
    losses = {}
    for step in steps:
        try:
            progress = read_checkpoint(store.path(step)).progress
        except TwinGPTError as error:
            raise BrokenError(f"a torn checkpoint: {error}") from None
        if progress.step != step:
            raise BrokenError(f"{store.path(step)} is of step {progress.step}")
        losses[step] = progress.val_loss
    last = steps[-1] if steps else 0
    owed = {int(name.split("step-")[1][:8]) for name in before if "/step-" in name}
    if last < max(owed, default=0):
        raise BrokenError(f"the run went back from step {max(owed)} to {last}")
    text = after["run/metrics.jsonl"]
    evaluated = {line["step"]: line["val_loss"] for line in json.loads(text) if "val_loss" in line}
    # The one that is saved for being evaluated is known as evaluated only after that.
    best = {step: loss for step, loss in evaluated.items() if step < last}
    if (
        best
        and (step := min(best, key=lambda step: best[step])) not in steps
        and min(best.values()) < (losses.get(last) or 0.0)
    ):
        raise BrokenError(f"the best checkpoint, of step {step}, is gone: there are {steps}")


def check_target(work: Path, before: Files, after: Files) -> None:
    """What `convert` writes is there whole, or not at all."""
    now = {name: content for name, content in files_of(work).items() if name.startswith("target/")}
    whole = {name: content for name, content in after.items() if name.startswith("target/")}
    if (work / "target").exists() and (reason := difference(now, whole)):
        raise BrokenError(f"half a model has the name: {reason}")


def check_library(work: Path, before: Files, after: Files) -> None:
    """A library that can be asked is the old one or the new one."""
    now = files_of(work)
    for folder in ("data", "run"):
        if not (work / folder).exists():
            continue
        try:
            _open_to_ask(work / folder)
        except TwinGPTError as refusal:
            _check_line(str(refusal))
            continue
        name = f"{folder}/{LIBRARY_FILE}"
        if now.get(name) not in (before.get(name), after.get(name)):
            raise BrokenError(f"{name} is neither the old one nor the new one")


def _check_line(text: str) -> None:
    if "\n" in text.strip():
        raise BrokenError(f"a refusal of several lines: {text}")


# Where they start from


def train_command(engine: str, preset: str = "gpt2") -> Command:
    def command(work: Path) -> list[str]:
        usual = ["train", "--out", "run", "--backend", engine, "--device", "cpu"]
        if CheckpointStore(work / "run").steps():
            return [*usual, "--resume"]
        return [*usual, "--data", "data", "--preset", preset, "--config", "c.toml"]

    return command


def fixed(*arguments: str) -> Command:
    return lambda _: list(arguments)


@contextmanager
def at_work(folder: Path) -> Iterator["Workplace"]:
    """A place to work at, with a process that forks the commands."""
    with host({"TWINGPT_CACHE": str(folder / "cache")}) as forked:
        yield Workplace(forked, folder)


class Workplace:
    """Scenarios are made when they are asked for, and kept."""

    def __init__(self, forked: Host, folder: Path) -> None:
        self.host = forked
        self.work = folder / "work"
        self._folder = folder
        self._after: dict[str, tuple[Files, int]] = {}
        self._made: dict[str, Scenario] = {}

    def scenario(self, name: str) -> Scenario:
        if name not in self._made:
            self._made[name] = SCENARIOS[name](self, name)
        return self._made[name]

    def lay_out(self, before: Path) -> None:
        """Put a folder to start from in its place."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self._folder / "cache", ignore_errors=True)
        shutil.copytree(before, self.work)

    def after(self, scenario: Scenario) -> tuple[Files, int]:
        """The files that the command leaves where nothing strikes it, and the calls that it makes."""
        if scenario.name not in self._after:
            self.lay_out(scenario.before)
            outcome = self.host.run(self.work, scenario.command(self.work))
            if outcome.code:
                raise BrokenError(f"{scenario.name} does not work without any blow: {outcome.err}")
            self._after[scenario.name] = files_of(self.work), outcome.calls
        return self._after[scenario.name]

    def make(self, name: str, *steps: Sequence[str] | Callable[[Path], object], base: str | None = None) -> Path:
        """A folder to start from: the texts and settings, or another such folder, and what these commands do to it."""
        place = self._folder / "before" / name
        if place.exists():
            return place
        if base is None:
            shutil.rmtree(self.work, ignore_errors=True)
            self.work.mkdir(parents=True)
            _write_texts(self.work)
        else:
            self.lay_out(self._folder / "before" / base)
        for step in steps:
            if callable(step):
                step(self.work)
                continue
            outcome = self.host.run(self.work, step)
            if outcome.code:
                raise BrokenError(f"{' '.join(step)}: {outcome.err}")
        shutil.copytree(self.work, place)
        return place


def _write_texts(work: Path) -> None:
    documents = EXAMPLE.read_text(encoding="utf-8").split("\n\n")
    for name, part in ((RAW, documents[:30]), (OTHER, documents[20:50]), (SHORT, documents[:12])):
        (work / name).write_text("\n\n".join(part) + "\n", encoding="utf-8")
    (work / "c.toml").write_text(CONFIG, encoding="utf-8")


def _prepared(place: Workplace) -> Path:
    return place.make("prepared", ["prepare", RAW, "--out", "data", *PREPARE])


def _trained(place: Workplace, engine: str) -> Path:
    _prepared(place)
    return place.make(f"trained-{engine}", train_command(engine)(place.work / "none"), base="prepared")


def _prepare_new(place: Workplace, name: str) -> Scenario:
    return Scenario(name, place.make("texts"), fixed("prepare", RAW, "--out", "data", *PREPARE), check_data)


def _prepare_over(place: Workplace, name: str) -> Scenario:
    return Scenario(name, _prepared(place), fixed("prepare", OTHER, "--out", "data", *PREPARE), check_data)


def _prepare_questions(place: Workplace, name: str) -> Scenario:
    command = fixed("prepare", SHORT, "--out", "data", "--vocab-size", "600", "--block-size", "256")
    return Scenario(name, place.make("texts"), command, check_data)


def _lose_library(work: Path) -> None:
    for path in (work / "data" / LIBRARY_FILE, work / "data" / ".stages" / "library.json"):
        path.unlink()


def _library(place: Workplace, name: str) -> Scenario:
    _prepared(place)
    before = place.make("no-library", _lose_library, base="prepared")
    return Scenario(name, before, fixed("data", "library", "data"), check_library)


def _library_of_run(place: Workplace, name: str) -> Scenario:
    _trained(place, "mlx")
    newer = ["data", "clean", OTHER, "--out", "data", "--template", "plain"]
    before = place.make("newer-text", newer, base="trained-mlx")
    return Scenario(name, before, fixed("data", "library", "run"), check_library)


def _train_new(place: Workplace, name: str) -> Scenario:
    return Scenario(name, _prepared(place), train_command(name.rsplit("-", 1)[1]), check_run)


def _train_on(place: Workplace, name: str) -> Scenario:
    engine = name.rsplit("-", 1)[1]
    _prepared(place)
    begin = [*train_command(engine)(place.work / "none"), "--stop-at", "3"]
    return Scenario(name, place.make(f"begun-{engine}", begin, base="prepared"), train_command(engine), check_run)


def _convert(place: Workplace, name: str) -> Scenario:
    target, engine = name.removeprefix("convert-").rsplit("-", 1)
    return Scenario(name, _trained(place, engine), fixed("convert", "run", "target", "--to", target), check_target)


def _convert_back(place: Workplace, name: str) -> Scenario:
    _trained(place, "mps")
    before = place.make("exported", ["convert", "run", "exported", "--to", "hf"], base="trained-mps")
    return Scenario(name, before, fixed("convert", "exported", "target", "--to", "native"), check_target)


SCENARIOS: dict[str, Callable[[Workplace, str], Scenario]] = {
    "prepare-new": _prepare_new,
    "prepare-over": _prepare_over,
    "prepare-questions": _prepare_questions,
    "library": _library,
    "library-of-run": _library_of_run,
    "train-new-mlx": _train_new,
    "train-new-mps": _train_new,
    "train-on-mlx": _train_on,
    "train-on-mps": _train_on,
    "convert-hf-mps": _convert,
    "convert-hf-mlx": _convert,
    "convert-gguf-mlx": _convert,
    "convert-mlx-lm-mps": _convert,
    "convert-native-mlx": _convert_back,
}


def strike(place: Workplace, name: str, mode: Mode, at: float) -> str:
    """Strike a command at a share (0 to 1) of its calls, then run it again; what was struck.

    Raises BrokenError at the first promise that does not hold.
    """
    scenario = place.scenario(name)
    before, (after, calls) = files_of(scenario.before), place.after(scenario)
    place.lay_out(scenario.before)
    number = min(calls - 1, int(at * calls))
    outcome = place.host.run(place.work, scenario.command(place.work), mode, number)
    told = f"{name}, {mode} at call {number} of {calls} ({outcome.what or 'not reached'})"
    try:
        check_outcome(mode, outcome.code, outcome.err)
        scenario.check(place.work, before, after)
        again = place.host.run(place.work, scenario.command(place.work))
        reason = difference(files_of(place.work), after)
        if again.code and reason:
            raise BrokenError(f"the same command does not end it: {again.err.strip()}")
        if reason:
            raise BrokenError(f"ended otherwise than without a blow: {reason}")
    except BrokenError as broken:
        raise BrokenError(f"{told}: {broken}") from None
    return told


def check_outcome(mode: Mode, code: int, err: str) -> None:
    """A command that is not killed ends well, or with one line."""
    if mode in ("kill", "tear"):
        if code not in (KILLED, 0):
            raise BrokenError(f"exit code {code}: {err[-2000:]}")
        return
    lines = [line for line in err.split("\n") if line.startswith("error: ")]
    if code not in (0, 1) or (code == 1 and len(lines) != 1) or "Traceback" in err:
        raise BrokenError(f"a full disk: exit code {code}: {err[-2000:]}")
