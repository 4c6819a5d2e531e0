"""Engines are found by their entry points, whoever made them, and one that is broken breaks no other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twingpt.core.engines import compared, default_engine, described, engine_names, find_engine
from twingpt.core.errors import UsageError

RECORD = """
from twingpt.core.engines import Engine, find_engine

ENGINE = Engine(
    name="other",
    aliases=("another",),
    title="The Other",
    package="other_engine",
    framework="{framework}",
    footprint=find_engine("reference").footprint,
)
"""
# An engine of its own that computes as another one does.
BACKEND = """
from twingpt.core.engines import find_engine


def create(spec, config, world=None):
    made = find_engine("reference").part("backend").create(spec, config, world)
    made.name = "other"
    return made
"""
ENTRY_POINTS = """
[twingpt.backends]
other = other_engine.engine:ENGINE
broken = other_engine.broken:ENGINE
nothing = other_engine.engine:RECORD
"""
USED = """
import numpy as np
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engines import compared, find_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.spec import GPTSpec

spec = GPTSpec(vocab_size=16, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.0)
logits = []
for name in ("another", "reference"):
    engine = create_backend(name, spec, EngineConfig())
    engine.load_state({f"model/{name}": weight for name, weight in initial_weights(spec, 0).items()})
    logits.append(engine.logits(np.arange(8, dtype=np.int32)[None]))
assert np.array_equal(*logits)
assert "other" not in compared()
for name, told in (("broken", "RuntimeError: of the test"), ("nothing", "AttributeError")):
    try:
        find_engine(name)
    except TwinGPTError as error:
        assert f"backend {name} cannot be loaded: {told}" in str(error), error
    else:
        raise AssertionError(name)
"""


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with an installed package that has an engine, and two entry points that do not work."""
    package, installed = tmp_path / "other_engine", tmp_path / "other_engine-1.0.dist-info"
    for folder in (package, installed):
        folder.mkdir()
    (package / "__init__.py").touch()
    (package / "engine.py").write_text(RECORD.format(framework="numpy"))
    (package / "backend.py").write_text(BACKEND)
    (package / "broken.py").write_text("raise RuntimeError('of the test')")
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other-engine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_an_engine_of_another_package_is_found_and_used(other: Path) -> None:
    result = run(other, "-c", USED)
    assert result.returncode == 0, result.stderr
    told = " ".join(run(other, "-m", "twingpt", "generate", "--help").stdout.replace("│", " ").split())
    assert "or other (The Other; another means the same)" in told
    # Nothing is measured of it, and it has no launcher.
    for command in (["plan", "--backend", "other"], ["bench", "--backend", "other"]):
        result = run(other, "-m", "twingpt", *command)
        assert result.returncode == 2
        assert "unknown backend 'other'" in result.stderr
    train = ["train", "--out", "run", "--hosts", "localhost,localhost", "--backend", "another"]
    result = run(other, "-m", "twingpt", *train)
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["error: unknown backend 'other': choose one of mps, mlx"]


def test_an_engine_without_its_framework_says_what_it_needs(other: Path) -> None:
    (other / "other_engine" / "engine.py").write_text(RECORD.format(framework="no_such_framework"))
    program = "from twingpt.core.backend import create_backend; create_backend('other', None)"
    result = run(other, "-c", program)
    assert "backend other needs no_such_framework, which is not installed" in result.stderr


def test_a_name_that_is_no_engine_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown backend 'jax': choose one of mps, mlx, reference"):
        find_engine("jax")
    for command in (["train", "--out", "run"], ["generate", "run", "--prompt", "x"]):
        result = run(tmp_path, "-m", "twingpt", *command, "--backend", "jax")
        assert result.returncode == 2
        assert result.stderr.splitlines() == ["error: unknown backend 'jax': choose one of mps, mlx, reference"]


def test_engines_have_their_order_and_their_names() -> None:
    assert engine_names() == ["mps", "mlx", "reference"]
    assert compared() == ("mps", "mlx")
    assert default_engine() == "mps"
    assert find_engine("torch") is find_engine("mps")
    assert described(engine_names()) == "mps (PyTorch; torch means the same), mlx, or reference (NumPy: to read, slow)"
    assert described(["mlx"], "all") == "mlx or all"


@pytest.mark.parametrize("name", compared())
def test_what_is_compared_can_be_measured(name: str) -> None:
    engine = find_engine(name)
    assert engine.exchange is not None
    assert engine.launcher is not None
    assert engine.operations("cpu").name == name
    assert engine.arrays("cpu", "float32").random(2, 3).shape == (2, 3)
