"""Which of a plain text is held out for validation: whole documents, or stretches where documents are too large.

A share of a text of many documents is held out by documents, so that nothing of one is learned. A novel is one
document, and three of them are too coarse for a share of one percent: then stretches of the text are held out, which
begin and end where a sentence does.
"""

import hashlib
import re
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from twingpt.data.text.corpus import Documents, WholeDocuments
from twingpt.data.text.dedup import split_validation

MOST_STRETCHES = 10
"""More would cut the text more often, and fewer would say less about all of it."""
LEAST_STRETCH = 1000
"""Bytes: shorter ones would begin and end at the same sentence."""
OFF = 2.0
"""How many times more or less than asked for may be held out by whole documents, before stretches are."""

_SENTENCE_BORDER = re.compile(
    r"\n+|[.!?…]+[\"'”’)\]」』]*\s+|[。！？]+[」』”’]*\s*|(?<=[가-힣](?:다|요|죠|음|함|임))[\"'”’)\]」』]*\s+"
)
_BLANK = re.compile(r"\s+")

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """parts: bool [parts], those that are held out whole.

    within: by the number of a part, the ranges of its characters that are held out of it, in order.
    """

    parts: npt.NDArray[np.bool_]
    within: dict[int, list[Range]] = field(default_factory=dict)


def hold_out(parts: Documents, tied: npt.NDArray[np.int64], *, fraction: float, seed: int, least: int = 0) -> HeldOut:
    """About `fraction` of the text, and `least` bytes of it as far as that is no more than a tenth.

    tied: documents that must stay on one side, as in `dedup.Duplicates`. Nothing is held out of a single sentence.
    """
    documents = WholeDocuments(parts)
    sizes = documents.sizes()
    total = int(sizes.sum())
    wanted = max(fraction * total, min(least, total / 10)) if fraction > 0 else 0.0
    chosen = split_validation(documents, sizes, tied, fraction=fraction, seed=seed, min_bytes=int(wanted))
    taken = int(sizes[chosen].sum())
    if not wanted or wanted / OFF <= taken <= OFF * wanted:
        return HeldOut(np.repeat(chosen, np.diff(documents.first)))
    return _stretches(parts, int(wanted), seed)


def _stretches(parts: Documents, wanted: int, seed: int) -> HeldOut:
    """Stretches of `wanted` bytes together, each somewhere in its own of as many equal shares of the text."""
    sizes = parts.sizes()
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    count = max(1, min(MOST_STRETCHES, wanted // LEAST_STRETCH))
    length, room = wanted // count, total // count
    held: dict[int, list[Range]] = {}
    for number in range(count):
        begin = number * room + int(_draw(seed, number) * (room - length))
        first, middle, last = np.searchsorted(ends, [begin, begin + length // 2, begin + length - 1], side="right")
        found = {
            part: _between(parts[part], begin - int(ends[part] - sizes[part]), length)
            for part in range(int(first), int(last) + 1)
        }
        if not any(start < end for start, end in found.values()):
            # No border lies near: then it is the sentence that the stretch has its middle in.
            at = begin + length // 2 - int(ends[middle] - sizes[middle])
            found = {int(middle): _sentence_at(parts[int(middle)], at)}
        for part, (start, end) in found.items():
            if start < end:
                held.setdefault(part, []).append((start, end))
    return _as_held_out(parts, held)


def _as_held_out(parts: Documents, held: dict[int, list[Range]]) -> HeldOut:
    """Stretches that came to meet are one; of a text that would be held out as a whole, the first part is not."""
    whole = np.zeros(len(parts), dtype=np.bool_)
    within: dict[int, list[Range]] = {}
    for part, ranges in held.items():
        joined: list[Range] = []
        for start, end in sorted(ranges):
            if joined and start <= joined[-1][1]:
                joined[-1] = joined[-1][0], max(end, joined[-1][1])
            else:
                joined.append((start, end))
        if joined == [(0, len(parts[part]))]:
            whole[part] = True
        else:
            within[part] = joined
    if whole.all():
        whole[0] = False
    return HeldOut(whole, within)


def _offsets(text: str, borders: list[int]) -> npt.NDArray[np.int64]:
    """The byte that each border stands before."""
    sizes = [len(text[start:end].encode()) for start, end in pairwise(borders)]
    return np.cumsum([0, *sizes], dtype=np.int64)


def _between(text: str, start: int, length: int) -> Range:
    """The characters between the borders nearest to byte `start`, which may lie before the text, and `length` on."""
    borders = sentence_borders(text)
    offsets = _offsets(text, borders)
    first, last = (borders[int(np.abs(offsets - byte).argmin())] for byte in (start, start + length))
    return first, last


def _sentence_at(text: str, byte: int) -> Range:
    borders = sentence_borders(text)
    number = int(np.searchsorted(_offsets(text, borders)[1:-1], byte, side="right"))
    return borders[number], borders[number + 1]


def sentence_borders(text: str) -> list[int]:
    """Where sentences or lines of a text begin, from 0 on, and its end; words where there is but one sentence."""
    for border in (_SENTENCE_BORDER, _BLANK):
        found = sorted({0, *(match.end() for match in border.finditer(text)), len(text)})
        if len(found) > 2:
            return found
    return [0, len(text)]


def _draw(seed: int, number: int) -> float:
    key = hashlib.blake2b(number.to_bytes(8, "little"), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(key, "little") / 2**64
