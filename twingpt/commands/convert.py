"""The command `convert`."""

from pathlib import Path
from typing import Annotated

import typer

from twingpt.core.language import tr


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run, a checkpoint, a Hugging Face folder, a ckpt.pt, or OWNER/NAME in the Hub's local cache.",
            metavar="SRC",
        ),
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.", metavar="DST")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf (transformers: GPT-2, Llama, Qwen3), mlx-lm, gguf (llama.cpp, Ollama, LM Studio) or native.",
        ),
    ],
    source_format: Annotated[
        str | None,
        typer.Option("--from", help="hf, nanogpt, script or native: refuse any other.", show_default="what it is"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json to go with it.", metavar="FILE", show_default="the source's")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Of the tensors: float32, float16, bfloat16; q8_0 in gguf.",
            show_default="that of the checkpoint it was imported from, else float32",
        ),
    ] = None,
    approximate: Annotated[
        str | None,
        typer.Option(
            help="gelu: let llama.cpp and mlx-lm use the tanh GELU for an exact one, and print the error.",
            metavar="WHAT",
        ),
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="Of the text, for the model card: ko, en.", show_default="ko, if the vocabulary is Korean"),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="For the model card, as the Hub names it: apache-2.0.", show_default="none told")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="What `eval --json` wrote, for the model card.",
            metavar="FILE",
            show_default="what the run's log has",
        ),
    ] = None,
) -> None:
    """Take a model to Hugging Face, mlx-lm, llama.cpp or Ollama, or bring one in."""
    from twingpt.interchange.convert import convert_model
    from twingpt.interchange.model_card import CardOptions

    card = CardOptions(language=language, license=license, figures=figures)
    notes = convert_model(
        source, target, to, tokenizer, dtype=dtype, approximate=approximate, expect=source_format, card=card
    )
    for note in notes:
        typer.echo(note)
    typer.echo(tr("wrote {target}", target=target))
