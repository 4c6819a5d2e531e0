import numpy as np
import pytest

from tests.conftest import make_engine
from twingpt.core.backend import Backend
from twingpt.core.engines import compared
from twingpt.core.errors import UsageError
from twingpt.core.sampling import Sampling, sample
from twingpt.core.spec import GPTSpec
from twingpt.generation.batching import Batcher, Event, Request
from twingpt.generation.writing import stream_tokens


class Only:
    """Allows one set of tokens, and remembers what was chosen."""

    def __init__(self, vocab_size: int, tokens: set[int]) -> None:
        self.mask = np.isin(np.arange(vocab_size), list(tokens))
        self.pushed: list[int] = []

    def allowed(self) -> np.ndarray:
        return self.mask

    def push(self, token: int) -> None:
        self.pushed.append(token)


def drain(batcher: Batcher) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    while batcher:
        for event in batcher.step():
            found.setdefault(event.handle, []).append(event)
    return found


def texts(batcher: Batcher) -> dict[int, list[int]]:
    return {h: [e.token for e in events if e.token is not None] for h, events in drain(batcher).items()}


def test_side_by_side_every_text_is_what_it_is_alone(engine: Backend, spec: GPTSpec) -> None:
    """More prompts than slots, of unequal lengths, all sliding past block_size at different times."""
    prompts = [[1, 2, 3], [7] * (spec.block_size + 9), [9, 8], list(range(20)), [4]]
    settings = [Sampling(temperature=1.0, seed=n, repetition_penalty=1.0 + 0.1 * n) for n in range(len(prompts))]
    numbers = [60, 45, 7, 50, 33]
    batcher = Batcher(engine, slots=3)
    handles = [batcher.add(Request(p, s, n)) for p, s, n in zip(prompts, settings, numbers, strict=True)]
    together = texts(batcher)
    for handle, prompt, sampling, number in zip(handles, prompts, settings, numbers, strict=True):
        assert together[handle] == list(stream_tokens(engine, Request(prompt, sampling, number)))
        assert len(together[handle]) == number


def test_sliding_keeps_the_newer_half_of_the_window(engine: Backend, spec: GPTSpec) -> None:
    """Against a plain loop without a cache that drops the older half whenever the window is full."""
    sampling = Sampling(temperature=1.0, seed=5, repetition_penalty=1.3)
    tokens = list(stream_tokens(engine, Request([5, 6, 7], sampling, 3 * spec.block_size)))
    seen, window = [5, 6, 7], [5, 6, 7]
    for token in tokens:
        logits = engine.logits(np.array([window], dtype=np.int32))[0, -1]
        assert sample(logits, sampling, len(seen), np.array(seen)) == token
        seen.append(token)
        window = [*window, token] if len(window) < spec.block_size else [*window[-(spec.block_size // 2) :], token]


def test_both_engines_write_the_same_batch(spec: GPTSpec) -> None:
    found = []
    for name in compared():
        batcher = Batcher(make_engine(name, spec), slots=2)
        for seed in range(4):
            batcher.add(Request([seed + 1, 2], Sampling(seed=seed), 20))
        found.append(texts(batcher))
    assert found[0] == found[1]


def test_a_slot_that_comes_free_takes_the_next_prompt(engine: Backend) -> None:
    batcher = Batcher(engine, slots=2)
    greedy = Sampling(temperature=0.0)
    first, second, third = (batcher.add(Request([n + 1], greedy, number)) for n, number in enumerate((1, 5, 2)))
    assert [e.handle for e in batcher.step()] == [first, second]
    assert (batcher.live, batcher.waiting) == (1, 1)
    assert [e.handle for e in batcher.step()] == [second, third]
    batcher.remove(second)
    batcher.remove(first)  # it has ended: nothing happens
    assert [(e.handle, e.finish_reason) for e in batcher.step()] == [(third, "length")]
    assert not batcher
    assert batcher.step() == []
    # The slots freed on either way serve again, and remember nothing.
    again = batcher.add(Request([3], greedy, 2))
    assert texts(batcher)[again] == list(stream_tokens(engine, Request([3], greedy, 2)))


def test_a_waiting_prompt_can_be_removed(engine: Backend) -> None:
    batcher = Batcher(engine, slots=1)
    first, second = batcher.add(Request([1], Sampling(), 3)), batcher.add(Request([2], Sampling(), 3))
    batcher.remove(second)
    assert set(drain(batcher)) == {first}


def test_the_stop_token_ends_a_text_and_is_left_out(engine: Backend) -> None:
    greedy = Sampling(temperature=0.0)
    tokens = list(stream_tokens(engine, Request([1, 2, 3], greedy, 20)))
    batcher = Batcher(engine, slots=1)
    handle = batcher.add(Request([1, 2, 3], greedy, 20, frozenset({tokens[4]})))
    events = drain(batcher)[handle]
    assert [e.token for e in events] == [*tokens[: tokens.index(tokens[4])], None]
    assert [e.finish_reason for e in events] == [None] * (len(events) - 1) + ["stop"]


def test_a_constraint_masks_and_hears_the_choice(engine: Backend, spec: GPTSpec) -> None:
    only = Only(spec.vocab_size, {50, 60, 70})
    batcher = Batcher(engine, slots=2)
    bound = batcher.add(Request([1], Sampling(temperature=2.0, seed=4), 12, frozenset({70}), only))
    free = batcher.add(Request([1], Sampling(temperature=2.0, seed=4), 12))
    found = texts(batcher)
    assert found[bound] == only.pushed
    assert set(found[bound]) <= {50, 60}
    assert not set(found[free]) <= {50, 60, 70}


def test_a_text_that_cannot_go_on_ends_and_the_others_go_on(engine: Backend, spec: GPTSpec) -> None:
    batcher = Batcher(engine)
    stuck = batcher.add(Request([1], Sampling(), 9, frozenset(), Only(spec.vocab_size, set())))
    free = batcher.add(Request([1], Sampling(), 9))
    events = drain(batcher)
    assert [(event.token, event.finish_reason) for event in events[stuck]] == [(None, "length")]
    assert len(events[free]) == 9


def test_logprobs_are_the_models_own(engine: Backend) -> None:
    batcher = Batcher(engine, slots=1)
    handle = batcher.add(Request([1, 2], Sampling(temperature=0.3, top_k=1), 1, top_logprobs=3))
    (event,) = drain(batcher)[handle]
    logits = engine.logits(np.array([[1, 2]], dtype=np.int32))[0, -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert event.logprobs is not None
    assert event.token == event.logprobs.top[0][0] == int(logits.argmax())
    np.testing.assert_allclose([p for _, p in event.logprobs.top], np.sort(expected)[::-1][:3], atol=1e-5)
    assert event.logprobs.chosen == event.logprobs.top[0][1]


def test_a_prompt_that_cannot_be_read_is_refused(engine: Backend, spec: GPTSpec) -> None:
    batcher = Batcher(engine, slots=1)
    for prompt, number in (([], 1), ([1], 0), ([spec.vocab_size], 1), ([-1], 1)):
        with pytest.raises(UsageError):
            batcher.add(Request(prompt, Sampling(), number))
    with pytest.raises(UsageError, match="0 slots"):
        Batcher(engine, slots=0)
