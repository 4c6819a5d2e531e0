"""The commands `generate` and `eval`: what a trained model writes, and how good it is."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from twingpt.commands.options import AnyBackend, Device, Json, Run
from twingpt.console import print_json
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr

if TYPE_CHECKING:
    from twingpt.core.sampling import Sampling
    from twingpt.evaluation.evaluate import Watcher
    from twingpt.generation.batching import Request
    from twingpt.generation.model import Model

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
class _Prompts:
    """What a command was given to write about. doc: the document of all questions."""

    lines: list[str]
    are_questions: bool
    doc: str | None

    def requests(self, model: "Model", sampling: "Sampling", max_new_tokens: int, structured: bool) -> "list[Request]":
        return [
            model.request(
                None if self.are_questions else line,
                question=line if self.are_questions else None,
                doc=self.doc,
                sampling=sampling,
                max_new_tokens=max_new_tokens,
                structured=structured,
            )
            for line in self.lines
        ]


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
    from twingpt.generation.writing import with_contacts

    given = _prompts(prompt, question, prompts, questions, doc)
    if form == "answer" and not given.are_questions:
        raise UsageError(tr("--format answer goes with --question or --questions"))
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    model = load(run, backend, device)
    requests = given.requests(model, sampling, max_new_tokens, form == "answer")
    touched = fill_contacts or verify_contacts
    store = model.contacts() if touched else None

    def finished(request: "Request", text: str) -> str:
        return with_contacts(text, request, store, fill_in=fill_contacts) if touched else text

    if prompts is not None or questions is not None:
        _write_lines(model, requests, slots, seed, finished)
        return
    pieces = []
    for piece in model.pieces(requests[0]):
        pieces.append(piece)
        if not as_json and not touched:
            sys.stdout.write(piece)
            sys.stdout.flush()
    text = finished(requests[0], "".join(pieces))
    if as_json:
        print_json({"text": text, "seed": seed, "backend": model.engine.name, "device": model.engine.device})
    else:
        sys.stdout.write(f"{text}\n" if touched else "\n")


def _write_lines(
    model: "Model",
    requests: "Sequence[Request]",
    slots: int,
    seed: int,
    finished: "Callable[[Request, str], str]",
) -> None:
    """A line of JSON for each request, in their order."""
    done: dict[int, dict[str, Any]] = {}
    shown = 0
    for number, written in model.write(requests, slots):
        request = requests[number]
        done[number] = {
            **({"prompt": request.text} if request.question is None else {"question": request.question}),
            "text": finished(request, written.text),
            "tokens": len(written.tokens),
            "finish_reason": written.reason,
            "seed": seed,
        }
        while shown in done:
            sys.stdout.write(json.dumps(done.pop(shown), ensure_ascii=False) + "\n")
            sys.stdout.flush()
            shown += 1


def _prompts(
    prompt: str | None, question: str | None, prompts: Path | None, questions: Path | None, doc: Path | None
) -> _Prompts:
    """Raises UsageError unless exactly one of the four says what to write, TwinGPTError for a file that has nothing."""
    if sum(given is not None for given in (prompt, question, prompts, questions)) != 1:
        raise UsageError(tr("give one of --prompt, --question, --prompts and --questions"))
    are_questions = question is not None or questions is not None
    if doc is not None and not are_questions:
        raise UsageError(tr("--doc goes with --question or --questions"))
    from twingpt.generation.prompts import read_text

    text = None if doc is None else read_text(doc)
    path = prompts or questions
    lines = [prompt or question or ""]
    if path is not None:
        lines = [line.strip() for line in read_text(path, forms=False).splitlines() if line.strip()]
    return _Prompts(lines, are_questions, text)


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
    from twingpt.core.sampling import Sampling
    from twingpt.data.tokens.manifest import Manifest
    from twingpt.evaluation.evaluate import evaluate_model
    from twingpt.evaluation.held_out import AnswerSettings, write_answers
    from twingpt.generation.model import load

    settings = AnswerSettings(
        sampling=Sampling(temperature=temperature, seed=seed),
        max_new_tokens=max_new_tokens,
        structured=form == "answer",
        fill_contacts=fill_contacts,
        slots=batch_size,
    )
    model = load(run, backend, device)
    if Manifest.load(data).validation_split == "train":
        typer.echo(tr("{data} has no text held out: the loss is that of the training text", data=data), err=True)
    with _answering(quiet=as_json) as watcher:
        result = evaluate_model(
            model,
            data,
            questions=prompts,
            seed=seed,
            settings=settings,
            batch_size=batch_size,
            named=str(run),
            watcher=watcher,
        )
    if samples is not None:
        if not result.answers:
            raise TwinGPTError(
                tr("{data} holds no question about a validation document: there is no answer to write", data=data)
            )
        write_answers(samples, result.answers)
    shown, found = result.loss_figures(), result.figures
    if as_json:
        how = {"temperature": temperature, "seed": seed, "format": form, "fill_contacts": fill_contacts}
        print_json(shown if not found else {**shown, "answers": {**how, **found}})
    else:
        from twingpt.commands.tables import print_columns, print_table

        print_table(tr("evaluation"), shown)
        if found:
            print_columns(tr("answers about validation documents"), found)


@contextmanager
def _answering(*, quiet: bool) -> "Iterator[Watcher]":
    """A bar of the answers that are written."""
    from rich.console import Console
    from rich.progress import Progress

    from twingpt.evaluation.evaluate import Watcher

    with Progress(console=Console(stderr=True), disable=quiet, transient=True) as progress:

        class Bar(Watcher):
            def start(self, total: int) -> None:
                self.task = progress.add_task(tr("answering"), total=total)

            def advance(self) -> None:
                progress.advance(self.task)

        yield Bar()
