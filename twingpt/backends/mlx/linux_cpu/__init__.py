"""What only a Linux CPU needs: exponentials that g++ vectorises, a batch in parts, OpenBLAS. Metal runs none of it."""

import os
import sys

PLAIN = "TWINGPT_PLAIN_OPS"
"""The environment variable that turns this off, so that the engine computes here as it does on Metal."""


def wanted() -> bool:
    """Whether a CPU of this machine gets the operations of this folder."""
    return sys.platform == "linux" and os.environ.get(PLAIN, "0") in ("", "0")
