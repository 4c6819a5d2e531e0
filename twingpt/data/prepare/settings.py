"""What decides the bytes that `prepare` writes, apart from the text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.setting import LARGEST_SEED, check_bounds, setting
from twingpt.data.files import REPORT_FILE
from twingpt.data.tokens.marks import MIN_VOCAB_SIZE, Template

DEFAULT_COUNTRY = "PH"

Contacts = Literal["keep", "mask"]
"""Whether a model trains on contacts in one form, or on placeholders such as [TEL_1]."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """The options of `prepare` by the same names, with their defaults and help."""

    vocab_size: int | None = setting(
        None,
        "Tokens in the vocabulary, special ones included.",
        least=MIN_VOCAB_SIZE,
        most=2**32,
        none="chosen from the text, at most 16000",
    )
    tokenizer_megabytes: float = setting(
        16, "MB of text, drawn by document, to learn the vocabulary from; 0: all.", least=0, most=1e6
    )
    block_size: int | None = setting(
        None, "Tokens that the model sees at once.", least=8, most=2**20, none="chosen from the passages"
    )
    template: Template = setting(
        "qa", "qa: questions and answers made from each document. plain: the documents themselves."
    )
    separator: str = setting(
        "file",
        "What parts the documents of --template plain: file, blank-line, line, or the line that stands between two.",
    )
    keep_layout: bool = setting(
        False, "Keep indentation, tabs, runs of blanks and line ends as they are (template plain)."
    )
    tokenizer: str | None = setting(
        None,
        "Encode with the tokenizer of this RUN, DATA or tokenizer.json. new: learn one, even where one would go.",
        none="learned from the text, unless one was put there or a run was trained with it",
    )
    contacts: Contacts = setting(
        "keep", "keep: train on contacts in one form (TEL: ...). mask: on placeholders such as [TEL_1]."
    )
    country: str = setting(
        DEFAULT_COUNTRY,
        "Country whose telephone numbers the text gives without a prefix: PH, KR, US; its signs overrule it.",
    )
    val_fraction: float = setting(0.01, "Share of the documents held out for validation, 0 to 0.5.", least=0, most=0.5)
    max_samples: int | None = setting(
        None, "Samples in all: 3000 works, 10000 is stable, 30000 is a habit.", least=1, most=10**12, none="all"
    )
    samples_per_doc: int = setting(
        0, "Question samples a document, cut elsewhere as needed; 0: each part once in each form.", least=0, most=1000
    )
    closed_share: float = setting(0.5, "Share of question samples without their document, 0 to 1.", least=0, most=1)
    summaries: bool = setting(True, "Also make samples of document and summary.")
    mask_prompt: bool = setting(False, "Train on answers only: question and document do not count.")
    allow_long: bool = setting(False, "Keep samples longer than block-size; they are cut at the end of a row.")
    dedup: bool = setting(True, "Drop exact and near duplicates of documents.")
    drop_junk: bool = setting(False, "Drop lines of only code, log, URL or emoji.")
    boilerplate: bool = setting(True, "Drop lines that stand in 5 % of all documents (20 at least; template qa).")
    encoding: str | None = setting(None, "Encoding of the input, such as cp949.", none="recognised")
    max_undecodable: float = setting(
        0.01, "Stop if a larger share of the bytes cannot be decoded, 0 to 1.", least=0, most=1
    )
    seed: int = setting(
        0, "Chooses what is drawn: questions, samples, documents for validation.", least=0, most=LARGEST_SEED
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.country != DEFAULT_COUNTRY:
            from twingpt.data.contacts.numbers import COUNTRIES

            if self.country not in COUNTRIES:
                raise UsageError(
                    tr(
                        "--country {country} has no telephone numbers: give two capital letters, such as PH or KR",
                        country=self.country,
                    )
                )
        if self.template == "plain" and self.mask_prompt:
            raise UsageError(tr("--mask-prompt needs --template qa: plain documents have no prompt"))
        if self.template == "qa" and (self.separator != "file" or self.keep_layout):
            option = "--keep-layout" if self.keep_layout else "--separator"
            raise UsageError(
                tr(
                    "{option} needs --template plain: questions are asked about documents of their own length",
                    option=option,
                )
            )
        if not self.separator.strip():
            raise UsageError(tr('--separator "" parts nothing: give a text, or blank-line for a blank line'))


class PrepareOptions(TypedDict, total=False):
    """The fields of PrepareSettings, any of which may be given by name, as a type checker and an editor know them."""

    vocab_size: int | None
    tokenizer_megabytes: float
    block_size: int | None
    template: Template
    contacts: Contacts
    country: str
    val_fraction: float
    max_samples: int | None
    samples_per_doc: int
    closed_share: float
    summaries: bool
    mask_prompt: bool
    allow_long: bool
    dedup: bool
    drop_junk: bool
    boilerplate: bool
    encoding: str | None
    max_undecodable: float
    separator: str
    keep_layout: bool
    tokenizer: str | None
    seed: int


def contacts_of(data: Path) -> Contacts:
    """How the contacts in DATA were prepared; "keep" where its report does not say."""
    try:
        report = json.loads((data / REPORT_FILE).read_text(encoding="utf-8"))
        # The settings are those of the stage that ran last, which need not have cleaned.
        masked = report["clean"].get("masked", report["settings"]["contacts"] == "mask")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "keep"
    return "mask" if masked is True else "keep"
