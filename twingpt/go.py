"""`twingpt go`: the whole way in one command, from a text to a model, in the time that there is."""

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Self

import tomli_w
from rich.console import Console

from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.engines import find_engine, how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import mark, os_reason, padded, tr
from twingpt.core.params import parameter_count
from twingpt.data.prepare.pipeline import PrepareSettings, Watcher, prepare
from twingpt.data.prepare.stages import Report
from twingpt.data.text import inputs, reading
from twingpt.data.text.changes import Changes
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.marks import Template
from twingpt.measure.sizing import PRESET, Plan, affordable, plan_training
from twingpt.training.config import CONFIG_FILE, RunConfig
from twingpt.training.log import read_metrics
from twingpt.training.record import read_sessions
from twingpt.training.restart import train_supervised
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.format import write_whole

STATE_FILE = "go.json"
RECIPE_FILE = "recipe.toml"

LEAST_SHARE = 0.5
"""Of the time, for the training, where preparing took longer than the time was meant for."""
START = 6.0
"""Seconds that a training process needs before its first update, until one was seen."""
KOREAN = 0.1
"""Of the letters, from which on a text is taken for Korean; its beginning, of LOOKED_AT letters, counts."""
LOOKED_AT = 100_000
HIGH_SHARE = 0.7
"""Of the time, at the full learning rate. It falls over the rest, which is planned by the speed seen until then: what
other programs do to this machine meanwhile is the error of that last part alone.
"""
FALL = 0.1
"""Of the updates at the full rate, those for its fall at the least."""
WORTH_TWO = 120.0
"""Seconds of training below which a second process would cost more than it corrects."""


