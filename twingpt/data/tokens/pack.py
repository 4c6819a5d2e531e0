"""Tokens into train.bin and val.bin: samples in rows by best fit, or documents in one stream."""

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.data.text.corpus import Documents, Table
from twingpt.data.tokens.manifest import Manifest, Split
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.template import Sample, Segment, sample_segments
from twingpt.data.tokens.tokenizer import Tokenizer

BATCH_BYTES = 4 << 20
BATCH_SAMPLES = 4096
_ROWS_AT_A_TIME = 4096

_MARKS = len(SPECIAL_TOKENS)
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


@dataclass(frozen=True, kw_only=True)
class PackReport:
    """waste: share of [PAD] among the tokens written; fitting: share of samples no longer than a row."""

    samples: int
    fitting: float
    truncated: int
    longest: int
    waste: float
    bytes_per_token: float
    counted_share: float


def token_dtype(vocab_size: int) -> Literal["uint16", "uint32"]:
    return "uint16" if vocab_size <= 65_536 else "uint32"


class _Writer:
    """A file, its sha256 and its length."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.written = 0

    def write(self, array: npt.NDArray[Any]) -> None:
        data = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        self._file.write(data)
        self._digest.update(data)
        self.written += array.size

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def pack_documents(
    documents: Documents,
    validation: npt.NDArray[np.bool_],
    tokenizer: Tokenizer,
    out: Path,
    *,
    block_size: int,
    text_sha256: str,
    advance: Callable[[int], None] = lambda size: None,
) -> tuple[Manifest, PackReport]:
    """Layout "contiguous": [BOS] document [EOS] after each other, in the order of the text.

    validation: bool [documents]. Raises TwinGPTError if the training part holds no window of block_size + 1 tokens.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    sizes = documents.sizes()
    longest = 0
    with _Writer(out / "train.bin") as train, _Writer(out / "val.bin") as val:
        for batch in documents.batches(BATCH_BYTES):
            ids, lengths = tokenizer.encode_flat(documents[batch.start : batch.stop])
            longest = max(longest, int(lengths.max()) + 2)
            stream, ends = _with_ends(ids, lengths, tokenizer, dtype)
            held_out = validation[batch.start : batch.stop]
            for writer, wanted in ((train, ~held_out), (val, held_out)):
                writer.write(stream if wanted.all() else stream[np.repeat(wanted, ends)])
            advance(int(sizes[batch.start : batch.stop].sum()))
        written = {"train": train, "val": val}
    if train.written <= block_size:
        raise TwinGPTError(
            f"block_size {block_size} is longer than the data: the training part of {documents.path} has "
            f"{train.written:,} tokens, {block_size + 1:,} are needed: give more text or a smaller --block-size"
        )
    chosen = {"train": ~validation, "val": validation}
    splits = {
        name: Split(
            file=f"{name}.bin",
            tokens=written[name].written,
            documents=int(chosen[name].sum()),
            text_bytes=int(sizes[chosen[name]].sum()),
            sha256=written[name].sha256,
        )
        for name in SPLITS
    }
    manifest = _manifest("contiguous", "plain", dtype, tokenizer, block_size, text_sha256, splits)
    tokens = train.written + val.written
    report = PackReport(
        samples=len(documents),
        fitting=1.0,
        truncated=0,
        longest=longest,
        waste=0.0,
        bytes_per_token=float(sizes.sum()) / max(1, tokens - 2 * len(documents)),
        counted_share=1.0,
    )
    return manifest, report


