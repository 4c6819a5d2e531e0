"""What the reference engine says of itself."""

from twingpt.core.engines import Engine
from twingpt.core.language import mark
from twingpt.core.memory import Footprint

# NumPy keeps every layer's arrays until the next pass, whether they are wanted again or not. Set above what tracemalloc
# counted on three small models, not fitted.
FOOTPRINT = Footprint(
    width=24.0,
    hidden=4.0,
    square=3.0,
    passing=10.0,
    logits=5.0,
    all_logits=5.0,
    half=1.0,
    framework=6,
    recomputed=float("inf"),
    update=1.0,
)

ENGINE = Engine(
    name="reference",
    title="NumPy",
    about=mark("to read, slow"),
    order=3,
    package="twingpt.backends.reference",
    framework="numpy",
    by_hand=True,
    footprint=lambda device, dropout: FOOTPRINT,
)
