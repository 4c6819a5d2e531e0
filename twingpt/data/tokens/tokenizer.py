"""The byte-level BPE tokenizer: lossless for every text, special tokens never made from text.

`tokenizer.json` is the format of the `tokenizers` library, which is the reference. Two faster packages do
the heavy work where they are installed: `rustbpe` learns the merges, `gigatoken` encodes to the same ids.
"""

import codecs
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import os_reason, tr
from twingpt.data.tokens.marks import BOS, EOS, MIN_VOCAB_SIZE, PAD, SPECIAL_TOKENS
from twingpt.data.tokens.template import Segment

LEAST_CHOSEN, LARGEST_CHOSEN = 1_000, 16_000
ENOUGH_BYTES = 10_000_000
"""Of text, for the largest vocabulary that is chosen."""

Ids = npt.NDArray[np.uint32]
TrainEngine = Literal["auto", "rustbpe", "tokenizers"]


# ByteLevel's own pattern (`use_regex`), spelt out for rustbpe, which takes it as an argument.
BYTE_LEVEL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Characters after which the fast encoder is made anew; that takes about a tenth as long as encoding them.
_REMEMBERED_CHARACTERS = 1 << 25

# Takes every branch of the pattern; a fast encoder that disagrees with the reference on it is not used.
_PROBE = (
    "[BOS]여권을 잃어버렸을 때: I'll don't we've  2,500페소\t+63 917-555-0123\n\n  ㅋㅋㅋ [/ANSWER]　가나"
    "\u1100\u1161"
    "\x00\u200b\ufeff é e\u0301 ½ ① 👩‍👩‍👧 ☎️ https://a.b/c?d=1 \r\n끝 "
)


def _byte_symbols() -> list[str]:
    """ByteLevel's printable stand-in for each byte, as in GPT-2's `bytes_to_unicode`."""
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_SYMBOLS = _byte_symbols()
_BYTE_OF_SYMBOL = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


