"""The reference engine in plain NumPy against the two others, and against the slope of the loss itself."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.test_engine import windows
from tests.conftest import make_engine
from twingpt.backends.reference.model import activate, erf, silu
from twingpt.backends.reference.step import orthogonal
from twingpt.checks import parity
from twingpt.checks.ladder import tensor_error
from twingpt.core.backend import Backend, EngineConfig, State, create_backend, join_world
from twingpt.core.dropout import keys
from twingpt.core.errors import OutOfMemoryError, TwinGPTError, UsageError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, initial_state
from twingpt.core.world import Alone

LR = 1e-3
# Float32, no dropout, on a CPU (x86-64). Behind each: the largest error measured over all of parity.SPECS.
TOLERANCES = {
    "logits": 5e-6,  # 8.2e-7 of the largest
    "loss": 5e-6,  # 1.3e-6 nats a token
    "gradients": 1e-5,  # 2.5e-6 of the tensor's largest
    "weights": 1e-3,  # 3.7e-4 learning rates (1.8e-4 beside torch)
    "weights 5": 1e-2,  # 2.9e-3 learning rates (1.1e-3 beside torch)
    "moments": 2e-5,  # 4.8e-6 of the tensor's largest
    "moments 5": 5e-5,  # 2.0e-5 of the tensor's largest (5.1e-6 beside torch)
}


def largest(difference: NDArray[Any]) -> float:
    return float(np.abs(difference).max(initial=0.0))


def uncertain(spec: GPTSpec, name: str, gradient: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a gradient is rounding noise, which Adam scales up to whole steps, as in twingpt.checks.parity."""
    noise: NDArray[np.bool_] = np.abs(gradient) <= 1e-4 * np.abs(gradient).max()
    noise &= gradient != 0.0
    part = parity.key_bias(spec, name)
    if part is not None:
        noise[part] = True
    return noise


def errors_after(steps: int, spec: GPTSpec, other: str, optimizer: str, gradients: State) -> tuple[float, float]:
    """(weights, in learning rates; moments, of the largest in their tensor): the engines apart after some updates.

    After several, what is noise in one gradient has moved weights that the next ones depend on: there a larger eps
    keeps Adam from scaling it up.
    """
    states = []
    for name in ("reference", other):
        engine = make_engine(name, spec, optimizer=optimizer, eps=1e-8 if steps == 1 else 1e-5)
        for step in range(steps):
            inputs, targets = windows(spec, 2, 2, seed=step) if steps > 1 else [a[None] for a in parity._batch(spec)]
            engine.train_step(inputs, targets, LR, step)
        assert engine.read_stats().applied == [True] * steps
        states.append(engine.export_state())
    ours, theirs = states
    assert {key: a.shape for key, a in ours.items()} == {key: a.shape for key, a in theirs.items()}
    weights, moments = 0.0, 0.0
    for key, mine in ours.items():
        if mine.ndim == 0:
            assert mine == theirs[key] == steps
            continue
        kind, name = key.split("/")
        clear = ~uncertain(spec, name, gradients[MODEL + name])
        difference = (mine - theirs[key])[clear]
        if kind == "model":
            weights = max(weights, largest(difference) / LR)
        else:
            moments = max(moments, largest(difference) / largest(theirs[key]))
    return weights, moments


def check(error: float, kind: str) -> None:
    assert error <= TOLERANCES[kind], kind


def check_against(other: str, spec: GPTSpec) -> None:
    ours, theirs = (make_engine(name, spec) for name in ("reference", other))
    inputs, targets = parity._batch(spec)
    logits = ours.logits(inputs)
    assert logits.dtype == np.float32
    check(parity._logit_error(logits, theirs.logits(inputs)), "logits")
    nats, tokens = ours.eval_step(inputs, targets)
    (loss, gradients), (their_loss, their_gradients) = (e.loss_and_grads(inputs, targets) for e in (ours, theirs))
    check(abs(loss - their_loss), "loss")
    check(abs(nats / tokens - their_loss), "loss")
    assert gradients.keys() == their_gradients.keys()
    check(tensor_error(spec, their_gradients, gradients), "gradients")
    for optimizer in ("adamw", "muon"):
        for steps, suffix in ((1, ""), (5, " 5")):
            weights, moments = errors_after(steps, spec, other, optimizer, their_gradients)
            check(weights, "weights" + suffix)
            check(moments, "moments" + suffix)


