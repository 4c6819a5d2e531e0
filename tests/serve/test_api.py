"""The OpenAI routes, through the application."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from tests.serve.conftest import save_checkpoint
from twingpt.checks.parity import perturbed
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.batching import Request
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.generation.writing import stop_tokens
from twingpt.serve.service import Limits, Service
from twingpt.weights.checkpoint import CheckpointStore, Progress

QUESTION = "여권을 잃어버렸을 때?"
MESSAGES = [{"role": "user", "content": QUESTION}]


def chat(client: TestClient, **body: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 20, "temperature": 0, **body}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def complete(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/completions", json={"prompt": "여권", "max_tokens": 20, "temperature": 0, **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def events(client: TestClient, path: str, **body: Any) -> list[dict[str, Any]]:
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def alone(service: Service, prompt: list[int], sampling: Sampling, tokens: int) -> str:
    """What the engine writes without a server."""
    assert service.model.loaded is not None
    request = Request(prompt, sampling, tokens, stop_tokens(service.tokenizer))
    return "".join(service.model.loaded.pieces(request))


def test_the_model_is_listed(client: TestClient) -> None:
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["my-run", "my-run:free"]
    assert client.get("/v1/models/my-run").json()["object"] == "model"
    assert client.get("/v1/models/gpt-4").status_code == 404


def test_a_chat_answers_the_last_question_as_generate_does(client: TestClient, service: Service) -> None:
    messages = [
        {"role": "user", "content": "처음 질문"},
        {"role": "assistant", "content": "처음 답"},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    answer = chat(client, messages=messages)
    prompt = question_prompt(service.tokenizer, QUESTION, None, 128)
    assert answer["choices"][0]["message"]["content"] == alone(service, prompt, Sampling(temperature=0.0), 20)
    assert answer["usage"] == {"prompt_tokens": len(prompt), "completion_tokens": 20, "total_tokens": len(prompt) + 20}
    assert answer["twingpt"]["messages_not_read"] == 2
    assert answer["model"] == "my-run"


@pytest.mark.parametrize("how", ["system", "document"])
def test_the_document_comes_in_two_ways(client: TestClient, service: Service, how: str) -> None:
    doc = "대사관은 월요일에 엽니다."
    user = {"role": "user", "content": QUESTION}
    body = (
        {"messages": [{"role": "system", "content": f"[DOC]{doc}[/DOC]"}, user]}
        if how == "system"
        else {"document": doc}
    )
    answer = chat(client, **body)
    prompt = question_prompt(service.tokenizer, QUESTION, doc, 128)
    assert answer["choices"][0]["message"]["content"] == alone(service, prompt, Sampling(temperature=0.0), 20)


def test_a_clients_own_system_message_is_no_document(client: TestClient, service: Service) -> None:
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": QUESTION}]
    prompt = question_prompt(service.tokenizer, QUESTION, None, 128)
    written = chat(client, messages=messages)["choices"][0]["message"]["content"]
    assert written == alone(service, prompt, Sampling(temperature=0.0), 20)


def test_every_sampling_setting_reaches_the_sampler(client: TestClient, service: Service) -> None:
    settings = {"temperature": 1.3, "top_p": 0.8, "top_k": 7, "min_p": 0.02, "repetition_penalty": 1.4, "seed": 11}
    answer = complete(client, **settings, max_tokens=60)
    expected = alone(service, text_prompt(service.tokenizer, "여권"), Sampling(**settings), 60)  # type: ignore[arg-type]
    assert answer["choices"][0]["text"] == expected
    for name, other in {"temperature": 0.9, "top_p": 0.3, "top_k": 2, "repetition_penalty": 1.0, "seed": -3}.items():
        changed = complete(client, **{**settings, name: other}, max_tokens=60)
        assert changed["choices"][0]["text"] != expected, name


def test_without_a_seed_texts_differ_and_say_how_to_repeat_them(client: TestClient) -> None:
    first, second = (complete(client, temperature=1.5, top_k=0) for _ in range(2))
    assert first["choices"][0]["text"] != second["choices"][0]["text"]
    again = complete(client, temperature=1.5, top_k=0, seed=first["twingpt"]["seed"])
    assert again["choices"][0]["text"] == first["choices"][0]["text"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_the_whole_answer_in_pieces(client: TestClient, path: str) -> None:
    is_chat = path.endswith("chat/completions")
    body: dict[str, Any] = {"max_tokens": 30, "temperature": 0}
    body |= {"messages": [{"role": "user", "content": QUESTION}]} if is_chat else {"prompt": QUESTION}
    whole = client.post(path, json=body).json()
    chunks = events(client, path, **body, stream_options={"include_usage": True})
    *pieces, usage = chunks
    deltas = [chunk["choices"][0]["delta" if is_chat else "text"] for chunk in pieces]
    texts = [delta.get("content", "") for delta in deltas] if is_chat else deltas
    content = whole["choices"][0]
    assert "".join(texts) == (content["message"]["content"] if is_chat else content["text"])
    assert len([text for text in texts if text]) > 5
    assert [c["choices"][0]["finish_reason"] for c in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert "usage" not in events(client, path, **body)[-1]


def test_stop_sequences_end_an_answer_and_are_left_out(client: TestClient) -> None:
    text = complete(client, max_tokens=40)["choices"][0]["text"]
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    answer = complete(client, max_tokens=40, stop=["없는 말", stop])
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["text"] == text[: text.index(stop)]
    assert answer["usage"]["completion_tokens"] < 40
    pieces = events(client, "/v1/completions", prompt="여권", max_tokens=40, temperature=0, stop=stop)
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == text[: text.index(stop)]


def test_log_probabilities_are_the_models_own(client: TestClient, service: Service) -> None:
    answer = complete(client, max_tokens=5, logprobs=3, temperature=0.7, top_k=2, seed=1)
    given = answer["choices"][0]["logprobs"]
    assert service.model.loaded is not None
    engine, tokenizer = service.model.loaded.engine, service.tokenizer
    sequence = text_prompt(tokenizer, "여권")
    entries = chat_entries = None
    for index, logprob in enumerate(given["token_logprobs"]):
        logits = engine.logits(np.array([sequence], dtype=np.int32))[0, -1].astype(np.float64)
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best = np.argsort(-logprobs)[:3]
        assert list(given["top_logprobs"][index].values()) == pytest.approx(logprobs[best], abs=1e-4)
        token = next(int(t) for t in np.argsort(-logprobs) if abs(logprobs[t] - logprob) < 1e-4)
        sequence.append(token)
    assert tokenizer.decode(sequence[-5:]) == answer["choices"][0]["text"]
    assert given["text_offset"][0] == 0
    content = chat(client, logprobs=True, top_logprobs=2, max_tokens=6)["choices"][0]
    entries = content["logprobs"]["content"]
    assert (
        b"".join(bytes(entry["bytes"]) for entry in entries).decode(errors="replace") == content["message"]["content"]
    )
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    chat_entries = chat(client, max_tokens=6)["choices"][0]["logprobs"]
    assert chat_entries is None


def test_streamed_log_probabilities_are_those_of_the_whole_answer(client: TestClient) -> None:
    body = {"prompt": "여권", "max_tokens": 12, "temperature": 0, "logprobs": 1}
    whole = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    parts = [c["choices"][0]["logprobs"] for c in events(client, "/v1/completions", **body)]
    for name in whole:
        joined = [entry for part in parts if part for entry in part[name]]
        if name == "token_logprobs":
            assert joined == pytest.approx(whole[name], abs=1e-4)
        elif name != "top_logprobs":
            assert joined == whole[name]


def test_an_answer_can_be_held_to_its_form(client: TestClient) -> None:
    text = chat(client, format="answer", max_tokens=150)["choices"][0]["message"]["content"]
    assert text.startswith("요약:")
    assert not chat(client, max_tokens=150)["choices"][0]["message"]["content"].startswith("요약:")
    refused = client.post(
        "/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "?"}], "format": "answer", "max_tokens": 3},
    )
    assert refused.status_code == 400


class Saying:
    """Makes the server's answers a fixed text, since an untrained model writes no telephone numbers."""

    least = 0

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        self._ids = [*tokenizer.encode(text), tokenizer.eos_id]
        self._vocab = tokenizer.vocab_size

    def constraint(self, _: int) -> "Saying":
        self._at = 0
        return self

    def allowed(self) -> NDArray[np.bool_]:
        return np.isin(np.arange(self._vocab), self._ids[self._at])

    def push(self, _: int) -> None:
        self._at += 1


