"""The PyTorch engine: device mps, else cuda, else cpu. Its twin, file by file, is twingpt.backends.mlx."""
