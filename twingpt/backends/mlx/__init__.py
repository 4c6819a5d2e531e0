"""The MLX engine: device gpu (Metal or CUDA), else cpu. Its twin, file by file, is twingpt.backends.torch_mps."""

import contextlib
import ctypes
import os
import sys

# On an M5 and on CUDA, MLX would compute float32 products in TF32 (mlx#3860): here float32 means float32.
# MLX_ENABLE_TF32=1 in the environment trades the precision for speed.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

OPENBLAS: ctypes.CDLL | None = None

if sys.platform == "linux":
    # MLX's Linux wheel calls the reference BLAS. Symbols that are in the global scope before its first product come
    # first: with OpenBLAS there, products are 15 to 20 times faster. LD_PRELOAD would do the same to PyTorch too, whose
    # own BLAS it replaces and slows down.
    with contextlib.suppress(OSError):
        OPENBLAS = ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
