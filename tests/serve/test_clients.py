"""What clients of all kinds send: histories, fields of other servers, ids, origins; and what they are told."""

import asyncio
import logging
import threading
import time
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from tests.serve.test_api import MESSAGES, QUESTION, chat, complete
from twingpt.cli import app as cli
from twingpt.core.errors import UsageError
from twingpt.serve.app import create_app
from twingpt.serve.client_fields import ALIASES, IGNORED
from twingpt.serve.schemas import ChatRequest, CompletionRequest
from twingpt.serve.security import Access, allowed_hosts, allowed_origins
from twingpt.serve.service import Service

HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}, {"type": "image_url"}]},
    {"role": "user", "content": [{"type": "text", "text": "날씨?"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]},
    {"role": "tool", "tool_call_id": "1", "content": '{"rain": true}'},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "모릅니다"}]},
    {"role": "assistant", "tool_calls": []},
    {"role": "function", "name": "f", "content": "1"},
]


def test_a_history_of_any_kind_is_accepted_and_told(client: TestClient) -> None:
    body = {"messages": [*HISTORY, *MESSAGES], "max_tokens": 12, "temperature": 0}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["choices"] == chat(client, max_tokens=12)["choices"]
    assert response.json()["twingpt"]["messages_not_read"] == 6
    told = response.headers["x-twingpt-ignored"]
    assert told == "messages (6 earlier), messages (parts of a system message)"
    alone = client.post("/v1/chat/completions", json={**body, "messages": MESSAGES})
    assert "x-twingpt-ignored" not in alone.headers


def test_tools_that_are_not_to_be_called_are_told(client: TestClient) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    body = {"messages": MESSAGES, "max_tokens": 2, "tools": tools}
    assert client.post("/v1/chat/completions", json=body).status_code == 400
    response = client.post("/v1/chat/completions", json={**body, "tool_choice": "none"})
    assert response.headers["x-twingpt-ignored"] == "tools"


def test_fields_of_other_servers_are_ignored_and_told_in_one_header(client: TestClient) -> None:
    fields = dict.fromkeys(IGNORED, 1)
    for path, prompt in (("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": QUESTION})):
        body = {**prompt, "max_tokens": 4, "temperature": 0}
        plain = client.post(f"/v1/{path}", json=body)
        response = client.post(f"/v1/{path}", json={**body, **fields})
        assert response.json()["choices"] == plain.json()["choices"]
        assert response.headers["x-twingpt-ignored"].split(", ") == sorted(IGNORED)
    with client.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True, "mirostat": 2}) as streamed:
        assert streamed.headers["x-twingpt-ignored"] == "mirostat"
    typo = client.post("/v1/completions", json={"prompt": "x", "temprature": 0.1})
    assert typo.status_code == 400
    assert "temprature" in typo.json()["error"]["message"]


def test_no_field_is_both_used_and_ignored() -> None:
    used = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
    assert not used & IGNORED
    assert not set(ALIASES) & (used | IGNORED)
    assert set(ALIASES.values()) <= used


