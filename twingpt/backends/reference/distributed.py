"""Several ranks: not with this engine, which is there to be read."""

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.world import World


def join(timeout: float) -> World:
    """Raises TwinGPTError, however long it might wait."""
    raise TwinGPTError(tr("backend reference trains on one process: choose --backend mps or mlx for several ranks"))
