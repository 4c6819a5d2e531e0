"""How many tokens a model should see at once, told from the text: a question, its passage and the answer to it."""

import numpy as np
import numpy.typing as npt

from twingpt.data.library.build import split_document
from twingpt.data.text.corpus import Documents, seeded_order
from twingpt.data.tokens.tokenizer import Tokenizer

CHOICES = (256, 512, 1024)
LOOKED_AT = 500
"""Documents whose passages are measured."""
FITTING = 0.9
"""Share of the passages that must fit, with their answer, which repeats them."""
BESIDE = 100
"""Tokens of a question, of the marks and of the answer's headings."""
LEAST, FEW_WINDOWS = 8, 4
"""Of a text of some lines: a window of so many tokens, and so many windows of it, are the least to learn from."""
WINDOWS = 1000
"""Windows that the text must give at the least: of few long ones a model learns the order of the documents."""


def choose_block_size(documents: Documents, tokenizer: Tokenizer, *, smaller: bool = False) -> int:
    """The smallest of CHOICES that holds FITTING of the passages, as far as the text gives WINDOWS of that length.

    smaller: also less than the smallest of CHOICES, so that some lines of text still give FEW_WINDOWS: plain text has
    no sample that would have to fit.
    The same text and tokenizer give the same number.
    """
    chosen = np.sort(seeded_order(len(documents), 0)[:LOOKED_AT])
    texts = [documents[int(index)] for index in chosen]
    lengths = [tokenizer.count(passage) for text in texts for passage in split_document(text.split("\n")).passages]
    needed = 2 * float(np.quantile(lengths, FITTING)) + BESIDE
    sizes: npt.NDArray[np.int64] = documents.sizes()
    tokens = sum(lengths) * float(sizes.sum()) / float(sizes[chosen].sum())
    fitting = next((size for size in CHOICES if size >= needed), CHOICES[-1])
    allowed = [size for size in CHOICES if tokens >= WINDOWS * size]
    size = min(fitting, max(allowed, default=CHOICES[0]))
    while smaller and size > LEAST and tokens < FEW_WINDOWS * size:
        size //= 2
    return size
