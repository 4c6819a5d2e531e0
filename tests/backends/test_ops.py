"""The two sets of operations, one for Metal and one for a Linux CPU: which is chosen, and that they say the same."""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from tests.conftest import make_engine
from twingpt.backends.mlx.linux_cpu import PLAIN, blas
from twingpt.checks import parity
from twingpt.checks.ladder import TOLERANCES, tensor_error
from twingpt.core.backend import Backend
from twingpt.core.spec import GPTSpec

PACKAGES = {"mps": "torch_mps", "mlx": "mlx"}
SMALL: dict[str, Any] = {"vocab_size": 96, "block_size": 16, "n_layer": 1, "n_head": 4, "n_embd": 32}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="there is one set outside Linux")


def small(label: str) -> GPTSpec:
    spec = parity.SPECS[label]
    return dataclasses.replace(spec, **SMALL, head_size=min(spec.head_size, 12), n_hidden=min(spec.n_hidden, 40))


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """MLX computes operation by operation, without fused kernels."""
    mx.disable_compile()
    yield
    mx.enable_compile()


def chosen(backend_name: str, device: str) -> str:
    ops = importlib.import_module(f"twingpt.backends.{PACKAGES[backend_name]}.ops")
    return type(ops.choose_ops(device)).__name__


@on_linux
@pytest.mark.parametrize(
    ("value", "wanted"), [(None, "LinuxOps"), ("", "LinuxOps"), ("0", "LinuxOps"), ("1", "Ops"), ("yes", "Ops")]
)
def test_the_variable_turns_the_set_for_linux_off(
    backend_name: str, value: str | None, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PLAIN, raising=False)
    if value is not None:
        monkeypatch.setenv(PLAIN, value)
    assert chosen(backend_name, "cpu") == wanted
    engine: Any = make_engine(backend_name, small("seed style"))
    assert type(engine._model.ops).__name__ == wanted
    assert engine._model.blocks[0].attn.qkv.ops is engine._model.ops if backend_name == "mps" else engine._ops


def test_a_gpu_and_a_mac_get_the_plain_set(backend_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAIN, "0")
    assert {chosen(backend_name, device) for device in ("metal", "mps", "cuda")} == {"Ops"}
    with monkeypatch.context() as on_a_mac:
        on_a_mac.setattr(sys, "platform", "darwin")
        name, openblas = chosen(backend_name, "cpu"), blas.load()
    assert name == "Ops"
    assert openblas is None


def test_the_set_is_chosen_when_an_engine_is_made_not_at_import(backend_name: str) -> None:
    package = f"twingpt.backends.{PACKAGES[backend_name]}"
    code = f"import {package}.backend, sys\nassert '{package}.linux_cpu.ops' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("label", parity.SPECS)
def test_every_rung_holds_on_the_plain_set(label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the other set the ladder is climbed in tests/checks/test_parity.py, at its own size.

    On a CPU MLX has g++ compile each kernel that it fuses, a second each: test_engine.py does that for two models.
    """
    monkeypatch.setenv(PLAIN, "1")
    spec = small(label)
    rungs = list(parity.climb(label, spec, parity.perturbed(spec), "cpu"))
    assert [rung for rung in rungs if not rung.passed] == []
    assert {rung.number for rung in rungs} == {1, 2, 3, 4, 5, 6, 8}


@on_linux
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("label", parity.SPECS)
def test_both_sets_give_the_same_gradients(backend_name: str, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small(label)
    inputs, targets = parity._batch(spec)
    found = []
    for value in ("0", "1"):
        monkeypatch.setenv(PLAIN, value)
        engine: Backend = make_engine(backend_name, spec, loss_chunk=20)
        found.append((engine.logits(inputs), *engine.loss_and_grads(inputs, targets)))
    assert np.abs(found[0][0] - found[1][0]).max() < TOLERANCES["logits"]
    assert abs(found[0][1] - found[1][1]) < TOLERANCES["loss"]
    assert tensor_error(spec, found[0][2], found[1][2]) < TOLERANCES["gradients"]
