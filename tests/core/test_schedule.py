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


def test_warm_up_stable_decay() -> None:
    schedule = Schedule(kind="wsd", peak=1.0, floor=0.1, warmup_steps=4, steps=100, decay_fraction=0.2)
    assert [schedule.learning_rate(step) for step in (0, 3, 4, 79, 80)] == [0.25, 1.0, 1.0, 1.0, 1.0]
    assert schedule.learning_rate(90) == pytest.approx(0.55)
    assert schedule.learning_rate(100) == pytest.approx(0.1)
    assert schedule.learning_rate(1000) == pytest.approx(0.1)


def test_no_decay_and_nothing_but_decay() -> None:
    never = Schedule(kind="wsd", peak=1.0, floor=0.0, warmup_steps=0, steps=10, decay_fraction=0.0)
    assert [never.learning_rate(step) for step in (0, 9)] == [1.0, 1.0]
    always = Schedule(kind="wsd", peak=1.0, floor=0.0, warmup_steps=0, steps=10, decay_fraction=1.0)
    assert [always.learning_rate(step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    with pytest.raises(UsageError, match="decay_fraction"):
        Schedule(kind="wsd", peak=1.0, floor=0.0, warmup_steps=0, steps=10, decay_fraction=1.5)


def test_constant() -> None:
    schedule = Schedule(kind="constant", peak=3e-4, floor=0.0, warmup_steps=0, steps=10)
    assert {schedule.learning_rate(step) for step in range(20)} == {3e-4}


def test_a_floor_above_the_peak_is_refused() -> None:
    with pytest.raises(UsageError, match="min_learning_rate"):
        Schedule(kind="cosine", peak=1e-4, floor=1e-3, warmup_steps=0, steps=10)
