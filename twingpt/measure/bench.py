"""`twingpt bench`: every engine and precision in turn, and how near each comes to what the machine can do."""

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from twingpt.checks.machine import machine, versions
from twingpt.core.backend import BackendName, DeviceChoice, Precision
from twingpt.core.engines import find_compared, find_engine, how_to_install, installed_backends
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.core.memory import machine_memory
from twingpt.core.params import flops_per_token, matmul_weights, parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.measure.child import ChildError, in_fresh_process
from twingpt.measure.chips import Chip, this_chip
from twingpt.training.config import RunConfig, TrainConfig, make_config, read_toml

FLOAT = 4
DEFAULT_VOCABULARY = 16_000

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """precisions: empty for float32, and bfloat16 too where the device is no CPU. seconds: of training, an engine."""

    spec: GPTSpec
    config: TrainConfig
    backends: list[BackendName]
    device: DeviceChoice = "auto"
    precisions: list[Precision]
    seconds: float = 10.0


def chosen_backends(name: str) -> list[BackendName]:
    """The engines that "all", or one name, stands for. Raises UsageError, or TwinGPTError if it is not installed."""
    installed = installed_backends()
    if name == "all":
        if not installed:
            raise TwinGPTError(tr("no engine is installed: {advice}", advice=how_to_install()))
        return installed
    engine = find_compared(name, "all")
    engine.check_installed()
    return [engine.name]


def load_config(
    *, preset: str, config_file: Path | None, run: Path | None, model: dict[str, Any], train: dict[str, Any]
) -> RunConfig:
    """What `train` would make of the same options, or a run's own config with the options over it.

    There is no data to tell the vocabulary: DEFAULT_VOCABULARY unless an option or the file does.
    """
    if run is not None:
        stored = RunConfig.load(run)
        return replace(stored, model=replace(stored.model, **model), train=replace(stored.train, **train))
    in_file = read_toml(config_file).get("model", {}) if config_file is not None else {}
    if "vocab_size" not in in_file:
        model = {"vocab_size": DEFAULT_VOCABULARY, **model}
    return make_config(preset=preset, config_file=config_file, model=model, train=train, data="")


def run_bench(request: BenchRequest, stage: Callable[[str], None]) -> dict[str, Any]:
    """The whole answer of `twingpt bench`: machine, model, recipe and a row for each engine and precision.

    A row that could not be measured holds backend, precision and the reason as `failed`. Raises TwinGPTError if none
    could.
    """
    chip = this_chip()
    rows = [row for backend in request.backends for row in _rows(request, backend, chip, stage)]
    if all("failed" in row for row in rows):
        raise TwinGPTError("; ".join(f"{row['backend']}, {row['precision']}: {row['failed']}" for row in rows))
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**machine(), "memory_bytes": machine_memory(), **asdict(chip)},
        "versions": versions(),
        "model": request.spec.to_dict(),
        "parameters": parameter_count(request.spec),
        "flops_per_token": flops_per_token(request.spec),
        "train": asdict(request.config),
        "engines": rows,
    }


def _rows(request: BenchRequest, backend: BackendName, chip: Chip, stage: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = []
    waiting: list[Precision] = list(request.precisions) or ["float32"]
    while waiting:
        config = replace(request.config, precision=waiting.pop(0))
        label = f"{backend}, {config.precision}"
        try:
            row = in_fresh_process(
                "measure",
                request.spec,
                config,
                backend,
                request.device,
                seconds=request.seconds,
                stage=partial(_labelled, stage, label),
            )
            row["roofline"] = roofline(row, request.spec, chip)
            # On a CPU that has no instructions for it bfloat16 takes an hour to say so: only when asked for.
            if not request.precisions and config.precision == "float32" and row["device"] != "cpu":
                waiting.append("bfloat16")
        except ChildError as error:
            row = {"backend": backend, "precision": config.precision, "failed": str(error)}
        rows.append(row)
    return rows


def _labelled(stage: Callable[[str], None], label: str, text: str) -> None:
    stage(f"{label}: {text}")


def roofline(row: Row, spec: GPTSpec, chip: Chip) -> dict[str, Any]:
    """The share of the machine's limit that training and generation reach, and what each limit is.

    On a GPU of the table: its FLOPs a second in training; in generation that, or the bandwidth with which the weights
    (float32 in either precision) must be read for every token, whichever allows less. Elsewhere: the products of
    weights alone, as fast as the same engine was seen to do them here.
    """
    on_chip = row["device"] == find_engine(row["backend"]).chip_device
    flops, bandwidth = (chip.flops, chip.bandwidth) if on_chip else (None, None)
    weights = matmul_weights(spec)
    generation = []
    for speed, measured in zip(row["generation"], row["token_matmul_seconds"], strict=True):
        seconds = measured
        if bandwidth is not None:
            seconds = max(FLOAT * weights / bandwidth, 2 * weights * speed["slots"] / flops if flops else 0.0)
        generation.append(speed["tokens_per_second"] / speed["slots"] * seconds)
    return {
        "training": row["training"]["tokens_per_second"] * flops_per_token(spec) / (flops or row["matmul_flops"]),
        "training_limit": f"{chip.name}, FLOPs" if flops else "measured products",
        "generation": generation,
        "generation_limit": f"{chip.name}, bandwidth" if bandwidth else "measured products",
    }


def append(path: Path, result: dict[str, Any]) -> None:
    """One line of JSON more. Raises TwinGPTError if the file cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None
