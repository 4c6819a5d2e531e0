"""Exact and near duplicates, and the split of documents into training and validation that keeps both apart.

Near duplicates are found with MinHash signatures (`rensa`) in LSH bands and then judged by the exact Jaccard
similarity of their 5-character shingles, so that a signature only ever proposes (Broder 1997, Indyk & Motwani 1998).
"""

import hashlib
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from twingpt.data.text.corpus import Table

SHINGLE = 5
PERMUTATIONS = 64
BANDS = 16  # 4 values each: a pair of similarity 0.8 shares a band with probability 0.9998
SIMILARITY = 0.8
_SEED = 1

Signatures = npt.NDArray[np.uint32]  # [documents, PERMUTATIONS]
_IGNORED = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"\d+")


def normalised(text: str) -> str:
    """What makes two documents the same one: letters and digits, without case, blanks and punctuation.

    A text of other characters alone stays as it is.
    """
    return _IGNORED.sub("", text).lower() or text


def digest(normal: str) -> bytes:
    """16 bytes of a normalised text."""
    return hashlib.blake2b(normal.encode(), digest_size=16).digest()


def shingle_hashes(normal: str) -> npt.NDArray[np.uint64]:
    """uint64 [characters - 4]: a hash of every 5 neighbouring characters of a normalised text; at least one."""
    codes = np.frombuffer(normal.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(codes) < SHINGLE:
        codes = np.concatenate([codes, np.zeros(SHINGLE - len(codes), dtype=np.uint64)])
    count = len(codes) - SHINGLE + 1
    # 21 bits hold any character; three of them fit a word, the other two are mixed in (splitmix64's constants).
    mixed = codes[:count] | (codes[1 : count + 1] << np.uint64(21)) | (codes[2 : count + 2] << np.uint64(42))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= codes[3 : count + 3] | (codes[4 : count + 4] << np.uint64(21))
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)


def signatures(normals: Sequence[str]) -> Signatures:
    """The MinHash signature of each normalised text, uint32 [texts, PERMUTATIONS]."""
    from rensa import RMinHash  # type: ignore[import-untyped]

    if not normals:
        return np.empty((0, PERMUTATIONS), dtype=np.uint32)
    hashes = [shingle_hashes(normal) for normal in normals]
    offsets = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum([len(one) for one in hashes], out=offsets[1:])
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(np.concatenate(hashes), offsets, PERMUTATIONS, _SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32).reshape(len(normals), PERMUTATIONS)


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of the sets of 5-character shingles, 0 to 1."""
    a, b = (np.unique(shingle_hashes(normalised(text))) for text in (first, second))
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def near_pairs(
    rows: Table, fetch: Callable[[int], str], threshold: float = SIMILARITY, skip: npt.NDArray[np.bool_] | None = None
) -> list[tuple[int, int]]:
    """Pairs i < j, sorted, of documents at least as similar as the threshold; chains of pairs join larger groups.

    rows: their signatures. fetch gives the text of a document. skip: bool [documents], documents to leave out. In a
    group that shares a band each member is held against the first and against its neighbour, so the work grows with
    the number of documents and not with the pairs. Memory: 8 bytes a document and 8 a likely pair.
    """
    # A signature that disagrees this much cannot belong to a pair above the threshold (4 standard deviations).
    least = threshold - 4 * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    likely = np.empty(0, dtype=np.uint64)
    for band in range(BANDS):
        for first, later in _alike(_band_keys(rows, band), skip):
            pairs = np.setdiff1d((first.astype(np.uint64) << _PAIR) | later.astype(np.uint64), likely)
            likely = np.union1d(likely, pairs[_agreement(rows, pairs) >= least])
    split = ((int(pair >> _PAIR), int(pair & _SECOND)) for pair in likely)
    return [(i, j) for i, j in split if similarity(fetch(i), fetch(j)) >= threshold]


# Two documents' numbers as one, so that pairs sort fast and take 8 bytes.
_PAIR, _SECOND = np.uint64(32), np.uint64(2**32 - 1)
# Documents that are sorted at a time: 40 bytes each while it lasts.
_SORTED = 1 << 20


def _band_keys(rows: Table, band: int) -> npt.NDArray[np.uint64]:
    """A hash of the band's values for each document, uint64 [documents]."""
    width = PERMUTATIONS // BANDS
    keys = np.empty(len(rows), dtype=np.uint64)
    for start, part in rows.parts():
        values = np.ascontiguousarray(part[:, band * width : (band + 1) * width]).view(np.uint64)
        mixed = values[:, 0] * np.uint64(0xBF58476D1CE4E5B9)
        mixed = ((mixed ^ (mixed >> np.uint64(32))) + values[:, 1]) * np.uint64(0x94D049BB133111EB)
        keys[start : start + len(part)] = mixed ^ (mixed >> np.uint64(29))
    return keys


