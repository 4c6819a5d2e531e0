"""From what a person gives to the tokens that a model reads: cleaned as the training text was, then the template."""

from pathlib import Path

from twingpt.core.errors import PromptTooLongError, TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.data.tokens.template import prompt_segments
from twingpt.data.tokens.tokenizer import Tokenizer

# Of the bytes of a file; as `prepare` has it by default.
MAX_UNDECODABLE = 0.01

LARGEST_TEXT = 200_000_000
"""Characters of a text that is held in memory as a whole; packed, a small file may hold any number."""


def cleaned(text: str) -> str:
    """Text as `prepare` leaves it: see twingpt.data.text.characters.cleaned."""
    # Not before it is asked for: it takes a moment to import.
    from twingpt.data.text.characters import cleaned as clean

    return clean(text)


def read_text(path: Path, *, forms: bool = True) -> str:
    """A document, in any form, encoding and packing that `prepare` reads; cleaned.

    forms: False for a list, such as one of prompts, whose lines are taken as they stand.
    Raises TwinGPTError if the file cannot be read, is binary, or holds no text.
    """
    from twingpt.data.text.changes import Changes
    from twingpt.data.text.forms.form import ReadAs
    from twingpt.data.text.inputs import NO_FILE, Source
    from twingpt.data.text.reading import read_source

    if path.exists() and not path.is_file() and not path.is_dir():
        raise TwinGPTError(
            tr("{path} {no_file}, which may have no end: save what it gives as a file", path=path, no_file=tr(NO_FILE))
        )
    changes = Changes()
    pieces, size = [], 0
    read_as = ReadAs(str(path), prose=True)
    for piece, _ in read_source(Source(str(path), path), changes, max_undecodable=1, read_as=read_as, forms=forms):
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_TEXT:
            raise TwinGPTError(
                tr(
                    "{path} holds more than {largest_text:,} characters: run `twingpt prepare` on it, and ask its DATA",
                    path=path,
                    largest_text=LARGEST_TEXT,
                )
            )
    text = "".join(pieces)
    text = cleaned(text) if forms else "\n".join(cleaned(line) for line in text.splitlines()).strip()
    lost = changes.counts.get("undecodable bytes", 0)
    if lost > MAX_UNDECODABLE * path.stat().st_size:
        raise TwinGPTError(
            tr(
                "{path} cannot be read as text, {lost:,} of its bytes are in no known encoding: save it as UTF-8",
                path=path,
                lost=lost,
            )
        )
    if not text:
        raise TwinGPTError(tr("{path} holds no text", path=path))
    return text


def question_prompt(
    tokenizer: Tokenizer, question: str, doc: str | None, block_size: int, *, masked: bool = False
) -> list[int]:
    """The template that the model was trained on, up to [ANSWER].

    masked: the document's contacts become placeholders, as those of the training text did.
    Raises UsageError for an empty question or document, PromptTooLongError if they leave no room for an answer:
    cutting them would lose the question.
    """
    question = cleaned(question)
    if not question:
        raise UsageError(tr("the question is empty: ask something"))
    if doc is not None:
        from twingpt.data.contacts import mask, standardise

        doc = cleaned(doc)
        if not doc:
            raise UsageError(tr("the document is empty: give one with text in it, or none"))
        # As the documents of training are: contacts in their one form.
        doc, contacts = standardise(doc)
        doc = mask(doc, contacts) if masked else doc
    ids, _ = tokenizer.encode_segments(prompt_segments(question, doc))
    if len(ids) >= block_size:
        what = tr("question takes") if doc is None else tr("question and document take")
        raise PromptTooLongError(
            tr(
                "the {what} {tokens} tokens, this model's maximum context length is {block_size}: shorten what you "
                "give",
                what=what,
                tokens=len(ids),
                block_size=block_size,
            ),
            command_line=tr(", or train with a larger --block-size"),
        )
    return ids


def placeholder_values(doc: str) -> dict[str, str]:
    """Placeholder -> contact of a document, for each that `question_prompt` puts there."""
    from twingpt.data.contacts import standardise

    contacts = standardise(cleaned(doc))[1]
    return {contact.placeholder: contact.value for contact in contacts if contact.value != contact.placeholder}


def text_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """[BOS] and the text, which the model is to continue."""
    return [tokenizer.bos_id, *tokenizer.encode(cleaned(text))]
