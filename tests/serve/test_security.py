"""What the server refuses: foreign pages, foreign names, files, keys, and requests that cannot be meant."""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from twingpt.cli import app as cli
from twingpt.core.errors import UsageError
from twingpt.generation.batching import Batcher, Event
from twingpt.serve import server as run
from twingpt.serve.app import create_app
from twingpt.serve.security import HEADERS, Access, allowed_hosts
from twingpt.serve.service import Service

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "여권?"}], "max_tokens": 1}
WRITE: dict[str, Any] = {"prompt": "여권", "max_tokens": 1}

BOTH: list[dict[str, Any]] = [
    {"n": 2},
    {"n": 0},
    {"n": "x"},
    {"temperature": -1},
    {"temperature": 6},
    {"temperature": "hot"},
    {"temperature": []},
    {"top_p": -0.1},
    {"top_p": 1.5},
    {"top_p": {}},
    {"top_k": -2},
    {"top_k": 1.5},
    {"top_k": 10**30},
    {"min_p": 2},
    {"min_p": -0.1},
    {"repetition_penalty": -1},
    {"repetition_penalty": 1.5, "repeat_penalty": 1.2},
    {"repetition_penalty": 100},
    {"seed": 2**64},
    {"seed": "one"},
    {"seed": 1.5},
    {"max_tokens": -5},
    {"max_tokens": 10**9},
    {"max_tokens": "many"},
    {"stop": ["a"] * 17},
    {"stop": "a" * 300},
    {"stop": 5},
    {"stop": [1]},
    {"stream": "perhaps"},
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"other": 1}},
    {"frequency_penalty": 0.5},
    {"presence_penalty": -0.5},
    {"logit_bias": {"5": 10}},
    {"fill_contacts": True, "verify_contacts": True},
    {"fill_contacts": "later"},
    {"model": "gpt-4"},
    {"model": "\ud800"},
    {"model": 5},
    {"user": "u" * 300},
    {"unknown_setting": 1},
    {"\ud800": 1},
]
CHAT_ONLY: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": "여권?"},
    {"messages": [1]},
    {"messages": [{}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "king", "content": "?"}]},
    {"messages": [{"role": "tool", "content": "?"}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "user", "content": [{"text": "여권?"}]}]},
    {"messages": [{"role": "user", "content": None}]},
    {"messages": [{"role": "user", "content": "  "}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]},
    {"messages": [{"role": "system", "content": "?"}]},
    {"messages": [{"role": "user", "content": "\ud800"}]},
    {"messages": [{"role": "user", "content": "여" * 300_000}]},
    {"messages": [{"role": "user", "content": "여권 " * 500}]},
    {"messages": [{"role": "system", "content": "[DOC]글[/DOC]"}, {"role": "user", "content": "?"}], "document": "글"},
    {"document": 5},
    {"document": "\udfff"},
    {"format": "poem"},
    {"format": "answer", "max_tokens": 3},
    {"response_format": {"type": "xml"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "text"}}}},
    {"response_format": {"type": "json_object"}, "stop": ["\n"]},
    {"response_format": {"type": "json_object"}, "format": "answer"},
    {"response_format": {"type": "json_object"}, "fill_contacts": True},
    {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    {"structured_outputs": {"structural_tag": "{}"}},
    {"guided_regex": "("},
    {"guided_json": "{"},
    {"guided_json": {"type": "object", "properties": {"n": {"$ref": "#"}}, "required": ["n"]}},
    {"guided_choice": []},
    {"guided_regex": "\ud800"},
    {"guided_grammar": 'start: "\ud800"'},
    {"guided_choice": ["\ud800"]},
    {"guided_json": {"const": "\ud800"}},
    {"guided_json": {"pattern": "\ud800"}},
    {"guided_json": {"format": "date", "allOf": 5}},
    {"guided_json": {"type": "x" * 50_000}},
    {"guided_grammar": "start: missing"},
    {"guided_grammar": 'start: "a"', "guided_regex": "a"},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tool_choice": "required"},
    {"modalities": ["audio"]},
    {"max_completion_tokens": 5},
    {"top_logprobs": 2},
    {"logprobs": True, "top_logprobs": 21},
    {"logprobs": 3},
]
WRITE_ONLY: list[dict[str, Any]] = [
    {"prompt": None},
    {"prompt": 5},
    {"prompt": []},
    {"prompt": ["a", 1]},
    {"prompt": [[1, 2], "a"]},
    {"prompt": [[]]},
    {"prompt": [1.5]},
    {"prompt": [True]},
    {"prompt": [-1]},
    {"prompt": [600]},
    {"prompt": [10**9]},
    {"prompt": [1] * 129},
    {"prompt": [1] * 129, "echo": True, "max_tokens": 0},
    {"prompt": ["a"] * 129},
    {"prompt": ["a"] * 103},
    {"prompt": ["a", "b"], "annotate_contacts": True},
    {"prompt": {"text": "a"}},
    {"prompt": "\ud83d"},
    {"prompt": "a" * 300_000},
    {"logprobs": 30},
    {"logprobs": -1},
    {"echo": True, "annotate_contacts": True},
    {"suffix": "end"},
    {"best_of": 3},
]
RAW: list[tuple[bytes, str]] = [
    (b"", "application/json"),
    (b"{", "application/json"),
    (b"[]", "application/json"),
    (b"null", "application/json"),
    (b'"text"', "application/json"),
    (b"\xff\xfe", "application/json"),
    (b"[" * 30_000, "application/json"),
    (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "application/json"),
    (b'{"prompt": "x", "temperature": NaN}', "application/json"),
    (b'{"prompt": "x", "temperature": 1e999}', "application/json"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "application/json"),
    (b'{"prompt": "x"}', "text/plain"),
    (b"prompt=x", "application/x-www-form-urlencoded"),
    (b" " * 70_000, "application/json"),
]


