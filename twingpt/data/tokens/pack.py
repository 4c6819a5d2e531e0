"""Tokens into train.bin and val.bin: samples in rows by best fit, or documents in one stream."""

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.text.corpus import Documents, Table
from twingpt.data.text.hold_out import HeldOut
from twingpt.data.tokens.manifest import Manifest, Split
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.template import Sample, Segment, sample_segments
from twingpt.data.tokens.tokenizer import Tokenizer

BATCH_BYTES = 4 << 20
BATCH_SAMPLES = 4096
_ROWS_AT_A_TIME = 4096

_MARKS = len(SPECIAL_TOKENS)
# What stood between two parts of a document of plain text.
_BETWEEN = "\n\n"
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
    held_out: HeldOut,
    tokenizer: Tokenizer,
    out: Path,
    *,
    block_size: int,
    text_sha256: str,
    advance: Callable[[int], None] = lambda size: None,
) -> tuple[Manifest, PackReport]:
    """Layout "contiguous": [BOS] document [EOS] after each other, in the order of the text.

    A stretch that is held out of a document leaves no mark where it stood. Raises TwinGPTError if the training part
    holds no window of block_size + 1 tokens.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    sizes, counted = documents.sizes(), _Counted()
    with _Writer(out / "train.bin") as train, _Writer(out / "val.bin") as val:
        for batch in documents.batches(BATCH_BYTES):
            pieces = list(_pieces(documents, batch, held_out))
            ids, lengths = tokenizer.encode_flat([piece.text for piece in pieces])
            stream, ends = _with_marks(ids, lengths, pieces, tokenizer, dtype)
            held = np.asarray([piece.held_out for piece in pieces])
            for writer, wanted in ((train, ~held), (val, held)):
                writer.write(stream if wanted.all() else stream[np.repeat(wanted, ends)])
            counted.add(pieces, ends)
            advance(int(sizes[batch.start : batch.stop].sum()))
        written = {"train": train, "val": val}
    if train.written <= block_size:
        raise TwinGPTError(
            tr(
                "block_size {block_size} is longer than the data: the training part of {path} has "
                "{tokens:,} tokens, {needed:,} are needed: give more text or a smaller --block-size",
                block_size=block_size,
                path=documents.path,
                tokens=train.written,
                needed=block_size + 1,
            )
        )
    splits = {
        name: Split(
            file=f"{name}.bin",
            tokens=written[name].written,
            documents=counted.documents[name],
            text_bytes=counted.bytes[name],
            sha256=written[name].sha256,
        )
        for name in SPLITS
    }
    manifest = _manifest("contiguous", "plain", dtype, tokenizer, block_size, text_sha256, splits)
    tokens = train.written + val.written
    report = PackReport(
        samples=counted.number,
        fitting=1.0,
        truncated=0,
        longest=counted.longest,
        waste=0.0,
        bytes_per_token=sum(counted.bytes.values()) / max(1, tokens - 2 * counted.number),
        counted_share=1.0,
    )
    return manifest, report


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of a document, or what of it lies on one side of the split. begins, ends: whether the document does."""

    text: str
    begins: bool
    ends: bool
    held_out: bool


def _pieces(documents: Documents, batch: range, held_out: HeldOut) -> Iterator[_Piece]:
    """The text of some parts, with the blank line that stood before a part where its document goes on with it."""
    begins = documents.begins
    for part in batch:
        text = documents[part]
        first, last = bool(begins[part]), part + 1 == len(documents) or bool(begins[part + 1])
        offset = 0 if first else len(_BETWEEN)
        text = text if first else _BETWEEN + text
        cuts = [0, *(at + offset for held in held_out.within.get(part, ()) for at in held), len(text)]
        if cuts[1] == offset:
            cuts[1] = 0  # the blank line goes with what it stands before
        whole = bool(held_out.parts[part])
        found = [
            (start, end, whole != bool(number % 2)) for number, (start, end) in enumerate(pairwise(cuts)) if start < end
        ]
        for start, end, held in found:
            yield _Piece(text[start:end], first and start == 0, last and end == len(text), held)


class _Counted:
    """How many documents were packed, and what of them each side of the split got."""

    def __init__(self) -> None:
        self.number = self.longest = 0
        self.documents = dict.fromkeys(SPLITS, 0)
        self.bytes = dict.fromkeys(SPLITS, 0)
        self._tokens = 0
        self._sides: set[Literal["train", "val"]] = set()

    def add(self, pieces: Sequence[_Piece], tokens: npt.NDArray[np.int64]) -> None:
        """The pieces that come next, and how many tokens, marks included, each became."""
        for piece, size in zip(pieces, tokens.tolist(), strict=True):
            side: Literal["train", "val"] = "val" if piece.held_out else "train"
            self.bytes[side] += len(piece.text.encode())
            self._tokens += size
            self._sides.add(side)
            if piece.ends:
                for one in self._sides:
                    self.documents[one] += 1
                self.number += 1
                self.longest = max(self.longest, self._tokens)
                self._tokens = 0
                self._sides.clear()


def _with_marks(
    ids: npt.NDArray[np.uint32],
    lengths: npt.NDArray[np.int64],
    pieces: Sequence[_Piece],
    tokenizer: Tokenizer,
    dtype: str,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The stream with [BOS] before and [EOS] after each document, and the length of each piece in it."""
    begins = np.asarray([piece.begins for piece in pieces])
    ends = np.asarray([piece.ends for piece in pieces])
    with_marks = lengths + begins + ends
    stream = np.empty(int(with_marks.sum()), dtype=dtype)
    after = np.cumsum(with_marks)
    bos, eos = (after - with_marks)[begins], (after - 1)[ends]
    is_text = np.ones(len(stream), dtype=np.bool_)
    is_text[bos] = is_text[eos] = False
    stream[bos], stream[eos] = tokenizer.bos_id, tokenizer.eos_id
    stream[is_text] = ids
    return stream, with_marks


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
                        tr(
                            "{path} line {number}: {error}; make it again with `twingpt data samples`",
                            path=path,
                            number=number,
                            error=error,
                        )
                    ) from None
                advance(len(line.encode()))
                yield sample
    except FileNotFoundError:
        raise TwinGPTError(tr("{path} does not exist: make it with `twingpt data samples`", path=path)) from None
    except UnicodeDecodeError:
        raise TwinGPTError(tr("{path} is not UTF-8: make it again with `twingpt data samples`", path=path)) from None


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
        raise TwinGPTError(
            tr("{samples} holds no training sample: give more text, or a smaller --val-fraction", samples=samples)
        )
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
                        tr(
                            "{samples}: sample {id} has {tokens} tokens, block_size {block_size} holds {room}: "
                            "make the samples again with --block-size {block_size}, or cut such samples with "
                            "--allow-long",
                            samples=samples,
                            id=sample.id,
                            tokens=len(ids),
                            block_size=row - 1,
                            room=row,
                        )
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
