"""What is written when all chunks are cleaned: which documents stay together, and how much memory it takes."""

import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twingpt.data.prepare import spool, write_cleaned
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.text import clean, corpus, dedup
from twingpt.data.text.changes import Changes
from twingpt.data.text.corpus import Documents
from twingpt.data.text.forms.form import ReadAs

PLAIN = PrepareSettings(template="plain", vocab_size=400, block_size=64)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=30))
def test_documents_stay_tied_when_others_are_dropped(documents: list[tuple[int, bool]]) -> None:
    """Each a group (0: alone) and whether it is dropped."""
    first: dict[int, int] = {}
    tied = [[first[g], i] for i, (g, _) in enumerate(documents) if g and first.setdefault(g, i) != i]
    kept = [group for group, dropped in documents if not dropped]
    first.clear()
    expected = [[first[g], i] for i, g in enumerate(kept) if g and first.setdefault(g, i) != i]
    dropped = np.asarray([one for _, one in documents], dtype=np.bool_)
    assert write_cleaned._tied(dedup._as_pairs(tied), dropped) == expected


def _spool(folder: Path, documents: int) -> Path:
    """Short documents, one in ten of which comes twice and of which no two others are alike, cleaned."""
    folder.mkdir()
    texts = [hashlib.sha256(b"%d" % (number - number % 10 // 9)).hexdigest()[:20] for number in range(documents)]
    with spool.SpoolWriter(folder) as writer:
        for start in range(0, documents, 500):
            settings = clean.CleanSettings(merge=False, separator="blank-line")
            chunk = clean.clean_chunk("\n\n".join(texts[start : start + 500]), settings)
            writer.add(chunk)
    return folder


def _peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_grows_by_a_few_bytes_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the text nor with the signatures, which take 256 bytes a document. Measured: 36 and 38."""
    for module, name in ((corpus, "_PART_BYTES"), (corpus, "_BLOCK_BYTES"), (dedup, "_SORTED")):
        monkeypatch.setattr(module, name, 1 << 10)
    monkeypatch.setattr(clean, "_BUCKETS", np.uint64(1 << 8))
    # The first round is for what is imported and remembered once.
    _, small, large = (_peaks_of_cleaning_and_splitting(tmp_path / str(count), count) for count in (1000, 4000, 12000))
    grown = [(b - a) / (12000 - 4000) for a, b in zip(small, large, strict=True)]
    assert all(bytes_each < 60 for bytes_each in grown), grown


def _peaks_of_cleaning_and_splitting(target: Path, documents: int) -> tuple[int, int]:
    target.mkdir()
    folder = _spool(target / "spool", documents)

    def split() -> None:
        kept = Documents(target / "cleaned.txt")
        dedup.split_validation(kept, kept.sizes(), dedup._as_pairs([]), fraction=0.01, seed=0)

    cleaning = _peak(lambda: write_cleaned.write_cleaned(folder, target, PLAIN, Changes(), [ReadAs("raw.txt")], 1))
    return cleaning, _peak(split)
