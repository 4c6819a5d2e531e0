"""Memory: the estimate, the micro-batch chosen from it, and going on after it ran out."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.test_trainer import losses, run_to, session
from twingpt.core.errors import OutOfMemoryError, RestartError, TwinGPTError
from twingpt.core.memory import is_out_of_memory, machine_memory
from twingpt.core.params import parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.training.estimate import GIB, divisors, estimate_memory, events, plan_memory, smaller_micro_batch
from twingpt.training.log import MicroBatchReport, read_metrics
from twingpt.training.restart import restart_arguments
from twingpt.training.session import TrainRequest, open_session

SPEC = GPTSpec(vocab_size=16_000)
# Between a run that shrank and one that started small, over 20 steps: losses in nats a token, measured 9.5e-7 (torch)
# and 2.4e-6 (mlx); gradient norms, relative, measured 5.2e-7.
TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 5e-6
WITHOUT_DROPOUT: dict[str, Any] = {"model": {"dropout": 0.0}}


def assert_same_run(shrunk: Path, small: Path) -> None:
    lines = [[line for line in read_metrics(run) if "loss" in line] for run in (shrunk, small)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == list(range(1, 21))
    a, b = (np.array([(line["loss"], line["grad_norm"]) for line in run]) for run in lines)
    assert np.abs(a - b)[:, 0].max() < TOLERANCE
    assert np.abs(a / b - 1)[:, 1].max() < GRADIENT_TOLERANCE


def total(spec: GPTSpec = SPEC, micro_batch: int = 16, backend: str = "mps", device: str = "cpu", **train: Any) -> int:
    return estimate_memory(spec, TrainConfig(**train), backend, device, micro_batch).total


@pytest.mark.parametrize("backend", ["mps", "mlx"])
def test_the_estimate_follows_what_costs_memory(backend: str) -> None:
    whole = total(backend=backend)
    assert total(backend=backend, micro_batch=8) < whole
    assert total(backend=backend, activation_checkpointing=True) < 0.85 * whole
    assert total(backend=backend, precision="bfloat16") < whole
    assert total(dataclasses.replace(SPEC, n_layer=12), backend=backend) > 1.3 * whole
    assert total(dataclasses.replace(SPEC, dropout=0.0), backend=backend) < whole
    states = estimate_memory(SPEC, TrainConfig(), backend, "cpu", 1)
    assert states.weights == 4 * parameter_count(SPEC)
    # And the count of updates.
    assert states.moments == pytest.approx(8 * parameter_count(SPEC), abs=8)
    # Muon keeps one value for each of a matrix, where AdamW keeps two.
    assert estimate_memory(SPEC, TrainConfig(optimizer="muon"), backend, "cpu", 1).moments < 0.9 * states.moments


def test_pytorch_keeps_the_square_of_the_context_wherever_it_has_no_fused_attention() -> None:
    plain, long = dataclasses.replace(SPEC, dropout=0.0), dataclasses.replace(SPEC, dropout=0.0, block_size=1024)
    flash = total(long, 4) / total(plain, 16)
    assert 0.9 < flash < 1.1
    assert total(long, 4, device="mps") > 1.5 * total(plain, 16, device="mps")
    assert total(dataclasses.replace(long, dropout=0.1), 4) > 2 * total(long, 4)


def test_the_micro_batch_is_the_largest_divisor_that_fits() -> None:
    config = TrainConfig(batch_size=12)
    needs = {size: estimate_memory(SPEC, config, "mps", "cpu", size).total for size in divisors(12)}
    assert list(needs) == [12, 6, 4, 3, 2, 1]
    for size, need in needs.items():
        assert plan_memory(SPEC, config, "mps", "cpu", need, strict=True).micro_batch == size
    too_small = plan_memory(SPEC, config, "mps", "cpu", needs[1] - 1, strict=False)
    assert (too_small.micro_batch, too_small.fits) == (1, False)
    with pytest.raises(TwinGPTError, match=r"--memory-limit .* 1 x 256 tokens.*--activation-checkpointing"):
        plan_memory(SPEC, config, "mps", "cpu", needs[1] - 1, strict=True)
    asked = dataclasses.replace(config, micro_batch=12)
    assert plan_memory(SPEC, asked, "mps", "cpu", 1, strict=False).micro_batch == 12


def test_a_limit_cuts_the_batch_and_the_run_stays_the_same(tmp_path: Path, plain_data: Path) -> None:
    run_to(tmp_path / "whole", plain_data, "mps", **WITHOUT_DROPOUT)
    opened = session(tmp_path / "planned", plain_data, "mps", **WITHOUT_DROPOUT)
    assert opened.memory.micro_batch == 4
    limit = (opened.memory.estimate.total - 1) / GIB
    cut = session(tmp_path / "cut", plain_data, "mps", memory_limit=limit, **WITHOUT_DROPOUT)
    assert cut.memory.micro_batch == 2
    for _ in cut.trainer.run():
        pass
    # Measured: 4.8e-7.
    assert np.abs(np.array(losses(tmp_path / "cut")) - losses(tmp_path / "whole")).max() < 2e-6
    assert RunConfig.load(tmp_path / "cut").train.micro_batch == 0


@pytest.mark.parametrize(
    ("batch", "micro", "smaller"), [(16, 16, 8), (12, 12, 6), (12, 3, 1), (9, 9, 3), (7, 7, 1), (4, 1, None)]
)
def test_halving(batch: int, micro: int, smaller: int | None) -> None:
    assert smaller_micro_batch(batch, micro) == smaller


@pytest.mark.parametrize(
    ("start", "last", "every", "count"),
    [(0, 10, 5, 2), (0, 11, 5, 3), (5, 10, 5, 1), (4, 6, 5, 2), (0, 10, 0, 1), (0, 3, 5, 1)],
)
def test_events_are_counted_as_the_trainer_has_them(start: int, last: int, every: int, count: int) -> None:
    assert events(start, last, every) == count


@pytest.mark.parametrize(
    "text",
    [
        "MPS backend out of memory (MPS allocated: 1 GB, max allowed: 2 GB). Tried to allocate 3 MB",
        "CUDA out of memory. Tried to allocate 20.00 MiB",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
        "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
        "std::bad_alloc",
        "[malloc_or_wait] Unable to allocate 9 bytes.",
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum allowed buffer size",
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOut)",
    ],
)
def test_what_the_frameworks_say(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(MemoryError())


def test_the_machine_has_memory() -> None:
    assert 2**28 < machine_memory() < 2**50


def test_torch_halves_until_the_step_fits_and_the_run_stays_the_same(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator fails in the middle of a backward pass, with gradients of the attempt already there."""
    from twingpt.backends.torch_mps import backend, step

    options: dict[str, Any] = {"model": {"dropout": 0.0}, "steps": 20}
    run_to(tmp_path / "small", plain_data, "mps", micro_batch=1, **options)
    real: Any = step.loss_sum
    calls: list[int] = []

    def failing(model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        loss: Any = real(model, inputs, *args, **options)
        calls.append(len(inputs))
        if len(inputs) > 1 and len(calls) > 3:
            loss.backward()
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return loss

    monkeypatch.setattr(backend, "loss_sum", failing)
    opened = session(tmp_path / "run", plain_data, "mps", **options)
    calls.clear()  # those of the check before a run
    reports = [report for report in opened.trainer.run() if isinstance(report, MicroBatchReport)]
    assert [(r.step, r.before, r.after) for r in reports] == [(4, 4, 2), (4, 2, 1)]
    assert calls[:7] == [4, 4, 4, 4, 2, 1, 1]
    assert_same_run(tmp_path / "run", tmp_path / "small")
    assert [line["micro_batch"] for line in read_metrics(tmp_path / "run") if "micro_batch" in line] == [2, 1]
    assert RunConfig.load(tmp_path / "run").train.micro_batch == 1


def test_not_even_one_sequence_is_one_clear_line(
    tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(tmp_path, plain_data, "mps")

    def fail(*_: Any) -> None:
        raise OutOfMemoryError("you tried to allocate 9 bytes", retry=True)

    monkeypatch.setattr(opened.backend, "train_step", fail)
    with pytest.raises(TwinGPTError, match=r"^out of memory: you tried.*one sequence at a time: use --activation"):
        list(opened.trainer.run())


def test_other_errors_are_not_taken_for_memory(
    tmp_path: Path, plain_data: Path, backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session(tmp_path, plain_data, backend_name)

    def fail(*_: Any) -> None:
        raise RuntimeError("shapes do not match")

    target = "_sum_gradients" if backend_name == "mps" else "_micro_step"
    monkeypatch.setattr(opened.backend, target, fail)
    with pytest.raises(RuntimeError, match="shapes"):
        list(opened.trainer.run())


def test_mlx_asks_for_a_fresh_process(tmp_path: Path, plain_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = session(tmp_path, plain_data, "mlx")

    def fail(*_: Any) -> None:
        raise RuntimeError("[malloc_or_wait] Unable to allocate 9 bytes.")

    monkeypatch.setattr(opened.backend, "_micro_step", fail)
    with pytest.raises(RestartError) as error:
        list(opened.trainer.run())
    assert error.value.micro_batch == 2


def test_the_command_line_of_the_fresh_process() -> None:
    given = ["train", "--data", "D", "--micro-batch", "8", "--out", "R", "--steps", "9"]
    assert restart_arguments(given, 4, resume=True) == [
        *("train", "--data", "D", "--out", "R", "--steps", "9", "--resume", "--micro-batch", "4")
    ]
    again = ["train", "--out", "R", "--micro-batch=8", "--resume"]
    assert restart_arguments(again, 4, resume=True) == ["train", "--out", "R", "--resume", "--micro-batch", "4"]
    assert "--resume" not in restart_arguments(given, 4, resume=False)
    # Without it, a run that is there but has no checkpoint yet would ask for --data.
    assert "--resume" in restart_arguments(again, 4, resume=False)


SMALL = ["--preset", "tiny", "--dropout", "0", "--block-size", "64", "--device", "cpu", "--log-every", "1"]


def started_small(run: Path, data: Path, backend: str, micro_batch: int) -> None:
    """What `train` below does, in this process and with this micro-batch from the start."""
    settings = {"steps": 20, "batch_size": 8, "micro_batch": micro_batch, "log_every": 1, "eval_every": 0}
    request = TrainRequest(
        run_dir=run,
        data_dir=data,
        backend=backend,
        device="cpu",
        preset="tiny",
        model={"dropout": 0.0, "block_size": 64},
        train=settings,
    )
    list(open_session(request).trainer.run())


def train(
    run: Path, data: Path, backend: str, *options: object, program: list[str] | None = None, **environment: str
) -> str:
    """`twingpt train` in a process of its own, 20 steps, batch 8; returns what it printed."""
    command = [sys.executable, *(program or ["-m", "twingpt"])]
    command += [*map(str, ["train", "--data", data, "--out", run, "--backend", backend]), *SMALL]
    settings = ["--steps", 20, "--batch-size", 8, "--eval-every", 0, *options]
    result = subprocess.run(
        [*map(str, command), *map(str, settings)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# Imported at the start of a Python process: fails as MLX's allocator does, from the 13th array of more than two
# sequences on.
FAILING_MLX = """
from twingpt.core.engines import find_engine

backend = find_engine("mlx").part("backend")
real, calls = backend._to_mlx, []


def failing(array):
    if array.shape in ((8, 64), (4, 64)):
        calls.append(array.shape)
        if len(calls) > 12:
            raise RuntimeError("[malloc_or_wait] Unable to allocate 1234 bytes.")
    return real(array)


backend._to_mlx = failing
"""


@pytest.mark.parametrize("save_every", [4, pytest.param(0, marks=pytest.mark.slow)])
def test_mlx_goes_on_by_itself_in_a_fresh_process(tmp_path: Path, plain_data: Path, save_every: int) -> None:
    """From the last checkpoint, or from the start where there is none; halved until it fits."""
    (tmp_path / "sitecustomize.py").write_text(FAILING_MLX)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    out = train(tmp_path / "run", plain_data, "mlx", "--save-every", save_every, PYTHONPATH=path)
    started_small(tmp_path / "small", plain_data, "mlx", 2)
    assert out.count("starting a fresh process") == 2
    assert out.count(f"from step {save_every} to 20") == 2 + (save_every == 0)
    assert RunConfig.load(tmp_path / "run").train.micro_batch == 2
    assert_same_run(tmp_path / "run", tmp_path / "small")


# Two steps without a limit, in which the framework takes what it needs to work at all; then so many bytes are left to
# the third one: eight sequences need about 27 MB, four half of that.
LIMITED_TORCH = """
import resource, sys
from pathlib import Path

from twingpt.backends.torch_mps.backend import TorchBackend
from twingpt.cli import main

real, left = TorchBackend.train_step, int(sys.argv.pop(1))


def limited(self, inputs, targets, lr, step, *rest):
    if step == 2 and inputs.shape[1] == 8:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + left
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return real(self, inputs, targets, lr, step)


TorchBackend.train_step = limited
main()
"""
# One heap, and big blocks of memory given back at once, so that what is freed counts as free.
PLAIN_MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
def test_torch_shrinks_when_the_address_space_really_ends(tmp_path: Path, plain_data: Path) -> None:
    script = tmp_path / "limited.py"
    script.write_text(LIMITED_TORCH)
    out = train(tmp_path / "run", plain_data, "mps", program=[str(script), "18000000"], **PLAIN_MALLOC)
    started_small(tmp_path / "small", plain_data, "mps", 4)
    assert "step 3  out of memory: " in out
    assert "micro-batch 8 -> 4" in " ".join(out.split())
    assert_same_run(tmp_path / "run", tmp_path / "small")
