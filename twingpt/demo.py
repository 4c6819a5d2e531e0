"""`twingpt demo`: the whole way on the example text, in minutes, through both engines."""

import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import tomli_w
from rich.console import Console

from twingpt.answers.ask import ask_library
from twingpt.core.backend import DeviceChoice
from twingpt.core.engines import find_engine, how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import os_reason, tr
from twingpt.core.sampling import Sampling
from twingpt.data.files import LIBRARY_FILE
from twingpt.data.library.search import Library
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.tokens.manifest import Manifest
from twingpt.generation.model import load
from twingpt.training.config import CONFIG_FILE, RunConfig, make_config
from twingpt.training.probe import probe
from twingpt.training.record import read_sessions
from twingpt.training.restart import train_supervised
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.format import write_whole

TEXT, RECIPE = "ph_life_ko.txt", "recipe.toml"
PRESET = "tiny"
VOCAB_SIZE = 3000
# Many small updates without dropout: in three minutes a model of this size learns the form by heart, which is what a
# demonstration can show. It is no recipe for a real text.
MODEL = {"dropout": 0.0}
# What it writes meanwhile is not shown: a new reader would take it for an answer.
TRAIN = {
    "batch_size": 2,
    "learning_rate": 3e-3,
    "min_learning_rate": 3e-4,
    "log_every": 50,
    "save_every": 100,
    "sample_tokens": 0,
}
MEASURED_STEPS = 20
RELAY_STEPS = 10
# The last one has no answer in the text.
QUESTIONS = (
    "여권을 잃어버렸을 때 해야 할 일 정리해줘",
    "태풍 준비는 어떻게 하나요?",
    "관광비자 연장은 어떻게 하나요?",
    "파리 에펠탑 입장료는 얼마인가요?",
)
WRITTEN = QUESTIONS[0]


def run_demo(out: Path, backend: str | None, device: DeviceChoice, minutes: float) -> None:
    """Prepare, train, go on in the other engine, answer from the text. Everything lands in `out`.

    Where an earlier call was interrupted, it goes on. Raises UsageError if `out` holds something else, TwinGPTError if
    no engine is installed, StoppedError after an orderly stop of the training.
    """
    if not 0 < minutes <= 100_000:
        raise UsageError(
            tr("--minutes {minutes} cannot be meant: give a number above 0, up to 100,000", minutes=minutes)
        )
    console = Console()
    if out.exists() and not (out / TEXT).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(tr("{out} exists, and is no demo: delete it, or choose another --out", out=out))
    engines = installed_backends()
    if not engines:
        raise TwinGPTError(tr("no engine is installed: {advice}", advice=how_to_install()))
    run = out / "run"
    console.rule(tr("1. prepare the example text"))
    manifest = prepare_example(out)
    console.print(
        tr(
            "{tokens:,} tokens of {documents} documents",
            tokens=manifest.train.tokens,
            documents=manifest.train.documents,
        ),
        highlight=False,
    )
    console.rule(tr("2. train"))
    first = train_first(out, manifest, [backend] if backend else engines, device, minutes, console)
    last = next((name for name in engines if name != first), first)
    other = find_engine(last).title if last != first else tr("the same engine: the other one is not installed")
    console.rule(tr("3. go on in {other}", other=other))
    if left := steps_left(run):
        # Where the time was over before the updates were, it is the last ones that are left out.
        done = RunConfig.load(run).train.steps - left
        steps = [] if left <= RELAY_STEPS else ["--steps", str(done + RELAY_STEPS)]
        train_supervised(["--backend", last, "--device", device, "--resume", *steps], run, console)
    console.print(tr("trained to step {steps}", steps=RunConfig.load(run).train.steps), highlight=False)
    console.rule(tr("4. ask the text"))
    ask(run, console)
    console.rule(tr("5. let the model write"))
    write(run, last, device, console)
    console.rule()
    shown = shlex.quote(str(run))
    console.print(tr('ask more:  twingpt ask {shown} "..."', shown=shown), markup=False, highlight=False)
    console.print(
        tr("the page:  twingpt serve {shown}   (http://127.0.0.1:8000/)", shown=shown), markup=False, highlight=False
    )
    console.print(tr("your text: twingpt go raw.txt --time 20m"), markup=False, highlight=False)


