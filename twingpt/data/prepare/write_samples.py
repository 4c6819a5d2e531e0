"""From cleaned.txt to samples.jsonl: documents become samples in parallel, and stand in the order of the text."""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.files import SAMPLES_FILE
from twingpt.data.prepare.block_size import CHOICES
from twingpt.data.prepare.parallel import ordered_map, workers_for
from twingpt.data.prepare.settings import PrepareSettings
from twingpt.data.prepare.stages import Report
from twingpt.data.text.corpus import Documents, read_text, seeded_order
from twingpt.data.tokens.template import SplitName
from twingpt.data.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from twingpt.data.samples.make import SampleSettings

SHOWN_SAMPLES = 3
BATCH_BYTES = 64 << 10


def sample_settings(settings: PrepareSettings) -> "SampleSettings":
    """Raises UsageError for settings that no sample can have."""
    from twingpt.data.samples.make import SampleSettings

    return SampleSettings(
        block_size=settings.block_size or CHOICES[0],
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
    made = _made(documents, validation, tokenizer, settings, workers)
    tally, target = Tally(), folder / SAMPLES_FILE
    with contextlib.closing(made):
        if settings.max_samples is None:
            _write_in_order(made, target, tally, advance)
        else:
            _write_drawn(made, settings.max_samples, target, tally, advance)
    return _report(tally, documents, validation, target)


def _report(tally: "Tally", documents: Documents, validation: npt.NDArray[np.bool_], samples: Path) -> Report:
    """The report of the stage. Raises TwinGPTError if there is no sample."""
    if not tally.samples:
        raise TwinGPTError(
            tr(
                "{documents}: no document is long enough for a sample: give more text, or use --template plain",
                documents=documents.path,
            )
        )
    return {
        "samples": tally.samples,
        "by_kind": dict(sorted(tally.by_kind.items())),
        "documents": len(documents),
        "documents_used": tally.documents_used,
        "validation_documents": int(validation.sum()),
        "shown": _shown(samples, tally.samples),
    }


@dataclass
class Tally:
    """What was made of some documents."""

    samples: int = 0
    documents_used: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)

    def add(self, lines: Sequence["_Line"]) -> None:
        """The samples of whole documents."""
        self.samples += len(lines)
        self.documents_used += len({document for document, _, _ in lines})
        for _, kind, _ in lines:
            self.by_kind[kind] = self.by_kind.get(kind, 0) + 1


_Line = tuple[int, str, bytes]  # document, kind, the line of samples.jsonl


def _write_in_order(made: Iterator["_Batch"], target: Path, tally: Tally, advance: Callable[[int], None]) -> None:
    """All samples."""
    with target.open("wb") as file:
        for batch in made:
            tally.add(batch.lines)
            file.writelines(line for _, _, line in batch.lines)
            advance(batch.size)


def _write_drawn(
    made: Iterator["_Batch"], limit: int, target: Path, tally: Tally, advance: Callable[[int], None]
) -> None:
    """The first `limit` samples, in the order of the text."""
    unsorted = target.with_suffix(".unsorted")
    where: list[tuple[int, int, int]] = []  # document, offset and length in the unsorted file
    with unsorted.open("wb") as file:
        for batch in made:
            lines = batch.lines[: limit - len(where)]
            tally.add(lines)
            for document, _, line in lines:
                where.append((document, file.tell(), len(line)))
                file.write(line)
            advance(batch.size)
            if len(where) == limit:
                break
    with unsorted.open("rb") as source, target.open("wb") as file:
        for _, offset, length in sorted(where):
            source.seek(offset)
            file.write(source.read(length))
    unsorted.unlink()


@dataclass(frozen=True)
class _Batch:
    size: int
    lines: list[_Line]


@dataclass(frozen=True)
class _Work:
    """Some documents: their numbers, where their texts stand in the file, and whether they are held out."""

    documents: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    validation: tuple[bool, ...]


_worker: dict[str, Any] = {}


def _made(
    documents: Documents,
    validation: npt.NDArray[np.bool_],
    tokenizer: Path,
    settings: PrepareSettings,
    workers: int,
) -> Generator["_Batch", None, None]:
    return ordered_map(
        _make_batch,
        _batches(documents, validation, settings),
        workers=workers_for(int(documents.sizes().sum()), workers),
        setup=_start,
        setup_args=(str(documents.path), str(tokenizer), settings),
    )


def _start(cleaned: str, tokenizer: str, settings: PrepareSettings) -> None:
    """Once a worker: what making samples needs."""
    if "cleaned" in _worker:
        os.close(_worker["cleaned"])
    _worker["cleaned"] = os.open(cleaned, os.O_RDONLY)
    _worker["count"] = Tokenizer.load(tokenizer).count
    _worker["settings"] = sample_settings(settings)


def _make_batch(work: _Work) -> _Batch:
    from twingpt.data.samples.make import make_samples

    lines: list[_Line] = []
    size = 0
    for index, (start, end), held_out in zip(work.documents, work.spans, work.validation, strict=True):
        document = read_text(_worker["cleaned"], start, end, f"cleaned.txt is not UTF-8 in document {index}")
        size += end - start
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
    for index in map(int, order):
        batch.append(index)
        total += int(sizes[index])
        if total >= BATCH_BYTES or index == order[-1]:
            spans = tuple(documents.span(i) for i in batch)
            yield _Work(tuple(batch), spans, tuple(bool(validation[i]) for i in batch))
            batch, total = [], 0


def _shown(samples: Path, count: int) -> list[dict[str, Any]]:
    """Samples from the start, the middle and the end."""
    wanted = {0, count // 2, count - 1}
    with samples.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for number, line in enumerate(file) if number in wanted][:SHOWN_SAMPLES]
