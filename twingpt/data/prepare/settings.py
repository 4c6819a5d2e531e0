"""What decides the bytes that `prepare` writes, apart from the text."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twingpt.core.errors import UsageError
from twingpt.data.files import REPORT_FILE
from twingpt.data.tokens.template import Template
from twingpt.data.tokens.tokenizer import MIN_VOCAB_SIZE

Contacts = Literal["keep", "mask"]
"""Whether a model trains on contacts in one form, or on placeholders such as [TEL_1]."""


@dataclass(frozen=True, kw_only=True)
class PrepareSettings:
    """The options of `prepare` by the same names.

    vocab_size in tokens with the special ones; block_size in tokens; val_fraction and max_undecodable from 0 to 1;
    tokenizer_megabytes of text, drawn by document, are what the vocabulary is learned from, 0 = all of it;
    samples_per_doc is of question samples, 0 = each part of a document once in each form; closed_share is the part of
    them without the document; max_samples None = all.
    """

    vocab_size: int = 16_000
    tokenizer_megabytes: float = 16
    block_size: int = 256
    template: Template = "qa"
    contacts: Contacts = "keep"
    val_fraction: float = 0.01
    seed: int = 0
    samples_per_doc: int = 0
    max_samples: int | None = None
    closed_share: float = 0.5
    summaries: bool = True
    mask_prompt: bool = False
    allow_long: bool = False
    dedup: bool = True
    drop_junk: bool = False
    boilerplate: bool = True
    encoding: str | None = None
    max_undecodable: float = 0.01

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "vocab_size": (MIN_VOCAB_SIZE, 2**32),
            "block_size": (8, 2**20),
            "val_fraction": (0, 0.5),
            "tokenizer_megabytes": (0, 1e6),
            "samples_per_doc": (0, 1000),
            "closed_share": (0, 1),
            "max_undecodable": (0, 1),
        }
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} {getattr(self, name)} cannot be meant: give {low:,} to {high:,}")
        if self.max_samples is not None and self.max_samples < 1:
            raise UsageError(f"--max-samples {self.max_samples} cannot be meant: give 1 or more")
        if self.template == "plain" and self.mask_prompt:
            raise UsageError("--mask-prompt needs --template qa: plain documents have no prompt")


def contacts_of(data: Path) -> Contacts:
    """How the contacts in DATA were prepared; "keep" where its report does not say."""
    try:
        report = json.loads((data / REPORT_FILE).read_text(encoding="utf-8"))
        # The settings are those of the stage that ran last, which need not have cleaned.
        masked = report["clean"].get("masked", report["settings"]["contacts"] == "mask")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "keep"
    return "mask" if masked is True else "keep"
