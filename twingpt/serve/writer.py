"""From the tokens of one answer to its text: whole characters, stop sequences, log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Logprobs


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the model's own log-probabilities at its place."""

    token: int
    logprobs: Logprobs


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is safe to show, and the tokens read since the last piece."""

    text: str
    logprobs: tuple[TokenLogprob, ...]


class AnswerWriter:
    """Collects one answer. Text that may be the start of a stop sequence is held back until it is clear."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream()
        self._stops = tuple(stops)
        self._held = ""
        self._logprobs: list[TokenLogprob] = []
        self.stopped = False
        """A stop sequence came: it and what follows are left out."""

    def push(self, token: int, logprobs: Logprobs | None) -> Piece | None:
        """What can be shown now, if anything."""
        if logprobs is not None:
            self._logprobs.append(TokenLogprob(token, logprobs))
        return self._piece(self._decoder.push(token), final=False)

    def finish(self) -> Piece | None:
        """What is left at the end."""
        return None if self.stopped else self._piece(self._decoder.flush(), final=True)

    def _piece(self, text: str, *, final: bool) -> Piece | None:
        self._held += text
        found = min((at for stop in self._stops if (at := self._held.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped = True
            shown = self._held[:found]
        else:
            shown = self._held if final else self._held[: len(self._held) - self._undecided()]
        self._held = self._held[len(shown) :]
        if not shown and not ((final or self.stopped) and self._logprobs):
            return None
        piece = Piece(shown, tuple(self._logprobs))
        self._logprobs = []
        return piece

    def _undecided(self) -> int:
        """Length of the longest end of the held text that some stop sequence begins with."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