def malformed() -> Iterator[tuple[str, bytes, str]]:
    """(path, body, content type) of requests that are wrong in exactly one way."""
    for path, good, mistakes in (
        ("/v1/chat/completions", CHAT, BOTH + CHAT_ONLY),
        ("/v1/completions", WRITE, BOTH + WRITE_ONLY),
    ):
        for mistake in mistakes:
            yield path, json.dumps({**good, **mistake}).encode(), "application/json"
        for body, kind in RAW:
            yield path, body, kind


def test_requests_that_cannot_be_meant_are_refused_by_name(client: TestClient) -> None:
    for path, good in (("/v1/chat/completions", CHAT), ("/v1/completions", WRITE)):
        assert client.post(path, json=good).status_code == 200
    cases = list(malformed())
    assert len(cases) >= 100
    for path, body, kind in cases:
        response = client.post(path, content=body, headers={"content-type": kind})
        assert 400 <= response.status_code < 500, (path, body[:200], response.status_code, response.text)
        error = response.json()["error"]
        assert error["message"], body[:200]
        assert error["type"] == "invalid_request_error"
        # Who asks over HTTP has no command line.
        assert "--" not in error["message"]
        # Nothing long comes back.
        assert len(response.content) < 2000


@pytest.mark.parametrize(
    "path",
    [
        "/static/../service.py",
        "/static/%2e%2e/service.py",
        "/static/..%2fservice.py",
        "/static/%2e%2e%2f%2e%2e%2fcli.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/..\\service.py",
        "/static/vendor/../../service.py",
        "/static/index.html%00.css",
        "/static/",
        "/static",
        "/..%2f..%2fetc/passwd",
        "/my-run/config.toml",
        "/config.toml",
        "/docs",
        "/redoc",
        "/v1/models/..%2f..%2fconfig.toml",
        "/api/metrics/../../config.toml",
    ],
)
def test_no_file_but_the_pages_own_is_readable(base_url: str, path: str) -> None:
    # A raw request: clients tidy such paths up before they send them.
    import socket
    from urllib.parse import urlsplit

    at = urlsplit(base_url)
    with socket.create_connection((at.hostname or "", at.port or 0)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while block := connection.recv(65536):
            answer += block
    assert answer.split(b" ", 2)[1] in (b"400", b"404", b"307")
    assert b"root:" not in answer
    assert b"block_size" not in answer
    assert b"import " not in answer


def test_the_page_is_served_and_cached(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "<!doctype html>" in page.text
    assert client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    for name in ("main.js", "style.css", "icon.svg", "vendor/uPlot.js", "vendor/uPlot.min.css"):
        assert client.get(f"/static/{name}").status_code == 200, name


def test_no_outside_host_stands_in_the_page() -> None:
    from twingpt.serve.pages import STATIC

    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        # A link that the text itself gives is made of a variable.
        assert not re.search(r"https?://(?!\$\{value\})", text), path


@pytest.mark.parametrize("path", ["/", "/v1/models", "/static/none.js", "/v1/none"])
def test_every_answer_carries_the_security_headers(client: TestClient, path: str) -> None:
    response = client.get(path)
    for name, value in HEADERS.items():
        assert response.headers[name] == value
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://localhost:9999"},
        {"origin": "https://localhost"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_web_pages_are_refused(client: TestClient, headers: dict[str, str]) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/api/reload"):
        response = client.post(path, json=CHAT, headers=headers)
        assert response.status_code == 403, path
        assert response.json()["error"]["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers


def test_the_page_itself_may_post(client: TestClient) -> None:
    headers = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert client.post("/v1/completions", json=WRITE, headers=headers).status_code == 200
    assert client.options("/v1/completions", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("user@localhost", False),
        ("localhost/path", False),
        ("localhost:port", False),
        ("192.168.0.5", False),
        ("", False),
    ],
)
def test_only_known_names_are_served(client: TestClient, host: str, allowed: bool) -> None:
    response = client.get("/v1/models", headers={"host": host})
    assert response.status_code == (200 if allowed else 403)


def test_every_interface_means_every_address_but_no_foreign_name(service: Service) -> None:
    app = create_app(service, Access(hosts=allowed_hosts("0.0.0.0", ["Box.local"])))
    client = TestClient(app, base_url="http://localhost")
    for host, status in (("192.168.0.5:8000", 200), ("box.local", 200), ("evil.example", 403)):
        assert client.get("/v1/models", headers={"host": host}).status_code == status


def test_a_key_guards_everything_but_the_page(service: Service) -> None:
    app = create_app(service, Access(hosts=allowed_hosts("127.0.0.1"), api_key="열쇠-key"))
    client = TestClient(app, base_url="http://localhost")
    for path in ("/v1/models", "/api/run", "/api/metrics", "/openapi.json"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        for given, status in (("열쇠-key", 401), ("Basic 열쇠-key", 401), ("Bearer 열쇠-key", 200)):
            assert client.get(path, headers={b"authorization": given.encode()}).status_code == status
    assert client.post("/v1/completions", json=WRITE).status_code == 401
    assert client.get("/").status_code == 200
    assert client.get("/static/main.js").status_code == 200


def test_a_large_body_is_refused_however_it_comes(client: TestClient) -> None:
    whole = client.post("/v1/completions", content=b"x" * 70_000, headers={"content-type": "application/json"})
    assert whole.status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(70):
            yield b"x" * 1000

    assert client.post("/v1/completions", content=chunks()).status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(
    base_url: str, service: Service, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both slots taken by answers that would last for long.
    monkeypatch.setattr("twingpt.generation.model.stop_tokens", lambda _: frozenset())
    step = Batcher.step

    def slowly(self: Batcher) -> list[Event]:
        time.sleep(0.1)
        return step(self)

    monkeypatch.setattr(Batcher, "step", slowly)
    body = {"prompt": "여권", "max_tokens": -1, "stream": stream}
    reading: list[Iterator[str]] = []
    with ExitStack() as open_requests:
        for _ in range(service.worker.slots):
            if stream:
                response = open_requests.enter_context(
                    httpx.stream("POST", f"{base_url}/v1/completions", json=body, timeout=60)
                )
                # Kept, since dropping it would close the connection.
                reading.append(response.iter_lines())
                next(reading[-1])
            else:
                with pytest.raises(httpx.ReadTimeout):
                    httpx.post(f"{base_url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=1.5))
        if stream:
            assert service.worker.load.active == 2
    deadline = time.monotonic() + 30
    while service.worker.load.active and time.monotonic() < deadline:
        time.sleep(0.02)
    assert service.worker.load.active == 0
    # It was freed, and not merely done.
    assert time.monotonic() < deadline - 24
    assert httpx.post(f"{base_url}/v1/completions", json=WRITE, timeout=60).status_code == 200


def test_silent_connections_are_closed(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds all that there are would shut everybody out, without a key."""
    monkeypatch.setattr(run, "SILENT_SECONDS", 0.2)
    host, port = base_url.removeprefix("http://").split(":")
    for said in (
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
    ):
        with socket.create_connection((host, int(port)), timeout=10) as silent:
            silent.sendall(said)
            answer = b""
            while part := silent.recv(1 << 16):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200") == said.startswith(b"GET")


def test_a_full_queue_says_so(base_url: str, service: Service) -> None:
    service.worker._admitted = type(service.worker._admitted)(0)
    response = httpx.post(f"{base_url}/v1/completions", json=WRITE, timeout=60)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"


def test_another_address_needs_a_key(run_dir: Path) -> None:
    for options in (["--host", "0.0.0.0"], ["--host", "192.168.0.5"], ["--host", "::"]):
        result = CliRunner().invoke(cli, ["serve", str(run_dir), *options], env={"TWINGPT_API_KEY": ""})
        assert isinstance(result.exception, UsageError), options
    result = CliRunner().invoke(cli, ["serve", str(run_dir), "--api-key", " "])
    assert isinstance(result.exception, UsageError)