@pytest.mark.parametrize("label", parity.SPECS)
def test_it_is_the_torch_engine(label: str) -> None:
    """Logits, loss, every gradient, and weights and moments after one and after five updates, AdamW's and Muon's."""
    check_against("mps", parity.SPECS[label])


@pytest.mark.parametrize("label", ["seed style", "qwen3 style, wide heads"])
def test_it_is_the_mlx_engine(label: str) -> None:
    check_against("mlx", parity.SPECS[label])


@pytest.fixture
def engine(spec: GPTSpec) -> Backend:
    """Of the folder's two specs in turn."""
    return make_engine("reference", spec)


def test_gradients_are_the_slope_of_the_loss(engine: Backend, spec: GPTSpec) -> None:
    """Along the gradient of each parameter by itself, so that one that is missing cannot hide behind the others."""
    inputs, targets = windows(spec, 2)
    _, gradients = engine.loss_and_grads(inputs, targets)
    state = parity.perturbed(spec)
    for key, gradient in gradients.items():
        part = parity.key_bias(spec, key)
        direction = gradient.copy()
        if part is not None:
            direction[part] = 0.0
        # Far enough for float32 to see the loss change.
        step = direction * np.float32(1e-2 / np.sqrt((direction.astype(np.float64) ** 2).sum()))
        losses = []
        for sign in (1, -1):
            engine.load_state({**state, key: state[key] + sign * step})
            nats, tokens = engine.eval_step(inputs, targets)
            losses.append(nats / tokens)
        expected = 2 * float((step.astype(np.float64) * gradient).sum())
        # Measured: 1.3e-3.
        assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-2), key


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu2", "silu"])
def test_an_activations_derivative_is_its_slope(name: str) -> None:
    x = np.linspace(-8.0, 8.0, 4001, dtype=np.float32)
    act: Any = silu if name == "silu" else lambda x: activate(name, x)
    wide, step = x.astype(np.float64), 2.0**-8
    slope = (act((wide + step).astype(np.float32))[0] - act((wide - step).astype(np.float32))[0]) / (2 * step)
    assert largest(slope - act(x)[1]) < 4e-3  # the second derivative of relu2 jumps at zero


def test_erf_is_maths() -> None:
    import math

    x = np.random.default_rng(0).uniform(-7.0, 7.0, 20_000)
    assert largest(erf(x) - np.array([math.erf(value) for value in x])) < 3e-11
    assert np.isnan(erf(np.array([np.nan]))).all()
    assert erf(np.array([-np.inf, np.inf])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_muons_matrices_come_near_to_orthogonal(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    singular = np.linalg.svd(orthogonal(x), compute_uv=False)
    assert 0.6 < singular.min() <= singular.max() < 1.25


def test_prefill_and_decode_are_the_whole_pass(engine: Backend, spec: GPTSpec) -> None:
    """Two slots of other lengths, one of them emptied and filled again."""
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, 20), dtype=np.int32)
    whole = engine.logits(tokens)
    cache = engine.new_cache(3, spec.block_size)
    engine.prefill(cache, 2, tokens[0, :15])
    engine.free(cache, 2)
    lengths = {2: 5, 0: 9}
    errors = []
    for row, (slot, length) in enumerate(lengths.items()):
        errors.append(engine.prefill(cache, slot, tokens[row, :length]) - whole[row, length - 1])
    for more in range(11):
        at = [length + more for length in lengths.values()]
        logits = engine.decode(cache, list(lengths), np.array([tokens[0, at[0]], tokens[1, at[1]]], dtype=np.int32))
        errors += [logits[0] - whole[0, at[0]], logits[1] - whole[1, at[1]]]
    assert cache.lengths == [20, 0, 16]
    # Measured: 2.4e-7 at a largest logit of 1.
    assert max(map(largest, errors)) < 2e-6


