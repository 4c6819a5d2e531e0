"""The commands `generate` and `eval`: what a trained model writes, and how good it is."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twingpt.commands.options import AnyBackend, Device, Json, Run
from twingpt.console import print_json
from twingpt.core.errors import TwinGPTError, UsageError

if TYPE_CHECKING:
    from twingpt.answers.evaluation import Answered, AnswerSettings
    from twingpt.core.backend import Backend
    from twingpt.core.sampling import Sampling
    from twingpt.data.library.contact_store import ContactStore
    from twingpt.data.tokens.tokenizer import Tokenizer
    from twingpt.generation.writing import Request

MaxNewTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)]
Format = Annotated[
    Literal["text", "answer"],
    typer.Option("--format", help="answer: all sections of an answer in their order, whatever the model would say."),
]
FillContacts = Annotated[
    bool, typer.Option("--fill-contacts", help="Put in the contacts that are known; take out numbers that nobody gave.")
]
Slots = Annotated[int, typer.Option(help="Texts written side by side.", min=1, max=1024)]


@dataclass(frozen=True)
class _Asked:
    """One prompt of a command: `text` is what the user gave."""

    text: str
    is_question: bool
    doc: str | None

    @property
    def sources(self) -> list[str]:
        return [self.text] if self.doc is None else [self.text, self.doc]

    def ids(self, tokenizer: "Tokenizer", block_size: int) -> list[int]:
        from twingpt.generation.prompts import question_prompt, text_prompt

        if self.is_question:
            return question_prompt(tokenizer, self.text, self.doc, block_size)
        return text_prompt(tokenizer, self.text)


@dataclass(frozen=True)
class _Writer:
    """What every prompt of a command has in common."""

    engine: "Backend"
    tokenizer: "Tokenizer"
    sampling: "Sampling"
    max_new_tokens: int
    structured: bool
    fill: bool
    verify: bool
    store: "ContactStore | None"

    @property
    def as_it_comes(self) -> bool:
        """Whether the text is final before it is whole."""
        return not (self.fill or self.verify)

    def pieces(self, asked: _Asked) -> Iterator[str]:
        from twingpt.generation.writing import answer_form, stream_text

        request = self._request(asked)
        form = answer_form(self.tokenizer) if self.structured else None
        constraint = request.constraint(form, self.engine.spec.block_size)
        yield from stream_text(
            self.engine, self.tokenizer, request.prompt, self.sampling, self.max_new_tokens, constraint=constraint
        )

    def side_by_side(self, asked: Sequence[_Asked], slots: int) -> Iterator[dict[str, Any]]:
        """An answer a prompt, in the order of the prompts."""
        from twingpt.generation.writing import write_side_by_side

        done: dict[int, dict[str, Any]] = {}
        requests = [self._request(one) for one in asked]
        shown = 0
        for number, tokens, reason in write_side_by_side(self.engine, self.tokenizer, requests, slots):
            text = self.finished(asked[number], self.tokenizer.decode(tokens))
            name = "question" if asked[number].is_question else "prompt"
            done[number] = {name: asked[number].text, "text": text, "tokens": len(tokens), "finish_reason": reason}
            while shown in done:
                yield done.pop(shown)
                shown += 1

    def finished(self, asked: _Asked, text: str) -> str:
        if self.as_it_comes:
            return text
        from twingpt.generation.writing import with_contacts

        question = asked.text if asked.is_question else None
        return with_contacts(text, asked.sources, self.store, fill_in=self.fill, question=question, doc=asked.doc)

    def _request(self, asked: _Asked) -> "Request":
        from twingpt.generation.writing import Request

        ids = asked.ids(self.tokenizer, self.engine.spec.block_size)
        return Request(ids, self.sampling, self.max_new_tokens, structured=self.structured)


def generate(
    run: Run,
    prompt: Annotated[str | None, typer.Option(help="Text to write on from.", metavar="TEXT")] = None,
    question: Annotated[str | None, typer.Option(help="Question to answer.", metavar="TEXT")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Texts to write on from, one a line; JSON lines come out.", metavar="FILE"),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions, one a line; JSON lines come out.", metavar="FILE")
    ] = None,
    doc: Annotated[Path | None, typer.Option(help="Document to answer from.", metavar="FILE")] = None,
    backend: AnyBackend = None,
    device: Device = "auto",
    max_new_tokens: MaxNewTokens = 400,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token. Lower rambles less.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Choose among the K likeliest tokens. 0: off.")] = 50,
    top_p: Annotated[float, typer.Option(help="Choose among tokens of this probability together. 1: off.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest. 0: off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repeating. 1: off.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text, alone or side by side.", min=0)] = 0,
    form: Format = "text",
    fill_contacts: FillContacts = False,
    verify_contacts: Annotated[
        bool, typer.Option("--verify-contacts", help="Mark numbers that neither the prompt nor the store holds.")
    ] = False,
    slots: Slots = 8,
    as_json: Json = False,
) -> None:
    """Write text from a trained model, as it comes; with either option on contacts, when it is complete."""
    from twingpt.core.sampling import Sampling
    from twingpt.generation.model import load
    from twingpt.generation.writing import open_contacts

    asked = _asked(prompt, question, prompts, questions, doc)
    if form == "answer" and not all(one.is_question for one in asked):
        raise UsageError("--format answer goes with --question or --questions")
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    model = load(run, backend, device)
    engine = model.engine
    store = open_contacts(model.run_dir) if fill_contacts or verify_contacts else None
    writer = _Writer(
        engine, model.tokenizer, sampling, max_new_tokens, form == "answer", fill_contacts, verify_contacts, store
    )
    if prompts is not None or questions is not None:
        for answer in writer.side_by_side(asked, slots):
            sys.stdout.write(json.dumps({**answer, "seed": seed}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        return
    (one,) = asked
    pieces = []
    for piece in writer.pieces(one):
        pieces.append(piece)
        if not as_json and writer.as_it_comes:
            sys.stdout.write(piece)
            sys.stdout.flush()
    text = writer.finished(one, "".join(pieces))
    if as_json:
        print_json({"text": text, "seed": seed, "backend": engine.name, "device": engine.device})
    else:
        sys.stdout.write("\n" if writer.as_it_comes else f"{text}\n")


def _asked(
    prompt: str | None, question: str | None, prompts: Path | None, questions: Path | None, doc: Path | None
) -> list[_Asked]:
    """Raises UsageError unless exactly one of the four says what to write, TwinGPTError for a file that has nothing."""
    if sum(given is not None for given in (prompt, question, prompts, questions)) != 1:
        raise UsageError("give one of --prompt, --question, --prompts and --questions")
    is_question = question is not None or questions is not None
    if doc is not None and not is_question:
        raise UsageError("--doc goes with --question or --questions")
    from twingpt.generation.prompts import read_text

    text = None if doc is None else read_text(doc)
    path = prompts or questions
    lines = [prompt or question or ""]
    if path is not None:
        lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    return [_Asked(line, is_question, text) for line in lines]


def evaluate(
    run: Run,
    data: Annotated[Path, typer.Option(help="Folder that `prepare` wrote.", metavar="DATA")],
    backend: AnyBackend = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Sequences at a time.", min=1)] = 8,
    prompts: Annotated[
        int, typer.Option(help="Questions of validation documents to answer and measure. 0: none.", min=0)
    ] = 100,
    max_new_tokens: MaxNewTokens = 400,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Chooses the questions; with --temperature, the text.", min=0)] = 0,
    form: Format = "text",
    fill_contacts: FillContacts = False,
    samples: Annotated[
        Path | None,
        typer.Option(help="Write questions, answers and references there; .jsonl for a program.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Loss, perplexity and bits per byte over the whole validation split, and answers about its documents."""
    from twingpt.answers.evaluation import AnswerSettings, figures, write_answers
    from twingpt.core.sampling import Sampling
    from twingpt.data.tokens.batches import Batches
    from twingpt.data.tokens.manifest import Manifest
    from twingpt.generation.model import load
    from twingpt.training.validation import evaluate as evaluate_loss

    manifest, model = Manifest.load(data), load(run, backend, device)
    engine, tokenizer = model.engine, model.tokenizer
    if model.spec.vocab_size != manifest.vocab_size:
        raise UsageError(f"{run} has vocabulary {model.spec.vocab_size}, {data} has {manifest.vocab_size}")
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UsageError(
            f"{data} was packed with another tokenizer than {run} was trained with: name the DATA of that run"
        )
    batches = Batches(data, manifest, "val", engine.spec.block_size)
    result = evaluate_loss(engine, batches, tokenizer.token_bytes(), batch_size)
    shown: dict[str, Any] = {
        "checkpoint": model.checkpoint,
        "backend": engine.name,
        "device": engine.device,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte,
        "tokens": result.tokens,
        "text_bytes": result.text_bytes,
    }
    settings = AnswerSettings(
        sampling=Sampling(temperature=temperature, seed=seed),
        max_new_tokens=max_new_tokens,
        structured=form == "answer",
        fill_contacts=fill_contacts,
        slots=batch_size,
    )
    answered = _answers(engine, tokenizer, data, prompts, seed, settings, quiet=as_json)
    if samples is not None:
        if not answered:
            raise TwinGPTError(f"{data} holds no question about a validation document: there is no answer to write")
        write_answers(samples, answered)
    found = figures(answered) if answered else {}
    if as_json:
        how = {"temperature": temperature, "seed": seed, "format": form, "fill_contacts": fill_contacts}
        print_json(shown if not answered else {**shown, "answers": {**how, **found}})
    else:
        _print_table("evaluation", shown)
        if found:
            _print_columns("answers about validation documents", found)


def _answers(
    engine: "Backend",
    tokenizer: "Tokenizer",
    data: Path,
    number: int,
    seed: int,
    settings: "AnswerSettings",
    *,
    quiet: bool,
) -> "list[Answered]":
    """Empty where none are asked for, or DATA has no question about a validation document."""
    from rich.console import Console
    from rich.progress import Progress

    from twingpt.answers.evaluation import answer_all, held_out_questions
    from twingpt.generation.writing import open_contacts

    samples = held_out_questions(data, number, seed) if number else []
    if not samples:
        return []
    store = open_contacts(data)
    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:
        task = progress.add_task("answering", total=len(samples))
        return answer_all(engine, tokenizer, samples, store, settings, lambda: progress.advance(task))


def _print_table(title: str, rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False)
    for name, value in rows.items():
        table.add_row(name, _shown(value))
    Console().print(table)


def _print_columns(title: str, columns: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", *columns, title=title)
    for name in next(iter(columns.values())):
        table.add_row(name, *(_shown(column[name]) for column in columns.values()))
    Console().print(table)


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:,.4f}" if isinstance(value, float) else f"{value}"
