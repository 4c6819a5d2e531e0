import numpy as np
import pytest

from twingpt.core.rope import rope_table
from twingpt.core.spec import GPTSpec


def test_angles_are_those_of_the_paper() -> None:
    spec = GPTSpec(vocab_size=8, block_size=32, n_head=2, n_embd=16, position="rope", rope_theta=100.0)
    cosines, sines = rope_table(spec)
    assert cosines.shape == sines.shape == (32, 4)
    for position, pair in ((0, 0), (1, 0), (7, 3), (31, 2)):
        angle = position * 100.0 ** (-2 * pair / 8)
        assert cosines[position, pair] == pytest.approx(np.cos(angle), abs=1e-7)
        assert sines[position, pair] == pytest.approx(np.sin(angle), abs=1e-7)
