import numpy as np
import pytest
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.sampling import Sampling, sample

LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], dtype=np.float32))


def drawn(sampling: Sampling, logits: NDArray[np.float32] = LOGITS, n: int = 2000) -> NDArray[np.float64]:
    """Share of each token over n positions."""
    tokens = [sample(logits, sampling, position) for position in range(n)]
    return np.bincount(tokens, minlength=len(logits)) / n


def test_temperature_1_follows_the_probabilities() -> None:
    shares = drawn(Sampling(temperature=1.0, top_k=0), n=20_000)
    assert np.abs(shares - np.exp(LOGITS)).max() < 0.015


def test_temperature_0_is_greedy_whatever_the_seed() -> None:
    assert {sample(LOGITS, Sampling(temperature=0.0, seed=s), s) for s in range(50)} == {0}


@pytest.mark.parametrize("temperature", [1e-5, 1e-310])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = np.array([-1e3, 700.0, 700.5, 3.0], dtype=np.float32)
    assert sample(logits, Sampling(temperature=temperature, top_k=2), 0) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_finite_are_an_error(temperature: float) -> None:
    for logits in ([0.0, np.nan], [0.0, np.inf]):
        with pytest.raises(TwinGPTError, match="not finite"):
            sample(np.array(logits, dtype=np.float32), Sampling(temperature=temperature), 0)


def test_low_temperature_sharpens() -> None:
    assert drawn(Sampling(temperature=0.3, top_k=0))[0] > 0.85


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(temperature=1.0, top_k=2), {0, 1}),
        (Sampling(temperature=1.0, top_k=0, top_p=0.6), {0, 1}),
        (Sampling(temperature=1.0, top_k=0, top_p=0.5), {0}),
        (Sampling(temperature=1.0, top_k=0, top_p=1e-9), {0}),
        (Sampling(temperature=1.0, top_k=0, min_p=0.29), {0, 1, 2}),
        (Sampling(temperature=1.0, top_k=100), {0, 1, 2, 3, 4}),
    ],
)
def test_filters(sampling: Sampling, allowed: set[int]) -> None:
    assert set(np.flatnonzero(drawn(sampling))) == allowed


def test_the_same_seed_and_position_give_the_same_token() -> None:
    flat = np.zeros(1000, dtype=np.float32)
    first = [sample(flat, Sampling(seed=7, top_k=0), p) for p in range(20)]
    assert first == [sample(flat, Sampling(seed=7, top_k=0), p) for p in range(20)]
    assert first != [sample(flat, Sampling(seed=8, top_k=0), p) for p in range(20)]
    assert len(set(first)) > 10


def test_rounding_in_the_logits_changes_hardly_any_token() -> None:
    generator = np.random.default_rng(0)
    logits = generator.standard_normal(5000).astype(np.float32)
    noisy = logits + generator.standard_normal(5000).astype(np.float32) * np.float32(1e-6)
    same = [sample(logits, Sampling(), p) == sample(noisy, Sampling(), p) for p in range(300)]
    assert sum(same) >= 299


def test_repetition_penalty_lowers_seen_tokens_of_either_sign() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], dtype=np.float32)
    greedy = Sampling(temperature=0.0, repetition_penalty=1.5)
    assert sample(logits, greedy, 0, np.array([0, 0])) == 1
    assert sample(logits - 2.5, greedy, 0, np.array([0])) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"min_p": 2.0}],
)
def test_impossible_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="--"):
        Sampling(**wrong)  # type: ignore[arg-type]