@dataclass(frozen=True, kw_only=True)
class State:
    """OUT/go.json: what a second call must know to go on.

    text: fingerprint of the raw files. seconds: for the whole way. training: of them for the training, None until that
    is planned. turn: step at which the rest is planned anew by the speed seen, if
    the time for it is not over before; None once it is. most: steps that the text is good for. step_seconds: of an
    update, as planned or seen.
    """

    text: str
    seconds: float
    training: float | None = None
    backend: BackendName = ""
    steps: int = 0
    most: int = 0
    turn: int | None = None
    step_seconds: float = 0.0

    @classmethod
    def load(cls, out: Path) -> Self | None:
        """None if nothing was begun there. Raises TwinGPTError for a file that is none of ours."""
        try:
            return cls(**json.loads((out / STATE_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise TwinGPTError(
                tr("{path} cannot be read: delete {out}, or give another --out", path=out / STATE_FILE, out=out)
            ) from None

    def save(self, out: Path) -> None:
        """Raises TwinGPTError if it cannot be written."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_whole(out / STATE_FILE, json.dumps(asdict(self)).encode())
        except OSError as error:
            raise TwinGPTError(
                tr("{path} cannot be written: {reason}", path=out / STATE_FILE, reason=os_reason(error))
            ) from None


@dataclass(frozen=True, kw_only=True)
class Journey:
    """One call of `twingpt go`. backend: None for the fastest one here."""

    raw: Sequence[str]
    out: Path
    backend: BackendName | None
    device: DeviceChoice
    console: Console
    watcher: AbstractContextManager[Watcher]

    @property
    def data(self) -> Path:
        return self.out / "data"

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def step(self) -> int:
        """Updates saved."""
        return max(CheckpointStore(self.run).steps(), default=0)

    def say(self, line: str, style: str = "") -> None:
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def begun(raw: Sequence[str], out: Path) -> State | None:
    """What an earlier call left in `out`; None for a new folder.

    Raises UsageError if `out` is of another text, or not of `go` at all, TwinGPTError if the text cannot be read.
    """
    text, state = _fingerprint(raw), State.load(out)
    if state is None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(tr("{out} exists, and `twingpt go` did not make it: give another --out", out=out))
        return None
    if state.text != text:
        raise UsageError(
            tr("{out} was begun with another text than {raw} has now: give another --out", out=out, raw=" ".join(raw))
        )
    return state


def go(journey: Journey, seconds: float) -> None:
    """Prepare, plan, train and say what came of it, each stage from where an earlier call left it.

    seconds: for all of it; of a folder that was begun, what it was begun with counts. Raises TwinGPTError or UsageError
    for what the user can mend, StoppedError after an orderly stop of the training.
    """
    started = time.monotonic()
    state = begun(journey.raw, journey.out)
    if state is None:
        state = State(text=_fingerprint(journey.raw), seconds=seconds)
        state.save(journey.out)
    elif state.seconds != seconds:
        journey.say(
            tr(
                "note: {out} was begun with --time {seconds}, which counts",
                out=journey.out,
                seconds=_seconds(state.seconds),
            )
        )
    report = _prepare(journey)
    if state.training is None:
        state = _plan(journey, state, report, state.seconds - (time.monotonic() - started))
    _train(journey, state)
    _tell(journey, report)


def _fingerprint(raw: Sequence[str]) -> str:
    if "-" in raw:
        raise UsageError(
            tr("go reads files and folders, to go on where it was interrupted: save the text in a file first")
        )
    return inputs.fingerprint_of_all(map(inputs.fingerprint, inputs.find_sources(raw).sources))


def _prepare(journey: Journey) -> Report:
    console = journey.console
    console.rule(tr("1. prepare the text"), align="left")
    started = time.monotonic()
    with journey.watcher as watcher:
        prepared = prepare(journey.raw, journey.data, PrepareSettings(template=_template(journey)), watcher=watcher)
    report = prepared.report
    kept = tr(", kept from before") if all(prepared.reused.values()) else ""
    journey.say(
        tr(
            "{documents}, {passages:,} passages, {train_tokens:,} tokens to train on ({seconds}{kept})",
            documents=_documents(report["clean"]["documents"]),
            passages=report["library"]["passages"],
            train_tokens=report["pack"]["train_tokens"],
            seconds=_seconds(time.monotonic() - started),
            kept=kept,
        )
    )
    journey.say(tr('from now on: twingpt ask {data} "..."', data=shlex.quote(str(journey.data))))
    return report


def _template(journey: Journey) -> Template:
    """The wording of questions and answers is made for Korean: another text is trained on as it is."""
    letters = hangul = 0
    sources = inputs.find_sources(journey.raw).sources
    for text, _ in chain.from_iterable(reading.read_source(source, Changes()) for source in sources):
        letters += sum(map(str.isalpha, text))
        hangul += sum("가" <= character <= "힣" for character in text)
        if letters >= LOOKED_AT:
            break
    if hangul >= KOREAN * letters:
        return "qa"
    journey.say(tr("this text is not Korean: the model is trained on the text alone, without questions and answers"))
    return "plain"


def _plan(journey: Journey, state: State, report: Report, left: float) -> State:
    journey.console.rule(tr("2. choose a model"), align="left")
    backends = [journey.backend] if journey.backend else installed_backends()
    if not backends:
        raise TwinGPTError(tr("no engine is installed: {advice}", advice=how_to_install()))
    started = time.monotonic()
    manifest = Manifest.load(journey.data)
    text_tokens = round(report["clean"]["cleaned_bytes"] / report["pack"]["bytes_per_token"])
    least = LEAST_SHARE * state.seconds

    def training_time() -> float:
        return max(left - (time.monotonic() - started), least)

    with journey.console.status(tr("timing some updates")):
        plan = plan_training(
            text_tokens=text_tokens,
            vocab_size=manifest.vocab_size,
            block_size=manifest.block_size,
            seconds=training_time() - START,
            backends=backends,
            device=journey.device,
            say=journey.say,
        )
    training = training_time()
    two = training >= WORTH_TWO and plan.steps * plan.step_seconds > training / 2
    # The trials took time of the training's.
    steps = min(plan.steps, affordable(training - START * (2 if two else 1), plan.step_seconds))
    plan = replace(plan, rounds=plan.rounds * steps / plan.steps, steps=steps)
    _write_recipe(journey, plan)
    journey.say(_plan_line(plan, manifest))
    state = replace(
        state,
        training=training,
        backend=plan.backend,
        steps=steps,
        most=plan.most,
        turn=round(HIGH_SHARE * steps) if two else None,
        step_seconds=plan.step_seconds,
    )
    state.save(journey.out)
    return state


def _plan_line(plan: Plan, manifest: Manifest) -> str:
    shape = tr("{n_layer} layers x {n_embd}", n_layer=plan.model["n_layer"], n_embd=plan.model["n_embd"])
    line = tr(
        "{parameters:,} parameters ({shape}), {steps:,} updates of {batch_size} x "
        "{block_size} tokens, {rounds:.1f} rounds of the text, about "
        "{duration}",
        parameters=plan.parameters,
        shape=shape,
        steps=plan.steps,
        batch_size=plan.train["batch_size"],
        block_size=manifest.block_size,
        rounds=plan.rounds,
        duration=_seconds(plan.steps * plan.step_seconds),
    )
    return line if plan.short_of == "time" else tr("{line}: after more it would know this text by heart", line=line)


def _write_recipe(journey: Journey, plan: Plan) -> None:
    train = {**plan.train, "steps": plan.steps, "decay_fraction": 1 - HIGH_SHARE}
    try:
        write_whole(journey.out / RECIPE_FILE, tomli_w.dumps({"model": plan.model, "train": train}).encode())
    except OSError as error:
        raise TwinGPTError(
            tr("{path} cannot be written: {reason}", path=journey.out / RECIPE_FILE, reason=os_reason(error))
        ) from None


def _train(journey: Journey, state: State) -> None:
    journey.console.rule(tr("3. train"), align="left")
    if state.turn is None and journey.step >= state.steps:
        journey.say(tr("done before: step {steps:,}", steps=state.steps))
        return
    began_at, started = journey.step, time.monotonic()
    if state.turn is not None:
        if journey.step < state.turn:
            left = HIGH_SHARE * (state.training or 0.0) - began_at * state.step_seconds - START
            _train_to(journey, state, ["--stop-at", str(state.turn), "--stop-after", f"{max(left, START):.0f}s"])
        state = _replan(journey, state, began_at, time.monotonic() - started)
    _train_to(journey, state, [])


def _replan(journey: Journey, state: State, began_at: int, elapsed: float) -> State:
    """The learning rate has not begun to fall yet, so that the number of steps can still be what the speed allows."""
    assert state.training is not None
    step, seen = journey.step, seconds_per_step(journey.run)
    a_step = seen or state.step_seconds
    start = min(max(elapsed - (step - began_at) * a_step, 0.0), 10 * START) if step > began_at else START
    left = state.training - elapsed - began_at * a_step - start
    # Even where no time is left, the learning rate must come down, or all that was learned at its height is noisy.
    steps = step + max(affordable(left, a_step), round(FALL * step))
    steps = min(steps, state.most)
    state = replace(state, steps=steps, turn=None, step_seconds=a_step)
    state.save(journey.out)
    return state


def seconds_per_step(run: Path) -> float | None:
    """Seconds of an update, evaluations and saves left out, over all that a run has told; None if it told nothing."""
    told = [line for line in read_metrics(run) if line.get("tokens_per_second")]
    # Each line is of as many updates as the next but the first, which compiles.
    told = [line for line in told if line["step"] > 1]
    if not told:
        return None
    config = RunConfig.load(run)
    a_token = sum(1 / float(line["tokens_per_second"]) for line in told) / len(told)
    return config.train.batch_size * config.model.block_size * a_token


def _train_to(journey: Journey, state: State, options: list[str]) -> None:
    chosen = ["--backend", journey.backend or state.backend, "--device", journey.device, *options]
    if (journey.run / CONFIG_FILE).is_file():
        given = ["--resume", "--steps", str(state.steps)]
    else:
        given = ["--data", str(journey.data), "--preset", PRESET, "--config", str(journey.out / RECIPE_FILE)]
    train_supervised([*given, *chosen], journey.run, journey.console)


def _tell(journey: Journey, report: Report) -> None:
    journey.console.rule(tr("4. what came of it"), align="left")
    for name, value in summary(journey.run, report).items():
        journey.say(f"{padded(tr(name), 8)} {value}")
    following = padded(tr("next"), 8)
    journey.say(f'{following} twingpt ask {shlex.quote(str(journey.run))} "..."')


def summary(run: Path, report: Report) -> dict[str, str]:
    """What a run and the text behind it have become, for people."""
    config, lines = RunConfig.load(run), read_metrics(run)
    spec, clean = config.model, report["clean"]
    evaluations = [line for line in lines if "bits_per_byte" in line]
    last, best = evaluations[-1], min(evaluations, key=lambda line: float(line["val_loss"]))
    loss = tr(
        "{bits_per_byte:.3f} bits per byte on {judged}", bits_per_byte=last["bits_per_byte"], judged=_judged(report)
    )
    if best["step"] != last["step"]:
        loss += tr(
            " (best: {bits_per_byte:.3f} at step {step:,}, which is {path})",
            bits_per_byte=best["bits_per_byte"],
            step=best["step"],
            path=run / "best",
        )
    engines = dict.fromkeys(find_engine(each.backend).title for each in read_sessions(run))
    took = config.train.steps * (seconds_per_step(run) or 0.0)
    return {
        mark("text"): f"{_size(clean['cleaned_bytes'])}, {_documents(clean['documents'])}",
        mark("model"): tr(
            "{parameters:,} parameters ({n_layer} layers x {n_embd}), {steps:,} updates in {took} with {engines}",
            parameters=parameter_count(spec),
            n_layer=spec.n_layer,
            n_embd=spec.n_embd,
            steps=config.train.steps,
            took=_seconds(took),
            engines=tr(" and ").join(engines),
        ),
        mark("loss"): loss,
        mark("library"): tr("{passages:,} passages to answer from", passages=report["library"]["passages"]),
    }


def _judged(report: Report) -> str:
    held_out: int = report["pack"]["val_documents"]
    if held_out:
        return tr("{held_out} that it was not trained on", held_out=_documents(held_out))
    return tr("its own training text, as there was too little to hold any out")


def _documents(number: int) -> str:
    return tr("{number:,} document", number=number) if number == 1 else tr("{number:,} documents", number=number)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"


def _seconds(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
