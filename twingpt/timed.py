"""Training within a time: what is chosen for it, and how the time is kept. For `twingpt go` and `train --time`."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

import tomli_w
from rich.console import Console

from twingpt.console import duration
from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.engines import how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.data.files import REPORT_FILE
from twingpt.data.tokens.manifest import Manifest
from twingpt.measure.sizing import Given, Plan, affordable, plan_training
from twingpt.training.config import CONFIG_FILE, RunConfig
from twingpt.training.log import read_metrics
from twingpt.training.restart import train_supervised
from twingpt.weights.checkpoint import CheckpointStore
from twingpt.weights.format import write_whole

STATE_FILE = "time.json"
RECIPE_FILE = "recipe.toml"

START = 6.0
"""Seconds that a training process needs before its first update, until one was seen."""
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
    """FOLDER/time.json: what a second call must know to go on.

    seconds: for the training. turn: step at which the rest is planned anew by the speed seen, if the time for it is not
    over before; None once it is. most: steps that the text is good for. step_seconds: of an update, as planned or seen.
    """

    seconds: float
    backend: BackendName
    steps: int
    most: int
    turn: int | None
    step_seconds: float

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """None if nothing was planned there. Raises TwinGPTError for a file that is none of ours."""
        try:
            return cls(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            path = folder / STATE_FILE
            raise TwinGPTError(
                tr("{path} cannot be read: delete {folder}, or give another --out", path=path, folder=folder)
            ) from None

    def save(self, folder: Path) -> None:
        """Raises TwinGPTError if it cannot be written."""
        _write(folder / STATE_FILE, json.dumps(asdict(self)).encode())


@dataclass(frozen=True, kw_only=True)
class TimedTraining:
    """folder: where the plan is kept. backend: None for the fastest one here. given: what the user has decided.

    options: of `train`, for every process that trains.
    """

    folder: Path
    run: Path
    data: Path
    backend: BackendName | None
    device: DeviceChoice
    console: Console
    given: Given = field(default_factory=Given)
    options: Sequence[str] = ()

    @property
    def step(self) -> int:
        """Updates saved."""
        return max(CheckpointStore(self.run).steps(), default=0)

    def plan(self, seconds: Callable[[], float]) -> State:
        """Choose engine, model, batch and updates, say which and why, and keep the choice.

        seconds: how many are left for the training, which the trials take some of. Raises TwinGPTError if no engine is
        installed, or not even the smallest model fits into memory.
        """
        backends = [self.backend] if self.backend else installed_backends()
        if not backends:
            raise TwinGPTError(tr("no engine is installed: {advice}", advice=how_to_install()))
        manifest = Manifest.load(self.data)
        with self.console.status(tr("timing some updates")):
            plan = plan_training(
                text_tokens=self._text_tokens(manifest),
                vocab_size=manifest.vocab_size,
                block_size=manifest.block_size,
                seconds=seconds() - START,
                backends=backends,
                device=self.device,
                given=self.given,
                say=self._say,
            )
        training = seconds()
        two = training >= WORTH_TWO and plan.steps * plan.step_seconds > training / 2
        # The trials took time of the training's.
        steps = min(plan.steps, affordable(training - START * (2 if two else 1), plan.step_seconds))
        plan = replace(plan, rounds=plan.rounds * steps / plan.steps, steps=steps)
        train = {**plan.train, "steps": steps, "decay_fraction": 1 - HIGH_SHARE}
        _write(self.folder / RECIPE_FILE, tomli_w.dumps({"model": plan.model, "train": train}).encode())
        for line in told(plan):
            self._say(line)
        state = State(
            seconds=training,
            backend=plan.backend,
            steps=steps,
            most=plan.most,
            turn=round(HIGH_SHARE * steps) if two else None,
            step_seconds=plan.step_seconds,
        )
        state.save(self.folder)
        return state

    def train(self, state: State) -> None:
        """Train from wherever an earlier call was interrupted to the end of the time.

        Raises StoppedError after an orderly stop of the training.
        """
        if state.turn is None and self.step >= state.steps:
            self._say(tr("done before: step {steps:,}", steps=state.steps))
            return
        began_at, started = self.step, time.monotonic()
        if state.turn is not None:
            if self.step < state.turn:
                left = HIGH_SHARE * state.seconds - began_at * state.step_seconds - START
                self._train_to(state, ["--stop-at", str(state.turn), "--stop-after", f"{max(left, START):.0f}s"])
            state = self.replan(state, began_at, time.monotonic() - started)
        self._train_to(state, [])

    def replan(self, state: State, began_at: int, elapsed: float) -> State:
        """The learning rate has not begun to fall yet, so that the number of steps can still be what the speed allows.

        began_at: the step at which this call began, `elapsed` seconds ago.
        """
        step, seen = self.step, seconds_per_step(self.run)
        a_step = seen or state.step_seconds
        start = min(max(elapsed - (step - began_at) * a_step, 0.0), 10 * START) if step > began_at else START
        left = state.seconds - elapsed - began_at * a_step - start
        # Even where no time is left, the learning rate must come down, or all that was learned at its height is noisy.
        steps = step + max(affordable(left, a_step), round(FALL * step))
        steps = min(steps, state.most)
        state = replace(state, steps=steps, turn=None, step_seconds=a_step)
        state.save(self.folder)
        return state

    def _text_tokens(self, manifest: Manifest) -> int:
        """Tokens of the text itself, which samples repeat; those to train on where DATA does not say."""
        try:
            report = json.loads((self.data / REPORT_FILE).read_text(encoding="utf-8"))
            return int(report["clean"]["cleaned_bytes"] / report["pack"]["bytes_per_token"])
        except (OSError, ValueError, TypeError, KeyError, ZeroDivisionError):
            return manifest.train.tokens

    def _train_to(self, state: State, options: Sequence[str]) -> None:
        chosen = ["--backend", self.backend or state.backend, "--device", self.device, *self.options, *options]
        if (self.run / CONFIG_FILE).is_file():
            begin = ["--resume", "--steps", str(state.steps)]
        else:
            recipe = ["--preset", self.given.preset, "--config", str(self.folder / RECIPE_FILE)]
            begin = ["--data", str(self.data), *recipe]
        train_supervised([*begin, *chosen], self.run, self.console)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def told(plan: Plan) -> list[str]:
    """What was chosen and why, a line each."""
    train = plan.train
    if plan.short_of == "time":
        why = tr("more time would make it better")
    else:
        why = tr("after more rounds it would know this text by heart")
    lines = [
        tr(
            "model: {parameters:,} parameters ({layers} layers x {width}), the largest that text and time can teach",
            parameters=plan.parameters,
            layers=plan.model["n_layer"],
            width=plan.model["n_embd"],
        ),
        tr(
            "updates: {steps:,} of {batch_size} x {block_size} tokens, about {time}",
            steps=plan.steps,
            batch_size=train["batch_size"],
            block_size=plan.block_size,
            time=duration(plan.steps * plan.step_seconds),
        ),
        tr("epochs: {rounds:.1f} rounds of the text, each cut anew; {why}", rounds=plan.rounds, why=why),
    ]
    if train.get("average") and train.get("decay_epochs"):
        lines.append(
            tr(
                "against learning by heart: dropout {dropout:g}, weight decay over {epochs:g} epochs, and an average "
                "of the weights over the last {percent:.0f} % of the updates",
                dropout=plan.model.get("dropout", 0.0),
                epochs=train["decay_epochs"],
                percent=100 * train["average"],
            )
        )
    return lines


def seconds_per_step(run: Path) -> float | None:
    """Seconds of an update, evaluations and saves left out, over all that a run has told; None if it told nothing."""
    lines = [line for line in read_metrics(run) if line.get("tokens_per_second")]
    # Each line is of as many updates as the next but the first, which compiles.
    lines = [line for line in lines if line["step"] > 1]
    if not lines:
        return None
    config = RunConfig.load(run)
    a_token = sum(1 / float(line["tokens_per_second"]) for line in lines) / len(lines)
    return config.train.batch_size * config.model.block_size * a_token


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None