def _with_ends(
    ids: npt.NDArray[np.uint32], lengths: npt.NDArray[np.int64], tokenizer: Tokenizer, dtype: str
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The stream with [BOS] before and [EOS] after each document, and each document's length in it."""
    with_ends = lengths + 2
    stream = np.empty(int(with_ends.sum()), dtype=dtype)
    last = np.cumsum(with_ends) - 1
    is_text = np.ones(len(stream), dtype=np.bool_)
    is_text[last] = is_text[last - with_ends + 1] = False
    stream[last - with_ends + 1] = tokenizer.bos_id
    stream[last] = tokenizer.eos_id
    stream[is_text] = ids
    return stream, with_ends


def _manifest(
    layout: Literal["rows", "contiguous"],
    template: str,
    dtype: Literal["uint16", "uint32"],
    tokenizer: Tokenizer,
    block_size: int,
    text_sha256: str,
    splits: Mapping[Literal["train", "val"], Split],
) -> Manifest:
    return Manifest(
        layout=layout,
        dtype=dtype,
        vocab_size=tokenizer.vocab_size,
        block_size=block_size,
        pad_id=tokenizer.pad_id,
        template=template,
        text_sha256=text_sha256,
        tokenizer_sha256=tokenizer.sha256,
        train=splits["train"],
        val=splits["val"],
    )


def read_samples(path: Path, advance: Callable[[int], None] = lambda size: None) -> Iterator[Sample]:
    """The lines of samples.jsonl; advance gets the bytes of each. Raises TwinGPTError if it is missing or damaged."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    sample = Sample.from_json(line)
                except TwinGPTError as error:
                    raise TwinGPTError(
                        f"{path} line {number}: {error}; make it again with `twingpt data samples`"
                    ) from None
                advance(len(line.encode()))
                yield sample
    except FileNotFoundError:
        raise TwinGPTError(f"{path} does not exist: make it with `twingpt data samples`") from None
    except UnicodeDecodeError:
        raise TwinGPTError(f"{path} is not UTF-8: make it again with `twingpt data samples`") from None


class _Spool:
    """All samples of one split, one after another on disk, with what is needed to put them into rows."""

    def __init__(self, folder: Path, name: str, dtype: str, masked: bool) -> None:
        self.ids = _Writer(folder / f"{name}.ids")
        self.counted = _Writer(folder / f"{name}.counted") if masked else None
        self._paths = (folder / f"{name}.ids", folder / f"{name}.counted")
        self._dtype = np.dtype(dtype)
        self._lengths = array("i")
        self._document: int | None = None
        self.documents = 0
        self.text_bytes = 0

    def add(self, document: int, ids: npt.NDArray[Any], counted: npt.NDArray[np.uint8] | None, size: int) -> None:
        """size: UTF-8 bytes of the text behind the ids."""
        self.ids.write(ids.astype(self._dtype))
        if self.counted is not None and counted is not None:
            self.counted.write(counted)
        self._lengths.append(len(ids))
        # The samples of a document stand together.
        self.documents += document != self._document
        self._document = document
        self.text_bytes += size

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each sample, int32 [samples]."""
        return np.array(self._lengths, dtype=np.int32)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in (self.ids, self.counted):
            if writer is not None:
                writer.__exit__(kind, error, trace)

    def open(self, stack: contextlib.ExitStack) -> tuple[Table, Table | None]:
        """The ids and the flags, one a row."""
        ids = Table(stack.enter_context(self._paths[0].open("rb")), self._dtype)
        return ids, None if self.counted is None else Table(stack.enter_context(self._paths[1].open("rb")), np.uint8)

    def remove(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)


def pack_samples(
    samples: Path,
    tokenizer: Tokenizer,
    out: Path,
    *,
    block_size: int,
    mask_prompt: bool,
    allow_long: bool,
    text_sha256: str,
    advance: Callable[[int], None] = lambda size: None,
) -> tuple[Manifest, PackReport]:
    """Layout "rows": rows of block_size + 1 tokens, each of whole samples from [BOS] to [EOS], the rest [PAD].

    A sample longer than a row is refused, or with allow_long cut off at the row's end: a row always starts at a [BOS],
    which a sample going on in the next row would break. mask_prompt also writes train.mask and val.mask.
    Raises TwinGPTError if there is no training sample, or one is too long.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    row = block_size + 1
    with contextlib.ExitStack() as stack:
        spools = {name: stack.enter_context(_Spool(out, name, dtype, mask_prompt)) for name in SPLITS}
        longest, truncated = _spool_samples(samples, tokenizer, spools, row, mask_prompt, allow_long, advance)
    if not len(spools["train"].lengths):
        raise TwinGPTError(f"{samples} holds no training sample: give more text, or a smaller --val-fraction")
    rows = {name: _write_rows(spools[name], out, name, row, tokenizer.pad_id) for name in SPLITS}
    files = {name: written.split for name, written in rows.items()}
    manifest = _manifest("rows", "qa", dtype, tokenizer, block_size, text_sha256, files)
    count = sum(len(spool.lengths) for spool in spools.values())
    used = sum(int(spool.lengths.sum()) for spool in spools.values())
    written = manifest.train.tokens + manifest.val.tokens
    marks = sum(written.marks for written in rows.values())
    report = PackReport(
        samples=count,
        fitting=1 - truncated / count,
        truncated=truncated,
        longest=longest,
        waste=1 - used / written,
        bytes_per_token=sum(spool.text_bytes for spool in spools.values()) / max(1, used - marks),
        counted_share=sum(written.counted for written in rows.values()) / used if mask_prompt else 1.0,
    )
    return manifest, report


def _spool_samples(
    samples: Path,
    tokenizer: Tokenizer,
    spools: Mapping[Literal["train", "val"], _Spool],
    row: int,
    flags: bool,
    allow_long: bool,
    advance: Callable[[int], None],
) -> tuple[int, int]:
    """Every sample into the spool of its split; the length of the longest, and how many were cut to the row."""
    sizes = tokenizer.token_bytes()
    longest = truncated = 0
    for batch in _batches(read_samples(samples, advance), BATCH_SAMPLES):
        for sample, (ids, counted) in zip(batch, encode_samples(batch, tokenizer, flags), strict=True):
            longest = max(longest, len(ids))
            if len(ids) > row:
                if not allow_long:
                    raise TwinGPTError(
                        f"{samples}: sample {sample.id} has {len(ids)} tokens, block_size {row - 1} holds {row}: "
                        f"make the samples again with --block-size {row - 1}, or cut such samples with --allow-long"
                    )
                truncated += 1
                ids, counted = ids[:row], None if counted is None else counted[:row]
            spools[sample.split].add(sample.document, ids, counted, int(sizes[ids].sum()))
    return longest, truncated


def _batches(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def encode_samples(
    samples: Sequence[Sample], tokenizer: Tokenizer, flags: bool
) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint8] | None]]:
    """The ids of each sample and, with flags, one byte a token: 1 = counted. Their fields are encoded in one call."""
    layouts: list[list[Segment]] = [sample_segments(sample) for sample in samples]
    texts = iter(tokenizer.encode_batch([one.text for layout in layouts for one in layout if not one.mark]))
    marks = {one.text for layout in layouts for one in layout if one.mark}
    ids_of = {mark: np.asarray([tokenizer.id(mark)], dtype=np.uint32) for mark in marks}
    for layout in layouts:
        parts = [ids_of[one.text] if one.mark else next(texts) for one in layout]
        ids = np.concatenate(parts)
        if not flags:
            yield ids, None
            continue
        yield ids, np.repeat(np.asarray([one.counted for one in layout], dtype=np.uint8), [len(part) for part in parts])


def best_fit(lengths: npt.NDArray[np.int32], row: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows by best-fit decreasing: each sample, longest first, into the fullest row that it fits.

    lengths: int32 [samples], tokens. Returns the numbers of the samples, int64 [samples], one row's after another's,
    and how many each row holds, int64 [rows]. Rows come in the order of their first sample and hold their samples in
    order. Raises ValueError for a length above the row's. Memory: about 40 bytes a sample.
    """
    if len(lengths) and lengths.max() > row:
        raise ValueError(f"a sample of {lengths.max()} tokens does not fit a row of {row}")
    # The rows with f free tokens are a stack: `top[f]` is the last one put there, `below[number]` the one before it.
    top, below = array("q", [-1]) * (row + 1), array("q")
    available = 0  # bit f set: some row has f free tokens
    row_of = np.empty(len(lengths), dtype=np.int64)
    for index in np.argsort(-lengths, kind="stable"):
        length = int(lengths[index])
        fits = available >> length
        if fits:
            free = length + (fits & -fits).bit_length() - 1
            number = top[free]
            top[free] = below[number]
            if top[free] == -1:
                available &= ~(1 << free)
        else:
            free, number = row, len(below)
            below.append(-1)
        row_of[index] = number
        if free > length:
            below[number] = top[free - length]
            top[free - length] = number
            available |= 1 << (free - length)
    _, first, counts = np.unique(row_of, return_index=True, return_counts=True)
    order = np.argsort(first)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return np.argsort(rank[row_of], kind="stable"), counts[order]


@dataclass(frozen=True)
class _Rows:
    """marks: special tokens in the samples. counted: tokens whose flag is set."""

    split: Split
    marks: int
    counted: int


def _write_rows(spool: _Spool, out: Path, name: str, row: int, pad_id: int) -> _Rows:
    """NAME.bin and, if the spool has flags, NAME.mask."""
    lengths = spool.lengths
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    members, counts = best_fit(lengths, row)
    ends = np.cumsum(counts)
    marks = flagged = 0
    with contextlib.ExitStack() as stack:
        ids, counted = spool.open(stack)
        writer = stack.enter_context(_Writer(out / f"{name}.bin"))
        mask_writer = None if counted is None else stack.enter_context(_Writer(out / f"{name}.mask"))
        for first in range(0, len(counts), _ROWS_AT_A_TIME):
            last = min(first + _ROWS_AT_A_TIME, len(counts))
            block = np.full((last - first, row), pad_id, dtype=ids.dtype)
            flags = np.zeros((last - first, row), dtype=np.uint8)
            for line in range(first, last):
                at = 0
                for member in members[ends[line] - counts[line] : ends[line]]:
                    begin, end = int(starts[member]), int(starts[member + 1])
                    block[line - first, at : at + end - begin] = ids.rows(begin, end)[:, 0]
                    if counted is not None:
                        flags[line - first, at : at + end - begin] = counted.rows(begin, end)[:, 0]
                    at += end - begin
            marks += int(np.count_nonzero((block > pad_id) & (block < _MARKS)))
            flagged += int(flags.sum())
            writer.write(block)
            if mask_writer is not None:
                mask_writer.write(flags)
    spool.remove()
    split = Split(
        file=f"{name}.bin",
        tokens=writer.written,
        documents=spool.documents,
        text_bytes=spool.text_bytes,
        sha256=writer.sha256,
        mask_file=None if mask_writer is None else f"{name}.mask",
        mask_sha256=None if mask_writer is None else mask_writer.sha256,
    )
    return _Rows(split, marks, flagged)