def test_other_names_and_numbers_mean_what_their_servers_mean(client: TestClient) -> None:
    base = {"temperature": 1.0, "seed": 5, "max_tokens": 30}

    def text(**fields: Any) -> str:
        written: str = complete(client, **{**base, **fields})["choices"][0]["text"]
        return written

    assert text(repeat_penalty=1.6) == text(repetition_penalty=1.6) != text()
    assert text(repetition_penalty=0) == text(repeat_penalty=1.0) == text()
    assert text(top_k=-1) == text(top_k=0)
    assert text(top_p=0) == text(temperature=0) != text()
    assert text(grammar='root ::= "가"') == "가"
    assert text(json_schema={"const": "가"}) == '"가"'
    assert complete(client, max_tokens=None, n_predict=3)["usage"]["completion_tokens"] == 3
    seeds = {complete(client, seed=-1)["twingpt"]["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert 2**64 - 1 not in seeds


def test_health_asks_for_no_key_and_tells_of_no_model(service: Service) -> None:
    app = create_app(service, Access(hosts=allowed_hosts("127.0.0.1"), api_key="key"))
    client = TestClient(app, base_url="http://localhost")
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/v1/models/my-run:free").status_code == 401
    headers = {"authorization": "Bearer key"}
    assert client.get("/v1/models/my-run:free", headers=headers).json()["id"] == "my-run:free"
    service.worker._batcher = None
    assert client.get("/health").status_code == 503


ORIGIN = "app://obsidian.md"


@pytest.fixture
def invited(service: Service) -> TestClient:
    origins = allowed_origins([ORIGIN, "chrome-extension://abcdef/"], None)
    access = Access(hosts=allowed_hosts("127.0.0.1"), origins=origins, api_key="key")
    return TestClient(create_app(service, access), base_url="http://localhost")


def preflight(client: TestClient, origin: str, **headers: str) -> Any:
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
        "access-control-request-private-network": "true",
        "sec-fetch-site": "cross-site",
        **headers,
    }
    return client.options("/v1/chat/completions", headers=asked)


def test_a_program_that_is_invited_may_ask(invited: TestClient) -> None:
    for origin in (ORIGIN, "chrome-extension://abcdef"):
        answer = preflight(invited, origin)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == origin
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "x-stainless-os" in answer.headers["access-control-allow-headers"]
        assert answer.headers["access-control-allow-private-network"] == "true"
        body = {"prompt": "여권", "max_tokens": 2, "mirostat": 1}
        headers = {"origin": origin, "sec-fetch-site": "cross-site", "authorization": "Bearer key"}
        response = invited.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == origin
        assert response.headers["vary"] == "Origin"
        exposed = response.headers["access-control-expose-headers"]
        assert {"x-twingpt-ignored", "x-request-id"} <= set(exposed.split(", "))
        # A mistake can be read too, and is not hidden behind a failure of the browser's.
        refused = invited.post("/v1/completions", json=body, headers={"origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)


@pytest.mark.parametrize("origin", ["https://evil.example", "app://obsidian.md.evil", "null", "http://obsidian.md"])
def test_others_stay_outside(invited: TestClient, origin: str) -> None:
    assert preflight(invited, origin).status_code == 400
    assert "access-control-allow-origin" not in preflight(invited, origin).headers
    headers = {"origin": origin, "authorization": "Bearer key"}
    response = invited.post("/v1/completions", json={"prompt": "x"}, headers=headers)
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers
    # Nor does an invitation open the server to a foreign name.
    headers = {"origin": ORIGIN, "authorization": "Bearer key", "host": "evil.example"}
    assert invited.post("/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 403


def test_an_origin_that_is_none_is_refused() -> None:
    for given in ("obsidian", "https://example.org/path", "https://", "example.org:80"):
        with pytest.raises(UsageError, match="--allow-origin"):
            allowed_origins([given], "key")
    with pytest.raises(UsageError, match="--api-key"):
        allowed_origins(["*"], None)
    assert allowed_origins(["*"], "key") == {"*"}
    result = CliRunner().invoke(cli, ["serve", "nothing", "--allow-origin", "*"], env={"TWINGPT_API_KEY": ""})
    assert isinstance(result.exception, UsageError)


def test_every_origin_may_ask_where_a_key_guards(service: Service) -> None:
    access = Access(hosts=allowed_hosts("127.0.0.1"), origins=allowed_origins(["*"], "key"), api_key="key")
    client = TestClient(create_app(service, access), base_url="http://localhost")
    headers = {"origin": "https://any.example", "sec-fetch-site": "cross-site"}
    assert client.post("/v1/completions", json={"prompt": "x"}, headers=headers).status_code == 401
    headers["authorization"] = "Bearer key"
    response = client.post("/v1/completions", json={"prompt": "x", "max_tokens": 1}, headers=headers)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, "*")


def test_a_request_has_an_id_in_answer_and_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="twingpt.serve")
    body = {"prompt": "비밀 질문", "max_tokens": 2}
    given = client.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = client.post("/v1/none%0Aforged", json=body, headers={"x-request-id": "forged\tline"}).headers["x-request-id"]
    assert made.startswith("req-")
    client.get("/api/run")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" ")[:4] for line in lines] == [
        ["mine-1", "POST", "/v1/completions", "200"],
        [made, "POST", "/v1/none%0Aforged", "404"],
    ]
    assert "비밀" not in " ".join(lines)


def test_an_engine_that_fails_names_the_requests_under_way(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.model.loaded is not None
    engine = service.model.loaded.engine

    def failing(*_: Any) -> Any:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine, "decode", failing)
    response = client.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "mine-2"})
    assert response.status_code == 503
    assert any("mine-2" in record.getMessage() and record.levelname == "ERROR" for record in caplog.records)


def test_a_long_prompt_does_not_stop_the_loop(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into tokens in the loop, one prompt would keep every other request waiting."""
    app = create_app(service, Access(hosts=allowed_hosts("127.0.0.1")))
    encode = service.tokenizer.encode
    seen: list[bool] = []

    def slowly(text: str) -> list[int]:
        seen.append(threading.current_thread() is threading.main_thread())
        time.sleep(0.5)
        return encode(text)

    monkeypatch.setattr(service.tokenizer, "encode", slowly)
    monkeypatch.setattr(service.tokenizer, "count", lambda text: len(slowly(text)))

    async def longest_pause() -> float:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            requests = [
                client.post("/v1/completions", json={"prompt": "여권", "max_tokens": 1}),
                client.post("/v1/completions", json={"prompt": "여권 " * 5000, "max_tokens": 1}),
                client.post("/v1/chat/completions", json={"messages": MESSAGES, "document": "글", "max_tokens": 1}),
            ]
            answers = asyncio.gather(*requests)
            longest, last = 0.0, time.monotonic()
            while not answers.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
            assert [response.status_code for response in await answers] == [200, 400, 200]
            return longest

    assert asyncio.run(longest_pause()) < 0.4
    assert seen
    assert not any(seen)
