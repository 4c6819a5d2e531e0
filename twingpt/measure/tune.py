"""`twingpt tune`: which engine, precision and micro-batch trains a spec fastest within the memory, tried one by one."""

import datetime
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from twingpt.checks.machine import machine
from twingpt.core.backend import BackendName, DeviceChoice, Precision
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.core.spec import GPTSpec
from twingpt.measure.child import ChildError, in_fresh_process
from twingpt.training.config import TrainConfig
from twingpt.training.estimate import GIB, LESS_MEMORY, MIB, divisors, plan_memory
from twingpt.training.probe import probe
from twingpt.weights.format import write_whole

SLOWER = 1.05
"""A micro-batch this much slower than a larger one ends the search: smaller ones only do less at a time."""

FROM_DATA = ("vocab_size",)
"""Settings of [model] that the data decides, and so not the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to train, and what came of it. tokens_per_second 0 where it does not fit, for `reason`."""

    backend: BackendName
    device: str
    precision: Precision
    micro_batch: int
    fits: bool
    tokens_per_second: float = 0.0
    seconds_per_step: float = 0.0
    peak_bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """precisions: empty for float32, and bfloat16 too where the device is no CPU. memory_limit: in GiB."""

    spec: GPTSpec
    config: TrainConfig
    backends: list[BackendName]
    device: DeviceChoice = "auto"
    precisions: list[Precision]
    steps: int = 3
    memory_limit: float | None = None


def candidates(request: TuneRequest, stage: Callable[[str], None]) -> Iterator[Candidate]:
    """Each one as it has been tried: the largest micro-batch that the estimate allows first, then the smaller ones."""
    for backend in request.backends:
        stage(tr("{backend}: device and memory", backend=backend))
        try:
            found = in_fresh_process("describe", request.spec, request.config, backend, request.device)
        except ChildError as error:
            yield Candidate(
                backend=backend, device="?", precision="float32", micro_batch=0, fits=False, reason=str(error)
            )
            continue
        limit = found["limit"] if request.memory_limit is None else int(request.memory_limit * GIB)
        default: list[Precision] = ["float32"] if found["device"] == "cpu" else ["float32", "bfloat16"]
        for precision in request.precisions or default:
            config = replace(request.config, precision=precision, micro_batch=0)
            plan = plan_memory(request.spec, config, backend, found["device"], limit, strict=False)
            sizes = [size for size in divisors(config.batch_size) if size <= plan.micro_batch]
            best: Candidate | None = None
            for size in sizes:
                stage(
                    tr(
                        "{backend}, {precision}, {size} of {batch_size} sequences at a time",
                        backend=backend,
                        precision=precision,
                        size=size,
                        batch_size=config.batch_size,
                    )
                )
                tried = try_out(request, config, backend, found["device"], size, limit)
                yield tried
                if best is not None and tried.fits and tried.seconds_per_step > SLOWER * best.seconds_per_step:
                    break
                if tried.fits and (best is None or tried.seconds_per_step < best.seconds_per_step):
                    best = tried


def try_out(
    request: TuneRequest, config: TrainConfig, backend: BackendName, device: str, micro_batch: int, limit: int
) -> Candidate:
    """A few updates in a process of their own; whatever ends that process, this micro-batch is no choice then."""
    base = Candidate(backend=backend, device=device, precision=config.precision, micro_batch=micro_batch, fits=False)
    try:
        result = probe(request.spec, config, backend, request.device, micro_batch, request.steps)
    except TwinGPTError as error:
        return replace(base, reason=str(error))
    if not result.fits:
        return replace(base, reason=result.reason)
    tried = replace(
        base,
        fits=True,
        tokens_per_second=config.batch_size * request.spec.block_size / result.seconds_per_step,
        seconds_per_step=result.seconds_per_step,
        peak_bytes=result.peak_bytes,
    )
    if result.peak_bytes > limit:
        return replace(
            tried,
            fits=False,
            reason=tr(
                "it took {peak_bytes:,.0f} of {limit:,.0f} MiB", peak_bytes=result.peak_bytes / MIB, limit=limit / MIB
            ),
        )
    return tried


def best_of(tried: list[Candidate]) -> Candidate:
    """The fastest that fits. Raises TwinGPTError if none does."""
    fitting = [candidate for candidate in tried if candidate.fits]
    if not fitting:
        reasons = "; ".join(dict.fromkeys(candidate.reason for candidate in tried))
        raise TwinGPTError(tr("nothing fits ({reasons}): {advice}", reasons=reasons, advice=tr(LESS_MEMORY)))
    return max(fitting, key=lambda candidate: candidate.tokens_per_second)


def write_config(path: Path, request: TuneRequest, best: Candidate) -> None:
    """What `train --config` takes: the whole [model] but its vocabulary, and [train] where it is not the default.

    Raises TwinGPTError if it cannot be written.
    """
    model = {name: value for name, value in request.spec.to_dict().items() if name not in FROM_DATA}
    settings = asdict(replace(request.config, precision=best.precision, micro_batch=best.micro_batch))
    defaults = {field.name: field.default for field in fields(TrainConfig)}
    always = ("batch_size", "micro_batch", "precision")
    train = {name: value for name, value in settings.items() if name in always or value != defaults[name]}
    head = (
        f"# twingpt tune, {datetime.date.today().isoformat()}, {machine()['chip']}: {best.backend} on {best.device}, "
        f"{best.tokens_per_second:,.0f} tokens/s\n"
    )
    content: dict[str, Any] = {"model": model, "train": train}
    try:
        write_whole(path, (head + tomli_w.dumps(content)).encode())
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None


def train_command(path: Path, request: TuneRequest, best: Candidate) -> str:
    device = "" if request.device == "auto" else f" --device {request.device}"
    return f"twingpt train --data DATA --out RUN --backend {best.backend}{device} --config {path}"
