"""Answers in the form that a request asks for."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from fastapi.testclient import TestClient

from tests.serve.test_api import chat, complete, events
from twingpt.data.library.build import build_library, split_document

SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "open": {"type": "boolean"},
        "fee": {"type": "integer", "minimum": 0},
        "kind": {"enum": ["여권", "비자"]},
    },
    "required": ["place", "open", "fee", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "notice", "schema": SCHEMA, "strict": True}}
MESSAGES = [{"role": "user", "content": "여권을 잃어버렸을 때?"}]


@pytest.fixture
def run_dir(run_dir: Path) -> Path:
    """A run that answers from its text where nothing else is asked for."""
    build_library(run_dir / "library.sqlite", [split_document(["여권을 잃어버렸을 때", "경찰서에 신고합니다."])])
    return run_dir


def text_of(answer: dict[str, Any]) -> str:
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    text: str = choice["message"]["content"] if "message" in choice else choice["text"]
    return text


@pytest.mark.parametrize("seed", range(2))
def test_a_schema_is_followed_streamed_or_not(client: TestClient, seed: int) -> None:
    body = {"response_format": FORMAT, "max_tokens": 120, "seed": seed, "temperature": 1.0}
    text = text_of(chat(client, **body))
    jsonschema_rs.validator_for(SCHEMA).validate(json.loads(text))
    chunks = events(client, "/v1/chat/completions", messages=MESSAGES, **body)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
        ({"structured_outputs": {"json_object": True}}, r"\{.*\}"),
        ({"structured_outputs": {"json": {"type": "array", "items": {"type": "null"}}}}, r"\[.*\]"),
        ({"guided_json": '{"type": "boolean"}'}, "true|false"),
        ({"guided_regex": "[가-나]{2,5}!"}, "[가-나]{2,5}!"),
        ({"structured_outputs": {"regex": "[0-9]{4}"}}, "[0-9]{4}"),
        ({"guided_choice": ["예", "아니요"]}, "예|아니요"),
        ({"structured_outputs": {"choice": ["예", "아니요"], "disable_any_whitespace": True}}, "예|아니요"),
        ({"guided_grammar": 'start: "가"+ "나"'}, "가+나"),
        ({"structured_outputs": {"grammar": 'root ::= "가" | "나"'}}, "가|나"),
    ],
)
def test_a_form_has_several_names(client: TestClient, form: dict[str, Any], pattern: str) -> None:
    for answer in (chat(client, max_tokens=40, **form), complete(client, max_tokens=40, **form)):
        assert re.fullmatch(pattern, text_of(answer), re.DOTALL)


def test_text_is_the_default(client: TestClient) -> None:
    plain = chat(client, model="my-run")
    assert chat(client, model="my-run", response_format={"type": "text"})["choices"] == plain["choices"]
    assert "sources" in plain["twingpt"]


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"guided_json": {"type": "text"}}, "json: Invalid type: text"),
        ({"guided_json": {"uniqueItems": True}}, 'json: Unimplemented keys: ["uniqueItems"]'),
        ({"guided_regex": "(가"}, "unclosed group"),
        ({"response_format": FORMAT, "guided_regex": "a"}, "give one of"),
    ],
)
def test_a_mistake_is_told_in_one_line(client: TestClient, form: dict[str, Any], said: str) -> None:
    for path, prompt in (("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": "여권"})):
        response = client.post(f"/v1/{path}", json={**prompt, **form})
        assert response.status_code == 400
        message = response.json()["error"]["message"]
        assert said in message
        assert "\n" not in message


def test_other_clients_get_what_they_get_alone(base_url: str) -> None:
    def write(number: int, held: bool) -> str:
        body = {"prompt": f"여권 {number}", "max_tokens": 60, "seed": number, "temperature": 0.9}
        form = {"response_format": FORMAT} if held else {}
        answer = httpx.post(f"{base_url}/v1/completions", json={**body, **form}, timeout=60).json()
        text: str = answer["choices"][0]["text"]
        return text

    wanted = [(number, number % 2 == 0) for number in range(4)]
    alone = [write(*one) for one in wanted]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(write, *zip(*wanted, strict=True)))
    assert together == alone
