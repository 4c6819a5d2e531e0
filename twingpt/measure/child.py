"""One measurement in a fresh process: two frameworks in one get in each other's way, and Metal can abort any.

The task goes in as JSON on standard input; lines of JSON come out, `{"stage": text}` for each stage and then
`{"answer": {...}}`, or `{"mistake": text}` for what the user can mend.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from twingpt.core.backend import BackendName, DeviceChoice
from twingpt.core.errors import OutOfMemoryError, TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec, build
from twingpt.training.config import TrainConfig

Job = Literal["measure", "describe"]


class ChildError(TwinGPTError):
    """The process ended without an answer: by a signal, out of memory, or by an error that is not the user's."""


def in_fresh_process(
    job: Job,
    spec: GPTSpec,
    config: TrainConfig,
    backend: BackendName,
    device: DeviceChoice,
    *,
    seconds: float = 0.0,
    stage: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """What twingpt.measure.throughput.<job> returns. Raises ChildError, or UsageError for what the user can mend."""
    task = {
        "job": job,
        "spec": spec.to_dict(),
        "train": asdict(config),
        "backend": backend,
        "device": device,
        "seconds": seconds,
    }
    said: dict[str, Any] = {}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "twingpt.measure.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert child.stdin is not None and child.stdout is not None
        try:
            with child.stdout:
                # A process that dies before it has read its task is told by its exit code.
                with contextlib.suppress(BrokenPipeError), child.stdin:
                    child.stdin.write(json.dumps(task))
                for line in child.stdout:
                    said |= json.loads(line)
                    if "stage" in said:
                        stage(said.pop("stage"))
            child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        errors.seek(0)
        last = next(iter(reversed(errors.read().strip().splitlines())), "")
    if "answer" in said:
        answer: dict[str, Any] = said["answer"]
        return answer
    if "mistake" in said:
        raise UsageError(said["mistake"])
    raise ChildError(said.get("memory") or ended(child.returncode, last))


def ended(code: int, last: str) -> str:
    """One line on how a process ended that has no answer. last: of what it wrote to standard error."""
    how = (
        tr("ended by {name}", name=signal.Signals(-code).name)
        if code < 0
        else tr("ended with exit code {code}", code=code)
    )
    return tr("its process was {how}", how=how) + (f": {last}" if last else "")


def main() -> None:
    # A framework that prints must not be read as an answer.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    task = json.load(sys.stdin)

    def say(kind: str, what: Any) -> None:
        answers.write(json.dumps({kind: what}) + "\n")
        answers.flush()

    from twingpt.measure.throughput import describe, measure

    try:
        spec, config = GPTSpec.from_dict(task["spec"]), build(TrainConfig, task["train"], "train")
        if task["job"] == "describe":
            answer = describe(spec, config, task["backend"], task["device"])
        else:
            seconds = task["seconds"]
            answer = measure(spec, config, task["backend"], task["device"], seconds, lambda text: say("stage", text))
        say("answer", answer)
    except OutOfMemoryError as error:
        say("memory", str(error))
    except TwinGPTError as error:
        say("mistake", str(error))


if __name__ == "__main__":
    main()
