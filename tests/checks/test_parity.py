"""The ladder's rungs 1-6 and 8 on the CPU, and that the ladder can tell a wrong engine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.test_ops import small
from twingpt.backends.reference import model as reference_model
from twingpt.checks import parity
from twingpt.checks.ladder import Rung
from twingpt.cli import main
from twingpt.core.backend import Backend, SoftTargets, create_backend
from twingpt.core.spec import GPTSpec
from twingpt.training.session import TrainRequest, open_session

EXPRESSIBLE = {
    "seed style",
    "gpt2 style",
    "no biases",
    "llama style",
    "llama style, tied, grouped",
    "qwen3 style",
    "qwen3 style, wide heads",
    "squared ReLU",
}
"""Specs for which transformers has a model."""


def _small(label: str) -> GPTSpec:
    """Of the same kind in every respect, so that climbing takes a second instead of a quarter of a minute."""
    return dataclasses.replace(small(label), n_layer=2, block_size=32)


@pytest.mark.parametrize("label", parity.SPECS)
def test_every_rung_holds(label: str) -> None:
    _climb_every_rung(label, _small(label))


@pytest.mark.slow
@pytest.mark.parametrize("label", parity.SPECS)
def test_every_rung_holds_at_the_size_of_the_command(label: str) -> None:
    _climb_every_rung(label, parity.SPECS[label])


def _climb_every_rung(label: str, spec: GPTSpec) -> None:
    rungs = list(parity.climb(label, spec, parity.perturbed(spec), "cpu"))
    assert [rung for rung in rungs if not rung.passed] == []
    assert {rung.number for rung in rungs} == {1, 2, 3, 4, 5, 6, 8}
    assert sum("Hugging Face" in rung.name for rung in rungs) == (2 if label in EXPRESSIBLE else 0)
    assert sum("by hand" in rung.name for rung in rungs) == 5
    assert {rung.number for rung in rungs if "soft targets" in rung.name} == {3, 4}


def test_a_wrong_derivative_that_both_engines_share_is_found_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into the pass by hand instead: what differs is the same."""
    right = reference_model.sum_of_rows
    monkeypatch.setattr(reference_model, "sum_of_rows", lambda array: right(array) * np.float32(1.001))
    spec = _small("seed style")
    failed = [rung.name for rung in parity.climb("x", spec, parity.perturbed(spec), "cpu") if not rung.passed]
    assert failed == ["gradients, by hand", "gradients, soft targets, by hand"]


def test_large_logits_are_held_against_their_size() -> None:
    """As those of a model that was trained for long; their rounding is above 1e-5."""
    spec = _small("qwen3 style")
    weights = parity.perturbed(spec)
    weights["model/head.weight"] = weights["model/head.weight"] * np.float32(40)
    rungs = [rung for rung in parity.climb("x", spec, weights, "cpu") if rung.number == 2]
    # Hugging Face's opinion is one more where transformers is installed.
    assert {rung.name for rung in rungs} - {"logits, Hugging Face"} == {"logits", "logits, by hand"}
    assert all(rung.passed for rung in rungs)


