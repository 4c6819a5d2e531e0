import pytest

from twingpt.core.errors import UsageError
from twingpt.core.schedule import Schedule


def test_warm_up_then_cosine() -> None:
    schedule = Schedule(kind="cosine", peak=1.0, floor=0.1, warmup_steps=4, steps=104)
    assert [schedule.learning_rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert schedule.learning_rate(4) == 1.0
    assert schedule.learning_rate(54) == pytest.approx(0.55)
    assert schedule.learning_rate(104) == pytest.approx(0.1)
    assert schedule.learning_rate(1000) == pytest.approx(0.1)


def test_constant() -> None:
    schedule = Schedule(kind="constant", peak=3e-4, floor=0.0, warmup_steps=0, steps=10)
    assert {schedule.learning_rate(step) for step in range(20)} == {3e-4}


def test_a_floor_above_the_peak_is_refused() -> None:
    with pytest.raises(UsageError, match="min_learning_rate"):
        Schedule(kind="cosine", peak=1e-4, floor=1e-3, warmup_steps=0, steps=10)
