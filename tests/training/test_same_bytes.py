"""The same run, made twice, is the same files: through both engines, with dropout, accumulation and a resume."""

import subprocess
import sys
from pathlib import Path

import pytest

TENSORS = ("model.safetensors", "optimizer.safetensors", "state.json")


def _made(run: Path, data: Path) -> dict[str, bytes]:
    """The files of the last checkpoint of 15 steps in one engine and 15 more in the other."""
    options = ["--preset", "tiny", "--block-size", "32", "--steps", "30", "--stop-at", "15", "--batch-size", "4"]
    first = ["--data", data, *options, "--micro-batch", "2", "--dropout", "0.1", "--backend", "mlx", "--device", "cpu"]
    for arguments in (first, ["--resume", "--backend", "mps", "--device", "cpu"]):
        command = [sys.executable, "-m", "twingpt", "train", "--out", run, *arguments]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return {name: (run / "checkpoints" / "step-00000030" / name).read_bytes() for name in TENSORS}


@pytest.mark.slow
def test_the_same_run_writes_the_same_bytes_twice(plain_data: Path, tmp_path: Path) -> None:
    assert _made(tmp_path / "first", plain_data) == _made(tmp_path / "second", plain_data)