class TokenStream:
    """Text of tokens as they come: a character is shown once all of its bytes are there."""

    def __init__(self, token_texts: Sequence[bytes]) -> None:
        self._token_texts = token_texts
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._token_texts[token])

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never became whole, else nothing."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """Encodes ordinary text; special tokens come only from `encode_segments` and `id`."""

    def __init__(self, content: str, *, source: str = "", fast: bool = True) -> None:
        """content: the text of a tokenizer.json; source: the file, for a refusal. Raises TwinGPTError if twingpt "
        "cannot use it."""
        import tokenizers

        try:
            self._reference = tokenizers.Tokenizer.from_str(content)
        # `tokenizers` raises a bare Exception for everything that is wrong with a file.
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise TwinGPTError(_refusal(source, tr("damaged: {reason}", reason=reason))) from None
        self._config: dict[str, Any] = json.loads(content)
        problem = _problem(self._config)
        if problem is not None:
            raise TwinGPTError(_refusal(source, problem))
        self._reference.encode_special_tokens = True
        self._content = content
        self._use_fast = fast
        self._remembered = 0
        vocabulary: dict[str, int] = self._config["model"]["vocab"]
        texts = [b""] * len(vocabulary)
        for symbols, token in vocabulary.items():
            special = token < len(SPECIAL_TOKENS)
            texts[token] = symbols.encode() if special else bytes(_BYTE_OF_SYMBOL[symbol] for symbol in symbols)
        self._texts = texts
        self._ids = {mark: token for token, mark in enumerate(SPECIAL_TOKENS)}

    @classmethod
    def load(cls, path: Path | str, *, fast: bool = True) -> "Tokenizer":
        """Read a tokenizer.json. Raises TwinGPTError if it is missing, damaged or not one of twingpt's."""
        path = Path(path)
        if path.exists() and not path.is_file():
            raise TwinGPTError(tr("{path} is no file: name a tokenizer.json", path=path))
        try:
            content = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise TwinGPTError(tr("{path} does not exist: make it with `twingpt prepare`", path=path)) from None
        except UnicodeDecodeError:
            raise TwinGPTError(_refusal(str(path), tr("damaged: not UTF-8"))) from None
        except OSError as error:
            raise TwinGPTError(tr("{path} cannot be read: {reason}", path=path, reason=os_reason(error))) from None
        return cls(content, source=str(path), fast=fast)

    def save(self, path: Path | str) -> None:
        Path(path).write_bytes(self._content.encode())

    @property
    def content(self) -> str:
        """The text of tokenizer.json."""
        return self._content

    @cached_property
    def sha256(self) -> str:
        """Of tokenizer.json as saved."""
        return hashlib.sha256(self._content.encode()).hexdigest()

    @property
    def vocab_size(self) -> int:
        return len(self._texts)

    @property
    def pad_id(self) -> int:
        return self._ids[PAD]

    @property
    def bos_id(self) -> int:
        return self._ids[BOS]

    @property
    def eos_id(self) -> int:
        return self._ids[EOS]

    def id(self, mark: str) -> int:
        """The id of a special token. Raises KeyError for anything else."""
        return self._ids[mark]

    @property
    def engine(self) -> str:
        """The package that encodes: "gigatoken" or "tokenizers"."""
        return "tokenizers" if self._fast is None else "gigatoken"

    @cached_property
    def _fast(self) -> Any:
        """gigatoken's encoder; None where it is missing, refuses the file or disagrees with the reference."""
        if not self._use_fast:
            return None
        try:
            import gigatoken

            # Without added tokens, text that looks like a special token stays text.
            fast = gigatoken.Tokenizer.from_json(json.dumps({**self._config, "added_tokens": []}))
            agrees = fast.encode(_PROBE).tolist() == self._reference.encode(_PROBE, add_special_tokens=False).ids
        except Exception:  # whatever it is, the reference does the same work
            return None
        return fast if agrees else None

    def _remember(self, characters: int) -> None:
        """gigatoken remembers every word it has seen, a MB for each MB of new text: it is made anew now and then."""
        self._remembered += characters
        if self._remembered > _REMEMBERED_CHARACTERS:
            self.__dict__.pop("_fast", None)
            self._remembered = characters

    def encode(self, text: str) -> list[int]:
        """The ids of ordinary text. Raises TwinGPTError for a lone surrogate: no UTF-8 text holds one."""
        self._remember(len(text))
        try:
            if self._fast is not None:
                ids: list[int] = self._fast.encode(text.encode()).tolist()
                return ids
            return list(self._reference.encode(text, add_special_tokens=False).ids)
        except UnicodeEncodeError as error:
            raise TwinGPTError(
                tr("text holds a lone surrogate at character {start}: it is not UTF-8", start=error.start)
            ) from None

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, uint32."""
        ids, lengths = self.encode_flat(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def encode_flat(self, texts: Sequence[str]) -> tuple[Ids, npt.NDArray[np.int64]]:
        """The ids of all texts in a row, uint32 [sum of lengths], and their lengths, int64 [texts]."""
        if not texts:
            return np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64)
        self._remember(sum(map(len, texts)))
        if self._fast is not None:
            layout = self._fast.encode_batch(list(texts)).layout
            offsets = np.asarray(layout.offsets.data, dtype=np.int64)
            ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
            return ids, np.diff(offsets)
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.fromiter((len(one) for one in encoded), dtype=np.int64, count=len(encoded))
        flat = [np.asarray(one.ids, dtype=np.uint32) for one in encoded]
        return np.concatenate(flat), lengths

    def encode_segments(self, segments: Iterable[Segment]) -> tuple[list[int], list[bool]]:
        """The ids of a sample, and for each whether the loss counts it as a target under --mask-prompt."""
        ids: list[int] = []
        counted: list[bool] = []
        for segment in segments:
            new = [self._ids[segment.text]] if segment.mark else self.encode(segment.text)
            ids += new
            counted += [segment.counted] * len(new)
        return ids, counted

    def decode(self, ids: Iterable[int], *, marks: bool = True) -> str:
        """The text of ids; special tokens by name, or left out with marks=False.

        Bytes that are not UTF-8 give U+FFFD. Raises TwinGPTError for an id outside the vocabulary.
        """
        first = 0 if marks else len(SPECIAL_TOKENS)
        tokens = [int(token) for token in ids]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise TwinGPTError(
                tr(
                    "token ids run from {lowest} to {highest}, the vocabulary has {vocab_size}",
                    lowest=min(tokens),
                    highest=max(tokens),
                    vocab_size=self.vocab_size,
                )
            )
        return b"".join(self._texts[token] for token in tokens if token >= first).decode("utf-8", errors="replace")

    def count(self, text: str) -> int:
        """Tokens of ordinary text."""
        self._remember(len(text))
        if self._fast is not None:
            return len(self._fast.encode(text.encode()))
        return len(self.encode(text))

    def token_bytes(self) -> npt.NDArray[np.int32]:
        """int32 [vocab_size]: the UTF-8 bytes that each token stands for, 0 for special tokens."""
        lengths = np.fromiter((len(text) for text in self._texts), dtype=np.int32, count=self.vocab_size)
        lengths[: len(SPECIAL_TOKENS)] = 0
        return lengths

    def token_text(self, token: int) -> bytes:
        """The bytes that a token stands for; a special token's name."""
        return self._texts[token]

    def stream(self) -> TokenStream:
        return TokenStream(self._texts)


def _refusal(source: str, reason: str) -> str:
    return tr(
        "{source} is not a tokenizer that twingpt can use ({reason}): make one with `twingpt prepare`",
        source=source or tr("the tokenizer"),
        reason=reason,
    )