def prepare_example(out: Path) -> Manifest:
    """The text itself lies in `out` too, for who wants to see what an answer names as its source."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / TEXT, (resources.files("twingpt.examples") / TEXT).read_bytes())
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=out / TEXT, reason=os_reason(error))) from None
    prepare([str(out / TEXT)], out / "data", PrepareSettings(vocab_size=VOCAB_SIZE))
    return Manifest.load(out / "data")


def train_first(
    out: Path, manifest: Manifest, engines: Sequence[str], device: DeviceChoice, minutes: float, console: Console
) -> str:
    """All but the last RELAY_STEPS updates, in the fastest of the engines or the one that began; returns which."""
    run = out / "run"
    if not (run / CONFIG_FILE).is_file():
        first, steps = planned(manifest, engines, device, minutes, console)
        recipe = {**TRAIN, "steps": steps, "eval_every": max(1, steps // 3), "warmup_steps": steps // 20}
        write_whole(out / RECIPE, tomli_w.dumps({"model": MODEL, "train": recipe}).encode())
        options = ["--data", str(out / "data"), "--preset", PRESET, "--config", str(out / RECIPE), "--no-probe-memory"]
    else:
        begun_in = [session.backend for session in read_sessions(run)]
        first = begun_in[0] if begun_in else engines[0]
        steps, options = RunConfig.load(run).train.steps, ["--resume"]
    if steps_left(run, steps) > RELAY_STEPS:
        # Planned by a short trial: what other programs do meanwhile must not make it longer.
        stop = ["--stop-at", str(steps - RELAY_STEPS), "--stop-after", f"{max(1.0, 60 * minutes):.0f}s"]
        train_supervised(["--backend", first, "--device", device, *options, *stop], run, console)
    return first


def planned(
    manifest: Manifest, engines: Sequence[str], device: DeviceChoice, minutes: float, console: Console
) -> tuple[str, int]:
    """(the fastest engine here, how many updates it does in that time, and those of the other one)."""
    model = {"vocab_size": manifest.vocab_size, **MODEL}
    config = make_config(preset=PRESET, config_file=None, model=model, train=TRAIN, data="")
    seconds = {name: seconds_per_step(name, config, device) for name in engines}
    for name, each in seconds.items():
        console.print(
            tr("{engine}: {speed:.1f} updates/s here", engine=find_engine(name).title, speed=1 / each), highlight=False
        )
    first = min(seconds, key=lambda name: seconds[name])
    return first, max(2 * RELAY_STEPS, round(minutes * 60 / seconds[first])) + RELAY_STEPS


def steps_left(run: Path, steps: int | None = None) -> int:
    """Updates to come. steps: of a run that need not have begun."""
    done = max(CheckpointStore(run).steps(), default=0)
    return (RunConfig.load(run).train.steps if steps is None else steps) - done


def write(run: Path, backend: str, device: DeviceChoice, console: Console) -> None:
    """What the model says by itself, as what it is."""
    console.print(tr("작문 (free writing of a model trained for minutes: nothing in it is checked)"), style="dim")
    model = load(run, backend, device)
    console.print(WRITTEN, style="bold")
    sampling = Sampling(temperature=0.5, top_k=20)
    for piece in model.stream(question=WRITTEN, sampling=sampling, max_new_tokens=120):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()


def ask(run: Path, console: Console) -> None:
    """Answer QUESTIONS from the run's own text: each line with its source, or that the text has no answer."""
    with Library(run / LIBRARY_FILE) as library:
        for question in QUESTIONS:
            console.print(f"\n? {question}", style="bold", markup=False)
            console.print(ask_library(library, question).text, markup=False, highlight=False, soft_wrap=True)


def seconds_per_step(backend: str, config: RunConfig, device: DeviceChoice) -> float:
    """Raises TwinGPTError if the demo's small batch does not fit into memory."""
    result = probe(config.model, config.train, backend, device, config.train.batch_size, MEASURED_STEPS)
    if not result.fits:
        raise TwinGPTError(
            tr(
                "the demo's model does not fit into memory in {backend}: {reason}",
                backend=backend,
                reason=result.reason,
            )
        )
    return result.seconds_per_step