def test_a_full_cache_says_so(engine: Backend, spec: GPTSpec) -> None:
    cache = engine.new_cache(1, 8)
    engine.prefill(cache, 0, np.arange(8, dtype=np.int32))
    with pytest.raises(TwinGPTError, match="holds 8 tokens and is full"):
        engine.decode(cache, [0], np.array([1], dtype=np.int32))


def test_micro_batches_add_up_to_the_whole_batch(spec: GPTSpec) -> None:
    """With targets that are not counted in one of them: the sum is divided once."""
    inputs, targets = windows(spec, 1, 4)
    targets[0, 0, 3:] = -1
    states = []
    for cut in (1, 2, 4):
        engine = make_engine("reference", spec, loss_chunk=13)
        shape = (cut, 4 // cut, spec.block_size)
        for step in range(2):
            engine.train_step(inputs.reshape(shape), targets.reshape(shape), LR, step)
        states.append((engine.read_stats(), engine.export_state()))
    for stats, state in states[1:]:
        assert stats.loss == pytest.approx(states[0][0].loss, rel=1e-6)
        for key, moment in state.items():
            if key.startswith("adamw.m"):
                noise = parity.key_bias(spec, key)
                first = states[0][1][key]
                apart = np.delete(moment - first, noise) if noise is not None else moment - first
                # Measured: 3.6e-6.
                assert largest(apart) <= 2e-5 * largest(first), key


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(spec: GPTSpec, optimizer: str, value: float) -> None:
    engine = make_engine("reference", spec, optimizer=optimizer)
    inputs, targets = windows(spec, 1, 2)
    engine.train_step(inputs, targets, LR, 0)
    before = engine.export_state()
    broken = {**before, "model/ln_f.weight": np.full_like(before["model/ln_f.weight"], value)}
    engine.load_state(broken)
    engine.train_step(inputs, targets, LR, 1)
    after = engine.export_state()
    assert engine.read_stats().applied == [True, False]
    for key in before:
        assert np.array_equal(after[key], broken[key], equal_nan=True), key
    engine.load_state(before)
    engine.train_step(inputs, targets, LR, 1)
    assert engine.read_stats().applied == [True]
    assert int(engine.export_state()["adamw.count"]) == 2


def test_dropout_is_a_function_of_where_the_run_stands(spec: GPTSpec) -> None:
    spec = dataclasses.replace(spec, dropout=0.3)
    inputs, targets = windows(spec, 1, 2)
    losses = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        engine = make_engine("reference", spec, seed=seed)
        engine.train_step(inputs, targets, 0.0, step)
        losses.append(engine.read_stats().loss)
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3
    plain = make_engine("reference", dataclasses.replace(spec, dropout=0.0))
    assert np.array_equal(engine.logits(inputs[0]), plain.logits(inputs[0]))


def test_dropout_keeps_the_mean_and_its_gradient() -> None:
    from twingpt.backends.reference.model import Dropout, Masks

    spec = GPTSpec(vocab_size=2, block_size=100, n_layer=1, n_head=1, n_embd=500, dropout=0.25)
    drop = Dropout(0.25, 0)
    x = np.ones((4, 100, 500), dtype=np.float32)
    y = drop.forward(x, Masks(spec, keys(spec, 1, 0, np.arange(4))))
    assert y.dtype == np.float32
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1 / 0.75)}
    # Six standard deviations of the mean of 200,000 such values.
    assert abs(float(y.mean()) - 1.0) < 8e-3
    assert np.array_equal(drop.backward(x), y)


