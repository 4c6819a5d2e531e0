"""The MLX engine: device gpu (Metal or CUDA), else cpu. Its twin, file by file, is twingpt.backends.torch_mps."""

import ctypes
from typing import Any

OPENBLAS: ctypes.CDLL | None
"""The BLAS that MLX multiplies with on Linux, loaded when it is first asked for: the engine does, before MLX."""


def __getattr__(name: str) -> Any:
    if name != "OPENBLAS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from twingpt.backends.mlx import blas

    library = globals()[name] = blas.load()
    return library