def test_contacts_are_annotated_marked_or_filled(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "대사관 TEL: +63 2 8555 0123\n경찰서 TEL: +63 2 8555 9999"
    monkeypatch.setattr("twingpt.generation.model.answer_form", lambda tokenizer: Saying(tokenizer, said))
    annotated = chat(client, format="answer", annotate_contacts=True, max_tokens=150)
    assert annotated["choices"][0]["message"]["content"] == said
    spans = annotated["twingpt"]["contacts"]
    assert [(span["text"], span["verified"]) for span in spans] == [
        ("+63 2 8555 0123", True),
        ("+63 2 8555 9999", False),
    ]
    assert [said[span["start"] : span["end"]] for span in spans] == [span["text"] for span in spans]
    marked = chat(client, format="answer", verify_contacts=True, max_tokens=150)
    assert "9999 (확인되지 않은 번호)" in marked["choices"][0]["message"]["content"]
    filled = chat(client, format="answer", fill_contacts=True, max_tokens=150)
    assert "9999" not in filled["choices"][0]["message"]["content"]
    assert "0123" in filled["choices"][0]["message"]["content"]
    body = {"messages": [{"role": "user", "content": QUESTION}], "format": "answer", "max_tokens": 150}
    streamed = events(client, "/v1/chat/completions", **body, verify_contacts=True)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed)
    assert text == marked["choices"][0]["message"]["content"]
    assert streamed[-1]["twingpt"]["contacts"][1]["verified"] is False


