"""The size of a model and the length of its training, from a text and a time."""

from dataclasses import dataclass
from typing import Any

import pytest

from twingpt.core.errors import TwinGPTError
from twingpt.core.params import flops_per_token
from twingpt.core.spec import GPTSpec
from twingpt.measure import sizing
from twingpt.measure.sizing import ROUNDS, SHAPES, Plan, affordable, plan_training
from twingpt.training.config import TrainConfig
from twingpt.training.probe import ProbeResult


@dataclass
class FakeMachine:
    """Trains at so many FLOPs a second in each engine, and has room for so many sequences at a time.

    overhead: seconds of each update, however small it is.
    """

    flops: dict[str, float]
    room: int = 1000
    overhead: float = 0.0

    def probe(
        self, spec: GPTSpec, config: TrainConfig, backend: str, _: Any, micro_batch: int, steps: int
    ) -> ProbeResult:
        if micro_batch > self.room:
            return ProbeResult(False, reason="no room")
        work = config.batch_size * spec.block_size * flops_per_token(spec)
        return ProbeResult(True, seconds_per_step=self.overhead + work / self.flops[backend])


def planned(monkeypatch: pytest.MonkeyPatch, machine: FakeMachine, **given: Any) -> Plan:
    monkeypatch.setattr(sizing, "probe", machine.probe)
    settings: dict[str, Any] = {
        "text_tokens": 400_000,
        "vocab_size": 4000,
        "block_size": 256,
        "seconds": 600.0,
        "device": "cpu",
    }
    return plan_training(**{**settings, **given}, backends=list(machine.flops))


SLOW, FAST = {"mps": 2e10, "mlx": 4e10}, {"mps": 4e12, "mlx": 2e12}


def test_the_faster_engine_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, FakeMachine(SLOW)).backend == "mlx"
    assert planned(monkeypatch, FakeMachine(FAST)).backend == "mps"


def test_a_plan_takes_the_time_where_there_is_text_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, FakeMachine(SLOW), text_tokens=10**9)
    assert plan.short_of == "time"
    assert 0.97 * 600 <= plan.steps * plan.step_seconds <= 600
    assert plan.steps == plan.train["steps"] == affordable(600, plan.step_seconds)


def test_a_small_text_is_not_learned_by_heart_however_much_time_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = planned(monkeypatch, FakeMachine(FAST), text_tokens=1000, seconds=1e6)
    assert tiny.short_of == "text" and tiny.steps == tiny.most
    assert (tiny.model["n_layer"], tiny.model["n_head"], tiny.model["n_embd"]) == SHAPES[0]
    assert tiny.rounds == pytest.approx(ROUNDS, rel=0.1)
    assert tiny.steps * tiny.train["batch_size"] * 256 <= 1.1 * ROUNDS * 1000 + 256
    assert tiny.train["warmup_steps"] <= tiny.steps // 10


def test_more_text_and_more_speed_make_a_larger_model(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [
        planned(monkeypatch, FakeMachine(SLOW), seconds=60.0).parameters,
        planned(monkeypatch, FakeMachine(FAST), text_tokens=2_000_000, seconds=600.0).parameters,
        planned(monkeypatch, FakeMachine(FAST), text_tokens=10**9, seconds=36_000.0).parameters,
    ]
    assert sizes[0] < sizes[1] < sizes[2]


def test_a_long_training_is_saved_every_few_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(monkeypatch, FakeMachine(FAST), text_tokens=10**9, seconds=36_000.0)
    assert plan.train["save_every"] * plan.step_seconds == pytest.approx(300, rel=0.1)


def test_a_machine_that_small_models_keep_idle_gets_a_larger_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"text_tokens": 10**9, "seconds": 2000.0}
    machine = FakeMachine({"mps": 4e12}, overhead=0.03)
    plan = planned(monkeypatch, machine, **given)
    monkeypatch.setattr(sizing, "PASSES", 1)
    assert planned(monkeypatch, machine, **given).parameters < plan.parameters
    assert plan.train["steps"] * plan.step_seconds <= 2000


def test_a_batch_that_memory_does_not_hold_is_timed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert planned(monkeypatch, FakeMachine(SLOW, room=1)).steps > 0
    with pytest.raises(TwinGPTError, match="does not fit into memory in PyTorch: no room"):
        planned(monkeypatch, FakeMachine({"mps": 1e10}, room=0))
