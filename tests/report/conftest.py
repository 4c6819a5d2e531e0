"""Runs to report on: folders as `train` writes them, made by hand, so that each holds just what a test is about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twingpt.checks.parity import perturbed
from twingpt.core.spec import GPTSpec
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.record import SESSIONS_FILE
from twingpt.weights.checkpoint import CheckpointStore, Progress

SPEC = GPTSpec(vocab_size=600, block_size=32, n_layer=2, n_head=2, n_embd=32)
MakeRun = Callable[..., Path]


def update(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": loss,
        "lr": 1e-3,
        "grad_norm": 1.0 / step,
        "tokens_per_second": 1000.0,
        "skipped": 0,
        "samples": 4 * step,
        "tokens": 100 * step,
        "memory": 50 * 1024**2,
        **more,
    }


def validation(step: int, loss: float, sample: str | None = None) -> dict[str, Any]:
    return {"step": step, "val_loss": loss, "perplexity": 2.0, "bits_per_byte": loss / 3, "sample": sample}


def session(step: int, backend: str, device: str = "cpu", chip: str = "Test Chip") -> dict[str, Any]:
    machine = {"chip": chip, "cores": "8", "memory": "16.0 GiB"}
    versions = {"twingpt": "0.1.0", "python": "3.11", "torch": "2.13", "mlx": "0.32"}
    started = "2026-01-02T03:04:05+00:00"
    return {
        "step": step,
        "started": started,
        "backend": backend,
        "device": device,
        "micro_batch": 4,
        "machine": machine,
        "versions": versions,
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """(name, lines of metrics, sessions, settings of train, settings of the model, fingerprint) -> RUN."""

    def make(
        name: str,
        lines: list[dict[str, Any]],
        *,
        sessions: list[dict[str, Any]] | None = None,
        train: dict[str, Any] | None = None,
        spec: GPTSpec = SPEC,
        data: Path | None = None,
        checkpoint: int | None = None,
        fingerprint: dict[str, str] | None = None,
    ) -> Path:
        run = tmp_path / name
        run.mkdir(parents=True)
        settings = TrainConfig(**{"steps": 8, "batch_size": 4, **(train or {})})
        RunConfig(model=spec, train=settings, data=str(data or tmp_path / "gone")).save(run)
        (run / "metrics.jsonl").write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))
        if sessions is not None:
            (run / SESSIONS_FILE).write_text("".join(json.dumps(each) + "\n" for each in sessions))
        if checkpoint is not None:
            progress = Progress(step=checkpoint, val_loss=2.0, fingerprint=fingerprint or {})
            CheckpointStore(run).save(spec, perturbed(spec), progress)
        return run

    return make
