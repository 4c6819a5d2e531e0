"""Prompts that are scored: echo with log-probabilities, prompts as tokens, and several at once."""

import json
import math
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from tests.serve.test_api import complete, events
from twingpt.generation.prompts import text_prompt
from twingpt.serve.service import Service

TEXT = "여권을 잃어버리면 경찰서에 신고합니다."


def own_logprobs(service: Service, tokens: list[int]) -> list[float]:
    """Of each token but the first, by the engine itself."""
    assert service.model.loaded is not None
    logits = service.model.loaded.engine.logits(np.array([tokens], dtype=np.int32))[0, :-1].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return [float(row[token]) for row, token in zip(logprobs, tokens[1:], strict=True)]


@pytest.fixture
def tokens(service: Service) -> list[int]:
    return text_prompt(service.tokenizer, TEXT)


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
def test_the_prompts_log_probabilities_are_the_engines_own(
    client: TestClient, service: Service, tokens: list[int], max_tokens: int
) -> None:
    answer = complete(client, prompt=tokens, echo=True, logprobs=2, max_tokens=max_tokens)
    (choice,) = answer["choices"]
    given = choice["logprobs"]
    assert len(given["tokens"]) == len(tokens) + max_tokens
    assert (given["token_logprobs"][0], given["top_logprobs"][0]) == (None, None)
    scored = given["token_logprobs"][1 : len(tokens)]
    assert scored == pytest.approx(own_logprobs(service, tokens), abs=1e-4)
    assert service.model.loaded is not None
    total, count = service.model.loaded.score(TEXT)
    assert sum(scored) == pytest.approx(total, abs=1e-4)
    assert len(scored) == count
    assert choice["text"].startswith("[BOS]" + TEXT)
    assert "".join(given["tokens"]).startswith("[BOS]여")
    assert answer["usage"] == {
        "prompt_tokens": len(tokens),
        "completion_tokens": max_tokens,
        "total_tokens": len(tokens) + max_tokens,
    }
    for name, offset in zip(given["tokens"], given["text_offset"], strict=True):
        if offset < len(TEXT) and not name.startswith("bytes:"):
            assert choice["text"][offset:].startswith(name)
    # What is written is what is written without echo.
    if max_tokens:
        alone = complete(client, prompt=tokens, logprobs=2, max_tokens=max_tokens)["choices"][0]
        assert choice["text"] == "[BOS]" + TEXT + alone["text"]
        assert given["token_logprobs"][len(tokens) :] == alone["logprobs"]["token_logprobs"]


