"""Does a micro-batch fit? A few steps of it in a process of its own, since Metal can abort the one that asks too much.

Here and not in bench, as `train` asks before it starts, and bench may import train but not the other way round.
"""

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twingpt.core.backend import DeviceChoice, create_backend
from twingpt.core.errors import OutOfMemoryError, TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec, build
from twingpt.core.state import MODEL
from twingpt.training.config import TrainConfig

MEMORY_SIGNALS = (signal.SIGABRT, signal.SIGKILL)
"""How a process ends that Metal aborts, or that the system kills for its memory."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """seconds_per_step: of a whole update, the first one left out if there were more; peak_bytes: on the device, or of
    the process on the CPU. Both 0 where it does not fit, and `reason` says why, in one line.
    """

    fits: bool
    seconds_per_step: float = 0.0
    peak_bytes: int = 0
    reason: str = ""


def probe(
    spec: GPTSpec, config: TrainConfig, backend: str, device: DeviceChoice, micro_batch: int, steps: int
) -> ProbeResult:
    """Train `steps` updates on random tokens, `micro_batch` sequences at a time, in a fresh process.

    Raises TwinGPTError if that fails by anything other than memory.
    """
    train = {**asdict(config), "micro_batch": micro_batch}
    task = {"spec": spec.to_dict(), "train": train, "backend": backend, "device": device, "steps": steps}
    child = subprocess.run(
        [sys.executable, "-m", "twingpt.training.probe"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
    )
    said = child.stderr.strip().splitlines()
    last = said[-1] if said else ""
    if child.returncode == 0:
        return ProbeResult(**json.loads(child.stdout.splitlines()[-1]))
    if -child.returncode in MEMORY_SIGNALS:
        name = signal.Signals(-child.returncode).name
        return ProbeResult(
            False, reason=tr("its process was ended by {name}", name=name) + (f": {last}" if last else "")
        )
    raise TwinGPTError(
        tr(
            "a trial of {micro_batch} sequences at a time on {backend} failed: {reason}",
            micro_batch=micro_batch,
            backend=backend,
            reason=last or child.returncode,
        )
    )


def measure(task: dict[str, Any]) -> ProbeResult:
    """What the process of its own does."""
    spec, train = GPTSpec.from_dict(task["spec"]), build(TrainConfig, task["train"], "train")
    shape = (train.accumulation, train.micro_batch, spec.block_size + 1)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, shape, dtype=np.int32)
    timed = max(1, task["steps"] - 1)
    started = time.perf_counter()
    try:
        engine = create_backend(task["backend"], spec, train.engine(task["device"]))
        engine.load_state({MODEL + name: weight for name, weight in initial_weights(spec, train.seed).items()})
        for step in range(task["steps"]):
            if step == task["steps"] - timed:
                engine.read_stats()
                started = time.perf_counter()
            engine.train_step(tokens[..., :-1], tokens[..., 1:], train.learning_rate, step)
        engine.read_stats()
        seconds = time.perf_counter() - started
        return ProbeResult(True, seconds / timed, engine.memory()[1])
    except OutOfMemoryError as error:
        return ProbeResult(False, reason=str(error))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(measure(json.load(sys.stdin)))) + "\n")
