"""Which tokens a grammar lets follow, by llguidance, for this project's tokenizer."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from twingpt.core.errors import GrammarError
from twingpt.core.language import tr
from twingpt.data.tokens.marks import END_ANSWER, SPECIAL_TOKENS
from twingpt.data.tokens.tokenizer import Tokenizer

# What it says of a mistake goes into an error of ours, in one line, and not to standard error.
_QUIET = 0
UNFORCED = '\n%llguidance {"no_forcing": true}'
"""The last line of a grammar whose fixed texts may be cut into tokens in any way.

Otherwise llguidance works out all that is fixed at every token, which can take seconds.
"""
_LONGEST_REASON = 300
_LIMITS = LLParserLimits(verbose_errors=False)


class _Given:
    """The tokenizer in the form that llguidance takes one of any kind.

    Its own reader of tokenizer.json would make special tokens from text that looks like them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokens = [tokenizer.token_text(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = list(range(len(SPECIAL_TOKENS)))
        self.eos_token_id = tokenizer.id(END_ANSWER)
        self.bos_token_id = tokenizer.bos_id
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode())


@lru_cache(maxsize=1)
def _vocabulary(tokenizer: Tokenizer) -> LLTokenizer:
    """About 10 microseconds a token to make."""
    return LLTokenizer(TokenizerWrapper(_Given(tokenizer)))


class Matcher:
    """One text under a grammar while it is written.

    Special tokens never come, except [/ANSWER], which stands for every token that ends a text: it comes where the text
    is complete.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, end: int) -> None:
        self._matcher, self._vocab_size, self._end = matcher, vocab_size, end

    @classmethod
    def of(cls, tokenizer: Tokenizer, grammar: str) -> "Matcher":
        """At the start of a text. grammar: in Lark's syntax, or as llguidance writes one of a schema or regex.

        Raises GrammarError if it cannot be used.
        """
        matcher = new_matcher(_vocabulary(tokenizer), grammar)
        return cls(matcher, tokenizer.vocab_size, tokenizer.id(END_ANSWER))

    def copy(self) -> "Matcher":
        """Where this one stands, to go on by itself."""
        return Matcher(self._matcher.deep_copy(), self._vocab_size, self._end)

    def mask(self) -> NDArray[np.bool_]:
        """bool [V]: which tokens may come next, in a new array.

        Raises GrammarError where the grammar is too complex.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        check(self._matcher)
        mask = np.unpackbits(bits, bitorder="little", count=self._vocab_size).view(np.bool_)
        # A grammar can name special tokens by their numbers.
        mask[: len(SPECIAL_TOKENS)] = False
        mask[self._end] = self._matcher.is_accepting()
        return mask

    def push(self, token: int) -> None:
        """Raises GrammarError if the token may not stand here."""
        self._matcher.consume_token(token)
        check(self._matcher)


def new_matcher(tokens: LLTokenizer, grammar: str) -> LLMatcher:
    """llguidance's own matcher over a vocabulary of its own. Raises GrammarError if the grammar cannot be used."""
    matcher = LLMatcher(tokens, grammar, log_level=_QUIET, limits=_LIMITS)
    check(matcher)
    return matcher


def check(matcher: LLMatcher) -> None:
    """Raises GrammarError if llguidance, which raises nothing itself, met a mistake."""
    if matcher.is_error():
        raise GrammarError(_one_line(matcher.get_error()))


def _one_line(message: str) -> str:
    """What llguidance says of a mistake: its first line, and the reason that it may give further below."""
    first, *others = message.strip().splitlines() or [tr("no reason was given")]
    if "Too many items" in first or "max is" in first:
        return tr("it is too complex")
    first = first.split("failed to compile JSON schema: ")[-1]
    reasons = [line.removeprefix("error: ") for line in others if line.startswith("error: ")]
    return " ".join([first.strip(), *reasons[:1]])[:_LONGEST_REASON]


def only(tokens: Sequence[int], vocab_size: int) -> NDArray[np.bool_]:
    """bool [V]: these tokens and no other."""
    mask = np.zeros(vocab_size, dtype=np.bool_)
    mask[list(tokens)] = True
    return mask


class ByteTokens:
    """The tokens of single bytes: a text can be cut anywhere with them."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.encode
        texts = ((token, tokenizer.token_text(token)) for token in range(len(SPECIAL_TOKENS), tokenizer.vocab_size))
        self.single = {text[0]: token for token, text in reversed(list(texts)) if len(text) == 1}
        self.within_a_character = only([self.single[byte] for byte in range(0x80, 0xC0)], tokenizer.vocab_size)
        """bool [V]: the tokens of a byte that goes on with a character."""

    def encode(self, text: bytes) -> list[int]:
        """Tokens for bytes that may begin within a character: its rest goes byte by byte."""
        cut = next((i for i, byte in enumerate(text) if byte & 0xC0 != 0x80), len(text))
        try:
            return [self.single[byte] for byte in text[:cut]] + self._encode(text[cut:].decode())
        except UnicodeDecodeError:
            # Only a grammar that allows invalid UTF-8 on purpose comes here.
            return [self.single[byte] for byte in text]
