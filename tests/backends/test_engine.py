"""What both engines promise, whatever the other does."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile

from tests.conftest import make_engine
from twingpt.checks.parity import perturbed
from twingpt.core.backend import Backend, State
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec

both_sets = pytest.mark.usefixtures("ops_set")


def windows(spec: GPTSpec, *shape: int, seed: int = 0) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    tokens = np.random.default_rng(seed).integers(0, spec.vocab_size, (*shape, spec.block_size + 1), dtype=np.int32)
    return tokens[..., :-1], tokens[..., 1:].copy()


def largest_difference(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key].astype(np.float64) - b[key]).max()) for key in a)


@both_sets
def test_training_lowers_the_loss(engine: Backend, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 1, 4)
    for step in range(30):
        engine.train_step(inputs, targets, 3e-3, step)
    stats = engine.read_stats()
    losses = np.array(stats.loss_sums) / stats.tokens
    assert all(stats.applied)
    assert losses[-1] < losses[0] - 1.0
    assert engine.read_stats().tokens == []


@both_sets
def test_micro_batches_follow_the_whole_batch(backend_name: str, spec: GPTSpec) -> None:
    """Gradients of sums, divided once: cutting a batch changes rounding only, however uneven the counted tokens."""
    inputs, targets = windows(spec, 4)
    targets[0, 3:] = -1
    whole, cut = make_engine(backend_name, spec), make_engine(backend_name, spec)
    for step in range(3):
        whole.train_step(inputs[None], targets[None], 1e-3, step)
        cut.train_step(inputs.reshape(4, 1, -1), targets.reshape(4, 1, -1), 1e-3, step)
    a, b = whole.read_stats(), cut.read_stats()
    # Measured: 3.7e-7 (torch), 4.9e-7 (mlx) of the loss, 1.2e-7 of the gradient norm.
    assert a.loss_sums == pytest.approx(b.loss_sums, rel=2e-6)
    assert a.grad_norms == pytest.approx(b.grad_norms, rel=1e-6)
    assert a.tokens == b.tokens


@both_sets
@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_the_chunk_of_the_loss_changes_nothing(backend_name: str, spec: GPTSpec, chunk: int) -> None:
    inputs, targets = windows(spec, 3)
    targets[1, ::3] = -1
    loss, gradients = make_engine(backend_name, spec, loss_chunk=1000).loss_and_grads(inputs, targets)
    chunked_loss, chunked = make_engine(backend_name, spec, loss_chunk=chunk).loss_and_grads(inputs, targets)
    assert chunked_loss == pytest.approx(loss, rel=1e-6)
    # Measured 2.4e-8 at a largest gradient of 0.05.
    assert largest_difference(gradients, chunked) < 2e-7


def test_an_evaluation_makes_no_gradient_of_the_head(spec: GPTSpec) -> None:
    """One product of the head a chunk, where a step has three; MLX has a function of its own for it."""
    inputs, targets = windows(spec, 2)
    engine = make_engine("mps", spec, loss_chunk=32)
    products = {}
    for name in ("eval_step", "loss_and_grads"):
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
            getattr(engine, name)(inputs, targets)
        of_the_head = (any(spec.vocab_size in shape for shape in event.input_shapes) for event in trace.events())
        names = [event.name for event, wide in zip(trace.events(), of_the_head, strict=True) if wide]
        products[name] = sum(name in ("aten::mm", "aten::addmm", "aten::addmm_") for name in names)
    assert products == {"eval_step": 2, "loss_and_grads": 6}


@both_sets
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_nothing(backend_name: str, spec: GPTSpec, dropout: float) -> None:
    """Recomputed activations, with the same dropout, are the same bits."""
    spec = dataclasses.replace(spec, dropout=dropout)
    inputs, targets = windows(spec, 2, 2)
    plain, recomputing = (make_engine(backend_name, spec, activation_checkpointing=on) for on in (False, True))
    gradients = [engine.loss_and_grads(inputs[0], targets[0])[1] for engine in (plain, recomputing)]
    assert largest_difference(*gradients) == 0.0
    for engine in (plain, recomputing):
        for step in range(3):
            engine.train_step(inputs, targets, 1e-2, step)
    assert plain.read_stats() == recomputing.read_stats()
    assert largest_difference(plain.export_state(), recomputing.export_state()) == 0.0


def test_activation_checkpointing_keeps_less(backend_name: str) -> None:
    spec = GPTSpec(vocab_size=100, block_size=64, n_layer=8, n_head=2, n_embd=64, dropout=0.1)
    inputs, targets = windows(spec, 1, 16)
    kept = [
        kept_bytes(make_engine(backend_name, spec, activation_checkpointing=on), inputs, targets)
        for on in (False, True)
    ]
    # Measured: 0.05 (torch), 0.32 (mlx).
    assert kept[1] < 0.45 * kept[0]


def kept_bytes(engine: Backend, inputs: NDArray[np.int32], targets: NDArray[np.int32]) -> int:
    """What a training step holds: tensors saved for the backward pass in torch, the peak of all arrays in MLX."""
    if engine.name == "mlx":
        import mlx.core as mx

        engine.train_step(inputs, targets, 0.0, 0)
        engine.read_stats()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        engine.train_step(inputs, targets, 0.0, 1)
        engine.read_stats()
        peak: int = mx.get_peak_memory() - before
        return peak
    import torch

    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.train_step(inputs, targets, 0.0, 0)
    return sum(sizes.values())


@both_sets
def test_mlx_makes_the_loss_a_chunk_at_a_time() -> None:
    """Four times the tokens, in chunks of the same size, take hardly more memory: the order that MLX runs them in."""
    import mlx.core as mx

    from twingpt.backends.mlx.ops import choose_ops
    from twingpt.backends.mlx.step import _chunked_cross_entropy

    peaks = []
    for tokens in (1024, 4096):
        hidden, weight = mx.random.normal((tokens, 8)), mx.random.normal((4000, 8))
        targets = mx.zeros((tokens,), dtype=mx.int32)
        mx.eval(hidden, weight, targets)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        with mx.stream(mx.cpu):
            mx.eval(_chunked_cross_entropy(choose_ops("cpu"), 32)(hidden, weight, targets))
        peaks.append(mx.get_peak_memory() - before)
    # All logits of the larger one are 65.5 MB. Measured: 5.5 and 5.5 MB.
    assert peaks[1] < 2 * peaks[0] < 32e6


@both_sets
def test_gradients_are_the_slope_of_the_loss(engine: Backend, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 2)
    _, gradients = engine.loss_and_grads(inputs, targets)
    state = perturbed(spec)
    for key in ("tok_emb", "pos_emb", "blocks.1.attn.qkv", "blocks.1.mlp.fc", "blocks.0.mlp.gate", "ln_f", "head"):
        key = f"model/{key}.weight"
        if key not in state:
            continue
        direction = gradients[key] / np.linalg.norm(gradients[key])
        losses = []
        for sign in (1, -1):
            engine.load_state({**state, key: state[key] + np.float32(sign * 0.05) * direction})
            losses.append(engine.eval_step(inputs, targets)[0] / targets.size)
        slope = (losses[0] - losses[1]) / 0.1
        assert slope == pytest.approx(np.linalg.norm(gradients[key]), rel=0.02), key


def test_clipping_bounds_the_whole_gradient(backend_name: str, spec: GPTSpec) -> None:
    """Adam forgets the scale of one gradient, so that it is read off the first moment: m = (1 - beta1) * g."""
    inputs, targets = windows(spec, 1, 2)
    engine = make_engine(backend_name, spec, grad_clip=0.01)
    engine.train_step(inputs, targets, 1e-3, 0)
    assert engine.read_stats().grad_norms[0] > 0.1
    moments = [array for key, array in engine.export_state().items() if key.startswith("adamw.m/")]
    norm = np.sqrt(sum(float((m.astype(np.float64) ** 2).sum()) for m in moments))
    assert norm == pytest.approx(0.1 * 0.01, rel=1e-4)


def test_weight_decay_touches_matrices_only(backend_name: str, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 1, 2)
    states = []
    for weight_decay in (0.0, 0.5):
        engine = make_engine(backend_name, spec, weight_decay=weight_decay)
        engine.train_step(inputs, targets, 1e-2, 0)
        states.append(engine.export_state())
    start = perturbed(spec)
    for key in start:
        expected = states[0][key] - (0.5 * 1e-2 * start[key] if start[key].ndim == 2 else 0.0)
        assert np.abs(states[1][key] - expected).max() < 1e-7, key


def test_a_non_finite_step_changes_nothing(backend_name: str, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 1, 2)
    engine = make_engine(backend_name, spec)
    engine.train_step(inputs, targets, 1e-3, 0)
    before = engine.export_state()
    broken = dict(before)
    broken["model/ln_f.weight"] = np.full_like(before["model/ln_f.weight"], np.nan)
    engine.load_state(broken)
    engine.train_step(inputs, targets, 1e-3, 1)
    after = engine.export_state()
    assert engine.read_stats().applied == [True, False]
    for key in before:
        assert np.array_equal(after[key], broken[key], equal_nan=True), key


@both_sets
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["mps", "mlx", "reference"])
def test_an_update_without_a_counted_target_is_skipped(name: str, optimizer: str, spec: GPTSpec) -> None:
    """`--mask-prompt --allow-long` can cut a sample before its answer: with one sequence a batch nothing is counted."""
    inputs, targets = windows(spec, 1, 1)
    engine = make_engine(name, spec, optimizer=optimizer)
    engine.train_step(inputs, targets, 1e-3, 0)
    before = engine.export_state()
    engine.train_step(inputs, np.full_like(targets, -1), 1e-3, 1)
    after = engine.export_state()
    stats = engine.read_stats()
    assert stats.applied == [True, False]
    assert stats.tokens[1] == 0
    assert stats.loss_sums[1] == 0.0
    assert np.isnan(stats.grad_norms[1])
    for key in before:
        assert np.array_equal(after[key], before[key]), key
    engine.train_step(inputs, targets, 1e-3, 2)
    assert engine.read_stats().applied == [True]


@both_sets
def test_dropout_is_keyed_by_seed_step_and_sequence(backend_name: str, spec: GPTSpec) -> None:
    spec = dataclasses.replace(spec, dropout=0.3)
    inputs, targets = windows(spec, 1, 2)

    def loss(step: int, seed: int = 0, slices: int = 1) -> float:
        engine = make_engine(backend_name, spec, seed=seed)
        engine.train_step(np.repeat(inputs, slices, 0), np.repeat(targets, slices, 0), 1e-3, step)
        return engine.read_stats().loss_sums[0]

    assert loss(5) == loss(5)
    assert len({loss(5), loss(6), loss(5, seed=1)}) == 3
    assert loss(5, slices=2) != 2 * loss(5)


@both_sets
def test_dropout_drops_its_share_and_keeps_the_mean(backend_name: str, spec: GPTSpec) -> None:
    """The mean training loss over many masks stays near the loss without dropout, and is never below it here."""
    inputs, targets = windows(spec, 1, 4)
    plain = make_engine(backend_name, spec).eval_step(inputs[0], targets[0])[0]
    dropping = make_engine(backend_name, dataclasses.replace(spec, dropout=0.1))
    for step in range(20):
        dropping.train_step(inputs, targets, 0.0, step)
    losses = dropping.read_stats().loss_sums
    assert np.std(losses) > 0.0
    assert np.mean(losses) == pytest.approx(plain, rel=0.02)
    assert dropping.eval_step(inputs[0], targets[0])[0] == pytest.approx(plain, rel=1e-6)


@both_sets
def test_the_cache_agrees_with_the_whole_pass(backend_name: str) -> None:
    """Several slots of different lengths, lengths that cross a bucket, and a slot used again."""
    spec = GPTSpec(vocab_size=97, block_size=150, n_layer=2, n_head=2, n_embd=32, dropout=0.0)
    engine = make_engine(backend_name, spec)
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, (2, 150), dtype=np.int32)
    cache = engine.new_cache(3, 150)
    engine.prefill(cache, 1, tokens[1, :90])
    engine.free(cache, 1)
    whole = [engine.logits(row[None])[0] for row in tokens]
    assert np.abs(engine.prefill(cache, 2, tokens[0, :60]) - whole[0][59]).max() < 1e-5
    assert np.abs(engine.prefill(cache, 1, tokens[1, :3]) - whole[1][2]).max() < 1e-5
    for i in range(60, 150):
        logits = engine.decode(cache, [2, 1], np.array([tokens[0, i], tokens[1, i - 57]]))
        assert np.abs(logits[0] - whole[0][i]).max() < 1e-5
        assert np.abs(logits[1] - whole[1][i - 57]).max() < 1e-5
    with pytest.raises(TwinGPTError, match="full"):
        engine.decode(cache, [2], np.array([1]))


@both_sets
def test_bfloat16_stays_near_float32_and_trains(backend_name: str, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 1, 2)
    full = make_engine(backend_name, spec)
    half = make_engine(backend_name, spec, precision="bfloat16")
    full_loss, full_gradients = full.loss_and_grads(inputs[0], targets[0])
    half_loss, half_gradients = half.loss_and_grads(inputs[0], targets[0])
    assert half_loss == pytest.approx(full_loss, rel=5e-3)
    assert half_loss != full_loss
    a, b = (
        np.concatenate([gradient.ravel() for gradient in gradients.values()])
        for gradients in (full_gradients, half_gradients)
    )
    assert a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) > 0.999
    for step in range(20):
        half.train_step(inputs, targets, 3e-3, step)
    losses = half.read_stats().loss_sums
    assert losses[-1] < 0.9 * losses[0]
    assert all(array.dtype == np.float32 for key, array in half.export_state().items() if key != "adamw.count")


def test_exported_state_is_a_copy(engine: Backend, spec: GPTSpec) -> None:
    inputs, targets = windows(spec, 1, 2)
    before = engine.export_state()
    kept = {key: array.copy() for key, array in before.items()}
    engine.train_step(inputs, targets, 1e-2, 0)
    engine.export_state()
    assert all(np.array_equal(before[key], kept[key]) for key in kept)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: s.pop("model/ln_f.weight"), "ln_f.weight is missing"),
        (lambda s: s.update({"model/extra": np.zeros(1, np.float32)}), "extra is unknown"),
        (lambda s: s.update({"model/ln_f.weight": np.zeros(3, np.float32)}), "shape"),
        (lambda s: s.update({"model/ln_f.weight": np.zeros(32, np.float16)}), "float16"),
        (lambda s: s.pop("adamw.m/ln_f.weight"), "adamw.m/ln_f.weight is missing"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(engine: Backend, change: Any, named: str) -> None:
    state = engine.export_state()
    change(state)
    with pytest.raises(TwinGPTError, match=named):
        engine.load_state(state)


def test_a_gpu_that_is_not_there_is_refused(backend_name: str, spec: GPTSpec) -> None:
    from twingpt.core.backend import EngineConfig, create_backend

    if create_backend(backend_name, spec).device != "cpu":
        pytest.skip("this machine has a GPU")
    with pytest.raises(TwinGPTError, match="--device gpu"):
        create_backend(backend_name, spec, EngineConfig(device="gpu"))


@both_sets
def test_the_gradient_norm_is_exact(backend_name: str) -> None:
    """Large tensors: one float32 sum over all of 2,000 x 128 was 1.6e-4 off."""
    spec = GPTSpec(vocab_size=2000, block_size=32, n_layer=1, n_head=2, n_embd=128, dropout=0.0)
    inputs, targets = windows(spec, 1, 4)
    engine = make_engine(backend_name, spec)
    _, gradients = engine.loss_and_grads(inputs[0], targets[0])
    exact = np.sqrt(sum(float((gradient.astype(np.float64) ** 2).sum()) for gradient in gradients.values()))
    engine.train_step(inputs, targets, 1e-3, 0)
    # Measured: 5.0e-8 (torch), 1.8e-7 (mlx).
    assert engine.read_stats().grad_norms[0] == pytest.approx(exact, rel=1.8e-6)
