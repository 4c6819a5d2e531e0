"""Exact and near duplicates, and the split of documents into training and validation that keeps both apart.

Near duplicates are found with MinHash signatures (`rensa`) in LSH bands and then judged by the exact Jaccard
similarity of their 5-character shingles, so that a signature only ever proposes (Broder 1997, Indyk & Motwani 1998).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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


def near_pairs(rows: Signatures, fetch: Callable[[int], str], threshold: float = SIMILARITY) -> list[tuple[int, int]]:
    """Pairs i < j, sorted, of documents at least as similar as the threshold; chains of pairs join larger groups.

    fetch gives the text of a document. In a group that shares a band each member is held against the first and against
    its neighbour, so the work grows with the number of documents and not with the pairs.
    """
    width = PERMUTATIONS // BANDS
    candidates: list[npt.NDArray[np.int64]] = []
    for band in range(BANDS):
        keys = np.ascontiguousarray(rows[:, band * width : (band + 1) * width]).view(f"V{4 * width}").ravel()
        _, group = np.unique(keys, return_inverse=True)
        order = np.argsort(group, kind="stable")
        sorted_group = group[order]
        starts = np.flatnonzero(np.r_[True, sorted_group[1:] != sorted_group[:-1]])
        first = order[np.repeat(starts, np.diff(np.r_[starts, len(order)]))]
        follows = np.flatnonzero(first != order)
        candidates.append(np.stack([first[follows], order[follows]], axis=1))
        candidates.append(np.stack([order[follows - 1], order[follows]], axis=1))
    pairs = np.unique(np.concatenate(candidates), axis=0) if len(rows) else np.empty((0, 2), dtype=np.int64)
    # A signature that disagrees this much cannot belong to a pair above the threshold (4 standard deviations).
    margin = 4 * (threshold * (1 - threshold) / PERMUTATIONS) ** 0.5
    estimate = np.concatenate(
        [
            np.mean(rows[part[:, 0]] == rows[part[:, 1]], axis=1)
            for part in np.array_split(pairs, len(pairs) // 65536 + 1)
        ]
    )
    likely = pairs[estimate >= threshold - margin]
    return [(int(i), int(j)) for i, j in likely if similarity(fetch(int(i)), fetch(int(j))) >= threshold]


@dataclass(frozen=True)
class Duplicates:
    """exact and near: for each document that repeats an earlier one, the earlier one, which is kept.

    group: int64 [documents], for each the first document that it is tied to by a chain of exact and near duplicates.
    """

    exact: dict[int, int]
    near: dict[int, int]
    group: npt.NDArray[np.int64]


def find_duplicates(
    digests: Sequence[bytes], rows: Signatures, fetch: Callable[[int], str], threshold: float = SIMILARITY
) -> Duplicates:
    """Duplicates among documents of these digests and signatures; fetch gives a document's text.

    A near duplicate with a number that the kept document lacks is none, though in its group: two hospitals' entries may
    differ in nothing but the telephone number.
    """
    seen: dict[bytes, int] = {}
    exact: dict[int, int] = {}
    for index, one in enumerate(digests):
        first = seen.setdefault(one, index)
        if first != index:
            exact[index] = first
    del seen
    unique = np.asarray([i for i in range(len(digests)) if i not in exact], dtype=np.int64)
    near: dict[int, int] = {}
    pairs = [
        (int(unique[i]), int(unique[j]))
        for i, j in near_pairs(rows[unique], lambda k: fetch(int(unique[k])), threshold)
    ]
    for kept, later in pairs:
        if later in near or kept in near:
            continue
        if set(_NUMBER.findall(fetch(later))) <= set(_NUMBER.findall(fetch(kept))):
            near[later] = kept
    tied = [*((first, later) for later, first in exact.items()), *pairs]
    return Duplicates(exact, near, connected(len(digests), tied))


def connected(count: int, pairs: Iterable[Sequence[int]]) -> npt.NDArray[np.int64]:
    """int64 [count]: for each the smallest number that pairs connect it with."""
    parent = list(range(count))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for i, j in pairs:
        low, high = sorted((find(i), find(j)))
        parent[high] = low
    return np.asarray([find(node) for node in range(count)], dtype=np.int64)


def groups(texts: Sequence[str], batch: int = 1024) -> npt.NDArray[np.int64]:
    """`Duplicates.group` of documents of which nothing is known yet."""
    digests: list[bytes] = []
    rows: list[Signatures] = []
    for start in range(0, len(texts), batch):
        normals = [normalised(text) for text in texts[start : start + batch]]
        digests += [digest(normal) for normal in normals]
        rows.append(signatures(normals))
    return find_duplicates(digests, np.concatenate(rows), lambda index: texts[index]).group


def split_validation(
    texts: Sequence[str],
    sizes: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    *,
    fraction: float,
    seed: int,
    min_bytes: int = 0,
) -> npt.NDArray[np.bool_]:
    """bool [documents]: True for validation. sizes in bytes, group as in `Duplicates`.

    Documents go by groups of near duplicates, a group by a hash of its first text and the seed, so that a document's
    side depends on no other document. Where that leaves validation without a document, or with fewer than min_bytes
    of text, groups follow in the order of their hashes, up to half of the text; training keeps one group at least.
    """
    if fraction <= 0 or len(texts) < 2:
        return np.zeros(len(texts), dtype=np.bool_)
    leaders = np.flatnonzero(group == np.arange(len(texts)))
    if len(leaders) < 2:
        return np.zeros(len(texts), dtype=np.bool_)
    size_of = np.bincount(group, weights=sizes, minlength=len(texts))
    drawn = np.asarray([_draw(texts[int(leader)], seed) for leader in leaders])
    order = np.lexsort((leaders, drawn))
    chosen: list[int] = []
    taken, total = 0.0, float(size_of.sum())
    for position in order[:-1]:
        leader = int(leaders[position])
        wanted = drawn[position] < fraction
        needed = not chosen or taken < min_bytes
        if not wanted and not needed:
            break
        if chosen and not wanted and taken + size_of[leader] > total / 2:
            continue
        chosen.append(leader)
        taken += size_of[leader]
    return np.isin(group, chosen)


def _draw(text: str, seed: int) -> float:
    key = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(key, "little") / 2**64
