"""What is in a DATA folder: samples as the model reads them, token counts, the longest tokens, Hangul coverage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.tokens.manifest import Manifest, Split
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.tokenizer import Tokenizer

_HANGUL_FIRST, _HANGUL_LAST = 0xAC00, 0xD7A3


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """rows: decoded, special tokens by name. everyday_syllables: of the 2,350 of KS X 1001, those that are one token.

    share_of_syllables_whole: of the Hangul syllables in the text, the share whose bytes no token border cuts.
    """

    samples: list[str]
    splits: dict[str, dict[str, Any]]
    vocab_size: int
    unused_tokens: int
    longest_tokens: list[dict[str, Any]]
    most_frequent_tokens: list[dict[str, Any]]
    everyday_syllables: int
    everyday_syllables_of: int
    distinct_syllables_in_text: int
    share_of_syllables_whole: float


def inspect_data(folder: Path, *, samples: int = 3, tokens: int = 20) -> Inspection:
    """Reads manifest, tokenizer and packed files. Raises TwinGPTError if they are missing or do not belong together."""
    manifest = Manifest.load(folder)
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise TwinGPTError(
            tr(
                "{folder}/tokenizer.json is not the one that the data were packed with: run `twingpt prepare`",
                folder=folder,
            )
        )
    arrays = {name: _load(folder, split, manifest.dtype) for name, split in _splits(manifest).items()}
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for array in arrays.values():
        for start in range(0, len(array), 1 << 22):
            counts += np.bincount(array[start : start + (1 << 22)], minlength=tokenizer.vocab_size)
    sizes = tokenizer.token_bytes()
    longest = np.lexsort((np.arange(len(sizes)), -sizes))[:tokens]
    text_counts = counts.copy()
    text_counts[: len(SPECIAL_TOKENS)] = 0
    frequent = np.lexsort((np.arange(len(sizes)), -text_counts))[:tokens]
    everyday = [c for c in map(chr, range(_HANGUL_FIRST, _HANGUL_LAST + 1)) if _in_ksx1001(c)]
    distinct, whole = _syllables(arrays["train"], tokenizer)
    return Inspection(
        samples=_rows(arrays["train"], manifest, tokenizer, samples),
        splits={name: _describe(split, arrays[name], manifest) for name, split in _splits(manifest).items()},
        vocab_size=tokenizer.vocab_size,
        unused_tokens=int(np.count_nonzero(counts == 0)),
        longest_tokens=[_token(tokenizer, int(token), counts) for token in longest],
        most_frequent_tokens=[_token(tokenizer, int(token), counts) for token in frequent],
        everyday_syllables=sum(tokenizer.count(c) == 1 for c in everyday),
        everyday_syllables_of=len(everyday),
        distinct_syllables_in_text=distinct,
        share_of_syllables_whole=whole,
    )


def _splits(manifest: Manifest) -> dict[str, Split]:
    return {"train": manifest.train, "val": manifest.val}


def _load(folder: Path, split: Split, dtype: str) -> npt.NDArray[Any]:
    path = folder / split.file
    try:
        array = np.fromfile(path, dtype=dtype) if split.tokens == 0 else np.memmap(path, dtype=dtype, mode="r")
    except (OSError, ValueError) as error:
        raise TwinGPTError(
            tr("{path} cannot be read ({error}): run `twingpt prepare` again", path=path, error=error)
        ) from None
    if len(array) != split.tokens:
        raise TwinGPTError(
            tr(
                "{path} holds {found:,} tokens, the manifest says {tokens:,}: run `twingpt prepare`",
                path=path,
                found=len(array),
                tokens=split.tokens,
            )
        )
    return array


def _in_ksx1001(character: str) -> bool:
    try:
        return len(character.encode("euc_kr")) == 2
    except UnicodeEncodeError:
        return False


def _describe(split: Split, array: npt.NDArray[Any], manifest: Manifest) -> dict[str, Any]:
    padding = int(np.count_nonzero(array == manifest.pad_id)) if manifest.layout == "rows" else 0
    special = int(np.count_nonzero(array < len(SPECIAL_TOKENS))) - padding
    text = split.tokens - padding - special
    return {
        "tokens": split.tokens,
        "text_tokens": text,
        "special_tokens": special,
        "padding": padding,
        "documents": split.documents,
        "bytes_per_token": split.text_bytes / text if text else 0.0,
    }


def _token(tokenizer: Tokenizer, token: int, counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    return {
        "id": token,
        "text": tokenizer.decode([token]),
        "bytes": len(tokenizer.token_text(token)),
        "count": int(counts[token]),
    }


def _rows(train: npt.NDArray[Any], manifest: Manifest, tokenizer: Tokenizer, number: int) -> list[str]:
    """The first samples of rows from the start, the middle and the end of the training part, [BOS] to [EOS]."""
    begins = np.flatnonzero(train == tokenizer.bos_id)
    if not len(begins):
        return []
    shown: list[str] = []
    for begin in begins[np.unique(np.linspace(0, len(begins) - 1, min(number, len(begins))).astype(np.int64))]:
        window = np.asarray(train[begin : begin + 4 * manifest.block_size])
        end = np.flatnonzero(window == tokenizer.eos_id)
        shown.append(tokenizer.decode(window[: int(end[0]) + 1] if len(end) else window))
    return shown


def _syllables(train: npt.NDArray[Any], tokenizer: Tokenizer, limit: int = 2_000_000) -> tuple[int, float]:
    """Distinct Hangul syllables in the first `limit` tokens, and the share of all of them that lie in one token."""
    part = np.asarray(train[:limit])
    text = tokenizer.decode(part, marks=False)
    total = _hangul(text)
    used, counts = np.unique(part, return_counts=True)
    inside = sum(
        int(number) * _hangul(tokenizer.token_text(int(token)).decode("utf-8", errors="ignore"))
        for token, number in zip(used, counts, strict=True)
        if token >= len(SPECIAL_TOKENS)
    )
    return len({c for c in text if "가" <= c <= "힣"}), inside / total if total else 0.0


def _hangul(text: str) -> int:
    return sum(1 for c in text if "가" <= c <= "힣")
