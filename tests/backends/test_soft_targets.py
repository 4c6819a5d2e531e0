"""Soft targets in every engine: the loss by its formula, what they are with one share, and how a batch is cut."""

import numpy as np
import pytest

from tests.conftest import make_engine
from twingpt.checks.ladder import tensor_error
from twingpt.checks.parity import _batch, soft_targets
from twingpt.core.backend import SoftTargets
from twingpt.core.spec import GPTSpec

ENGINES = ("mps", "mlx", "reference")


@pytest.mark.parametrize("name", ENGINES)
def test_the_loss_is_the_cross_entropy_with_the_shares(name: str, spec: GPTSpec, ops_set: str) -> None:
    inputs, targets = _batch(spec)
    soft = soft_targets(spec, targets)
    engine = make_engine(name, spec, loss_chunk=20)
    loss, _ = engine.loss_and_grads(inputs, targets, soft)
    logits = engine.logits(inputs).astype(np.float64)
    log_z = np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    each = (soft.shares * (log_z - np.take_along_axis(logits, soft.ids, axis=-1))).sum(axis=-1)
    assert loss == pytest.approx(each[targets >= 0].mean(), rel=2e-6)


@pytest.mark.parametrize("name", ENGINES)
def test_one_share_of_one_is_the_hard_target(name: str, spec: GPTSpec, ops_set: str) -> None:
    inputs, targets = _batch(spec)
    whole = SoftTargets(np.maximum(targets, 0)[..., None], np.ones((*targets.shape, 1), dtype=np.float32))
    engine = make_engine(name, spec, loss_chunk=20)
    (hard, hard_gradients), (soft, gradients) = (
        engine.loss_and_grads(inputs, targets, given) for given in (None, whole)
    )
    assert soft == pytest.approx(hard, rel=1e-6)
    assert tensor_error(spec, hard_gradients, gradients) < 1e-5


@pytest.mark.parametrize("name", ENGINES)
def test_a_step_is_the_same_however_its_batch_is_cut(name: str, spec: GPTSpec, ops_set: str) -> None:
    inputs, targets = (np.concatenate([part, part[:1]]) for part in _batch(spec))
    soft = soft_targets(spec, targets)
    states = []
    for size in (4, 2, 1):
        engine = make_engine(name, spec, loss_chunk=20)
        given = (part.reshape(-1, size, *part.shape[1:]) for part in (inputs, targets, *soft))
        x, y, ids, shares = given
        engine.train_step(x, y, 1e-3, 0, None, SoftTargets(ids, shares))
        assert engine.read_stats().applied == [True]
        states.append(engine.export_state())
    for other in states[1:]:
        assert all(np.abs(states[0][key] - other[key]).max() < 2e-5 for key in other)
