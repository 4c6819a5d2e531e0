"""Commands that are struck at one of the calls by which they change files, and typed again."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attacks.faulty import Mode, why_not
from tests.attacks.scenarios import SCENARIOS, BrokenError, Workplace, at_work, check_data, files_of, strike

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    with at_work(tmp_path_factory.mktemp("attacks")) as workplace:
        yield workplace


# A place in each third of a stage, or of a save; what each engine computes does not touch the disk.
@pytest.mark.parametrize(
    ("name", "mode", "at"),
    [
        ("prepare-over", "kill", 0.55),
        ("prepare-over", "full", 0.8),
        ("library", "tear", 0.9),
        ("train-on-mlx", "kill", 0.35),
        ("train-on-mlx", "tear", 0.7),
        ("convert-hf-mlx", "kill", 0.6),
    ],
)
def test_a_struck_command_ends_as_if_it_had_not_been(place: Workplace, name: str, mode: Mode, at: float) -> None:
    strike(place, name, mode, at)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_five_blows_at_every_command_that_writes(place: Workplace, name: str) -> None:
    modes: Iterator[Mode] = itertools.cycle(("kill", "tear", "full"))
    for blow, mode in zip(range(5), modes, strict=False):
        strike(place, name, mode, (blow + 0.5) / 5)


def test_files_of_two_texts_are_not_trained_on(place: Workplace) -> None:
    """Each by itself is as its stage left it."""
    scenario = place.scenario("prepare-over")
    before, (after, _) = files_of(scenario.before), place.after(scenario)
    place.lay_out(scenario.before)
    outcome = place.host.run(place.work, ["data", "clean", "other.txt", "--out", "data", "--template", "plain"])
    assert outcome.code == 0, outcome.err
    check_data(place.work, before, after)
    train = ["train", "--data", "data", "--out", "run", "--backend", "mlx", "--device", "cpu", "--config", "c.toml"]
    refused = place.host.run(place.work, train)
    assert refused.code == 1
    assert "is of another text than" in refused.err
    assert not (place.work / "run").exists()


def test_the_harness_knows_a_torn_folder(place: Workplace) -> None:
    """The old tokens with the new vocabulary would be refused; that they pass is what must be seen."""
    scenario = place.scenario("prepare-over")
    before, (after, _) = files_of(scenario.before), place.after(scenario)
    place.lay_out(scenario.before)
    pretended = {name: content for name, content in before.items() if not name.endswith("val.bin")}
    with pytest.raises(BrokenError, match="takes a mixed folder"):
        check_data(place.work, pretended, after)


@pytest.mark.parametrize("seconds", [-10 * 365 * 86_400.0, 365 * 86_400.0])
def test_a_clock_that_was_moved_changes_nothing(place: Workplace, seconds: float) -> None:
    for name in ("library", "train-on-mlx"):
        scenario = place.scenario(name)
        after, _ = place.after(scenario)
        place.lay_out(scenario.before)
        outcome = place.host.run(place.work, scenario.command(place.work), seconds=seconds)
        assert outcome.code == 0, outcome.err
        assert files_of(place.work) == after


def test_a_blow_falls_where_it_was_aimed(place: Workplace, tmp_path: Path) -> None:
    """Without which nothing above would have been attacked."""
    scenario = place.scenario("library")
    _, calls = place.after(scenario)
    assert calls > 50
    for mode, code in (("kill", -9), ("tear", -9), ("full", 1)):
        place.lay_out(scenario.before)
        outcome = place.host.run(place.work, scenario.command(place.work), mode, calls // 2)  # type: ignore[arg-type]
        assert (outcome.code, bool(outcome.what)) == (code, True), outcome.err
        assert outcome.calls > calls // 2
