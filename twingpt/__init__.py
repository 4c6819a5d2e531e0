"""twingpt: one GPT specification, trained in PyTorch (MPS) or in MLX, from one text file."""

__version__ = "0.1.0"
