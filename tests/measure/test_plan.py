"""`twingpt plan`: the formula by hand, the engines' own buckets, and answers that agree with themselves."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from twingpt.cli import app
from twingpt.core.backend import BackendName
from twingpt.core.engines import compared
from twingpt.core.errors import UsageError
from twingpt.core.params import parameter_count, parameter_table
from twingpt.core.presets import PRESETS
from twingpt.core.spec import GPTSpec
from twingpt.measure.chips import FAMILIES
from twingpt.measure.cost import (
    HELPS,
    UPDATE_BYTES,
    Machine,
    all_reduce_seconds,
    backward_share,
    buckets,
    exchange_of,
    helps_from,
    predict,
    speed_up,
    token_flops,
    update_flops,
)
from twingpt.measure.links import LINKS, own_link
from twingpt.measure.speeds import GPU_CORES, from_speed, named_chip
from twingpt.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
SEED = GPTSpec(vocab_size=16_000, **PRESETS["seed"].model)
MACHINE = Machine(name="a Mac", flops=1e12, memory=1e11, source="made up")
ENDLESS = own_link(1e9, 0.0)
SLOW = own_link(0.1, 0.0)


@pytest.mark.parametrize("backend", compared())
def test_an_all_reduce_by_hand(backend: BackendName) -> None:
    # 100 MB at 8 Gbit/s, which are 1 GB a second.
    link = own_link(8.0, 1.0)
    hop = 0.001 + exchange_of(backend).hop_seconds
    assert all_reduce_seconds(100e6, 2, link, backend) == pytest.approx(0.1 + 2 * hop)
    assert all_reduce_seconds(100e6, 4, link, backend) == pytest.approx(0.15 + 6 * hop)
    air = dataclasses.replace(link, shared=True)
    assert all_reduce_seconds(100e6, 4, air, backend) == pytest.approx(4 * 0.15 + 6 * hop)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("backend", compared())
def test_every_gradient_travels_once(preset: str, backend: BackendName) -> None:
    spec = GPTSpec(vocab_size=16_000, **PRESETS[preset].model)
    groups = list(buckets(spec, backend))
    assert sum(size for size, _ in groups) == 4 * parameter_count(spec)
    ready = [when for _, when in groups]
    assert ready == sorted(ready)
    assert ready[-1] == 1.0


def test_the_buckets_are_those_of_the_engines() -> None:
    torch = pytest.importorskip("torch")
    distributed = pytest.importorskip("twingpt.backends.torch_mps.distributed")
    assert exchange_of("mps").bucket_bytes == distributed.BUCKET_BYTES
    parameters = [torch.nn.Parameter(torch.empty(param.shape)) for param in parameter_table(SEED).values()]
    theirs = [4 * sum(p.numel() for p in bucket) for bucket in distributed._buckets(parameters[::-1])]
    assert theirs == [size for size, _ in buckets(SEED, "mps")]
    assert len(theirs) > 1


def test_the_groups_are_those_of_mlx() -> None:
    distributed = pytest.importorskip("twingpt.backends.mlx.distributed")
    utils = pytest.importorskip("mlx.nn.utils")
    assert exchange_of("mlx").bucket_bytes == distributed.BUCKET_BYTES
    sizes = [param.size for param in reversed(parameter_table(SEED).values())]
    groups = utils._group_by_size(list(range(len(sizes))), sizes, 4, distributed.BUCKET_BYTES)
    assert [4 * sum(sizes[i] for i in group) for group in groups] == [size for size, _ in buckets(SEED, "mlx")]


@pytest.mark.parametrize("backend", compared())
def test_what_the_backward_pass_hides(backend: BackendName) -> None:
    config = TrainConfig(batch_size=16)
    fast, slow = (predict(SEED, config, backend, MACHINE, link, 2) for link in (ENDLESS, SLOW))
    alone = predict(SEED, config, backend, MACHINE, SLOW, 1)
    assert alone.communication == alone.exposed == alone.copies == 0.0
    assert fast.compute == slow.compute == alone.compute / 2
    # The last group waits for the end of the backward pass, the first one does not.
    *_, last = (size for size, _ in buckets(SEED, backend))
    assert fast.exposed == pytest.approx(all_reduce_seconds(last, 2, ENDLESS, backend))
    window = slow.compute * backward_share(SEED, config)
    assert 0.0 < slow.communication - slow.exposed <= window
    # Half of the share at once: only the second half's backward pass hides anything.
    halves = predict(SEED, dataclasses.replace(config, micro_batch=4), backend, MACHINE, SLOW, 2)
    hidden = [cost.communication - cost.exposed for cost in (slow, halves)]
    assert hidden[1] == pytest.approx(hidden[0] / 2)
    assert halves.compute == slow.compute


def test_what_waits_without_sleeping_hides_nothing() -> None:
    busy = dataclasses.replace(MACHINE, spare_cores=False)
    mps, mlx = (predict(SEED, TrainConfig(), backend, busy, SLOW, 2) for backend in compared())
    assert mlx.exposed == mlx.communication
    assert mps.exposed < mps.communication
    assert not from_speed("a CPU", None, SEED, TrainConfig(), 100.0, "test").spare_cores


def test_the_share_of_the_backward_pass() -> None:
    # Without blocks' activations again: of 3 parts of the blocks 2 are backward; the head is all in the loss.
    blocks = token_flops(SEED, TrainConfig()) - 6 * SEED.vocab_size * SEED.n_embd
    assert backward_share(SEED, TrainConfig()) * token_flops(SEED, TrainConfig()) == pytest.approx(2 / 3 * blocks)
    again = TrainConfig(activation_checkpointing=True)
    assert backward_share(SEED, again) * token_flops(SEED, again) == pytest.approx(blocks)


def test_the_update_of_muon() -> None:
    spec = GPTSpec(vocab_size=64, block_size=8, n_layer=1, n_head=2, n_embd=16, mlp_ratio=4)
    square, wide = 4 * 16**3 + 2 * 16**3, 4 * 16 * 16 * 64 + 2 * 16**3
    # Queries, keys, values and the projection; in and out of the feed-forward layer.
    assert update_flops(spec, TrainConfig(optimizer="muon")) == 5 * (4 * square + 2 * wide)
    assert update_flops(spec, TrainConfig()) == 0.0
    cost = predict(spec, TrainConfig(), "mps", MACHINE, ENDLESS, 2)
    assert cost.update == UPDATE_BYTES * parameter_count(spec) / 1e11


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_machine_is_as_fast_as_it_was_seen(optimizer: Any) -> None:
    config = TrainConfig(batch_size=8, optimizer=optimizer)
    machine = from_speed("seen", named_chip("M4", None), SEED, config, 5000.0, "test")
    assert predict(SEED, config, "mlx", machine, SLOW, 1).tokens_per_second == pytest.approx(5000.0)


@pytest.mark.parametrize("backend", compared())
@pytest.mark.parametrize("machines", [2, 3, 4])
def test_the_smallest_batch_that_helps(backend: BackendName, machines: int) -> None:
    link = LINKS["10gbe"]
    found = helps_from(SEED, TrainConfig(), backend, MACHINE, link, machines)
    assert found is not None and found % machines == 0 and found > machines

    def gain(batch_size: int) -> float:
        config = TrainConfig(batch_size=batch_size)
        return speed_up(*(predict(SEED, config, backend, MACHINE, link, n) for n in (machines, 1)))

    assert gain(found - machines) < HELPS <= gain(found)
    assert helps_from(SEED, TrainConfig(), backend, MACHINE, own_link(1e-5, 0.0), machines) is None
    assert helps_from(SEED, TrainConfig(), backend, MACHINE, own_link(1e6, 0.0), machines) == machines


def test_every_chip_of_the_table_has_a_name() -> None:
    assert {f"Apple {name}" for name in GPU_CORES} == set(FAMILIES)
    assert named_chip("apple m4 max", None) == named_chip("M4 Max", 40)
    assert named_chip("M4 Max", 32).bandwidth == 410e9
    with pytest.raises(UsageError, match="unknown chip 'M9'"):
        named_chip("M9", None)


def plan(*options: str) -> Any:
    answer = CliRunner().invoke(app, ["plan", *options, "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def test_the_answer_for_a_program() -> None:
    answer = plan("--chip", "M4 Max", "--link", "1gbe", "--link", "thunderbolt5", "--macs", "2", "--macs", "3")
    assert answer["gradient_bytes"] == 4 * answer["parameters"]
    assert [(each["link"]["name"], each["machines"]) for each in answer["plans"]] == [
        ("1gbe", 2),
        ("1gbe", 3),
        ("thunderbolt5", 2),
        ("thunderbolt5", 3),
    ]
    slow, uneven, fast, _ = answer["plans"]
    assert not slow["helps"] and slow["speed_up"] < 1.0 and slow["from_batch_size"] > 16
    assert fast["helps"] and 1.0 < fast["speed_up"] < 2.0
    assert fast["speed_up"] == pytest.approx(fast["tokens_per_second"] / answer["one"]["tokens_per_second"])
    assert uneven["speed_up"] is None and "step" not in uneven
    # What plan says of a larger batch, it says when asked for that batch.
    larger = plan("--chip", "M4 Max", "--link", "1gbe", "--macs", "2", "--batch-size", str(slow["from_batch_size"]))
    assert larger["plans"][0]["helps"]


def test_a_run_and_a_measurement_here(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = tmp_path / "small.toml"
    config.write_text("[model]\nn_layer = 1\nn_head = 2\nn_embd = 16\nblock_size = 16\n", encoding="utf-8")
    small = ["--config", str(config), "--vocab-size", "64", "--batch-size", "4", "--backend", "mps"]
    answer = plan(*small, "--measure", "--device", "cpu", "--bandwidth", "1", "--macs", "2")
    assert answer["machine"]["source"].startswith("measured here: mps on cpu")
    assert answer["one"]["tokens_per_second"] > 0
    assert answer["plans"][0]["link"]["latency_ms"] == 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--link", "telegraph"], "unknown link 'telegraph'"),
        (["--chip", "M9"], "unknown chip 'M9'"),
        (["--chip", "M5"], "--tokens-per-second"),
        (["--latency", "1"], "--bandwidth"),
        (["--gpu-cores", "8"], "--chip"),
        (["--chip", "M4", "--measure"], "--measure"),
        (["--tokens-per-second", "9", "--share", "0.5"], "--share"),
        (["run", "--config", "file"], "either RUN or --config"),
    ],
)
def test_a_mistake_is_one_line(options: list[str], said: str) -> None:
    answer = CliRunner().invoke(app, ["plan", *options])
    assert isinstance(answer.exception, UsageError)
    assert said in str(answer.exception)


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_page_shows_what_plan_prints(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    page = (ROOT / "docs" / language / "several-macs.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```text\n\$ twingpt plan (.*?)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    options = re.findall(r'"([^"]+)"|(\S+)', block[0])
    answer = CliRunner().invoke(app, ["plan", *(quoted or plain for quoted, plain in options)])
    assert [line.rstrip() for line in answer.stdout.splitlines()] == block[1].splitlines()
