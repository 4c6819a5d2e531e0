"""Which model a text and a time are enough for, and for how long: from the text's size and this machine's speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.engines import find_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.params import flops_per_token, parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.measure.cost import update_flops
from twingpt.training.config import RunConfig, make_config, named_settings
from twingpt.training.estimate import divisors
from twingpt.training.probe import probe

PRESET = "modern"

Shape = tuple[int, int, int]
SIZES = ("n_layer", "n_head", "n_embd")
SHAPES: tuple[Shape, ...] = ((2, 2, 64), (2, 4, 128), (4, 4, 128), (4, 8, 256), (6, 6, 384), (8, 8, 512), (12, 12, 768))
"""(layers, heads, width), each a few times the work of the one before."""

TOKENS_A_WEIGHT = 4.0
"""Tokens that a model must see for each weight of its blocks before a larger one is worth its slower updates."""

ROUNDS = 8.0
"""How often a model may read the text, in whatever samples, before it learns it by heart instead of learning from it:
of 100 kB of reviews the validation loss turned after 6.4 at a constant rate (2 layers x 128), and a falling one helps.
"""

FEW_ROUNDS = 4.0
"""Repeats are worth about as much as new text up to here (Muennighoff and others, arXiv 2305.16264)."""
AVERAGE, DROPOUT, DECAY_EPOCHS = 0.1, 0.1, 0.65
"""Against learning by heart, as benchmarks/fixed_text.py found them for a model of 4 x 128 and 3 MB."""

BATCHES = (16, 8, 4, 2, 1)
UPDATES = 400
"""Updates that a training should have at least: of fewer, large batches are a waste of text and time."""

EVALUATIONS = 4
EVALUATION_SHARE = 0.005
"""Of the time, for each evaluation."""
WINDOWS = (16, 400)
"""Validation windows of an evaluation, at the least and at the most."""

SAVE_SECONDS = 300.0
"""Of work that a machine that goes off may cost, at the most."""

PASSES = 2
"""Models that are timed at the most: a small one is slower for its work than a larger one, on a GPU above all, so that
the first may show that a larger one fits.
"""
BURST = 8
"""Updates of a trial; the first is not timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What the user has decided: a preset, a config file, single settings. Only the rest is chosen."""

    preset: str = PRESET
    config_file: Path | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)

    def config(self, shape: Shape | None, vocab_size: int, block_size: int, batch: int) -> RunConfig:
        """With a shape and a batch where they are not given. shape None: as the preset has it."""
        chosen = {} if shape is None else dict(zip(SIZES, shape, strict=True))
        model = {**chosen, "vocab_size": vocab_size, "block_size": block_size, **self.named_model}
        train = {"batch_size": batch, **self.named_train}
        return make_config(preset=self.preset, config_file=None, model=model, train=train, data="")

    @property
    def shapes(self) -> tuple[Shape | None, ...]:
        """Those that may be chosen from."""
        fixed = self.preset != PRESET or any(name in self.named_model for name in SIZES)
        return (None,) if fixed else SHAPES

    @property
    def batches(self) -> tuple[int, ...]:
        given = self.named_train.get("batch_size")
        return BATCHES if given is None else (given,)

    @property
    def named_model(self) -> dict[str, Any]:
        """Of the file and by name."""
        return {**named_settings(None, self.config_file)[0], **self.model}

    @property
    def named_train(self) -> dict[str, Any]:
        """Of the file and by name."""
        return {**named_settings(None, self.config_file)[1], **self.train}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `train` is to be given.

    model, train: settings over the preset. steps: updates, of step_seconds each; most: that this text is good for.
    rounds: of the text, in those steps.
    short_of: what ended the training, so that more of it would make a better model.
    """

    backend: BackendName
    model: dict[str, Any]
    train: dict[str, Any]
    steps: int
    most: int
    step_seconds: float
    rounds: float
    parameters: int
    block_size: int
    short_of: str


