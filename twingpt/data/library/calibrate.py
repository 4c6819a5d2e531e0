"""How well a passage must fit a question to count as found, told from the user's own text when its library is made.

Questions are made of the text's own sentences, as people ask: some words of a sentence, some others that the text has
elsewhere. Each is asked twice, of the whole library and of the library without the document that it was made of. The
threshold lies between what fits in the first case and in the second.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.library.search import LEAST_FIT, Library, Passage
from twingpt.data.library.sentences import sentences

QUESTIONS = 100
WORDS = (3, 6)
"""Words of a sentence that a question has, from and to."""
ELSEWHERE = 0.35
"""Share of them that stand elsewhere in the text: about so many of a question are not in its answer."""
ANSWERED, TOLD = 0.05, 0.9
"""Quantiles of the two fits that the threshold lies between."""
BELIEVED = 0.2
"""How far the threshold goes from LEAST_FIT towards what the made questions tell. All the way would be too far, because
a made question has fewer words that its text lacks than an asked one has (benchmarks/LOG.md)."""
BOUNDS = (0.4, 0.75)
"""What made questions tell counts within these."""
_SHORTEST = 12


def calibrate(path: Path) -> float:
    """Write into a library how well a passage must fit, and return it. The same library gives the same number.

    Raises TwinGPTError if the library cannot be read or written to.
    """
    with Library(path) as library:
        threshold = least_fit(library)
    try:
        with sqlite3.connect(path) as db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('least_fit', ?)", (f"{threshold:.3f}",))
        db.close()
    except sqlite3.Error as error:
        raise TwinGPTError(
            tr("{path} cannot be written ({error}): check the folder and the free space", path=path, error=error)
        ) from None
    return threshold


def least_fit(library: Library) -> float:
    """The threshold of a library; LEAST_FIT where its text is too small to make questions of."""
    fits = list(_fits(library))
    if len({document for document, _, _ in fits}) < 2:
        return LEAST_FIT
    there = float(np.quantile([fit for _, fit, _ in fits], ANSWERED))
    missing = float(np.quantile([fit for _, _, fit in fits], TOLD))
    told = min(max(min(there, (there + missing) / 2), BOUNDS[0]), BOUNDS[1])
    return round(LEAST_FIT + BELIEVED * (told - LEAST_FIT), 3)


def _fits(library: Library) -> Iterator[tuple[int, float, float]]:
    """(document, how well its question fits the library, and how well the library without that document)."""
    for number in range(min(QUESTIONS, library.passages)):
        passage = library.passage(_draw(library.passages, "passage", number))
        question = _question(library, passage, number)
        if not question:
            continue
        found = library.search(question, 10)
        others = [one for one in found if one.document != passage.document]
        there, missing = (library.fit(question, some[0]) if some else 0.0 for some in (found, others))
        yield passage.document, there, missing


def _question(library: Library, passage: Passage, number: int) -> str:
    """Words of a sentence under their title, some replaced by words of other passages; "" where no sentence serves."""
    long = [sentence for sentence in sentences(passage.text) if len(sentence) >= _SHORTEST]
    if not long:
        return ""
    words = long[_draw(len(long), "sentence", number)].rstrip(".!?").split()
    wanted = WORDS[0] + _draw(WORDS[1] - WORDS[0] + 1, "words", number)
    order = sorted(range(len(words)), key=lambda i: _draw(1 << 32, "order", number, i))[:wanted]
    asked = [passage.title] if passage.title else []
    for i in sorted(order):
        if _draw(1000, "elsewhere", number, i) < 1000 * ELSEWHERE:
            other = library.passage(_draw(library.passages, "other", number, i)).text.split()
            asked.append(other[_draw(len(other), "word", number, i)])
        else:
            asked.append(words[i])
    return " ".join(asked)


def _draw(below: int, *key: object) -> int:
    """A number from 0 to below `below`, keyed: the same on every machine and with every version of Python."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % below
