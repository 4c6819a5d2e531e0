"""`twingpt demo`: the whole way on the example text, in minutes, through both engines."""

from importlib import resources
from pathlib import Path

from rich.console import Console

from twingpt.answers.ask import ask_library
from twingpt.core.backend import DeviceChoice
from twingpt.core.engines import how_to_install, installed_backends
from twingpt.core.errors import StoppedError, TwinGPTError, UsageError
from twingpt.core.sampling import Sampling
from twingpt.data.files import LIBRARY_FILE
from twingpt.data.library.search import Library
from twingpt.data.prepare.pipeline import PrepareSettings, prepare
from twingpt.data.tokens.manifest import Manifest
from twingpt.generation.model import load
from twingpt.training.config import RunConfig, make_config
from twingpt.training.probe import probe
from twingpt.training.restart import supervise

PRESET = "tiny"
VOCAB_SIZE = 3000
# Many small updates without dropout: in three minutes a model of this size learns the form by heart, which is what a
# demonstration can show. It is no recipe for a real text.
MODEL = {"dropout": 0.0}
TRAIN = {"batch_size": 2, "learning_rate": 3e-3, "min_learning_rate": 3e-4, "log_every": 50}
MEASURED_STEPS = 20
RELAY_STEPS = 10
# The last one has no answer in the text.
QUESTIONS = (
    "여권을 잃어버렸을 때 해야 할 일 정리해줘",
    "태풍이 올 때 뭘 준비해?",
    "관광비자 연장은 어떻게 하나요?",
    "파리 에펠탑 입장료는 얼마인가요?",
)
WRITTEN = QUESTIONS[0]


def run_demo(out: Path, backend: str | None, device: DeviceChoice, minutes: float) -> None:
    """Prepare, train, go on in the other engine, answer from the text. Everything lands in `out`.

    Raises UsageError if `out` holds a run already, TwinGPTError if no engine is installed.
    """
    if not 0 < minutes <= 100_000:
        raise UsageError(f"--minutes {minutes} cannot be meant: give a number above 0, up to 100,000")
    console = Console()
    run = out / "run"
    if run.exists():
        raise UsageError(f"{run} exists: delete it, or choose another --out")
    engines = installed_backends()
    if not engines:
        raise TwinGPTError(f"no engine is installed: {how_to_install()}")

    with resources.as_file(resources.files("twingpt.examples") / "ph_life_ko.txt") as text:
        console.rule("1. prepare the example text")
        prepare([str(text)], out / "data", PrepareSettings(vocab_size=VOCAB_SIZE))
    manifest = Manifest.load(out / "data")
    console.print(f"{manifest.train.tokens:,} tokens of {manifest.train.documents} documents", highlight=False)

    console.rule("2. train")
    config = make_config(
        preset=PRESET,
        config_file=None,
        model={"vocab_size": manifest.vocab_size, **MODEL},
        train=TRAIN,
        data="",
    )
    seconds = {name: seconds_per_step(name, config, device) for name in ([backend] if backend else engines)}
    for name, each in seconds.items():
        console.print(f"{name}: {1 / each:.1f} updates/s here", highlight=False)
    first = min(seconds, key=lambda name: seconds[name])
    steps = max(2 * RELAY_STEPS, round(minutes * 60 / seconds[first])) + RELAY_STEPS
    recipe = {**MODEL, **TRAIN, "steps": steps, "eval_every": max(1, steps // 3), "warmup_steps": steps // 20}
    new = ["--data", str(out / "data"), "--preset", PRESET, "--no-probe-memory", "--stop-at", str(steps - RELAY_STEPS)]
    for name, value in recipe.items():
        new += [f"--{name.replace('_', '-')}", str(value)]
    train(run, ["--backend", first, "--device", device, *new], console)

    others = [name for name in engines if name != first]
    last = others[0] if others else first
    console.rule(f"3. go on in {last}" if others else "3. go on (the other engine is not installed)")
    train(run, ["--backend", last, "--device", device, "--resume"], console)

    console.rule("4. ask the text")
    ask(run, console)

    console.rule("5. let the model write")
    console.print(
        f"작문 (free writing of a model trained for {minutes:g} minutes: nothing in it is checked)", style="dim"
    )
    model = load(run, last, device)
    console.print(WRITTEN, style="bold")
    sampling = Sampling(temperature=0.5, top_k=20)
    for piece in model.stream(question=WRITTEN, sampling=sampling, max_new_tokens=120):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.rule()
    console.print(f'ask more:  twingpt ask {run} "..."', markup=False, highlight=False)
    console.print(f"the page:  twingpt serve {run}", markup=False, highlight=False)


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
        raise TwinGPTError(f"the demo's model does not fit into memory in {backend}: {result.reason}")
    return result.seconds_per_step


def train(run: Path, options: list[str], console: Console) -> None:
    """`twingpt train` in a process of its own, so that running out of memory ends that one, and one engine is loaded.

    Raises StoppedError with the exit code of a training that said itself why it ended.
    """
    code = supervise(["train", "--out", str(run), *options], run, console)
    if code:
        raise StoppedError(code)