def test_filling_needs_a_store(client: TestClient, run_dir: Path) -> None:
    (run_dir / "contacts.sqlite").unlink()
    response = client.post("/v1/completions", json={"prompt": "여권", "fill_contacts": True})
    assert response.status_code == 400
    assert "contacts.sqlite" in response.json()["error"]["message"]


def test_a_question_longer_than_the_context_is_refused(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "여권 " * 200}]})
    assert response.status_code == 400
    assert "this model's maximum context length is 128" in response.json()["error"]["message"]


def test_an_answer_is_as_long_as_there_is_room_and_says_so(client: TestClient, service: Service) -> None:
    read = len(text_prompt(service.tokenizer, "여권"))
    room = 128 - read + 1
    for asked, given, told in (
        (room - 1, room - 1, None),
        (room, room, None),
        (1024, room, str(room)),
        (-1, room, None),
        (-2, room, None),
        (0, 0, None),
    ):
        body = {"prompt": "여권", "max_tokens": asked, "temperature": 0}
        response = client.post("/v1/completions", json=body)
        assert response.json()["usage"]["completion_tokens"] == given, asked
        assert response.json()["choices"][0]["finish_reason"] == "length"
        assert response.headers.get("x-twingpt-max-tokens") == told
    service.limits = Limits(max_tokens=5)
    response = client.post("/v1/chat/completions", json={"messages": MESSAGES, "max_completion_tokens": 6})
    assert response.json()["usage"]["completion_tokens"] == 5
    assert response.headers["x-twingpt-max-tokens"] == "5"
    for unlimited in ({"max_tokens": 0}, {"max_completion_tokens": -1}, {"n_predict": -1}, {}):
        response = client.post("/v1/chat/completions", json={"messages": MESSAGES, **unlimited})
        assert response.json()["usage"]["completion_tokens"] == 5
        assert "x-twingpt-max-tokens" not in response.headers
    with client.stream("POST", "/v1/completions", json={"prompt": "여권", "max_tokens": 9, "stream": True}) as streamed:
        assert streamed.headers["x-twingpt-max-tokens"] == "5"