def _problem(config: dict[str, Any]) -> str | None:
    """Why this parsed tokenizer.json breaks what the package relies on, or None."""
    model, pre_tokenizer = config.get("model") or {}, config.get("pre_tokenizer") or {}
    vocabulary: dict[str, int] = model.get("vocab") or {}
    if model.get("type") != "BPE" or pre_tokenizer.get("type") != "ByteLevel":
        return tr("not a byte-level BPE, so it would lose blanks and newlines")
    if pre_tokenizer.get("add_prefix_space") or not pre_tokenizer.get("use_regex", True):
        return tr("its ByteLevel is set to other than add_prefix_space=false, use_regex=true")
    changed = [key for key in ("normalizer", "post_processor", "truncation", "padding") if config.get(key)]
    changed += [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if changed:
        return tr("it has a {changed}, which changes the text or the ids", changed=", ".join(changed))
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        return tr("damaged: its ids are not 0, 1, 2, ... without a gap")
    for token, mark in enumerate(SPECIAL_TOKENS):
        if vocabulary.get(mark) != token:
            return tr(
                "{mark} should have the id {token}, it has {found}",
                mark=mark,
                token=token,
                found=vocabulary.get(mark),
            )
    added = [(entry.get("id"), entry.get("content")) for entry in config.get("added_tokens") or []]
    if added != list(enumerate(SPECIAL_TOKENS)):
        return tr("its special tokens are other ones")
    if not all(symbol in vocabulary for symbol in BYTE_SYMBOLS):
        return tr("it lacks some of the 256 bytes, so it cannot write every text")
    if not all(
        _BYTE_OF_SYMBOL.keys() >= set(text) for text, token in vocabulary.items() if token >= len(SPECIAL_TOKENS)
    ):
        return tr("damaged: a token is not made of bytes")
    return None


def choose_vocab_size(text_bytes: int) -> int:
    """A vocabulary for a text of so many bytes, special tokens included: 16,000 from 10 MB on, in hundreds.

    It falls with the square root of the text, as the number of distinct words does (Heaps' law): of a small text most
    tokens of a large vocabulary would be seen too seldom to be learned.
    """
    share = min(1.0, math.sqrt(text_bytes / ENOUGH_BYTES))
    return max(LEAST_CHOSEN, round(LARGEST_CHOSEN * share / 100) * 100)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, engine: TrainEngine = "auto", or_fewer: bool = False
) -> Tokenizer:
    """Learn a byte-level BPE from documents. The same texts give the same bytes on any number of cores.

    engine "auto" is rustbpe where it is installed, else `tokenizers`; both follow one rule, and differ in
    which of equally frequent pairs they merge first. or_fewer: take what the text supports, if that is less.
    Raises UsageError for a vocabulary below 268, TwinGPTError if the text supports fewer tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise UsageError(
            tr(
                "--vocab-size {vocab_size} is too small: 256 bytes and {special_tokens} special tokens need {least}",
                vocab_size=vocab_size,
                special_tokens=len(SPECIAL_TOKENS),
                least=MIN_VOCAB_SIZE,
            )
        )
    if engine == "auto":
        engine = "rustbpe" if _importable("rustbpe") else "tokenizers"
    learn = _learn_with_rustbpe if engine == "rustbpe" else _learn_with_tokenizers
    tokenizer = Tokenizer(learn(iter(texts), vocab_size))
    if tokenizer.vocab_size < vocab_size and not or_fewer:
        raise TwinGPTError(
            tr(
                "the text supports a vocabulary of {vocab_size} tokens, not {vocab_size_2}: "
                "give --vocab-size {vocab_size} or less, or more text",
                vocab_size=tokenizer.vocab_size,
                vocab_size_2=vocab_size,
            )
        )
    return tokenizer


def _importable(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _learn_with_tokenizers(texts: Iterator[str], vocab_size: int) -> str:
    from tokenizers import Tokenizer as Reference
    from tokenizers import decoders, models, pre_tokenizers, trainers

    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(texts, trainer)
    return reference.to_str()


def _learn_with_rustbpe(texts: Iterator[str], vocab_size: int) -> str:
    import rustbpe  # type: ignore[import-untyped]
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Reference

    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(texts, vocab_size - len(SPECIAL_TOKENS), pattern=BYTE_LEVEL_PATTERN)
    ranked: list[bytes] = [bytes(token) for token, _ in learner.get_mergeable_ranks()]
    del learner
    ranks = {token: rank for rank, token in enumerate(ranked)}
    symbols = ["".join(BYTE_SYMBOLS[byte] for byte in token) for token in ranked]
    vocabulary = {text: token for token, text in enumerate([*SPECIAL_TOKENS, *symbols])}
    merges = []
    for rank in range(256, len(ranked)):
        left, right = _last_merge(ranked[rank], ranks)
        merges.append((symbols[ranks[left]], symbols[ranks[right]]))
    reference = Reference(models.BPE(vocab=vocabulary, merges=merges))
    reference.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in SPECIAL_TOKENS])
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    reference.decoder = decoders.ByteLevel()
    return reference.to_str()


def _last_merge(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The pair whose merge made the token: what the merges learned before it leave of its bytes.

    rustbpe gives tokens without their merges, `tokenizers` wants the merges.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        lowest = min(pairs)
        if lowest >= ranks[token]:
            break
        merged: list[bytes] = []
        i = 0
        while i < len(parts):
            if i < len(pairs) and pairs[i] == lowest:
                merged.append(parts[i] + parts[i + 1])
                i += 2
            else:
                merged.append(parts[i])
                i += 1
        parts = merged
    if len(parts) != 2:
        raise RuntimeError(f"rustbpe's token {token!r} is not a merge of two earlier ones")
    return parts[0], parts[1]
