"""`twingpt go`: the whole way in one command, from a text to a model, in the time that there is."""

import json
import math
import shlex
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from twingpt import timed
from twingpt.console import duration
from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.engines import find_engine
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import mark, os_reason, padded, tr
from twingpt.core.params import parameter_count
from twingpt.data.prepare.pipeline import PrepareSettings, Watcher, prepare
from twingpt.data.prepare.stages import Report
from twingpt.data.text import inputs, reading
from twingpt.data.text.changes import Changes
from twingpt.data.tokens.marks import Template
from twingpt.timed import TimedTraining, seconds_per_step
from twingpt.training.config import RunConfig
from twingpt.training.log import read_metrics
from twingpt.training.record import read_sessions
from twingpt.weights.format import write_whole

STATE_FILE = "go.json"

LEAST_SHARE = 0.5
"""Of the time, for the training, where preparing took longer than the time was meant for."""
KOREAN = 0.1
"""Of the letters, from which on a text is taken for Korean; its beginning, of LOOKED_AT letters, counts."""
LOOKED_AT = 100_000


@dataclass(frozen=True, kw_only=True)
class State:
    """OUT/go.json: what a second call must know to go on.

    text: fingerprint of the raw files. seconds: for the whole way.
    """

    text: str
    seconds: float

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
                seconds=duration(state.seconds),
            )
        )
    report = _prepare(journey)
    training = _timed(journey)
    planned = timed.State.load(journey.out)
    if planned is None:
        journey.console.rule(tr("2. choose a model"), align="left")
        whole = state.seconds
        planned = training.plan(lambda: max(whole - (time.monotonic() - started), LEAST_SHARE * whole))
    journey.console.rule(tr("3. train"), align="left")
    training.train(planned)
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
            seconds=duration(time.monotonic() - started),
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


def _timed(journey: Journey) -> TimedTraining:
    return TimedTraining(
        folder=journey.out,
        run=journey.run,
        data=journey.data,
        backend=journey.backend,
        device=journey.device,
        console=journey.console,
    )


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
    last, best = evaluations[-1], min(evaluations, key=_bits)
    loss = tr("{bits_per_byte:.3f} bits per byte on {judged}", bits_per_byte=_bits(last), judged=_judged(report))
    if best["step"] != last["step"]:
        loss += tr(
            " (best: {bits_per_byte:.3f} at step {step:,}, which is {path})",
            bits_per_byte=_bits(best),
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
            took=duration(took),
            engines=tr(" and ").join(engines),
        ),
        mark("loss"): loss,
        mark("library"): tr("{passages:,} passages to answer from", passages=report["library"]["passages"]),
    }


def _bits(line: dict[str, Any]) -> float:
    """A byte, of the weights or of their average, whichever is better."""
    return min(float(line["bits_per_byte"]), float(line.get("average_bits_per_byte", math.inf)))


def _judged(report: Report) -> str:
    held_out: int = report["pack"]["val_documents"]
    if held_out == report["clean"]["documents"] == 1:
        return tr("a part of the text that it was not trained on")
    if held_out:
        return tr("{held_out} that it was not trained on", held_out=_documents(held_out))
    return tr("its own training text, as there was too little to hold any out")


def _documents(number: int) -> str:
    return tr("{number:,} document", number=number) if number == 1 else tr("{number:,} documents", number=number)


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e6 else f"{size / 1e3:,.1f} kB"
