"""Every setting has a range that its class checks, whoever gives it: a file, an option or a program."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from twingpt.core.errors import UsageError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.training.config import RunConfig, TrainConfig, make_config

CLASSES: dict[type[Any], dict[str, Any]] = {
    TrainConfig: {},
    GPTSpec: {"vocab_size": 300},
    Sampling: {},
    PrepareSettings: {},
}
NUMBERS = [
    (kind, each.name)
    for kind in CLASSES
    for each in dataclasses.fields(kind)
    if str(each.type).split(" | ")[0].removeprefix("<class '").removesuffix("'>") in ("int", "float")
]
# What a number may be anything of would be a list here. There is none.
WRONG = (math.nan, math.inf, -math.inf, -1, 10**30)


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda each: getattr(each, "__name__", each))
def test_no_number_is_taken_that_cannot_be_meant(kind: type[Any], name: str) -> None:
    for value in WRONG:
        given: float | int = value
        if kind in (TrainConfig, GPTSpec) and next(f for f in dataclasses.fields(kind) if f.name == name).type is float:
            given = float(value)
        with pytest.raises(UsageError, match=name.replace("_", "[-_]")):
            kind(**{**CLASSES[kind], name: given})


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "grad_clip", "nan"),
        ("train", "grad_clip", "-1.0"),
        ("train", "weight_decay", "-5.0"),
        ("train", "weight_decay", "inf"),
        ("train", "eps", "-1.0"),
        ("train", "eps", "0.0"),
        ("train", "learning_rate", "inf"),
        ("train", "sample_tokens", "-5"),
        ("train", "decay_fraction", "nan"),
        ("train", "seed", str(2**63)),
        ("model", "mlp_ratio", str(10**12)),
        ("model", "n_layer", str(10**12)),
        ("model", "norm_eps", "inf"),
        ("model", "init_std", "nan"),
    ],
)
def test_a_file_is_refused_by_the_name_of_what_is_wrong_in_it(
    tmp_path: Path, section: str, name: str, value: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[{section}]\n{name} = {value}\n")
    with pytest.raises(UsageError, match=rf"{section}\.{name} = "):
        make_config(preset="tiny", config_file=file, model={"vocab_size": 100}, train={}, data="")


def test_settings_are_checked_against_each_other_at_once() -> None:
    with pytest.raises(UsageError, match="min_learning_rate"):
        TrainConfig(learning_rate=1e-4, min_learning_rate=1e-3)
    with pytest.raises(UsageError, match="too wide"):
        GPTSpec(vocab_size=100, n_head=1, n_embd=2**20)


def test_what_lies_at_a_bound_is_taken() -> None:
    Sampling(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, seed=2**64 - 1)
    TrainConfig(grad_clip=0.0, weight_decay=0.0, sample_tokens=0, seed=2**63 - 1, beta1=0.0, decay_fraction=0.0)


def test_the_largest_seed_is_kept_in_the_runs_settings(tmp_path: Path, spec: GPTSpec) -> None:
    config = RunConfig(model=spec, train=TrainConfig(seed=2**63 - 1), data="d")
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config
