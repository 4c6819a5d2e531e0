"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[
    Path, typer.Argument(help="A run's folder, RUN/best, or one checkpoint: RUN/checkpoints/step-...", metavar="RUN")
]


def _engine_name(value: str | None) -> str | None:
    """An alias becomes the engine's name here, so that nothing behind the command line knows aliases."""
    from twingpt.core.backend import ALIASES

    return value if value is None else ALIASES.get(value, value)


_ENGINE = "Engine: mps (PyTorch; torch means the same), mlx, or reference (NumPy: to read, slow)."
AnyBackend = Annotated[
    str | None, typer.Option("--backend", help=_ENGINE, show_default="the one installed", callback=_engine_name)
]
TrainingBackend = Annotated[str, typer.Option("--backend", help=_ENGINE, callback=_engine_name)]
Device = Annotated[
    Literal["auto", "gpu", "cpu"],
    typer.Option(help="auto: Metal, else CUDA, else the CPU. cpu: for parity checks on a Mac."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]
