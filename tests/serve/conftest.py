"""A small run to serve, and a server on a real socket where a test client would hide what is tested."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="serve needs the extra: pip install 'twingpt[serve]'")

from fastapi.testclient import TestClient

from twingpt.checks.parity import perturbed
from twingpt.core.spec import GPTSpec
from twingpt.data.contacts import standardise
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.serve.app import create_app
from twingpt.serve.security import Access, allowed_hosts
from twingpt.serve.server import bind, configured
from twingpt.serve.service import Limits, Service, open_service
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.weights.checkpoint import CheckpointStore, Progress

METRICS = [
    {"step": 1, "loss": 6.5, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 900.0, "skipped": 0},
    {"step": 2, "loss": float("nan"), "lr": 1e-3, "grad_norm": 1.0, "tokens_per_second": 900.0, "skipped": 1},
    {"step": 2, "val_loss": 6.1, "bits_per_byte": 2.0, "sample": "여권\u2028대사관"},
]


def save_checkpoint(run_dir: Path, spec: GPTSpec, step: int) -> None:
    CheckpointStore(run_dir).save(spec, perturbed(spec, seed=step), Progress(step=step))


def spec_for(tokenizer: Tokenizer) -> GPTSpec:
    return GPTSpec(
        vocab_size=tokenizer.vocab_size, block_size=128, n_layer=2, n_head=2, n_embd=32, dropout=0.0, init_std=0.1
    )


def make_run(folder: Path, tokenizer: Tokenizer) -> Path:
    """What `train` leaves behind, with weights that write nonsense."""
    spec = spec_for(tokenizer)
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    RunConfig(model=spec, train=TrainConfig(steps=10, batch_size=2), data="").save(folder)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in METRICS)
    (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")
    _, contacts = standardise("한국 대사관\n대사관 전화: 02-8555-0123")
    ContactStore.create(folder / "contacts.sqlite", contacts).close()
    save_checkpoint(folder, spec, 1)
    return folder


@pytest.fixture
def run_spec(tokenizer: Tokenizer) -> GPTSpec:
    return spec_for(tokenizer)


@pytest.fixture
def run_dir(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    return make_run(tmp_path / "my-run", tokenizer)


@pytest.fixture
def service(run_dir: Path) -> Iterator[Service]:
    service = open_service(run_dir, "mlx", "cpu", slots=2, limits=Limits(max_tokens=200, max_waiting=100, seconds=120))
    yield service
    service.worker.stop()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    access = Access(hosts=allowed_hosts("127.0.0.1"), max_body=1 << 16)
    app = create_app(service, access)
    yield TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def base_url(service: Service) -> Iterator[str]:
    """A server on a free port."""
    listening = bind("127.0.0.1", 0)
    app = create_app(service, Access(hosts=allowed_hosts("127.0.0.1")))
    server = configured(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()
