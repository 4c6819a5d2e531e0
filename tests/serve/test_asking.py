"""A run with a library answers from its text, by the API as by the command."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from twingpt.answers.ask import ask_document, ask_library
from twingpt.data.library.build import build_library, split_document
from twingpt.data.library.search import Library
from twingpt.serve.service import Service

TEXT = [
    "여권을 잃어버렸을 때\n가까운 경찰서에 먼저 신고합니다. 그다음 대사관에 전화하세요.\n대사관 TEL: +63 2 8555 0123",
    "비자 연장 안내\n이민국에서 연장 신청서를 냅니다. 수수료는 현금으로 냅니다.",
    "약국 여는 시간\n약국은 밤 아홉 시에 닫습니다.",
]
QUESTIONS = [
    "여권을 잃어버리면 어떻게 해요?",
    "비자 연장 수수료는 어떻게 내나요?",
    "약국 여는 시간 알려줘",
    "오로라를 볼 수 있나요?",
]


@pytest.fixture
def run_dir(run_dir: Path) -> Path:
    build_library(run_dir / "library.sqlite", (split_document(text.split("\n")) for text in TEXT))
    return run_dir


def chat(client: TestClient, question: str, **body: Any) -> dict[str, Any]:
    response = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": question}], **body})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_runs_name_answers_from_the_text(client: TestClient, service: Service, question: str) -> None:
    with Library(service.library) as library:
        expected = ask_library(library, question)
    answer = chat(client, question, model="my-run")
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["choices"][0]["finish_reason"] == "stop"
    told = answer["twingpt"]
    assert told["found"] == expected.found == (question != QUESTIONS[-1])
    assert [source["title"] for source in told["sources"]] == [source.title for source in expected.sources]
    assert answer["usage"]["completion_tokens"] == service.tokenizer.count(expected.text)


def test_a_stream_says_the_same(client: TestClient) -> None:
    whole = chat(client, QUESTIONS[0])
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
    body["stream_options"] = {"include_usage": True}
    lines = client.post("/v1/chat/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == whole["choices"][0]["message"]["content"] and len(events) > 8
    assert events[-2]["twingpt"] == whole["twingpt"] and events[-1]["usage"] == whole["usage"]


def test_the_free_name_and_other_forms_write(client: TestClient) -> None:
    free = chat(client, QUESTIONS[0], model="my-run:free", max_tokens=8)
    assert "sources" not in free["twingpt"] and free["usage"]["completion_tokens"] <= 8
    assert "sources" not in chat(client, QUESTIONS[0], format="answer", max_tokens=150)["twingpt"]
    assert client.get("/v1/models/my-run:free").json()["id"] == "my-run:free"


def test_a_document_is_answered_from_and_a_clients_system_message_is_not(client: TestClient) -> None:
    doc = "가게 안내\n아침 아홉 시에 엽니다. 전화는 02-8555-0199 입니다."
    expected = ask_document(doc, "가게는 몇 시에 열어요?").text
    answer = chat(client, "가게는 몇 시에 열어요?", document=doc)
    assert answer["choices"][0]["message"]["content"] == expected and "아침 아홉 시에 엽니다." in expected
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    answer = client.post("/v1/chat/completions", json={"messages": messages}).json()
    assert answer["twingpt"]["sources"][0]["title"] == "비자 연장 안내"


def test_many_at_once_answer_as_alone(base_url: str) -> None:
    with httpx.Client(base_url=base_url, timeout=60) as server:

        def text(question: str) -> str:
            body = {"messages": [{"role": "user", "content": question}]}
            said: str = server.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            return said

        alone = {question: text(question) for question in QUESTIONS}
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(text, QUESTIONS * 16))
        assert answers == [alone[question] for question in QUESTIONS * 16]


def test_the_page_is_told_of_the_text(client: TestClient) -> None:
    described = client.get("/api/run").json()
    assert described["library"] is True
    assert described["questions"] == [text.split("\n")[0] for text in TEXT]