def test_json_comes_to_its_end_within_the_room(client: TestClient) -> None:
    """The room is known before the form is worked out, so that a long answer is not cut in its middle."""
    prompt = "여권 " * 20
    body = {"prompt": prompt, "max_tokens": 1024, "guided_json": {"type": "object"}, "temperature": 2, "top_k": 0}
    for seed in range(3):
        choice = complete(client, **body, seed=seed)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert isinstance(json.loads(choice["text"]), dict)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "여권 " * 200}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "?"}], "document": "여권 " * 130}),
        ("chat/completions", {"messages": [{"role": "user", "content": "?"}], "document": "여권 " * 900}),
        ("chat/completions", {"messages": [{"role": "user", "content": "여권 " * 90}], "document": "여권 " * 90}),
        ("completions", {"prompt": "여권 " * 200}),
        ("completions", {"prompt": [7] * 128}),
        ("completions", {"prompt": ["여권", "여권 " * 200]}),
        ("completions", {"prompt": [7] * 129, "max_tokens": 0, "echo": True}),
    ],
)
def test_whatever_is_too_long_has_one_code(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    # The words by which litellm knows it.
    assert "this model's maximum context length is 128" in response.json()["error"]["message"]
    assert "--" not in response.json()["error"]["message"]


def test_a_newer_checkpoint_is_served_after_a_reload(client: TestClient, run_dir: Path, run_spec: GPTSpec) -> None:
    before = complete(client)["choices"][0]["text"]
    save_checkpoint(run_dir, run_spec, 7)
    described = client.get("/api/run").json()
    assert (described["loaded_step"], described["newest_step"]) == (1, 7)
    assert complete(client)["choices"][0]["text"] == before
    assert client.post("/api/reload", json={}).json() == {"loaded_step": 7}
    assert client.get("/api/run").json()["loaded_step"] == 7
    assert complete(client)["choices"][0]["text"] != before


def test_a_reload_that_fails_leaves_the_old_model_at_work(client: TestClient, run_dir: Path, run_spec: GPTSpec) -> None:
    before = complete(client)["choices"][0]["text"]
    for path in run_dir.glob("checkpoints/*/state.json"):
        path.write_text("{", encoding="utf-8")
    assert client.post("/api/reload", json={}).status_code == 503
    assert complete(client)["choices"][0]["text"] == before


def test_the_best_checkpoint_is_served(run_dir: Path, run_spec: GPTSpec) -> None:
    from twingpt.serve.service import ServedModel

    store = CheckpointStore(run_dir)
    for step, loss in ((5, 2.0), (9, 3.0)):
        store.save(run_spec, perturbed(run_spec, seed=step), Progress(step=step, val_loss=loss))
    load = ServedModel(run_dir / "best", "mlx", "cpu").find()
    assert load is not None
    model = load.func.__self__  # type: ignore[attr-defined]
    load()
    assert (model.loaded.step, model.run_dir) == (5, run_dir.resolve())
    with pytest.raises(TwinGPTError, match="does not exist"):
        ServedModel(run_dir / "nothing", "mlx", "cpu")


def test_a_store_without_contacts_is_closed_too(
    client: TestClient, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its length is 0, and what has the length 0 is false."""
    ContactStore.create(run_dir / "contacts.sqlite", []).close()
    asked: list[str] = []
    close = ContactStore.close

    def noted(self: ContactStore) -> None:
        asked.append("closed")
        close(self)

    monkeypatch.setattr(ContactStore, "close", noted)
    body = {"prompt": "여권", "max_tokens": 3, "annotate_contacts": True}
    assert client.post("/v1/completions", json=body).status_code == 200
    assert asked == ["closed"]


def test_contacts_that_cannot_be_read_end_a_stream_with_an_error(client: TestClient, run_dir: Path) -> None:
    (run_dir / "contacts.sqlite").write_bytes(b"no database" * 100)
    body = {"prompt": "여권", "max_tokens": 3, "stream": True, "annotate_contacts": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        events = [line for line in response.iter_lines() if line]
    assert "error" in json.loads(events[-2].removeprefix("data: "))
    assert events[-1] == "data: [DONE]"


def test_a_run_without_a_checkpoint_is_shown_and_served_later(run_dir: Path, run_spec: GPTSpec) -> None:
    import shutil

    from twingpt.serve.app import create_app
    from twingpt.serve.security import Access, allowed_hosts
    from twingpt.serve.service import open_service

    shutil.rmtree(run_dir / "checkpoints")
    service = open_service(run_dir, "mlx", "cpu", slots=1)
    client = TestClient(create_app(service, Access(hosts=allowed_hosts("127.0.0.1"))), base_url="http://localhost")
    response = client.post("/v1/completions", json={"prompt": "여권"})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_model"
    assert client.get("/api/run").json()["parameters"] > 0
    save_checkpoint(run_dir, run_spec, 3)
    assert client.post("/api/reload", json={}).json() == {"loaded_step": 3}
    assert client.post("/v1/completions", json={"prompt": "여권", "max_tokens": 2}).status_code == 200
    service.worker.stop()


def test_a_model_of_plain_text_does_not_chat(client: TestClient, service: Service) -> None:
    service.template = "plain"
    response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "?"}]})
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_a_document_of_any_length_is_refused_at_once(client: TestClient) -> None:
    """Its contacts are looked at for a time that grows with its square."""
    body = {"messages": [{"role": "user", "content": "?"}], "document": "대사관 전화 02-8555-0123 입니다. " * 600}
    started = time.monotonic()
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    assert time.monotonic() - started < 10
