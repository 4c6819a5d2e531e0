"""The official client, against a server on a socket."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import BaseModel

openai = pytest.importorskip("openai", reason="pip install openai")


@pytest.fixture
def client(base_url: str) -> Any:
    return openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60)


def test_chat_streaming_and_not(client: Any) -> None:
    model = client.models.list().data[0].id
    settings = {
        "model": model,
        "messages": [{"role": "system", "content": "대사관 안내"}, {"role": "user", "content": "여권?"}],
        "max_completion_tokens": 24,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**settings)
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content) == 24
    assert whole.usage.completion_tokens == 24
    parts, usage = [], None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            parts.append(chunk.choices[0].delta.content or "")
        usage = chunk.usage or usage
    assert "".join(parts) == whole.choices[0].message.content
    assert usage == whole.usage


def test_completion_streaming_and_not(client: Any) -> None:
    settings = {"model": "my-run", "prompt": "여권", "max_tokens": 24, "seed": 3, "stop": ["\n\n\n"], "logprobs": 1}
    whole = client.completions.create(**settings, extra_body={"top_k": 5})
    parts = [c.choices[0].text for c in client.completions.create(**settings, extra_body={"top_k": 5}, stream=True)]
    assert "".join(parts) == whole.choices[0].text
    assert len(whole.choices[0].logprobs.tokens) == whole.usage.completion_tokens


def test_mistakes_become_the_clients_own_errors(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError, match="one answer a request"):
        client.completions.create(model="my-run", prompt="x", n=3)


def test_many_at_once_write_what_each_writes_alone(client: Any) -> None:
    def write(number: int) -> str:
        text: str = (
            client.completions.create(
                model="my-run", prompt=f"여권 {number}", max_tokens=30, seed=number, temperature=0.7
            )
            .choices[0]
            .text
        )
        return text

    alone = [write(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(write, range(12)))
    assert together == alone
    assert len(set(alone)) == 12


class Notice(BaseModel):
    place: str
    steps: list[str]
    fee: int | None


def test_a_response_format_is_read_back_by_the_client(client: Any) -> None:
    answer = client.chat.completions.parse(
        model="my-run",
        messages=[{"role": "user", "content": "여권?"}],
        response_format=Notice,
        max_completion_tokens=120,
        seed=1,
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Notice)
    free = client.chat.completions.create(
        model="my-run",
        messages=[{"role": "user", "content": "여권?"}],
        response_format={"type": "json_object"},
        max_completion_tokens=60,
        extra_body={"top_k": 0},
    )
    assert isinstance(json.loads(free.choices[0].message.content), dict)
    with pytest.raises(openai.BadRequestError, match="Invalid type"):
        client.completions.create(model="my-run", prompt="x", extra_body={"guided_json": {"type": "text"}})
