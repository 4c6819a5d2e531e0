"""Options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Run = Annotated[
    Path, typer.Argument(help="A run's folder, RUN/best, or one checkpoint: RUN/checkpoints/step-...", metavar="RUN")
]
AnyBackend = Annotated[
    str | None, typer.Option("--backend", help="Engine: mps (PyTorch) or mlx.", show_default="the one installed")
]
Device = Annotated[
    Literal["auto", "gpu", "cpu"],
    typer.Option(help="auto: Metal, else CUDA, else the CPU. cpu: for parity checks on a Mac."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]
