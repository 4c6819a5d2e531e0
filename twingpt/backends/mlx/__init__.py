"""The MLX engine: device gpu (Metal or CUDA), else cpu. Its twin, file by file, is twingpt.backends.torch_mps."""
