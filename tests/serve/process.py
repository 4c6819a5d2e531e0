"""`twingpt serve` as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(run_dir: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(its address, the process), which is ended at the latest when the block is left."""
    command = [sys.executable, "-m", "twingpt", "serve", str(run_dir), "--backend", "mlx", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield next(line.split()[1].rstrip("/") for line in process.stdout if line.startswith("page")), process
    finally:
        process.kill()
        process.communicate()