def test_a_text_is_echoed_without_the_mark_before_it(client: TestClient, service: Service, tokens: list[int]) -> None:
    choice = complete(client, prompt=TEXT, echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert choice["text"] == TEXT
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(own_logprobs(service, tokens), abs=1e-4)
    plain = complete(client, prompt=TEXT, echo=True, max_tokens=4)["choices"][0]
    assert plain["logprobs"] is None
    assert plain["text"] == TEXT + complete(client, prompt=TEXT, max_tokens=4)["choices"][0]["text"]


def test_a_full_context_can_be_scored(client: TestClient, service: Service) -> None:
    full = [service.tokenizer.bos_id, *range(20, 147)]
    choice = complete(client, prompt=full, echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(own_logprobs(service, full), abs=1e-4)


def test_a_stop_token_is_an_entry_too(client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval leaves out the last entry as the one token that it asked for."""
    monkeypatch.setattr(
        "twingpt.generation.model.stop_tokens", lambda tokenizer: frozenset(range(tokenizer.vocab_size))
    )
    prompt = [service.tokenizer.bos_id, 50, 60, 70]
    choice = complete(client, prompt=prompt, echo=True, logprobs=1, max_tokens=1)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["logprobs"]["token_logprobs"][1:4] == pytest.approx(own_logprobs(service, prompt), abs=1e-4)
    assert len(choice["logprobs"]["token_logprobs"]) == 5
    assert math.isfinite(choice["logprobs"]["token_logprobs"][4])
    # Where nothing is echoed, entries are the tokens of the text.
    assert complete(client, prompt=prompt, logprobs=1, max_tokens=1)["choices"][0]["logprobs"] is None


def test_the_likeliest_is_known_as_such(client: TestClient, tokens: list[int]) -> None:
    """lm-eval calls a continuation greedy where each token is the best of `top_logprobs`."""
    written = complete(client, prompt=tokens, max_tokens=5, logprobs=1)["choices"][0]["logprobs"]
    assert all(logprob == max(top.values()) for logprob, top in zip(*_entries(written), strict=True))
    echoed = complete(client, prompt=tokens, max_tokens=0, logprobs=1, echo=True)["choices"][0]["logprobs"]
    assert not all(logprob == max(top.values()) for logprob, top in list(zip(*_entries(echoed), strict=True))[1:])


def _entries(logprobs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    return logprobs["token_logprobs"], logprobs["top_logprobs"]


@pytest.mark.parametrize("as_tokens", [True, False])
def test_several_prompts_are_several_choices(client: TestClient, service: Service, as_tokens: bool) -> None:
    texts = ["여권", "비자를 연장", "집", "병원에"]
    prompts: list[Any] = [text_prompt(service.tokenizer, text) for text in texts] if as_tokens else texts
    settings = {"max_tokens": 12, "temperature": 0.8, "seed": 3, "logprobs": 1, "echo": True}
    together = complete(client, prompt=prompts, **settings)
    alone = [complete(client, prompt=prompt, **settings) for prompt in prompts]
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    for choice, answer in zip(together["choices"], alone, strict=True):
        assert choice["text"] == answer["choices"][0]["text"]
        one, other = choice["logprobs"], answer["choices"][0]["logprobs"]
        assert one["tokens"] == other["tokens"]
        assert [x or 0 for x in one["token_logprobs"]] == pytest.approx(
            [x or 0 for x in other["token_logprobs"]], abs=1e-4
        )
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert together["usage"][name] == sum(answer["usage"][name] for answer in alone)
    assert len({choice["text"] for choice in together["choices"]}) == 4


def test_a_stream_of_several_is_the_same(client: TestClient) -> None:
    body = {"prompt": ["여권", "비자를 연장", "집"], "max_tokens": 10, "temperature": 0, "logprobs": 1, "echo": True}
    whole = client.post("/v1/completions", json=body).json()
    *chunks, last = events(client, "/v1/completions", **body, stream_options={"include_usage": True})
    assert last["usage"] == whole["usage"]
    for index, expected in enumerate(whole["choices"]):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == expected["text"]
        assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == [expected["finish_reason"]]
        offsets = [o for choice in mine if choice["logprobs"] for o in choice["logprobs"]["text_offset"]]
        assert offsets == expected["logprobs"]["text_offset"]


def test_one_that_is_too_long_refuses_all_and_leaves_nothing_at_work(client: TestClient, service: Service) -> None:
    response = client.post("/v1/completions", json={"prompt": [[5, 6], [5] * 200], "max_tokens": 4})
    assert response.status_code == 400
    assert (service.worker.load.active, service.worker.load.waiting) == (0, 0)


def test_a_queue_without_room_for_all_takes_none(client: TestClient, service: Service) -> None:
    service.worker._admitted = type(service.worker._admitted)(2)
    assert client.post("/v1/completions", json={"prompt": ["가"] * 3, "max_tokens": 2}).status_code == 429
    # Those that were let in before the third did not keep their places.
    assert client.post("/v1/completions", json={"prompt": ["가"] * 2, "max_tokens": 2}).status_code == 200


def test_a_prompt_that_cannot_be_scored_ends_alone(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise MemoryError("no room for the logits")

    monkeypatch.setattr("twingpt.serve.worker.prompt_logprobs", broken)
    response = client.post("/v1/completions", json={"prompt": "여권", "echo": True, "logprobs": 1})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "generation_failed"
    assert complete(client)["usage"]["completion_tokens"] == 20
    body = {"prompt": "여권", "echo": True, "logprobs": 1, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as streamed:
        lines = [line for line in streamed.iter_lines() if line]
    assert "no room for the logits" in json.loads(lines[0].removeprefix("data: "))["error"]["message"]
    assert lines[-1] == "data: [DONE]"
