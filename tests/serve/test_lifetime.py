"""A server that loads other weights, ends, or is held by silent connections, while its clients go on."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import save_checkpoint
from tests.serve.process import serving
from tests.serve.test_worker import until
from twingpt.core.backend import Backend
from twingpt.core.spec import GPTSpec
from twingpt.generation.batching import Batcher, Event
from twingpt.serve import security
from twingpt.serve import server as run
from twingpt.serve.service import ServedModel, Service


def write(base_url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{base_url}/v1/completions", json={"prompt": "여권", "max_tokens": 20, **body}, timeout=60)


def slow_steps(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    step = Batcher.step

    def slowly(self: Batcher) -> list[Event]:
        time.sleep(seconds)
        return step(self)

    monkeypatch.setattr(Batcher, "step", slowly)
    monkeypatch.setattr("twingpt.generation.model.stop_tokens", lambda _: frozenset())


def test_no_request_is_dropped_while_weights_are_loaded(
    base_url: str, run_dir: Path, run_spec: GPTSpec, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ServedModel._load
    come = threading.Event()

    def slowly(self: ServedModel, checkpoint: Any) -> Backend:
        # Large weights take as long as it takes for requests to come meanwhile.
        self.loaded = None
        come.wait(20)
        return load(self, checkpoint)

    monkeypatch.setattr(ServedModel, "_load", slowly)
    done = threading.Event()
    told: list[tuple[int, str]] = []

    def ask(number: int) -> None:
        while not done.is_set():
            response = write(base_url, seed=number)
            told.append((response.status_code, response.text))

    health: list[int] = []
    with ThreadPoolExecutor(6) as pool, httpx.Client(base_url=base_url, timeout=60) as client:
        futures = [pool.submit(ask, number) for number in range(4)]
        try:
            for step in (5, 6, 7):
                save_checkpoint(run_dir, run_spec, step)
                come.clear()
                reloading = pool.submit(client.post, "/api/reload")
                until(lambda: service.worker.loading is not None)
                meanwhile = pool.submit(client.post, "/v1/completions", json={"prompt": "여권", "max_tokens": 2})
                health.append(client.get("/health").status_code)
                time.sleep(0.5)
                assert not meanwhile.done()
                come.set()
                assert reloading.result().json() == {"loaded_step": step}
                told.append((meanwhile.result().status_code, meanwhile.result().text))
        finally:
            # Or a failure would wait for those that ask for ever.
            done.set()
            come.set()
        for future in futures:
            future.result()
    assert [text for status, text in told if status != 200] == []
    assert len(told) > 8
    assert health == [200] * 3
    assert service.model.loaded is not None
    assert service.model.loaded.step == 7


@pytest.fixture
def stopping(service: Service) -> Iterator[tuple[str, run.Server, threading.Thread]]:
    from twingpt.serve.app import create_app

    listening = run.bind("127.0.0.1", 0)
    app = create_app(service, security.Access(hosts=security.allowed_hosts("127.0.0.1")))
    server = run.configured(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}", server, thread
    server.should_exit = True
    thread.join()
    listening.close()


def test_a_server_that_ends_finishes_what_it_writes(
    stopping: tuple[str, run.Server, threading.Thread], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_url, server, thread = stopping
    slow_steps(monkeypatch, 0.05)
    body = {"prompt": "여권", "max_tokens": 40, "stream": True}
    with ThreadPoolExecutor(2) as pool, httpx.stream("POST", f"{base_url}/v1/completions", json=body) as streamed:
        lines = streamed.iter_lines()
        first = next(lines)
        # One that waits for a slot is finished, too.
        others = [pool.submit(write, base_url, max_tokens=20) for _ in range(2)]
        until(lambda: service.worker.load.waiting == 1)
        server.should_exit = True
        rest = [line for line in lines if line]
        answers = [other.result() for other in others]
    assert first.startswith("data: ")
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [20, 20]
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_an_end_has_an_end(
    stopping: tuple[str, run.Server, threading.Thread], service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_url, server, thread = stopping
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.5)
    slow_steps(monkeypatch, 0.3)
    body = {"prompt": "여권", "max_tokens": 100, "stream": True}
    with httpx.stream("POST", f"{base_url}/v1/completions", json=body, timeout=30) as streamed:
        lines = streamed.iter_lines()
        next(lines)
        started = time.monotonic()
        server.should_exit = True
        rest = [line for line in lines if line]
    assert "shutting down" in json.loads(rest[-2].removeprefix("data: "))["error"]["message"]
    assert rest[-1] == "data: [DONE]"
    thread.join(timeout=20)
    assert time.monotonic() - started < 10


def test_a_process_that_is_told_to_end_finishes_its_stream(run_dir: Path) -> None:
    with serving(run_dir) as (base_url, process):
        # Long enough to be under way when the signal comes.
        body = {"prompt": ["여권"] * 40, "max_tokens": -1, "stream": True, "temperature": 0}
        headers = {"x-request-id": "mine-3"}
        url = f"{base_url}/v1/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as streamed:
            lines = streamed.iter_lines()
            next(lines)
            os.kill(process.pid, signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in rest[:-1]]
        assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 40
        process.wait(timeout=30)
        assert process.stderr is not None
        log = process.stderr.read()
    assert process.returncode == -signal.SIGTERM
    assert "finishing 40 answers" in log
    assert "mine-3 POST /v1/completions 200" in log
    assert "Traceback" not in log


def test_a_silent_client_that_comes_back_shuts_nobody_out(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection that is closed on it is opened again at once, so that time alone frees none."""
    monkeypatch.setattr(run, "MAX_IDLE", 20)
    host, port = base_url.removeprefix("http://").split(":")
    with httpx.Client(base_url=base_url) as kept, ExitStack() as silent:
        # One that has asked keeps its connection before those that never did.
        assert kept.get("/v1/models").status_code == 200
        connections = [
            silent.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(200)
        ]
        for _ in range(3):
            assert httpx.get(f"{base_url}/v1/models", timeout=10).status_code == 200
        closed = 0
        for connection in connections:
            connection.setblocking(False)
            with suppress(BlockingIOError):
                closed += connection.recv(1) == b""
        assert closed >= 180
        network = kept._transport._pool.connections  # type: ignore[attr-defined]
        assert len(network) == 1
        assert kept.get("/v1/models").status_code == 200
        assert kept._transport._pool.connections == network  # type: ignore[attr-defined]


def test_bodies_that_never_come_make_room_for_others(base_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(security, "MAX_READING", 5)
    host, port = base_url.removeprefix("http://").split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"
    with ExitStack() as slow:
        connections = [slow.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(9)]
        for connection in connections:
            connection.sendall(head)
            time.sleep(0.02)
        assert connections[0].recv(100).startswith(b"HTTP/1.1 408")
        assert write(base_url, max_tokens=1).status_code == 200
        connections[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            connections[-1].recv(1)
