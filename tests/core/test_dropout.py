"""What drops out is a function of where a sequence stands, and looks like nothing else than chance."""

import numpy as np
from numpy.typing import NDArray

from twingpt.core.dropout import STREAM, keys, of_layer, table, threshold
from twingpt.core.spec import GPTSpec

SPEC = GPTSpec(vocab_size=2, block_size=64, n_layer=2, n_head=2, n_embd=128)


def masks(probability: float, numbers: int, count: int) -> NDArray[np.float64]:
    """[count, numbers]: standardised masks, of mean 0 and variance 1, under keys of several steps and sequences."""
    chosen = np.concatenate([keys(SPEC, 0, step, np.arange(8)).ravel() for step in range(20)])[:count]
    dropped = table(SPEC)[:numbers] * chosen[:, None] < threshold(probability)
    standardised: NDArray[np.float64] = (dropped - probability) / np.sqrt(probability * (1.0 - probability))
    return standardised


def test_each_number_drops_out_as_often_as_asked() -> None:
    for probability in (0.01, 0.1, 0.5, 0.9):
        found = masks(probability, 8192, 1000)
        # Means of n values each: as wide as those of n throws of a coin, and the largest of them no further out.
        for axis in (0, 1):
            means = found.mean(axis=axis) * np.sqrt(found.shape[axis])
            assert 0.9 < means.std() < 1.1
            assert np.abs(means).max() < 6.5
        assert abs(found.mean()) * np.sqrt(found.size) < 4.0


def test_masks_and_numbers_know_nothing_of_each_other() -> None:
    found = masks(0.5, 2048, 1000)
    for one in (found, found.T):
        pairs = (one @ one.T / one.shape[1])[np.triu_indices(len(one), 1)] * np.sqrt(one.shape[1])
        assert 0.98 < pairs.std() < 1.02
        # Of 2 million pairs, a few meet by a small ratio of their numbers; a structure would be in many.
        assert (np.abs(pairs) > 5.5).mean() < 1e-5


def test_each_place_has_its_own_key() -> None:
    found = keys(SPEC, 3, 4, np.arange(16))
    assert found.shape == (16, 1 + 2 * (2 + 2))
    assert len(np.unique(found)) == found.size
    assert len(
        {*found.ravel(), *keys(SPEC, 3, 5, np.arange(16)).ravel(), *keys(SPEC, 4, 4, np.arange(16)).ravel()}
    ) == (3 * found.size)
    columns = [0, *(column for layer in range(2) for column in range(found.shape[1])[of_layer(2, layer)])]
    assert columns == list(range(found.shape[1]))
    assert np.array_equal(keys(SPEC, 3, 4, np.array([5, 2])), found[[5, 2]])


def test_the_numbers_are_those_of_this_stream() -> None:
    """A run that goes on draws as it began. Where this must change, STREAM does too, and the note of a resumed run."""
    assert STREAM == "1"
    assert table(SPEC)[:3].tolist() == [3793791033, 1853398635, 113532185]
    assert keys(SPEC, 42, 7, np.array([0, 9]))[:, :2].tolist() == [[990405655, 1171960007], [1030539653, 629049781]]
    assert (threshold(0.1), threshold(1.0 - 1e-12)) == (429496730, 2**32 - 1)
