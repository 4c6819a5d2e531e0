"""From the tokens of one text to what can be shown: whole characters, contacts, stop sequences, log-probabilities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Logprobs


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the model's own log-probabilities at its place, which is `offset` characters into the text.

    logprobs: None for the first token of a prompt, before which the model has read nothing.
    """

    token: int
    logprobs: Logprobs | None
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is safe to show, and the tokens read since the last piece."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


class TextWriter:
    """Collects one text. What may be the start of a stop sequence or of a placeholder is held back until it is clear.

    stops: texts that end it. contacts: placeholder -> the value that is written in its place.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), contacts: Mapping[str, str] = {}) -> None:
        self._decoder = tokenizer.stream()
        self._stops = tuple(stops)
        self._contacts = contacts
        self._placeholder = ""
        self._held = ""
        self._logprobs: list[TokenLogprob] = []
        self._decoded = 0
        self.stopped = False
        """A stop sequence came: it and what follows are left out."""

    def push(self, token: int, logprobs: Logprobs | None = None) -> Piece | None:
        """What can be shown now, if anything."""
        if logprobs is not None:
            self._logprobs.append(TokenLogprob(token, logprobs, self._decoded))
        text = self._decoder.push(token)
        self._decoded += len(text)
        return self._piece(text, final=False)

    def end(self, token: int, logprobs: Logprobs) -> None:
        """Note the stop token, which is no part of the text, among the log-probabilities."""
        self._logprobs.append(TokenLogprob(token, logprobs, self._decoded))

    def finish(self) -> Piece | None:
        """What is left at the end."""
        return None if self.stopped else self._piece(self._decoder.flush(), final=True)

    def _piece(self, text: str, *, final: bool) -> Piece | None:
        self._held += self._with_contacts(text, final=final)
        found = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            shown = self._held[:found]
        else:
            shown = self._held if final else self._held[: len(self._held) - _undecided(self._held, self._stops)]
        self._held = self._held[len(shown) :]
        if not shown and not ((final or self.stopped) and self._logprobs):
            return None
        piece = Piece(shown, tuple(self._logprobs))
        self._logprobs = []
        return piece

    def _with_contacts(self, text: str, *, final: bool) -> str:
        text = self._placeholder + text
        for placeholder, value in self._contacts.items():
            text = text.replace(placeholder, value)
        waiting = 0 if final else _undecided(text, self._contacts)
        self._placeholder = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def _undecided(text: str, awaited: Sequence[str] | Mapping[str, str]) -> int:
    """Length of the longest end of the text that something awaited begins with."""
    longest = 0
    for one in awaited:
        for length in range(min(len(one) - 1, len(text)), longest, -1):
            if text.endswith(one[:length]):
                longest = length
                break
    return longest
