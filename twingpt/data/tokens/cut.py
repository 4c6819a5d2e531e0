"""How an epoch cuts the text into windows, by name: without NumPy, as the command line makes an option of it."""

from typing import Literal

Cut = Literal["anew", "fixed"]
"""anew: documents and window borders stand elsewhere each epoch. fixed: only the order of the windows changes."""
