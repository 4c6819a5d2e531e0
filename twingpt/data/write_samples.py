"""From cleaned.txt to samples.jsonl: documents become samples in parallel, and stand in the order of the text."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.data.corpus import Documents, seeded_order
from twingpt.data.parallel import ordered_map, workers_for
from twingpt.data.settings import PrepareSettings
from twingpt.data.stages import Report
from twingpt.data.template import SplitName
from twingpt.data.tokenizer import Tokenizer

if TYPE_CHECKING:
    from twingpt.data.samples import SampleSettings

SAMPLES_FILE = "samples.jsonl"
SHOWN_SAMPLES = 3
BATCH_BYTES = 64 << 10


def sample_settings(settings: PrepareSettings) -> "SampleSettings":
    """Raises UsageError for settings that no sample can have."""
    from twingpt.data.samples import SampleSettings

    return SampleSettings(
        block_size=settings.block_size,
        samples_per_doc=settings.samples_per_doc,
        closed_share=settings.closed_share,
        summaries=settings.summaries,
        allow_long=settings.allow_long,
        seed=settings.seed,
    )


def write_samples(
    documents: Documents,
    validation: npt.NDArray[np.bool_],
    tokenizer: Path,
    folder: Path,
    settings: PrepareSettings,
    *,
    workers: int,
    advance: Callable[[int], None] = lambda size: None,
) -> Report:
    """Writes the file into the folder. validation: bool [documents]. Raises TwinGPTError if no document gives a sample.

    With max_samples, documents are drawn until there are enough: the rest is never looked at.
    """
    spool = folder / "spool"
    counts: dict[str, int] = {}
    where: list[tuple[int, int, int]] = []  # document, offset and length in the spool
    limit = settings.max_samples
    results = ordered_map(
        _make_batch,
        _batches(documents, validation, settings),
        workers=workers_for(int(documents.sizes().sum()), workers),
        setup=_start,
        setup_args=(str(documents.path), str(tokenizer), settings),
    )
    with spool.open("wb") as file:
        for batch in results:
            room = len(batch.lines) if limit is None else limit - len(where)
            for document, kind, line in batch.lines[:room]:
                where.append((document, file.tell(), len(line)))
                file.write(line)
                counts[kind] = counts.get(kind, 0) + 1
            advance(batch.size)
            if len(where) == limit:
                results.close()
                break
    if not where:
        raise TwinGPTError(
            f"{documents.path}: no document is long enough for a sample: give more text, or use --template plain"
        )
    _gather(spool, folder / SAMPLES_FILE, sorted(where))
    spool.unlink()
    return {
        "samples": len(where),
        "by_kind": dict(sorted(counts.items())),
        "documents": len(documents),
        "documents_used": len({document for document, _, _ in where}),
        "validation_documents": int(validation.sum()),
        "shown": _shown(folder / SAMPLES_FILE, len(where)),
    }


@dataclass(frozen=True)
class _Batch:
    size: int
    lines: list[tuple[int, str, bytes]]  # document, kind, the line of samples.jsonl


@dataclass(frozen=True)
class _Work:
    documents: tuple[int, ...]
    validation: tuple[bool, ...]


_worker: dict[str, Any] = {}


def _start(cleaned: str, tokenizer: str, settings: PrepareSettings) -> None:
    """Once a worker: what making samples needs."""
    _worker["documents"] = Documents(Path(cleaned))
    _worker["count"] = Tokenizer.load(tokenizer).count
    _worker["settings"] = sample_settings(settings)


def _make_batch(work: _Work) -> _Batch:
    from twingpt.data.samples import make_samples

    lines: list[tuple[int, str, bytes]] = []
    size = 0
    for index, held_out in zip(work.documents, work.validation, strict=True):
        document: str = _worker["documents"][index]
        size += len(document.encode())
        split: SplitName = "val" if held_out else "train"
        made = make_samples(document, index, split, _worker["settings"], _worker["count"])
        lines += [(index, sample.kind, (sample.to_json() + "\n").encode()) for sample in made]
    return _Batch(size, lines)


def _batches(documents: Documents, validation: npt.NDArray[np.bool_], settings: PrepareSettings) -> Iterator[_Work]:
    """All documents in order; with max_samples in a seeded order that begins with one of each side."""
    order = np.arange(len(documents))
    if settings.max_samples is not None:
        order = seeded_order(len(documents), settings.seed)
        sides = validation[order]
        first = [int(np.flatnonzero(sides == side)[0]) for side in (False, True) if (sides == side).any()]
        order = np.concatenate([order[first], np.delete(order, first)])
    sizes = documents.sizes()
    batch: list[int] = []
    total = 0
    for index in order.tolist():
        batch.append(index)
        total += int(sizes[index])
        if total >= BATCH_BYTES or index == order[-1]:
            yield _Work(tuple(batch), tuple(bool(validation[i]) for i in batch))
            batch, total = [], 0


def _gather(spool: Path, target: Path, where: Sequence[tuple[int, int, int]]) -> None:
    """The spooled lines in the given order."""
    with spool.open("rb") as source, target.open("wb") as file:
        for _, offset, length in where:
            source.seek(offset)
            file.write(source.read(length))


def _shown(samples: Path, count: int) -> list[dict[str, Any]]:
    """Samples from the start, the middle and the end."""
    wanted = {0, count // 2, count - 1}
    with samples.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for number, line in enumerate(file) if number in wanted][:SHOWN_SAMPLES]