def _alike(
    keys: npt.NDArray[np.uint64], skip: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs (i, j), i < j, of equal keys: each document with the first of its key, and with the one before it."""
    for numbers, sorted_keys in _sorted_parts(keys, skip):
        same = np.flatnonzero(sorted_keys[1:] == sorted_keys[:-1]) + 1
        starts = np.flatnonzero(np.r_[True, sorted_keys[1:] != sorted_keys[:-1]])
        leader = starts[np.searchsorted(starts, same, side="right") - 1]
        yield numbers[leader], numbers[same]
        yield numbers[same - 1], numbers[same]


def _sorted_parts(
    keys: npt.NDArray[np.uint64], skip: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]]:
    """Documents ordered by key, equal ones by number, with their keys; some keys at a time, by their last bits."""
    parts = 1 << max(0, (len(keys) // _SORTED).bit_length())
    mask = np.uint64(parts - 1)
    for part in range(parts):
        found: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(keys), _SORTED):
            block = keys[start : start + _SORTED]
            chosen = (block & mask) == part
            if skip is not None:
                chosen &= ~skip[start : start + _SORTED]
            found.append(np.flatnonzero(chosen) + start)
        numbers = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        order = np.argsort(keys[numbers], kind="stable")
        numbers = numbers[order]
        if len(numbers):
            yield numbers, keys[numbers]


def _agreement(rows: Table, pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The share of equal signature values of each pair, which estimates their similarity."""
    found = np.empty(len(pairs), dtype=np.float64)
    for start in range(0, len(pairs), _PAIRS_AT_A_TIME):
        part = pairs[start : start + _PAIRS_AT_A_TIME]
        first, later = (part >> _PAIR).astype(np.int64), (part & _SECOND).astype(np.int64)
        found[start : start + len(part)] = np.mean(rows.take(first) == rows.take(later), axis=1)
    return found


_PAIRS_AT_A_TIME = 1 << 14


@dataclass(frozen=True)
class Duplicates:
    """exact, near, tied: int64 [n, 2], each row an earlier document and a later one, ordered by the later one.

    exact and near: of each document that repeats an earlier one, that one, which is kept. tied: of each document that a
    chain of exact and near duplicates ties to an earlier one, the first of the chain.
    """

    exact: npt.NDArray[np.int64]
    near: npt.NDArray[np.int64]
    tied: npt.NDArray[np.int64]


def find_duplicates(
    digests: Table, rows: Table, fetch: Callable[[int], str], threshold: float = SIMILARITY
) -> Duplicates:
    """Duplicates among documents of these digests and signatures; fetch gives a document's text.

    A near duplicate with a number that the kept document lacks is none, though in its group: two hospitals' entries may
    differ in nothing but the telephone number.
    """
    exact = _equal(digests)
    repeats = np.zeros(len(rows), dtype=np.bool_)
    repeats[exact[:, 1]] = True
    near: dict[int, int] = {}
    pairs = near_pairs(rows, fetch, threshold, repeats)
    for kept, later in pairs:
        if later in near or kept in near:
            continue
        if set(_NUMBER.findall(fetch(later))) <= set(_NUMBER.findall(fetch(kept))):
            near[later] = kept
    rows_of_near = _as_pairs([(kept, later) for later, kept in sorted(near.items())])
    return Duplicates(exact, rows_of_near, connected(np.concatenate([exact, _as_pairs(pairs)])))


def _as_pairs(pairs: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _equal(digests: Table) -> npt.NDArray[np.int64]:
    """`Duplicates.exact`. digests: two uint64 a document."""
    keys = np.empty(len(digests), dtype=np.uint64)
    for start, part in digests.parts():
        keys[start : start + len(part)] = part[:, 0]
    found = [_as_pairs([])]
    for numbers, sorted_keys in _sorted_parts(keys, None):
        again = sorted_keys[1:] == sorted_keys[:-1]
        several = np.r_[again, False] | np.r_[False, again]
        numbers, high = numbers[several], sorted_keys[several]
        low = digests.take(numbers)[:, 1]
        order = np.lexsort((numbers, low, high))
        numbers, high, low = numbers[order], high[order], low[order]
        new = np.r_[True, (high[1:] != high[:-1]) | (low[1:] != low[:-1])][: len(numbers)]
        first = numbers[np.flatnonzero(new)[np.cumsum(new) - 1]]
        found.append(np.stack([first[~new], numbers[~new]], axis=1))
    pairs = np.concatenate(found)
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


def connected(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`Duplicates.tied` of documents that these pairs, int64 [n, 2], connect."""
    members, index = np.unique(pairs, return_inverse=True)
    parent = list(range(len(members)))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in index.reshape(-1, 2).tolist():
        low, high = sorted((find(i), find(j)))
        parent[high] = low
    first = members[np.asarray([find(node) for node in range(len(members))], dtype=np.int64)]
    tied: npt.NDArray[np.int64] = np.stack([first, members], axis=1)[first != members]
    return tied


def ties(texts: Sequence[str], folder: Path | None = None, batch: int = 1024) -> npt.NDArray[np.int64]:
    """`Duplicates.tied` of documents of which nothing is known yet. folder: for 272 bytes a document meanwhile."""
    with tempfile.TemporaryFile(dir=folder) as digests, tempfile.TemporaryFile(dir=folder) as rows:
        for start in range(0, len(texts), batch):
            normals = [normalised(text) for text in texts[start : start + batch]]
            digests.writelines(digest(normal) for normal in normals)
            rows.write(signatures(normals).tobytes())
        digests.flush()
        rows.flush()
        return find_duplicates(digest_table(digests), signature_table(rows), lambda index: texts[index]).tied


def digest_table(file: IO[bytes]) -> Table:
    return Table(file, "<u8", 2)


def signature_table(file: IO[bytes]) -> Table:
    return Table(file, "<u4", PERMUTATIONS)


def split_validation(
    texts: Sequence[str],
    sizes: npt.NDArray[np.int64],
    tied: npt.NDArray[np.int64],
    *,
    fraction: float,
    seed: int,
    min_bytes: int = 0,
) -> npt.NDArray[np.bool_]:
    """bool [documents]: True for validation. sizes in bytes, tied as in `Duplicates`.

    Documents go by groups of near duplicates, a group by a hash of its first text and the seed, so that a document's
    side depends on no other document. Where that leaves validation without a document, or with fewer than min_bytes
    of text, groups follow in the order of their hashes, up to half of the text; training keeps one group at least.
    Memory: about 40 bytes a document.
    """
    held_out = np.zeros(len(texts), dtype=np.bool_)
    if fraction <= 0 or len(texts) - len(tied) < 2:
        return held_out
    size_of = sizes.astype(np.int64)
    np.add.at(size_of, tied[:, 0], sizes[tied[:, 1]])
    drawn = np.full(len(texts), np.inf)
    leads = np.ones(len(texts), dtype=np.bool_)
    leads[tied[:, 1]] = False
    for index in np.flatnonzero(leads):
        drawn[index] = _draw(texts[int(index)], seed)
    chosen, taken, total = 0, 0, int(sizes.sum())
    for leader in _lowest_first(drawn, fraction, len(texts) - len(tied) - 1):
        wanted = drawn[leader] < fraction
        needed = not chosen or taken < min_bytes
        if not wanted and not needed:
            break
        if chosen and not wanted and taken + size_of[leader] > total / 2:
            continue
        held_out[leader] = True
        chosen += 1
        taken += int(size_of[leader])
    held_out[tied[:, 1]] = held_out[tied[:, 0]]
    return held_out


def _lowest_first(values: npt.NDArray[np.float64], share: float, count: int) -> Iterator[int]:
    """The places of the `count` lowest values, the lowest first; values are from 0 to 1, most askers end after `share`.

    Only what is asked for is sorted: about that share of them, then twice as much.
    """
    low, high, left = 0.0, share, count
    while left > 0:
        found = np.flatnonzero((values >= low) & (values < high))
        found = found[np.argsort(values[found], kind="stable")][:left]
        yield from found.tolist()
        left -= len(found)
        low, high = high, 2 * high


def _draw(text: str, seed: int) -> float:
    key = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(key, "little") / 2**64