def test_the_gradient_with_dropout_is_the_slope_with_the_same_masks(spec: GPTSpec) -> None:
    """One step of plain gradient: Adam's first moment holds a tenth of it."""
    spec = dataclasses.replace(spec, dropout=0.2)
    inputs, targets = windows(spec, 1, 2)
    engine = make_engine("reference", spec, grad_clip=0.0)
    start = engine.export_state()
    engine.train_step(inputs, targets, 0.0, 0)
    end = engine.export_state()
    gradients = {key: end["adamw.m/" + key.removeprefix(MODEL)] * 10 for key in start if key.startswith(MODEL)}
    norm = np.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients.values()))
    losses = []
    for sign in (1, -1):
        moved = {key: start[key] + np.float32(sign * 1e-2 / norm) * g for key, g in gradients.items()}
        engine.load_state({**start, **moved})
        engine.read_stats()
        engine.train_step(inputs, targets, 0.0, 0)
        losses.append(engine.read_stats().loss)
    # Measured: 9.7e-4.
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(norm, rel=5e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_learns_and_goes_on_in_torch_and_back(spec: GPTSpec, optimizer: Any) -> None:
    config = EngineConfig(device="cpu", optimizer=optimizer)
    batches = [windows(spec, 1, 4, seed=step % 2) for step in range(20)]

    def run(names: list[str]) -> list[float]:
        state, losses = initial_state(spec, 0, optimizer), []
        for part, name in enumerate(names):
            engine = create_backend(name, spec, config)
            engine.load_state(state)
            size = len(batches) // len(names)
            for step in range(part * size, (part + 1) * size):
                engine.train_step(*batches[step], 3e-3, step)
            stats = engine.read_stats()
            losses += [nats / tokens for nats, tokens in zip(stats.loss_sums, stats.tokens, strict=True)]
            state = engine.export_state()
        assert int(state["adamw.count"]) == 20
        return losses

    alone = run(["reference"])
    assert alone[-1] < alone[0] - 0.1
    for names in (["reference", "mps"], ["mps", "reference"], ["mps"]):
        # Measured: 6.2e-7 nats, of 5.4 at the start and 4.2 at the end.
        assert largest(np.subtract(alone, run(names))) < 5e-6, names


def test_exported_state_is_a_copy_and_what_is_loaded_is_left_alone(engine: Backend, spec: GPTSpec) -> None:
    before = engine.export_state()
    kept = {key: array.copy() for key, array in before.items()}
    engine.load_state(before)
    inputs, targets = windows(spec, 1, 2)
    engine.train_step(inputs, targets, LR, 0)
    assert all(np.array_equal(before[key], kept[key]) for key in kept)
    assert not np.array_equal(engine.export_state()["model/ln_f.weight"], kept["model/ln_f.weight"])


def test_running_out_of_memory_is_our_error(engine: Backend, spec: GPTSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("twingpt.backends.reference.model.GPT.forward", full)
    inputs, targets = windows(spec, 1, 2)
    with pytest.raises(OutOfMemoryError, match="Unable to allocate 9 GiB") as step:
        engine.train_step(inputs, targets, LR, 0)
    with pytest.raises(OutOfMemoryError) as evaluation:
        engine.eval_step(inputs[0], targets[0])
    assert (step.value.retry, evaluation.value.retry) == (True, False)


def test_what_it_cannot_do_it_says(spec: GPTSpec) -> None:
    with pytest.raises(UsageError, match="use --precision float32"):
        create_backend("reference", spec, EngineConfig(precision="bfloat16"))
    with pytest.raises(UsageError, match="use --device auto or cpu"):
        create_backend("reference", spec, EngineConfig(device="gpu"))
    with pytest.raises(TwinGPTError, match="trains on one process"):
        join_world("reference", 1.0)
    world = Alone()
    world.size = 2
    with pytest.raises(TwinGPTError, match="trains on one process"):
        create_backend("reference", spec, EngineConfig(), world)
