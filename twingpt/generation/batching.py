"""Several texts at once on one key-value cache: prompts join as slots come free, and each leaves when it is done."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import Backend
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.core.sampling import Sampling, sample

FinishReason = Literal["stop", "length"]


class Constraint(Protocol):
    """What one sequence may say next. It lives as long as its sequence and serves no other."""

    def allowed(self) -> NDArray[np.bool_] | None:
        """bool [V], or None for every token. Read before the next call, then stale.

        Where none is true the text cannot go on, and ends as if its tokens were used up.
        """

    def push(self, token: int) -> None:
        """The token that was chosen; the stop token is not told."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text to write.

    prompt: tokens to go on from. ends: tokens that end the text, and stops: texts that do, all of them left out.
    constraint: made for this request and no other. top_logprobs: events carry the log-probability of their token and of
    this many likeliest ones; None = neither. contacts: values to be written in place of the model's placeholders.
    text, question, doc: what was asked for, as it was given.
    """

    prompt: Sequence[int]
    sampling: Sampling
    max_new_tokens: int
    ends: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    top_logprobs: int | None = None
    stops: tuple[str, ...] = ()
    contacts: Mapping[str, str] = field(default_factory=dict)
    text: str | None = None
    question: str | None = None
    doc: str | None = None

    @property
    def sources(self) -> list[str]:
        """What the text may take its numbers from."""
        return [part for part in (self.text, self.question, self.doc) if part is not None]


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities, before temperature, filters and constraint.

    chosen: of the token that was sampled. top: the likeliest tokens, most likely first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Event:
    """One sequence's part of a step.

    token: None where it ended with a stop token, which is left out, or where nothing could follow. finish_reason: None
    while it goes on; "length" comes together with the last token, or where nothing could follow. end: the stop token.
    """

    handle: int
    token: int | None
    finish_reason: FinishReason | None
    logprobs: Logprobs | None = None
    end: int | None = None


@dataclass(slots=True)
class _Sequence:
    handle: int
    request: Request
    tokens: NDArray[np.int32]
    """The prompt and room for every new token, so that no token makes an array longer."""
    length: int
    context: int
    """How many of the last tokens the slot holds, or will once the newest is read."""
    slot: int = -1
    distinct: "_Distinct | None" = None

    @property
    def window(self) -> NDArray[np.int32]:
        return self.tokens[self.length - self.context : self.length]


@dataclass(slots=True)
class _Distinct:
    """Each token of a sequence once, for the repetition penalty; at most a vocabulary of them."""

    known: NDArray[np.bool_]
    ids: NDArray[np.int32]
    count: int = 0

    @classmethod
    def of(cls, prompt: NDArray[np.int32], vocab_size: int) -> "_Distinct":
        distinct = cls(np.zeros(vocab_size, dtype=np.bool_), np.empty(vocab_size, dtype=np.int32))
        for token in np.unique(prompt).tolist():
            distinct.add(token)
        return distinct

    def add(self, token: int) -> None:
        if not self.known[token]:
            self.known[token] = True
            self.ids[self.count] = token
            self.count += 1


@dataclass(slots=True)
class Batcher:
    """Texts written side by side, every one as if it were alone.

    `add` queues a prompt, `step` gives each live sequence one token, `remove` drops one early. A random number depends
    on the sequence's own seed and position only, so neighbours change a text no more than rounding does.

    Past block_size a sequence's window slides: the older half of its context is dropped and the rest read again, which
    costs one pass over half a block every half block. A prompt that is too long is cut at its start.

    slots: how many sequences are live at one time. The cache of slots x block_size tokens is allocated now.
    """

    backend: Backend
    slots: int = 8
    _cache: object = field(init=False, repr=False)
    _free: list[int] = field(init=False, repr=False)
    _waiting: deque[_Sequence] = field(init=False, repr=False, default_factory=deque)
    _live: list[_Sequence] = field(init=False, repr=False, default_factory=list)
    _next_handle: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise UsageError(tr("{slots} slots hold no sequence: use 1 or more", slots=self.slots))
        self._cache = self.backend.new_cache(self.slots, self.backend.spec.block_size)
        self._free = list(range(self.slots - 1, -1, -1))

    def __len__(self) -> int:
        """Sequences live or waiting."""
        return len(self._live) + len(self._waiting)

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: Request) -> int:
        """Queue a prompt and return its handle.

        Raises UsageError for an empty prompt, a token outside the vocabulary or max_new_tokens below 1.
        """
        prompt, max_new_tokens = request.prompt, request.max_new_tokens
        if not prompt:
            raise UsageError(tr("a prompt needs at least one token"))
        if max_new_tokens < 1:
            raise UsageError(tr("max_new_tokens {max_new_tokens}: it must be 1 or more", max_new_tokens=max_new_tokens))
        tokens = np.empty(len(prompt) + max_new_tokens, dtype=np.int32)
        tokens[: len(prompt)] = prompt
        given = tokens[: len(prompt)]
        vocab_size, block_size = self.backend.spec.vocab_size, self.backend.spec.block_size
        if not 0 <= int(given.min()) <= int(given.max()) < vocab_size:
            raise UsageError(
                tr("the prompt holds a token outside the vocabulary of {vocab_size}", vocab_size=vocab_size)
            )
        sequence = _Sequence(
            handle=self._next_handle,
            request=request,
            tokens=tokens,
            length=len(prompt),
            context=min(len(prompt), max(1, block_size - 1)),
            distinct=_Distinct.of(given, vocab_size) if request.sampling.repetition_penalty != 1.0 else None,
        )
        self._next_handle += 1
        self._waiting.append(sequence)
        return sequence.handle

    def step(self) -> list[Event]:
        """Take in waiting prompts, then one token for every live sequence, oldest first. Empty when none is left."""
        logits: dict[int, NDArray[np.float32]] = {}
        reading: list[_Sequence] = []
        for sequence in self._live:
            if sequence.context < self.backend.spec.block_size:
                sequence.context += 1
                reading.append(sequence)
            else:
                self.backend.free(self._cache, sequence.slot)
                sequence.context = min(self.backend.spec.block_size, self.backend.spec.block_size // 2 + 1)
                logits[sequence.handle] = self._prefill(sequence)
        if reading:
            newest = np.array([sequence.tokens[sequence.length - 1] for sequence in reading], dtype=np.int32)
            rows = self.backend.decode(self._cache, [sequence.slot for sequence in reading], newest)
            logits |= {sequence.handle: row for sequence, row in zip(reading, rows, strict=True)}
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            sequence.slot = self._free.pop()
            self._live.append(sequence)
            logits[sequence.handle] = self._prefill(sequence)
        events = [self._choose(sequence, logits[sequence.handle]) for sequence in self._live]
        for event in events:
            if event.finish_reason is not None:
                self.remove(event.handle)
        return events

    def remove(self, handle: int) -> None:
        """Drop a sequence and free its slot; nothing happens if it has ended already."""
        for sequence in self._live:
            if sequence.handle == handle:
                self._live.remove(sequence)
                self.backend.free(self._cache, sequence.slot)
                self._free.append(sequence.slot)
                return
        self._waiting = deque(sequence for sequence in self._waiting if sequence.handle != handle)

    def _prefill(self, sequence: _Sequence) -> NDArray[np.float32]:
        return self.backend.prefill(self._cache, sequence.slot, sequence.window)

    def _choose(self, sequence: _Sequence, logits: NDArray[np.float32]) -> Event:
        request = sequence.request
        allowed = request.constraint.allowed() if request.constraint is not None else None
        if allowed is not None and not allowed.any():
            return Event(sequence.handle, None, "length")
        seen = sequence.distinct.ids[: sequence.distinct.count] if sequence.distinct is not None else None
        token = sample(logits, request.sampling, sequence.length, seen, allowed)
        logprobs = _logprobs(logits, token, request.top_logprobs) if request.top_logprobs is not None else None
        if token in request.ends:
            return Event(sequence.handle, None, "stop", logprobs, end=token)
        sequence.tokens[sequence.length] = token
        sequence.length += 1
        if sequence.distinct is not None:
            sequence.distinct.add(token)
        if request.constraint is not None:
            request.constraint.push(token)
        ended = sequence.length == len(sequence.tokens)
        return Event(sequence.handle, token, "length" if ended else None, logprobs)


def prompt_logprobs(backend: Backend, tokens: Sequence[int], top: int) -> list[Logprobs | None]:
    """Of each token of a prompt, given those before it; None for the first, before which there is nothing.

    Raises UsageError for more tokens than the context holds, or one outside the vocabulary.
    """
    spec = backend.spec
    if not 0 < len(tokens) <= spec.block_size:
        raise UsageError(
            tr(
                "the prompt takes {tokens} tokens, the model's context is {block_size}",
                tokens=len(tokens),
                block_size=spec.block_size,
            )
        )
    if not 0 <= min(tokens) <= max(tokens) < spec.vocab_size:
        raise UsageError(
            tr("the prompt holds a token outside the vocabulary of {vocab_size}", vocab_size=spec.vocab_size)
        )
    rows = backend.logits(np.array([tokens], dtype=np.int32))[0]
    return [None, *(_logprobs(row, token, top) for row, token in zip(rows[:-1], tokens[1:], strict=True))]


def _logprobs(logits: NDArray[np.float32], token: int, top: int) -> Logprobs:
    scores = logits.astype(np.float64)
    peak = scores.max()
    scores -= peak + np.log(np.exp(scores - peak).sum())
    best: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    if top := min(top, scores.size):
        # Sorting a whole vocabulary for the few that are asked for would take longer than the model does.
        likely = np.flatnonzero(scores >= np.partition(scores, -top)[-top])
        best = likely[np.lexsort((likely, -scores[likely]))][:top]
    return Logprobs(float(scores[token]), tuple((int(i), float(scores[i])) for i in best))
