"""Gradients summed over ranks are those of the whole batch, however they travel and whatever each rank counts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import make_engine
from tests.ranks import rank_environments
from twingpt.core.backend import Backend, EngineConfig, State, create_backend, join_world
from twingpt.core.engines import find_engine
from twingpt.core.spec import GPTSpec
from twingpt.core.state import initial_state
from twingpt.core.world import World

SPEC = GPTSpec(vocab_size=211, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.1, tie_embeddings=True)
# Measured: 1.1e-6 (torch), 6.6e-7 (mlx) of the weights, 1.3e-7 of losses and norms.
TOLERANCE = 5e-6
SMALL = 8 * 1024
"""Bytes of a bucket: the model's 130 kB travel in several, the embedding alone in one that is larger."""


def take_steps(engine: Backend, world: World | None = None) -> tuple[State, list[float], list[float]]:
    """(state, losses, gradient norms) after three updates of 2 micro-batches of each rank."""
    rank, size = (world.rank, world.size) if world else (0, 1)
    engine.load_state(initial_state(SPEC, 0, "adamw"))
    tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, (8, SPEC.block_size + 1), dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[1, 3:] = -1
    targets[3] = -1
    targets[5, ::2] = -1
    for step in range(3):
        parts = [rows[rank::size].reshape(2, -1, SPEC.block_size) for rows in (inputs, targets)]
        engine.train_step(parts[0], parts[1], 1e-3, step, int((targets >= 0).sum()))
    stats = engine.read_stats()
    return engine.export_state(), stats.loss_sums, stats.grad_norms


def of_a_rank(backend: str, bucket_bytes: str, folder: str) -> None:
    """What each process of the test runs."""
    distributed = find_engine(backend).part("distributed")
    vars(distributed)["BUCKET_BYTES"] = int(bucket_bytes)
    world = join_world(backend, 60.0)
    state, losses, norms = take_steps(create_backend(backend, SPEC, EngineConfig(device="cpu"), world), world)
    save_file(state, Path(folder) / f"state-{world.rank}.safetensors")
    (Path(folder) / f"stats-{world.rank}.json").write_text(json.dumps([losses, norms]))
    os._exit(0)


@pytest.mark.parametrize("bucket_bytes", [SMALL, 1 << 30])
def test_ranks_sum_to_the_whole_batch(backend_name: str, bucket_bytes: int, tmp_path: Path) -> None:
    """Rank 1 counts a fraction of what rank 0 does: a mean of means would be another gradient."""
    call = "import sys; from tests.backends.test_distributed import of_a_rank; of_a_rank(*sys.argv[1:])"
    command = [sys.executable, "-c", call, backend_name, str(bucket_bytes), str(tmp_path)]
    processes = [
        subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment})
        for environment in rank_environments(backend_name, 2, tmp_path)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    state, losses, norms = take_steps(make_engine(backend_name, SPEC))
    ranks = [load_file(tmp_path / f"state-{rank}.safetensors") for rank in range(2)]
    for name, whole in state.items():
        assert (ranks[0][name] == ranks[1][name]).all(), name
        assert np.abs(ranks[0][name] - whole).max() < TOLERANCE, name
    summed, of_the_sum = json.loads((tmp_path / "stats-0.json").read_text())
    assert summed == pytest.approx(losses, rel=1e-6)
    assert of_the_sum == pytest.approx(norms, rel=1e-5)