@pytest.fixture
def rungs_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Climb with an MLX engine that was tampered with; returns the numbers of the rungs that fail."""

    def climb(tamper: Any) -> set[int]:
        create = create_backend

        def tampered(name: str, *args: Any) -> Backend:
            engine = create(name, *args)
            if name == "mlx":
                tamper(engine)
            return engine

        monkeypatch.setattr(parity, "create_backend", tampered)
        spec = _small("seed style")
        return {rung.number for rung in parity.climb("x", spec, parity.perturbed(spec), "cpu") if not rung.passed}

    return climb


def test_tanh_for_exact_gelu_is_noticed(rungs_with: Any) -> None:
    def tamper(engine: Any) -> None:
        for block in engine._model.blocks:
            block.mlp.activation = "gelu_tanh"

    assert rungs_with(tamper) >= {2, 4, 5}


def test_the_last_share_left_out_is_noticed(rungs_with: Any) -> None:
    def tamper(engine: Any) -> None:
        right = engine.loss_and_grads

        def wrong(inputs: Any, targets: Any, soft: SoftTargets | None = None) -> Any:
            if soft is not None:
                shares = soft.shares.copy()
                shares[..., -1] = 0.0
                soft = SoftTargets(soft.ids, shares / shares.sum(axis=-1, keepdims=True))
            return right(inputs, targets, soft)

        engine.loss_and_grads = wrong

    assert rungs_with(tamper) == {3, 4}


def test_another_norm_eps_is_noticed(rungs_with: Any) -> None:
    def tamper(engine: Any) -> None:
        engine._model.ln_f.eps = 1e-4

    assert 2 in rungs_with(tamper)


def test_a_missing_bias_correction_is_noticed(rungs_with: Any) -> None:
    def tamper(engine: Any) -> None:
        update = engine._update

        def uncorrected(weights: Any, moments: Any, *rest: Any) -> Any:
            m, v, count, *muon = moments
            return update(weights, [m, v, count + 1000, *muon], *rest)

        engine._update = uncorrected

    assert rungs_with(tamper) == {5, 6}


def test_a_wrong_cache_position_is_noticed(rungs_with: Any) -> None:
    def tamper(engine: Any) -> None:
        decode = engine.decode

        def shifted(cache: Any, slots: list[int], tokens: Any) -> Any:
            logits = decode(cache, slots, tokens)
            cache.lengths[0] -= len(cache.lengths) if cache.lengths[0] == 12 else 0
            return logits

        engine.decode = shifted

    assert rungs_with(tamper) == {8}


def test_uncounted_targets_count_nothing(engine: Backend, spec: GPTSpec) -> None:
    inputs, targets = parity._batch(spec)
    nats, tokens = engine.eval_step(inputs, targets)
    assert tokens == int((targets >= 0).sum())
    logits = engine.logits(inputs).astype(np.float64)
    log_z = np.log(np.exp(logits).sum(axis=-1))
    picked = np.take_along_axis(logits, np.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    assert nats == pytest.approx(((log_z - picked) * (targets >= 0)).sum(), rel=1e-6)


def test_the_command_climbs_on_a_run_too(
    plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    model = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32}
    train = {"steps": 2, "batch_size": 2, "sample_tokens": 0}
    request = TrainRequest(
        run_dir=run, data_dir=plain_data, backend="mps", device="cpu", preset="tiny", model=model, train=train
    )
    assert list(open_session(request).trainer.run())
    monkeypatch.setattr(parity, "SPECS", {})
    monkeypatch.setattr("sys.argv", ["twingpt", "parity", str(run), "--device", "cpu", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    rungs = json.loads(capsys.readouterr().out)
    assert {rung["model"] for rung in rungs} == {"step-00000002"}
    assert {rung["number"] for rung in rungs} == {1, 2, 3, 4, 5, 6, 8}
    assert all(rung["passed"] for rung in rungs)


def _rung(model: str, number: int, name: str, error: float) -> Rung:
    return Rung(model, number, name, "of the largest", error, 1e-5)


def test_the_verdict_is_one_line() -> None:
    rungs = [_rung("a", 2, "logits", 1e-6), _rung("b", 2, "logits", 1e-6), _rung("b", 5, "one update, AdamW, m", 0.0)]
    assert parity.verdict(rungs) == "Every rung is the same: 3 comparisons over 2 models."
    rungs += [_rung("b", 5, "one update, AdamW, v", 1.0), _rung("b", 6, "five updates, AdamW, v", float("inf"))]
    assert parity.verdict(rungs) == "2 of 5 comparisons differ; the first: b, rung 5, one update, AdamW, v."


def test_the_verdict_comes_first_and_nothing_that_differs_is_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    near, far = _rung("a", 5, "one update, near", 9e-6), _rung("a", 5, "one update, far", 1e-9)
    wrong = [_rung("a", 5, "one update, wrong", 1.0), _rung("a", 5, "one update, wrong too", 2.0)]
    rungs = [_rung("a", 2, "logits", 1e-6), _rung("a", 2, "logits, Hugging Face", 1e-7), far, near, *wrong]
    assert [rung for rung in rungs if rung not in parity._worth_a_line(rungs)] == [far]
    parity.print_ladder(rungs)
    brief = capsys.readouterr().out
    assert brief.splitlines()[0] == parity.verdict(rungs)
    assert brief.count("DIFFERS") == 2 and "logits" not in brief
    parity.print_ladder(rungs, details=True)
    full = capsys.readouterr().out
    assert full.splitlines()[0] == parity.verdict(rungs) and "logits" in full
    parity.print_ladder(rungs[:2])
    assert len(capsys.readouterr().out.splitlines()) == 2
