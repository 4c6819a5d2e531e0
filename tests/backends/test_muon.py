"""Muon in both engines: the rule itself, what it leaves alone, and its state."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.test_engine import both_sets, windows
from tests.conftest import make_engine
from twingpt.core.backend import Backend, EngineConfig, State, create_backend
from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError
from twingpt.core.muon import COEFFICIENTS, EPS, STEPS, matrices_by_shape, update_scale
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, initial_state

LR, DECAY, BETA = 1e-2, 0.1, 0.9


def muon_engine(name: str, spec: GPTSpec, **config: object) -> Backend:
    settings = {
        "optimizer": "muon",
        "muon_momentum": BETA,
        "weight_decay": DECAY,
        "grad_clip": 0.0,
        "muon_lr_scale": 2.0,
    }
    return make_engine(name, spec, **{**settings, **config})


def reference(weight: NDArray[np.float64], gradients: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The rule of core.muon in float64, on one matrix, a step for each gradient."""
    a, b, c = COEFFICIENTS
    momentum = np.zeros_like(weight)
    lr = 2.0 * LR
    for gradient in gradients:
        momentum = BETA * momentum + gradient
        x = gradient + BETA * momentum
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / (np.linalg.norm(x) + EPS)
        for _ in range(STEPS):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        x = x.T if tall else x
        weight = weight * (1.0 - lr * DECAY) - lr * update_scale(*weight.shape) * x
    return weight


@both_sets
def test_two_updates_follow_the_rule(backend_name: str, spec: GPTSpec) -> None:
    """Queries, keys and values each by themselves, tall and wide matrices, decay and momentum."""
    engine = muon_engine(backend_name, spec)
    inputs, targets = windows(spec, 1, 2)
    start = engine.export_state()
    gradients: list[State] = []
    for step in range(2):
        gradients.append(engine.loss_and_grads(inputs[0], targets[0])[1])
        engine.train_step(inputs, targets, LR, step)
    engine.read_stats()
    end = engine.export_state()
    for group in matrices_by_shape(parameter_table(spec)).values():
        for matrix in group:
            key, rows = MODEL + matrix.name, slice(matrix.start, matrix.stop)
            expected = reference(
                start[key][rows].astype(np.float64), [g[key][rows].astype(np.float64) for g in gradients]
            )
            moved = np.abs(expected - start[key][rows]).max()
            # Measured: 1.2e-5 of the largest move.
            assert np.abs(end[key][rows] - expected).max() < 1e-4 * moved, matrix


def test_the_update_is_nearly_orthogonal(backend_name: str) -> None:
    spec = GPTSpec(vocab_size=64, block_size=16, n_layer=1, n_head=2, n_embd=32, dropout=0.0)
    engine = muon_engine(backend_name, spec, weight_decay=0.0, muon_lr_scale=1.0)
    inputs, targets = windows(spec, 1, 8)
    before = engine.export_state()
    engine.train_step(inputs, targets, 1.0, 0)
    engine.read_stats()
    after = engine.export_state()
    update = (after["model/blocks.0.mlp.fc.weight"] - before["model/blocks.0.mlp.fc.weight"]) / update_scale(128, 32)
    singular = np.linalg.svd(update, compute_uv=False)
    # Five iterations lift a singular value by up to 480 times: what is far below the largest stays behind.
    assert np.median(singular) > 0.6
    assert singular.max() < 1.25


@both_sets
def test_embeddings_norms_and_biases_are_adamws(backend_name: str, spec: GPTSpec) -> None:
    """With the same gradient, AdamW alone moves them as it does beside Muon."""
    inputs, targets = windows(spec, 1, 2)
    states = {}
    for optimizer in ("adamw", "muon"):
        engine = muon_engine(backend_name, spec, optimizer=optimizer)
        engine.train_step(inputs, targets, LR, 0)
        engine.read_stats()
        states[optimizer] = engine.export_state()
    for name, param in parameter_table(spec).items():
        same = np.array_equal(states["adamw"][MODEL + name], states["muon"][MODEL + name])
        assert same is (param.optimizer == "adamw"), name


@both_sets
def test_a_step_that_is_not_finite_changes_nothing(backend_name: str, spec: GPTSpec) -> None:
    engine = muon_engine(backend_name, spec)
    inputs, targets = windows(spec, 1, 2)
    engine.train_step(inputs, targets, LR, 0)
    before = engine.export_state()
    broken = {**before, "model/ln_f.weight": np.full_like(before["model/ln_f.weight"], np.nan)}
    engine.load_state(broken)
    engine.train_step(inputs, targets, LR, 1)
    after = engine.export_state()
    assert engine.read_stats().applied == [True, False]
    for key in before:
        assert np.array_equal(after[key], broken[key], equal_nan=True), key


@both_sets
def test_both_engines_make_the_same_run_and_go_on_with_each_others_state(spec: GPTSpec) -> None:
    config = EngineConfig(device="cpu", optimizer="muon", weight_decay=DECAY)
    engines = {name: create_backend(name, spec, config) for name in compared()}
    state = initial_state(spec, 0, "muon")
    losses: dict[str, list[float]] = {}
    batches = [windows(spec, 1, 4, seed=step) for step in range(12)]
    for name, engine in engines.items():
        engine.load_state(state)
        for step, (inputs, targets) in enumerate(batches):
            engine.train_step(inputs, targets, 3e-3, step)
        stats = engine.read_stats()
        losses[name] = [nats / tokens for nats, tokens in zip(stats.loss_sums, stats.tokens, strict=True)]

    torch_then_mlx: list[float] = []
    for name, part in (("mps", slice(0, 6)), ("mlx", slice(6, 12))):
        engine = engines[name]
        engine.load_state(state)
        for step, (inputs, targets) in list(enumerate(batches))[part]:
            engine.train_step(inputs, targets, 3e-3, step)
        stats = engine.read_stats()
        torch_then_mlx += [nats / tokens for nats, tokens in zip(stats.loss_sums, stats.tokens, strict=True)]
        state = engine.export_state()
    assert int(state["muon.count"]) == int(state["adamw.count"]) == 12
    # Measured: see the assertion's figures in the log of the issue; a wrong rule is apart by 1e-2 and more.
    assert np.abs(np.subtract(losses["mps"], losses["mlx"])).max() < 2e-5
    assert np.abs(np.subtract(losses["mps"], torch_then_mlx)).max() < 2e-5


@pytest.mark.parametrize(("kept", "asked"), [("muon", "adamw"), ("adamw", "muon")])
def test_the_other_optimizers_state_is_refused(backend_name: str, spec: GPTSpec, kept: str, asked: str) -> None:
    state = make_engine(backend_name, spec, optimizer=kept).export_state()
    with pytest.raises(TwinGPTError, match=f"what {kept} keeps, and cannot be gone on with by {asked}"):
        make_engine(backend_name, spec, optimizer=asked).load_state(state)


def test_a_matrix_is_cut_into_queries_keys_and_values() -> None:
    spec = GPTSpec(vocab_size=8, n_layer=1, n_head=4, n_kv_head=2, n_embd=32, block_size=8)
    spec = dataclasses.replace(spec, mlp_ratio=2)
    groups = matrices_by_shape(parameter_table(spec))
    cuts = [(m.start, m.stop) for group in groups.values() for m in group if m.name.endswith("qkv.weight")]
    assert sorted(cuts) == [(0, 32), (32, 48), (48, 64)]
