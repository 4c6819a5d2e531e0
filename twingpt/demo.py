"""`twingpt demo`: the whole way on the example text, in minutes, through both engines."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import resources
from pathlib import Path

import numpy as np
from rich.console import Console

from twingpt.core.backend import DeviceChoice, create_backend, installed_backends
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import initial_weights
from twingpt.core.sampling import Sampling
from twingpt.core.state import MODEL as MODEL_PREFIX
from twingpt.data.manifest import Manifest
from twingpt.data.pipeline import PrepareSettings, prepare
from twingpt.generate import load_tokenizer, question_prompt, stream_text
from twingpt.train.config import RunConfig, make_config
from twingpt.train.run import run_shown
from twingpt.train.session import TrainRequest, open_session

PRESET = "tiny"
VOCAB_SIZE = 3000
# Many small updates without dropout: in three minutes a model of this size learns the form by heart, which is what a
# demonstration can show. It is no recipe for a real text.
MODEL = {"dropout": 0.0}
TRAIN = {"batch_size": 2, "learning_rate": 3e-3, "min_learning_rate": 3e-4, "log_every": 50}
RELAY_STEPS = 10
QUESTION = "여권을 잃어버렸을 때 해야 할 일 정리해줘"


def run_demo(out: Path, backend: str | None, device: DeviceChoice, minutes: float) -> None:
    """Prepare, train, go on in the other engine, answer. Everything lands in `out`.

    Raises UsageError if `out` holds a run already, TwinGPTError if no engine is installed.
    """
    console = Console()
    if (out / "run").exists():
        raise UsageError(f"{out / 'run'} exists: delete it, or choose another --out")
    engines = installed_backends()
    if not engines:
        raise TwinGPTError("no engine is installed: pip install 'twingpt[torch]' or 'twingpt[mlx]'")

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
    speeds = {name: _alone(name, config, device) for name in ([backend] if backend else engines)}
    for name, speed in speeds.items():
        console.print(f"{name}: {speed:.1f} updates/s here", highlight=False)
    first = max(speeds, key=lambda name: speeds[name])
    steps = max(2 * RELAY_STEPS, round(minutes * 60 * speeds[first])) + RELAY_STEPS
    request = TrainRequest(
        run_dir=out / "run",
        data_dir=out / "data",
        backend=first,
        device=device,
        preset=PRESET,
        model=MODEL,
        train={**TRAIN, "steps": steps, "eval_every": max(1, steps // 3), "warmup_steps": steps // 20},
    )
    session = open_session(request)
    run_shown(session, out / "run", steps - RELAY_STEPS, console)
    session.lock.release()

    others = [name for name in engines if name != first]
    last = others[0] if others else first
    console.rule(f"3. go on in {last}" if others else "3. go on (the other engine is not installed)")
    resumed = TrainRequest(run_dir=out / "run", data_dir=None, backend=last, device=device, resume=True)
    session = open_session(resumed)
    run_shown(session, out / "run", None, console)

    console.rule("4. ask")
    tokenizer = load_tokenizer(out / "run")
    prompt = question_prompt(tokenizer, QUESTION, None, session.backend.spec.block_size)
    console.print(QUESTION, style="bold")
    for piece in stream_text(session.backend, tokenizer, prompt, Sampling(temperature=0.5, top_k=20), 200):
        console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()
    console.rule()
    console.print(f"ask another: twingpt generate {out / 'run'} --question TEXT", markup=False)


def _alone(backend: str, config: RunConfig, device: DeviceChoice) -> float:
    """steps_per_second in a process of its own: two frameworks in one would get in each other's way."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(steps_per_second, backend, config, device).result()


def steps_per_second(backend: str, config: RunConfig, device: DeviceChoice, steps: int = 20) -> float:
    """Updates a second on random tokens, compilation left out."""
    spec, train = config.model, config.train
    engine = create_backend(backend, spec, train.engine(device))
    engine.load_state({MODEL_PREFIX + name: weight for name, weight in initial_weights(spec, 0).items()})
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (1, train.batch_size, spec.block_size + 1))
    started = 0.0
    for step in range(-2, steps):
        if step == 0:
            engine.read_stats()
            started = time.perf_counter()
        engine.train_step(tokens[..., :-1], tokens[..., 1:], 1e-4, step + 2)
    engine.read_stats()
    return steps / (time.perf_counter() - started)
