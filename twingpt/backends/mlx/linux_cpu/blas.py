"""The BLAS that MLX multiplies with on Linux, where its wheel calls the reference one."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from twingpt.backends.mlx import linux_cpu

NAME = "libopenblas.so.0"
SOURCE = Path(__file__).with_suffix(".cpp")


def load() -> ctypes.CDLL | None:
    """OpenBLAS with vector products of its own kind; None where it is not wanted or not installed.

    MLX takes what the global scope has when it is imported: with OpenBLAS there, products are 15 to 20 times faster.
    LD_PRELOAD would do the same to PyTorch too, whose own BLAS it replaces and slows down.
    """
    if not linux_cpu.wanted():
        return None
    try:
        ctypes.CDLL(NAME)
    except OSError:
        return None
    # Without a compiler, or a place to keep what it made, OpenBLAS does every product its own way.
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        ctypes.CDLL(str(vector_products()), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(NAME, mode=ctypes.RTLD_GLOBAL)


def vector_products() -> Path:
    """The library that blas.cpp becomes: made once, kept in the user's cache.

    Raises OSError or subprocess.SubprocessError if it cannot be made, RuntimeError if the user has no home.
    """
    name = f"blas-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twingpt"
    library = folder / name
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as working:
            made = Path(working) / name
            command = ["g++", "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(made), "-ldl"]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            # Whole or not at all, for a process that starts now.
            made.replace(library)
    return library
