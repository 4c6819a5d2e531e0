"""With dropout, too, a step is the same however its batch is cut: in one engine, over ranks, and in every engine."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.conftest import make_engine
from tests.ranks import rank_environments
from twingpt.core.backend import Backend, EngineConfig, State, create_backend, join_world
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, initial_state
from twingpt.core.world import World

SPEC = GPTSpec(vocab_size=211, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.1, tie_embeddings=True)
BATCH = 8
# The largest after 50 steps, over three engines and every cut: 1.0e-5 of the weights with dropout and 1.4e-5 without,
# 7.6e-7 of the losses in both.
WEIGHTS, LOSSES = 5e-5, 3e-6
ENGINES = ("mps", "mlx", "reference")

End = tuple[State, NDArray[np.float64]]


def trained(engine: Backend, micro_batch: int, steps: int, world: World | None = None) -> End:
    """(weights, losses) after some steps of this rank's share of the batches."""
    rank, ranks = (world.rank, world.size) if world else (0, 1)
    engine.load_state(initial_state(SPEC, 0, "adamw"))
    tokens = np.random.default_rng(0).integers(0, SPEC.vocab_size, (5, BATCH, SPEC.block_size + 1), dtype=np.int32)
    for step in range(steps):
        own = tokens[step % 5, rank::ranks].reshape(-1, micro_batch, SPEC.block_size + 1)
        engine.train_step(own[..., :-1], own[..., 1:].copy(), 1e-3, step, BATCH * SPEC.block_size)
    stats = engine.read_stats()
    state = {name: value for name, value in engine.export_state().items() if name.startswith(MODEL)}
    return state, np.array(stats.loss_sums) / stats.tokens


def assert_same_run(found: End, right: End) -> None:
    for name, value in right[0].items():
        np.testing.assert_allclose(found[0][name], value, rtol=0.0, atol=WEIGHTS, err_msg=name)
    np.testing.assert_allclose(found[1], right[1], rtol=LOSSES)


@pytest.mark.usefixtures("ops_set")
def test_a_batch_drops_out_the_same_however_it_is_cut_in_every_engine() -> None:
    right = trained(make_engine("reference", SPEC), BATCH, 3)
    for name in ENGINES:
        for micro_batch in (1, 4, BATCH):
            assert_same_run(trained(make_engine(name, SPEC), micro_batch, 3), right)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fifty_steps_are_the_same_however_they_are_cut(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SPEC", GPTSpec(**{**SPEC.to_dict(), "dropout": dropout}))
    right = trained(make_engine("reference", SPEC), BATCH, 50)
    for name in ENGINES:
        for micro_batch in (1, 2, 4, 8):
            assert_same_run(trained(make_engine(name, SPEC), micro_batch, 50), right)


def of_a_rank(backend: str, micro_batch: str, folder: str) -> None:
    """What each process of the test runs."""
    world = join_world(backend, 60.0)
    engine = create_backend(backend, SPEC, EngineConfig(device="cpu"), world)
    state, losses = trained(engine, int(micro_batch), 50, world)
    save_file({**state, "losses": losses}, Path(folder) / f"{world.rank}.safetensors")
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "micro_batch"), [(2, 1), (2, 4), (4, 1), (4, 2)])
def test_fifty_steps_are_the_same_over_ranks(backend_name: str, ranks: int, micro_batch: int, tmp_path: Path) -> None:
    call = "import sys; from tests.backends.test_dropout import of_a_rank; of_a_rank(*sys.argv[1:])"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", call, backend_name, str(micro_batch), str(tmp_path)],
            env={**os.environ, **environment},
        )
        for environment in rank_environments(backend_name, ranks, tmp_path)
    ]
    assert [process.wait(300) for process in processes] == [0] * ranks
    right = trained(make_engine("reference", SPEC), BATCH, 50)
    for rank in range(ranks):
        state = load_file(tmp_path / f"{rank}.safetensors")
        assert_same_run((state, state.pop("losses").astype(np.float64)), right)
