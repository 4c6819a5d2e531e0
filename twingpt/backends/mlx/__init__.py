"""The MLX engine: device gpu (Metal or CUDA), else cpu. Its twin, file by file, is twingpt.backends.torch_mps."""

import os

from twingpt.backends.mlx.linux_cpu import blas

# On an M5 and on CUDA, MLX would compute float32 products in TF32 (mlx#3860): here float32 means float32.
# MLX_ENABLE_TF32=1 in the environment trades the precision for speed.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

OPENBLAS = blas.load()
