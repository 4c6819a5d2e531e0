"""The special tokens, by name and number, and which templates there are."""

from typing import Literal, get_args

PAD, UNK, BOS, EOS = "[PAD]", "[UNK]", "[BOS]", "[EOS]"
QUESTION, END_QUESTION = "[QUESTION]", "[/QUESTION]"
DOC, END_DOC = "[DOC]", "[/DOC]"
ANSWER, END_ANSWER = "[ANSWER]", "[/ANSWER]"
SUMMARY, END_SUMMARY = "[SUMMARY]", "[/SUMMARY]"

# The position is the token id, in every tokenizer.json and in every trained model.
SPECIAL_TOKENS: tuple[str, ...] = (
    PAD,
    UNK,
    BOS,
    EOS,
    QUESTION,
    END_QUESTION,
    DOC,
    END_DOC,
    ANSWER,
    END_ANSWER,
    SUMMARY,
    END_SUMMARY,
)
MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
"""Every byte is a token, so that any text can be written."""

Template = Literal["qa", "plain"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
