"""The command line. Each command imports what it needs when it runs: `twingpt --help` loads no framework."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from twingpt import __version__, cli_data
from twingpt.console import fail, print_json
from twingpt.core.errors import RestartError, StoppedError, TwinGPTError, UsageError

app = typer.Typer(
    name="twingpt",
    help="Train your own GPT from one text file, in PyTorch (MPS) or MLX, with checkpoints that belong to neither.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(cli_data.prepare)
app.add_typer(cli_data.app, name="data")

Run = Annotated[Path, typer.Argument(help="A run's folder, or one checkpoint in it.", metavar="RUN")]
BackendOption = Annotated[str, typer.Option("--backend", help="Engine: mps (PyTorch) or mlx.")]
AnyBackend = Annotated[
    str | None, typer.Option("--backend", help="Engine: mps (PyTorch) or mlx.", show_default="the one installed")
]
Device = Annotated[
    Literal["auto", "gpu", "cpu"],
    typer.Option(help="auto: Metal, else CUDA, else the CPU. cpu: for parity checks on a Mac."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON, for a program.")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"twingpt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    pass


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.", metavar="RUN")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that `prepare` wrote.", metavar="DATA", show_default="the run's, with --resume"),
    ] = None,
    backend: BackendOption = "mps",
    device: Device = "auto",
    preset: Annotated[str, typer.Option(help="Model and recipe: seed, seed-large, tiny, gpt2.")] = "seed",
    config: Annotated[
        Path | None, typer.Option(help="TOML file with [model] and [train] settings.", metavar="FILE")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint, in either engine.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Updates in all; defines the schedule.", show_default="20000", min=1)
    ] = None,
    stop_at: Annotated[int | None, typer.Option(help="End early, after this many updates in all.", min=1)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences an update.", show_default="16", min=1)] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Sequences at a time; divides --batch-size. 0: what fits into memory.", show_default="0", min=0
        ),
    ] = None,
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB that training may use.", show_default="what the device has", min=0)
    ] = None,
    activation_checkpointing: Annotated[
        bool | None,
        typer.Option(
            "--activation-checkpointing/--no-activation-checkpointing",
            help="Less memory for about a third more time.",
            show_default="no",
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak.", show_default="the preset's")] = None,
    min_learning_rate: Annotated[
        float | None, typer.Option(help="Where the cosine ends.", show_default="the preset's")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant or cosine, after the warm-up.", show_default="the preset's")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Updates of linear warm-up.", show_default="the preset's", min=0)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="AdamW's, on matrices only.", show_default="the preset's")
    ] = None,
    grad_clip: Annotated[float | None, typer.Option(help="Largest gradient norm. 0: off.", show_default="1.0")] = None,
    dropout: Annotated[
        float | None, typer.Option(help="Probability, in training.", show_default="the preset's")
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Context in tokens; plain text only.", show_default="the preset's", min=1)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="Matrix products: float32 or bfloat16.", show_default="float32")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Weights, data order, dropout.", show_default="0", min=0)] = None,
    log_every: Annotated[int | None, typer.Option(help="Steps a line of metrics.", show_default="10", min=1)] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Steps between evaluations. 0: only at the end.", show_default="500", min=0)
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints. 0: only at the end.", show_default="500", min=0)
    ] = None,
    keep_last: Annotated[
        int | None, typer.Option(help="Checkpoints kept besides the best. 0: all.", show_default="3", min=0)
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a model, or go on training one. Ctrl-C saves before it ends."""
    from rich.console import Console

    from twingpt.train.restart import restart
    from twingpt.train.run import run_shown
    from twingpt.train.session import TrainRequest, open_session

    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "activation_checkpointing": activation_checkpointing,
        "learning_rate": learning_rate,
        "min_learning_rate": min_learning_rate,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "weight_decay": weight_decay,
        "grad_clip": grad_clip,
        "precision": precision,
        "seed": seed,
        "log_every": log_every,
        "eval_every": eval_every,
        "save_every": save_every,
        "keep_last": keep_last,
    }
    request = TrainRequest(
        run_dir=out,
        data_dir=data,
        backend=backend,
        device=device,
        preset=preset,
        config_file=config,
        resume=resume,
        memory_limit=memory_limit,
        model=_given({"dropout": dropout, "block_size": block_size}),
        train=_given(settings),
    )
    session = open_session(request)
    console = Console(stderr=as_json)
    try:
        run_shown(session, out, stop_at, console, estimate_time=not as_json)
    except RestartError as error:
        console.print(f"{error}; starting a fresh process", markup=False, highlight=False, soft_wrap=True)
        restart(out, error.micro_batch)
    if as_json:
        from twingpt.train.log import read_metrics

        print_json({"run": out, "step": session.trainer.step, "metrics": read_metrics(out)[-2:]})


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@app.command()
def generate(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Text to write on from.", metavar="TEXT")] = None,
    question: Annotated[str | None, typer.Option(help="Question to answer.", metavar="TEXT")] = None,
    doc: Annotated[Path | None, typer.Option(help="Document to answer the question from.", metavar="FILE")] = None,
    backend: AnyBackend = None,
    device: Device = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 400,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token. Lower rambles less.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among the K likeliest tokens. 0: off.")] = 50,
    top_p: Annotated[float, typer.Option(help="Choose among tokens of this probability together. 1: off.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest. 0: off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeating. 1: off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.", min=0)] = 0,
    fill_contacts: Annotated[
        bool,
        typer.Option("--fill-contacts", help="Put real contacts for placeholders; take out numbers that nobody gave."),
    ] = False,
    verify_contacts: Annotated[
        bool, typer.Option("--verify-contacts", help="Mark numbers that neither the prompt nor the store holds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write text from a trained model, as it comes; with either option on contacts, when it is complete."""
    from twingpt.core.sampling import Sampling
    from twingpt.generate import (
        load_tokenizer,
        open_contacts,
        question_prompt,
        stream_text,
        text_prompt,
        with_contacts,
    )
    from twingpt.weights.checkpoint import find_checkpoint

    if (prompt is None) == (question is None):
        raise UsageError("give either --prompt or --question")
    if doc is not None and question is None:
        raise UsageError("--doc goes with --question")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    folder = find_checkpoint(run)
    tokenizer = load_tokenizer(folder.parent.parent)
    engine = _load_model(folder, backend, device)
    text = None if doc is None else read_text(doc)
    if question is not None:
        ids = question_prompt(tokenizer, question, text, engine.spec.block_size)
    else:
        ids = text_prompt(tokenizer, prompt or "")
    checked = fill_contacts or verify_contacts
    pieces = []
    for piece in stream_text(engine, tokenizer, ids, sampling, max_new_tokens):
        pieces.append(piece)
        if not as_json and not checked:
            sys.stdout.write(piece)
            sys.stdout.flush()
    answer = "".join(pieces)
    if checked:
        given = [part for part in (prompt, question, text) if part is not None]
        answer = with_contacts(answer, given, open_contacts(folder.parent.parent), fill_in=fill_contacts)
    if as_json:
        print_json({"text": answer, "seed": seed, "backend": engine.name, "device": engine.device})
    else:
        sys.stdout.write(f"{answer}\n" if checked else "\n")


def read_text(path: Path) -> str:
    """Raises TwinGPTError if the file is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise TwinGPTError(f"{path} cannot be read as UTF-8 text: {error}") from None


def _load_model(checkpoint: Path, backend: str | None, device: Literal["auto", "gpu", "cpu"]) -> Any:
    """The engine asked for (default: MLX where it is installed, since it starts faster), holding a checkpoint."""
    from twingpt.core.backend import EngineConfig, create_backend, installed_backends
    from twingpt.weights.checkpoint import read_checkpoint

    if backend is None:
        installed = installed_backends()
        if not installed:
            raise TwinGPTError("no engine is installed: pip install 'twingpt[torch]' or 'twingpt[mlx]'")
        backend = installed[-1]
    loaded = read_checkpoint(checkpoint)
    engine = create_backend(backend, loaded.spec, EngineConfig(device=device))
    engine.load_state(loaded.state)
    return engine


@app.command("eval")
def evaluate_run(
    run: Run,
    data: Annotated[Path, typer.Option(help="Folder that `prepare` wrote.", metavar="DATA")],
    backend: AnyBackend = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.", min=1)] = 8,
    as_json: Json = False,
) -> None:
    """Loss, perplexity and bits per byte over the whole validation split."""
    from twingpt.data.batches import Batches
    from twingpt.data.manifest import Manifest
    from twingpt.generate import load_tokenizer
    from twingpt.train.evaluate import evaluate
    from twingpt.weights.checkpoint import find_checkpoint

    folder = find_checkpoint(run)
    manifest, tokenizer = Manifest.load(data), load_tokenizer(data)
    engine = _load_model(folder, backend, device)
    if engine.spec.vocab_size != manifest.vocab_size:
        raise UsageError(f"{run} has vocabulary {engine.spec.vocab_size}, {data} has {manifest.vocab_size}")
    batches = Batches(data, manifest, "val", engine.spec.block_size)
    result = evaluate(engine, batches, tokenizer.token_bytes(), batch_size)
    answer = {
        "checkpoint": folder,
        "backend": engine.name,
        "device": engine.device,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "text_bytes": result.text_bytes,
    }
    if as_json:
        print_json(answer)
    else:
        _print_table("evaluation", answer)


def _print_table(title: str, rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, f"{value:,.4f}" if isinstance(value, float) else f"{value}")
    Console().print(table)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="A run, a checkpoint, a Hugging Face folder or a ckpt.pt.", metavar="SRC")
    ],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.", metavar="DST")],
    to: Annotated[str, typer.Option("--to", help="native or hf (GPT-2, opened by transformers).")],
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json to go with it.", metavar="FILE", show_default="the source's")
    ] = None,
) -> None:
    """Bring a model in from nanoGPT, Hugging Face or the old script, or take it to Hugging Face."""
    from twingpt.convert import convert_model

    convert_model(source, target, to, tokenizer)
    typer.echo(f"wrote {target}")


@app.command()
def parity(
    run: Annotated[Path | None, typer.Argument(help="Check this run's newest checkpoint too.", metavar="RUN")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Hold the two engines against each other on this machine: names, logits, loss, gradients, one update, text."""
    from twingpt.parity import print_ladder, run_ladder

    rungs = run_ladder(run, device)
    if as_json:
        print_json([rung.to_dict() for rung in rungs])
    else:
        print_ladder(rungs)
    if not all(rung.passed for rung in rungs):
        raise TwinGPTError("the two engines differ by more than rounding: see the rungs that failed")


@app.command()
def doctor(device: Device = "auto", as_json: Json = False) -> None:
    """What is installed, what this chip can do, and whether what it computes is right."""
    from rich.console import Console

    from twingpt.doctor.report import print_report
    from twingpt.doctor.run import run_doctor

    with Console(stderr=True).status("checking") as status:
        report = run_doctor(device, lambda text: status.update(f"checking {text}"))
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if report.failed:
        raise TwinGPTError(f"{len(report.failed)} checks failed on this machine: see what to do beside each")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the demo's data and run.", metavar="FOLDER")] = Path("demo"),
    backend: AnyBackend = None,
    device: Device = "auto",
    minutes: Annotated[float, typer.Option(help="About how long to train.", min=0.1)] = 3.0,
) -> None:
    """Prepare the example text, train on it, go on in the other engine, and answer a question."""
    from twingpt.demo import run_demo

    run_demo(out, backend, device, minutes)


def main() -> None:
    """Entry point: a user's mistake is one line and an exit code, never a traceback."""
    try:
        app()
    except TwinGPTError as error:
        fail(error)
    except StoppedError as stopped:
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