def plan_training(
    *,
    text_tokens: int,
    vocab_size: int,
    block_size: int,
    seconds: float,
    backends: list[BackendName],
    device: DeviceChoice,
    given: Given | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Plan:
    """The fastest engine, the largest model that text and time are enough for, and the updates that fit.

    text_tokens: of the text itself, which its samples repeat. seconds: for the training. Times some updates of
    a small model in each engine, and of the model chosen in the fastest; each in a process of its own.
    Raises TwinGPTError if not even the smallest model fits into memory.
    """
    given = given or Given()
    shapes, batches = given.shapes, given.batches
    # The smallest one shows an engine's overheads more than its speed.
    trial = given.config(shapes[min(2, len(shapes) - 1)], vocab_size, block_size, batches[min(2, len(batches) - 1)])
    measured = {}
    for name in backends:
        measured[name] = _timed(trial, name, device)
        speed = trial.train.batch_size * block_size / measured[name]
        say(tr("{engine}: {speed:,.0f} tokens/s with a small model", engine=find_engine(name).title, speed=speed))
    backend = min(measured, key=lambda name: measured[name])
    config, step, size = trial, measured[backend], -1
    for _ in range(PASSES):
        flops = _work(config) / step
        larger = _largest(given, text_tokens, vocab_size, block_size, seconds, flops)
        if larger <= size:
            break
        size = larger
        spec = given.config(shapes[size], vocab_size, block_size, 1).model
        seen = min(ROUNDS * text_tokens, seconds * flops / flops_per_token(spec))
        config = given.config(shapes[size], vocab_size, block_size, _batch(batches, seen / block_size))
        step = _timed(config, backend, device)
    windows = min(ROUNDS * text_tokens / block_size, seconds / step * config.train.batch_size)
    if _batch(batches, windows) < config.train.batch_size:
        # Updates were slower than those of the model before had let expect.
        config = given.config(shapes[size], vocab_size, block_size, _batch(batches, windows))
        step = _timed(config, backend, device)
    return _plan(config, given, backend, step, text_tokens, seconds)


def recipe_for(rounds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of the model, of the training) over PRESET for so many rounds of one text, after fixed_text.py."""
    if rounds <= FEW_ROUNDS:
        return {}, {"average": AVERAGE}
    return {"dropout": DROPOUT}, {"average": AVERAGE, "decay_epochs": DECAY_EPOCHS}


def affordable(seconds: float, step_seconds: float) -> int:
    """Updates that `seconds` are enough for, evaluations included."""
    return max(1, int(seconds * (1 - EVALUATIONS * EVALUATION_SHARE) / step_seconds))


def _plan(config: RunConfig, given: Given, backend: BackendName, step: float, text_tokens: int, seconds: float) -> Plan:
    spec, a_step = config.model, config.train.batch_size * config.model.block_size
    in_time, in_text = affordable(seconds, step), max(1, round(ROUNDS * text_tokens / a_step))
    steps = min(in_time, in_text)
    # Forward alone is a third of an update's work.
    windows = int(EVALUATION_SHARE * seconds / (step / config.train.batch_size / 3))
    every = max(1, -(-steps // EVALUATIONS))
    rounds = steps * a_step / text_tokens
    regular, recipe = ({}, {}) if given.preset != PRESET else recipe_for(rounds)
    if "weight_decay" in given.named_train:
        recipe.pop("decay_epochs", None)
    return Plan(
        backend=backend,
        model={**{name: getattr(spec, name) for name in SIZES}, **regular, **given.named_model},
        train={
            "batch_size": config.train.batch_size,
            "steps": steps,
            "warmup_steps": min(config.train.warmup_steps, steps // 10),
            "eval_every": every,
            "eval_windows": min(max(windows, WINDOWS[0]), WINDOWS[1]),
            "save_every": max(1, min(steps // 10, round(SAVE_SECONDS / step))),
            "log_every": max(1, min(50, steps // 20)),
            "sample_tokens": 0,
            **recipe,
            **given.named_train,
        },
        steps=steps,
        most=in_text,
        step_seconds=step,
        rounds=rounds,
        parameters=parameter_count(spec),
        block_size=spec.block_size,
        short_of="time" if in_time < in_text else "text",
    )


def _largest(given: Given, text_tokens: int, vocab_size: int, block_size: int, seconds: float, flops: float) -> int:
    """The number in SHAPES of the largest model that text and time are enough for; 0 if they are for none."""
    chosen = 0
    for number, shape in enumerate(given.shapes):
        spec = given.config(shape, vocab_size, block_size, 1).model
        seen = min(ROUNDS * text_tokens, seconds * flops / flops_per_token(spec))
        if seen >= TOKENS_A_WEIGHT * _block_weights(spec):
            chosen = number
    return chosen


def _block_weights(spec: GPTSpec) -> int:
    """Embeddings and head grow with the vocabulary, and each token moves only a few of their rows."""
    return parameter_count(spec) - 2 * spec.vocab_size * spec.n_embd


def _batch(batches: Sequence[int], windows: float) -> int:
    """The largest of these batches that leaves UPDATES of `windows` sequences, or the smallest."""
    return next((size for size in batches if windows / size >= UPDATES), batches[-1])


def _work(config: RunConfig) -> float:
    tokens = config.train.batch_size * config.model.block_size
    return tokens * flops_per_token(config.model) + update_flops(config.model, config.train)


def _timed(config: RunConfig, backend: BackendName, device: DeviceChoice) -> float:
    """Seconds of an update, in the largest pieces that memory holds. Raises TwinGPTError if it holds none."""
    reason = ""
    for micro_batch in divisors(config.train.batch_size):
        result = probe(config.model, config.train, backend, device, micro_batch, BURST)
        if result.fits:
            return result.seconds_per_step
        reason = result.reason
    raise TwinGPTError(
        tr(
            "a model of {parameters:,} parameters does not fit into memory in {engine}: {reason}",
            parameters=parameter_count(config.model),
            engine=find_engine(backend).title,
            reason=reason,
        )
    )
