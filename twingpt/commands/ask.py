"""The command `ask`: answers from the user's own text, with their sources."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from twingpt.commands.options import Json
from twingpt.core.errors import UsageError
from twingpt.core.language import tr

if TYPE_CHECKING:
    from twingpt.answers.answer import Answer


def ask(
    run: Annotated[
        Path, typer.Argument(help="A run's folder, RUN/best or a checkpoint; or the DATA of `prepare`.", metavar="RUN")
    ],
    question: Annotated[
        str | None,
        typer.Argument(help="What to ask. Without it, questions are read line by line.", metavar="QUESTION"),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Questions, one a line; JSON lines come out.", metavar="FILE")
    ] = None,
    doc: Annotated[
        Path | None, typer.Option(help="Answer from this text instead, however long it is.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answer from your own text: summary, checklist, contacts, details, each line with its source.

    The answer is made of sentences that stand in the text, found by the words of the question. Where nothing fits, it
    says so. The model is not asked yet.
    """
    lines: Iterator[str]
    if question is not None and questions is not None:
        raise UsageError(tr("give a question or --questions, not both"))
    with ExitStack() as stack:
        answer = _answerer(run, doc, stack)
        if questions is not None:
            from twingpt.generation.prompts import read_text

            lines = iter([line.strip() for line in read_text(questions, forms=False).splitlines() if line.strip()])
        else:
            lines = _typed() if question is None else iter([question])
        for line in lines:
            one = answer(line)
            if as_json or questions is not None:
                sys.stdout.write(json.dumps(one.to_dict(), ensure_ascii=False) + "\n")
            else:
                sys.stdout.write(one.text + "\n" * (1 if question is not None else 2))
            sys.stdout.flush()


def _answerer(run: Path, doc: Path | None, stack: ExitStack) -> "Callable[[str], Answer]":
    """What answers a question from the run's library or from a document; open until the stack is closed."""
    from twingpt.answers.ask import ask_document, ask_library
    from twingpt.data.library.search import Library
    from twingpt.weights.run_folder import library_of, template_of

    if doc is not None:
        from twingpt.generation.prompts import read_text

        return partial(ask_document, read_text(doc))
    library = library_of(run)
    if template_of(library.parent) == "plain":
        sys.stderr.write(
            tr(
                "{run} is plain text (prepare --template plain): what follows is found in the text, and a model of it "
                "answers no questions\n",
                run=run,
            )
        )
    return partial(ask_library, stack.enter_context(Library(library)))


def _typed() -> Iterator[str]:
    """Questions from the keyboard, with history, until Ctrl-D; or from a pipe."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401 - gives input() its history

    while True:
        try:
            line = input("? ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        if line:
            yield line
