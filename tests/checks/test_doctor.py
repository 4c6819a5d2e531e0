"""The doctor passes what is sound, and each of its checks is seen failing on a device made wrong on purpose."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.leaks import Rows, everything_visible, leak_everywhere, one_key_too_many
from twingpt.checks import arithmetic as checks
from twingpt.checks import doctor as run
from twingpt.checks.arithmetic import Subject
from twingpt.checks.doctor import run_doctor
from twingpt.checks.findings import Check, Report, judged, print_report
from twingpt.core.backend import Backend, BackendName, EngineConfig, Precision, State, create_backend
from twingpt.core.engines import Engine, find_engine
from twingpt.core.measured import Matrix, Operations
from twingpt.core.spec import GPTSpec

PACKAGES = {"mps": "torch_mps", "mlx": "mlx"}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Hundreds of tiny products: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def subject(backend_name: BackendName) -> Subject:
    return Subject(find_engine(backend_name).operations("cpu"), "cpu")


def failed(found: list[Check]) -> set[str]:
    return {check.name for check in found if check.status == "failed"}


class Wrong:
    """A backend, but for what is replaced in it."""

    def __init__(self, backend: Backend, **replaced: Callable[..., Any]) -> None:
        self._backend = backend
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        if name in self._replaced:
            return lambda *args: self._replaced[name](self._backend, *args)
        return getattr(self._backend, name)


def sabotage(monkeypatch: pytest.MonkeyPatch, **replaced: Callable[..., Any]) -> None:
    """Every backend that the checks make, except one asked for on the CPU by name, is wrong."""

    def create(name: str, spec: GPTSpec, config: EngineConfig) -> Any:
        backend = create_backend(name, spec, config)
        return backend if config.device == "cpu" else Wrong(backend, **replaced)

    monkeypatch.setattr(checks, "create_backend", create)


class OnGPU:
    """An engine that says it is on a GPU: what is asked of it with device auto runs on the CPU of this machine."""

    def __init__(self, engine: Operations, **replaced: Callable[..., Any]) -> None:
        self._engine = engine
        self._replaced = replaced
        self.device = "gpu"

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name, getattr(self._engine, name))


@pytest.fixture
def on_gpu(subject: Subject) -> Subject:
    return Subject(OnGPU(subject.engine), "auto")


def test_a_cache_that_sees_too_far_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(list(checks.cached_generation(subject))) == set()
    package = PACKAGES[subject.engine.name]

    def too_far(lengths: list[int], span: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        positions = np.array(lengths, dtype=np.int32)[:, None]
        return positions, (np.arange(span) <= positions + 1)[:, None, None, :]

    monkeypatch.setattr(f"twingpt.backends.{package}.backend.decode_plan", too_far)
    assert failed(list(checks.cached_generation(subject))) == {
        "cached generation, float32",
        "cached generation, bfloat16",
    }


@pytest.mark.parametrize("rows", [everything_visible, one_key_too_many])
def test_a_prompt_that_sees_its_padding_is_found(subject: Subject, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    def padded_only(T: int) -> NDArray[np.bool_]:
        return rows(T) if T % 64 == 0 else np.tri(T, dtype=np.bool_)

    leak_everywhere(monkeypatch, padded_only)
    assert failed(list(checks.cached_generation(subject))) >= {"cached generation, float32"}


def wrong_loss(backend: Backend, inputs: Any, targets: Any) -> tuple[float, State]:
    loss, gradients = backend.loss_and_grads(inputs, targets)
    return loss * 1.001, gradients


def wrong_gradient(backend: Backend, inputs: Any, targets: Any) -> tuple[float, State]:
    loss, gradients = backend.loss_and_grads(inputs, targets)
    largest = np.abs(gradients["model/head.weight"]).max()
    gradients["model/head.weight"][3, 5] += largest
    return loss, gradients


def wrong_update(backend: Backend, inputs: Any, targets: Any, lr: float, step: int) -> None:
    backend.train_step(inputs, targets, lr * 1.1, step)


WRONG_STEPS: dict[str, dict[str, Callable[..., Any]]] = {
    "loss": {"loss_and_grads": wrong_loss},
    "gradients": {"loss_and_grads": wrong_gradient},
    "update": {"train_step": wrong_update},
}


@pytest.mark.parametrize("part", WRONG_STEPS)
def test_a_wrong_step_is_found(on_gpu: Subject, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = list(checks.step_against_cpu(on_gpu))
    assert len(sound) == 6
    assert {check.status for check in sound} == {"passed"}
    sabotage(monkeypatch, **WRONG_STEPS[part])
    found = list(checks.step_against_cpu(on_gpu))
    assert failed(found) == {f"one step against the CPU, {part}, {precision}" for precision in checks.PRECISIONS}


def test_other_masks_are_found(on_gpu: Subject, subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.status for check in checks.dropout_against_cpu(on_gpu)] == ["passed"]
    assert [check.status for check in checks.dropout_against_cpu(subject)] == ["skipped"]
    sabotage(monkeypatch, train_step=lambda backend, x, y, lr, step: backend.train_step(x, y, lr, step + 1))
    assert [check.status for check in checks.dropout_against_cpu(on_gpu)] == ["failed"]


def test_a_step_is_not_compared_with_itself(subject: Subject) -> None:
    assert {check.status for check in checks.step_against_cpu(subject)} == {"skipped"}


def test_a_product_that_reads_one_term_too_many_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on M1 and M2: right up to 32,766, then one term of what lies behind the operands."""
    monkeypatch.setattr(checks, "LARGE_K", (32_767,))
    assert failed(list(checks.large_inner_dimension(subject))) == set()
    engine = subject.engine

    def matmul(a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        product = engine.matmul(a, b, precision)
        return product + np.outer(a[:, 0], b[0]) if a.shape[1] >= 32_767 else product

    wrong = Subject(OnGPU(engine, matmul=matmul), "cpu")
    assert failed(list(checks.large_inner_dimension(wrong))) == {"products over a long dimension"}


def test_a_bfloat16_product_that_rounds_as_it_adds_is_found(subject: Subject) -> None:
    assert failed(list(checks.bfloat16_products(subject))) == set()
    engine = subject.engine

    def matmul(a: Matrix, b: Matrix, precision: Precision) -> Matrix:
        total = np.zeros((a.shape[0], b.shape[1]), dtype=np.float32)
        for k in range(a.shape[1]):
            total = checks._bfloat16(total + np.outer(a[:, k], b[k]))
        return total

    wrong = Subject(OnGPU(engine, matmul=matmul, matmul_seconds=lambda n, precision: 1.0), "cpu")
    (check,) = checks.bfloat16_products(wrong)
    assert check.status == "failed"
    assert check.advice == "stay with --precision float32"


def test_a_chunk_left_out_of_the_loss_is_found(on_gpu: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(list(checks.chunked_loss(on_gpu))) == set()

    def without_the_last_chunk(backend: Backend, inputs: Any, targets: Any) -> tuple[float, State]:
        counted = targets.copy()
        counted.ravel()[targets.size // 128 * 128 :] = -1
        return backend.loss_and_grads(inputs, counted)

    sabotage(monkeypatch, loss_and_grads=without_the_last_chunk)
    assert failed(list(checks.chunked_loss(on_gpu))) == {"chunked loss", "chunked gradients"}


def test_a_step_that_is_not_skipped_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failed(list(checks.non_finite_step(subject))) == set()
    monkeypatch.setattr(torch, "isfinite", lambda x: torch.ones_like(x, dtype=torch.bool))
    monkeypatch.setattr(mx, "isfinite", lambda x: mx.ones(x.shape, dtype=mx.bool_))
    assert failed(list(checks.non_finite_step(subject))) == {"a step that is not finite is skipped"}


ONLY_ONE = """
import json, sys
sys.modules[{missing!r}] = None
from twingpt.checks.doctor import run_doctor
print("REPORT", json.dumps(run_doctor("cpu").to_dict()))
"""


@pytest.mark.parametrize(("missing", "left"), [("torch", "mlx"), ("mlx", "mps")])
def test_each_engine_is_examined_without_the_other(missing: str, left: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", ONLY_ONE.format(missing=missing)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    report = json.loads(result.stdout.partition("REPORT")[2])
    assert {check["engine"] for check in report["checks"]} == {left}
    assert {check["name"]: check["detail"] for check in report["checks"] if check["status"] == "failed"} == {}
    assert report["passed"]
    names = {check["name"].partition(",")[0].partition(" (")[0] for check in report["checks"]}
    assert len(names) == len(checks.CHECKS) + 1
    assert report["facts"][left]["device taken"]
    assert left in report["facts"]
    assert {"mps", "mlx"} & set(report["facts"]) == {left}


def test_a_check_that_breaks_off_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(subject: Subject) -> Any:
        yield subject.skipped("before", "of the test")
        raise NotImplementedError("The operator 'aten::frexp' is not implemented for MPS\nand more")

    monkeypatch.setattr(run, "CHECKS", {"breaks": breaks})
    told: list[str] = []
    report = run_doctor("cpu", told.append)
    assert told == ["mps on cpu: breaks", "mlx on cpu: breaks"]
    assert [check.name for check in report.failed] == ["breaks", "breaks"]
    assert report.failed[0].detail == "NotImplementedError: The operator 'aten::frexp' is not implemented for MPS"


def test_an_engine_that_does_not_start_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(engine: Engine, choice: str) -> Operations:
        raise OSError("libtorch.dylib: image not found")

    monkeypatch.setattr(Engine, "operations", cannot)
    report = run_doctor("cpu")
    assert [(check.engine, check.name) for check in report.failed] == [
        ("mps", "the engine starts"),
        ("mlx", "the engine starts"),
    ]


def test_facts_that_cannot_be_read_are_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHECKS", {})
    absent: dict[str, str] = {}
    measured = find_engine("mlx").part("measured")
    monkeypatch.setattr(measured.MLXOperations, "facts", lambda self: absent["memory_size"])
    report = run_doctor("cpu")
    assert "mlx" not in report.facts
    assert report.notes == ["what mlx says of its devices cannot be read: KeyError: 'memory_size'"]


def test_forgotten_variables_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "CHECKS", {})
    monkeypatch.delenv("PYTORCH_ENABLE_MPS_FALLBACK", raising=False)
    report = run_doctor("cpu")
    assert report.notes == []
    assert report.facts["machine"]["PYTORCH_ENABLE_MPS_FALLBACK"] == "not set"
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    report = run_doctor("cpu")
    assert report.facts["machine"]["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    assert "PYTORCH_ENABLE_MPS_FALLBACK is set" in report.notes[0]


def test_nothing_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "installed_backends", list)
    report = run_doctor("cpu")
    assert report.checks == []
    assert "pip install" in report.notes[-1]


def test_not_a_number_fails_and_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    named = {
        "engine": "mps",
        "device": "cpu",
        "name": "n",
        "unit": "u",
        "detail": "what was seen",
        "advice": "the cure",
    }
    check = judged(float("nan"), 1.0, **named)
    assert check.status == "failed"
    report = Report(checks=[check, dataclasses.replace(check, status="skipped", measured=None, tolerance=None)])
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["passed"] is False
    assert told["checks"][0]["measured"] == "nan"
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 1 checks failed (mps on cpu); 1 skipped."
    assert "what was seen" in lines[1] and "the cure" in lines[2]
    assert not any("tolerance" in line for line in lines)


def test_the_verdict_comes_first_and_the_rest_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    check = judged(0.5, 1.0, engine="mlx", device="cpu", name="n", unit="u", detail="d", advice="a")
    report = Report(checks=[check], facts={"machine": {"chip": "some chip"}}, notes=["worth knowing"])
    print_report(report)
    brief = capsys.readouterr().out.splitlines()
    assert brief[:2] == ["Every check passed that this machine can run: 1 (mlx on cpu).", "note: worth knowing"]
    assert len(brief) == 3 and brief[2].endswith("twingpt doctor --details")
    print_report(report, details=True)
    full = capsys.readouterr().out
    assert full.splitlines()[:2] == brief[:2] and "some chip" in full and "tolerance" in full
    print_report(Report())
    assert capsys.readouterr().out.startswith("Nothing was checked")
