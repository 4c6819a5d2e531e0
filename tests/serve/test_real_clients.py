"""Programs that others use, against a server of their own: litellm, langchain-openai, llm and lm-eval.

TWINGPT_CLIENTS names a Python that has them; without it they are installed, which takes minutes.
"""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.conftest import EXAMPLE
from tests.serve.conftest import make_run
from tests.serve.process import serving
from twingpt.cli import app as cli
from twingpt.data.tokens.manifest import Manifest, Split
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.model import Model, load

pytestmark = pytest.mark.slow

QUESTION = "여권을 잃어버렸을 때?"
# Nothing is asked of the network, which lm-eval and litellm would wait for.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that has the clients."""
    if given := os.environ.get("TWINGPT_CLIENTS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("clients") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    requirements = Path(__file__).with_name("clients.txt")
    installed = subprocess.run(
        [folder / "bin" / "pip", "install", "--quiet", "-r", requirements], capture_output=True, text=True
    )
    if installed.returncode:
        pytest.skip(f"the clients cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def served(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("served") / "my-run", tokenizer)


@pytest.fixture(scope="module")
def model(served: Path) -> Model:
    return load(served, "mlx", "cpu")


@pytest.fixture(scope="module")
def base_url(served: Path) -> Iterator[str]:
    with serving(served) as (url, _):
        yield f"{url}/v1"


def run(command: list[str | Path], folder: Path, **environment: str) -> str:
    """The standard output."""
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **OFFLINE, "OPENAI_API_KEY": "none", "HF_HOME": str(folder / "hf"), **environment},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def reference(base_url: str, **body: Any) -> str:
    """The answer without any client."""
    messages = [{"role": "user", "content": QUESTION}]
    settings = {"model": "my-run:free", "messages": messages, "temperature": 0, "max_tokens": 16}
    answer = httpx.post(f"{base_url}/chat/completions", json={**settings, **body}, timeout=60).json()
    text: str = answer["choices"][0]["message"]["content"]
    return text


def test_litellm(python: Path, base_url: str, tmp_path: Path) -> None:
    script = """
import json, sys
import litellm
base, question = sys.argv[1:]
shared = {"api_base": base, "api_key": "none", "temperature": 0, "max_tokens": 16}
chat = {"model": "openai/my-run:free", "messages": [{"role": "user", "content": question}], **shared}
whole = litellm.completion(**chat)
parts = litellm.completion(**chat, stream=True, stream_options={"include_usage": True})
written = litellm.text_completion(model="text-completion-openai/my-run", prompt=question, **shared)
told = []
try:
    litellm.completion(**{**chat, "messages": [{"role": "user", "content": question * 100}]})
except litellm.ContextWindowExceededError as error:
    told.append(str(error))
print(json.dumps({
    "whole": whole.choices[0].message.content,
    "usage": whole.usage.completion_tokens,
    "parts": "".join(part.choices[0].delta.content or "" for part in parts if part.choices),
    "written": written.choices[0].text,
    "told": told,
}))
"""
    said = json.loads(run([python, "-c", script, base_url, QUESTION], tmp_path).splitlines()[-1])
    assert said["whole"] == said["parts"] == reference(base_url)
    assert said["usage"] == 16
    body = {"prompt": QUESTION, "temperature": 0, "max_tokens": 16}
    written = httpx.post(f"{base_url}/completions", json=body, timeout=60).json()
    assert said["written"] == written["choices"][0]["text"]
    assert "context" in said["told"][0]


def test_langchain(python: Path, base_url: str, tmp_path: Path) -> None:
    script = """
import json, sys
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel
base, question = sys.argv[1:]
shared = {"base_url": base, "api_key": "none", "temperature": 0}
class Notice(BaseModel):
    place: str
    fee: int
chat = ChatOpenAI(model="my-run:free", max_tokens=16, **shared)
called = AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "1"}])
history = [SystemMessage("You help."), HumanMessage("Rain?"), called, ToolMessage("yes", tool_call_id="1")]
notice = ChatOpenAI(model="my-run:free", max_tokens=110, **shared).with_structured_output(Notice, method="json_schema")
writer = OpenAI(model="my-run", max_tokens=8, **shared)
print(json.dumps({
    "after_history": chat.invoke([*history, HumanMessage(question)]).content,
    "parts": "".join(part.content for part in chat.stream(question)),
    "fee": notice.invoke(question).fee,
    "alone": [writer.invoke(text) for text in ("one", "two")],
    "together": [one[0].text for one in writer.generate(["one", "two"]).generations],
}))
"""
    said = json.loads(run([python, "-c", script, base_url, QUESTION], tmp_path).splitlines()[-1])
    assert said["after_history"] == said["parts"] == reference(base_url)
    assert isinstance(said["fee"], int)
    assert said["together"] == said["alone"]
    assert said["alone"][0] != said["alone"][1]


def test_llm(python: Path, base_url: str, tmp_path: Path) -> None:
    shared = f'  api_base: "{base_url}"\n'
    (tmp_path / "extra-openai-models.yaml").write_text(
        f'- model_id: chat\n  model_name: "my-run:free"\n  supports_schema: true\n{shared}'
        f'- model_id: writer\n  model_name: "my-run"\n  completion: true\n{shared}',
        encoding="utf-8",
    )

    def llm(*arguments: str) -> str:
        command: list[str | Path] = [python.with_name("llm"), *arguments, "-o", "max_tokens", "16"]
        return run([*command, "-o", "temperature", "0"], tmp_path, LLM_USER_PATH=str(tmp_path)).removesuffix("\n")

    assert llm("-m", "chat", QUESTION) == reference(base_url)
    # It goes on with what was said, and the last question is the one that counts.
    assert llm("-m", "chat", "-c", "--no-stream", QUESTION) == reference(base_url)
    boolean = json.loads(llm("-m", "chat", "--schema", '{"type": "boolean"}', QUESTION))
    assert isinstance(boolean, bool)
    assert llm("-m", "writer", QUESTION)


def documents() -> list[str]:
    """Shorter than the context, as lm-eval otherwise cuts them another way than `eval` does."""
    texts = [re.sub(r"\s+", " ", text)[:90].strip() for text in EXAMPLE.read_text(encoding="utf-8").split("\n\n")]
    return [text for text in texts if len(text) > 40][:6]


def rows(folder: Path, tokenizer: Tokenizer, block_size: int) -> Path:
    """DATA whose validation split is the documents, each in a row of its own."""
    folder.mkdir()
    packed = []
    for text in documents():
        ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
        assert len(ids) < block_size
        packed += ids + [tokenizer.pad_id] * (block_size + 1 - len(ids))
    tokens = np.array(packed, dtype=np.uint16)
    split = Split(
        file="val.bin",
        tokens=len(tokens),
        documents=len(documents()),
        text_bytes=sum(len(text.encode()) for text in documents()),
        sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
    )
    for name in ("train", "val"):
        tokens.tofile(folder / f"{name}.bin")
    tokenizer.save(folder / "tokenizer.json")
    Manifest(
        layout="rows",
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        block_size=block_size,
        pad_id=tokenizer.pad_id,
        template="plain",
        text_sha256="of the test",
        tokenizer_sha256=tokenizer.sha256,
        train=replace(split, file="train.bin"),
        val=split,
    ).save(folder)
    return folder


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{data}.jsonl}}}}
test_split: test
metadata: {{version: 1}}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}[EOS]"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""
UNTIL = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match}]
"""
QUESTIONS = [
    {"question": "여권을 잃어버리면", "choices": ["경찰서에 신고합니다.", "은행에 갑니다.", "집"], "answer": 0},
    {"question": "비자는", "choices": ["이민국에서 연장합니다.", "택시"], "answer": 0},
]


def write_tasks(folder: Path) -> None:
    folder.mkdir()
    for name, form, data in (
        ("rolling", ROLLING, "texts"),
        ("choice", CHOICE, "questions"),
        ("until", UNTIL, "questions"),
    ):
        task = TASK.format(name=f"our_{name}", folder=folder, data=data) + form
        (folder / f"{name}.yaml").write_text(task, encoding="utf-8")
    for name, lines in (("texts", [{"text": text} for text in documents()]), ("questions", QUESTIONS)):
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    (path,) = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def own_score(model: Model, context: list[int], continuation: list[int]) -> float:
    """The log-probability of a continuation, by the engine itself."""
    tokens = context + continuation
    logits = model.engine.logits(np.array([tokens], dtype=np.int32))[0].astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return float(sum(logprobs[place - 1, tokens[place]] for place in range(len(context), len(tokens))))


def complete_with_lm_eval(
    python: Path, base_url: str, served: Path, folder: Path, tasks: str, *, bos: bool, batch_size: int
) -> None:
    """What was measured lies below `folder`."""
    write_tasks(folder / "tasks")
    converted = CliRunner().invoke(cli, ["convert", str(served), str(folder / "exported"), "--to", "hf"])
    assert converted.exit_code == 0, converted.output
    given = f"model=my-run,base_url={base_url}/completions,tokenizer={folder / 'exported'},max_length=128"
    command: list[str | Path] = [python.with_name("lm_eval"), "run", "--model", "local-completions", "--log_samples"]
    command += ["--model_args", f"{given},add_bos_token={bos}", "--batch_size", str(batch_size)]
    command += ["--output_path", folder / "out", "--include_path", folder / "tasks", "--tasks", tasks]
    run(command, folder)


def test_lm_eval_scores_choices_as_the_engine_does(
    python: Path, base_url: str, served: Path, model: Model, tmp_path: Path
) -> None:
    complete_with_lm_eval(python, base_url, served, tmp_path, "our_choice,our_until", bos=True, batch_size=4)
    encode, bos = model.tokenizer.encode, [model.tokenizer.bos_id]
    for sample in samples(tmp_path, "our_choice"):
        for choice, ((scored, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            question = sample["doc"]["question"]
            context, whole = bos + encode(question), bos + encode(f"{question} {choice}")
            expected = own_score(model, context, whole[len(context) :])
            assert float(scored) == pytest.approx(expected, abs=1e-4)
    assert [len(sample["resps"]) for sample in samples(tmp_path, "our_until")] == [1, 1]


def test_lm_eval_finds_the_perplexity_that_eval_finds(
    python: Path, base_url: str, served: Path, model: Model, tmp_path: Path
) -> None:
    # lm-eval puts a [BOS] before a document itself: add_bos_token would be a second one.
    complete_with_lm_eval(python, base_url, served, tmp_path, "our_rolling", bos=False, batch_size=1)
    encode, bos, ends = model.tokenizer.encode, [model.tokenizer.bos_id], [model.tokenizer.eos_id]
    rolled = {sample["doc"]["text"]: float(sample["resps"][0][0]) for sample in samples(tmp_path, "our_rolling")}
    assert list(rolled) == documents()
    for text, scored in rolled.items():
        assert scored == pytest.approx(own_score(model, bos, encode(text) + ends), abs=1e-4)

    data = rows(tmp_path / "data", model.tokenizer, model.spec.block_size)
    evaluated = CliRunner().invoke(
        cli, ["eval", str(served), "--data", str(data), "--backend", "mlx", "--device", "cpu", "--json"]
    )
    assert evaluated.exit_code == 0, evaluated.output
    ours = json.loads(evaluated.stdout)
    (results,) = tmp_path.rglob("results_*.json")
    reported = json.loads(results.read_text(encoding="utf-8"))["results"]["our_rolling"]
    words = sum(len(re.split(r"\s+", text)) for text in rolled)
    perplexity = math.exp(math.log(reported["word_perplexity,none"]) * words / ours["tokens"])
    assert perplexity == pytest.approx(ours["perplexity"], rel=1e-5)
    bits = reported["bits_per_byte,none"] * sum(len((text + "[EOS]").encode()) for text in rolled)
    assert bits / ours["text_bytes"] == pytest.approx(ours["bits_per_byte"], rel=1e-5)


def test_lm_eval_chats(python: Path, base_url: str, tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks")
    given = f"model=my-run:free,base_url={base_url}/chat/completions"
    command: list[str | Path] = [python.with_name("lm_eval"), "run", "--model", "local-chat-completions"]
    command += ["--model_args", given, "--apply_chat_template", "--log_samples", "--output_path", tmp_path / "out"]
    run([*command, "--include_path", tmp_path / "tasks", "--tasks", "our_until"], tmp_path)
    for sample in samples(tmp_path, "our_until"):
        messages = [{"role": "user", "content": sample["doc"]["question"]}]
        expected = reference(base_url, messages=messages, max_tokens=12, stop=["\n\n"])
        assert sample["resps"] == [[expected]]
