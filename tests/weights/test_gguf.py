"""GGUF in llama.cpp itself: the same logits, the same greedy text, the same tokens, the same chat."""

import dataclasses
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import EXAMPLE
from tests.weights.models import BLOCK, FAMILIES, GPT2, LLAMA, QWEN3, SEED, VOCAB, save_run
from twingpt.core.backend import Backend, EngineConfig, create_backend
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.interchange.convert import convert_model

pytest.importorskip("gguf", reason="the package gguf writes the file")

PROMPTS = (
    "여권을 잃어버렸을 때",
    "비자 연장은",
    "병원에 가려면 ",
    "은행 계좌를 만들 때",
    "이민국 근처에서",
    "택시를 탈 때 주의할 점",
)
QUESTIONS = ("전기 요금은 어디서 내나요?", "여권 재발급 비용은?", "운전면허는 어떻게 바꾸나요?", "응급실은 어디?")
GREEDY_TOKENS = 64

# Largest error of a log-probability against ours, float32 file and cache; llama.cpp reads GELU from a table of float16.
LOGITS = {
    "gpt2": 1e-2,  # 2.5e-3
    "llama": 5e-5,  # 4.9e-6
    "qwen3": 5e-5,  # 7.7e-6
}


class LlamaCpp:
    """A .gguf file open in llama.cpp's server, on one thread."""

    def __init__(self, path: Path, tokenizer: Tokenizer, context: int = BLOCK) -> None:
        import xllamacpp

        (self.letter,) = tokenizer.encode("a")

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_op_offload = params.no_kv_offload = True
        params.warmup = False
        params.use_jinja = True
        params.verbosity = 1
        self.server = xllamacpp.Server(params)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def log_probabilities(self, ids: list[int]) -> NDArray[np.float64]:
        """Of the token after `ids`, [V]."""
        # The server tells nothing of a token that is half a character: it is made to choose a whole one.
        answer = self.complete(ids, 1, n_probs=VOCAB, logit_bias=[[self.letter, 1000]])
        found = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
        return np.array([found[token] for token in range(VOCAB)])

    def complete(self, ids: list[int], n_predict: int, **options: Any) -> Any:
        body = {"prompt": ids, "n_predict": n_predict, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.post("/completion", body | options)

    def tokenize(self, text: str) -> list[int]:
        body = {"content": text, "add_special": False, "parse_special": False}
        tokens: list[int] = self.post("/tokenize", body)["tokens"]
        return tokens


def export(folder: Path, spec: GPTSpec, tokenizer: Tokenizer, **options: Any) -> tuple[Path, Backend]:
    """(a GGUF file of the spec, an engine with the same weights)."""
    state = save_run(folder / "run", spec, tokenizer)
    convert_model(folder / "run", folder / "out", "gguf", None, **options)
    engine = create_backend("mlx", spec, EngineConfig(device="cpu"))
    engine.load_state(state)
    return folder / "out" / "model.gguf", engine


@pytest.fixture(scope="module", params=list(FAMILIES))
def opened(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, LlamaCpp, Backend]]:
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    path, engine = export(tmp_path_factory.mktemp("gguf"), FAMILIES[request.param], tokenizer)
    yield request.param, LlamaCpp(path, tokenizer), engine


def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    ten = [text_prompt(tokenizer, text) for text in PROMPTS]
    ten += [question_prompt(tokenizer, question, None, BLOCK) for question in QUESTIONS]
    assert len(ten) == 10
    assert max(map(len, ten)) + GREEDY_TOKENS <= BLOCK
    return ten


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def ours(engine: Backend, ids: list[int]) -> NDArray[np.float64]:
    """Log-probabilities after each token of `ids`, [T, V]."""
    return log_softmax(engine.logits(np.array([ids], dtype=np.int32))[0])


def test_llama_cpp_gives_our_logits_and_our_greedy_text(
    opened: tuple[str, LlamaCpp, Backend], tokenizer: Tokenizer
) -> None:
    family, llama, engine = opened
    stops = {tokenizer.eos_id, tokenizer.id("[/ANSWER]")}
    error = max(
        np.abs(llama.log_probabilities(ids[:length]) - ours(engine, ids[:length])[-1]).max()
        for ids in prompts(tokenizer)
        for length in (1, 2, len(ids))
    )
    assert error < LOGITS[family], error
    compared = 0
    for ids in prompts(tokenizer):
        answer = llama.complete(ids, GREEDY_TOKENS)
        text: list[int] = answer["tokens"]
        assert len(text) == GREEDY_TOKENS or text[-1] in stops or answer["stop_type"] == "eos"
        expected = ours(engine, [*ids, *text])[len(ids) - 1 :]
        for step, token in enumerate(text):
            best, runner_up = np.sort(expected[step])[-1:-3:-1]
            if best - runner_up > 10 * error:
                assert int(expected[step].argmax()) == token, (step, token)
                compared += 1
    assert compared > 300, compared


def test_llama_cpp_cuts_text_into_the_same_tokens(opened: tuple[str, LlamaCpp, Backend], tokenizer: Tokenizer) -> None:
    family, llama, _ = opened
    if family != "gpt2":
        pytest.skip("the tokenizer is the same in every family")
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    lines += [f"{one}\n\n  {other} " for one, other in zip(lines[::2], lines[1::2], strict=False)]
    lines += ["[BOS]여권[/ANSWER]", "I'll don't we've  2,500", "\t ½ ①\r\n 👩‍👩‍👧 ㅋㅋ", "ᄀ\u1161 e\u0301　끝 "]
    assert len(lines) > 1000
    for line in lines:
        assert llama.tokenize(line) == tokenizer.encode(line), line


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("spec", [GPT2, dataclasses.replace(LLAMA, n_embd=80)], ids=["gpt2", "odd rows"])
def test_smaller_types_stay_close(tmp_path: Path, tokenizer: Tokenizer, dtype: str, spec: GPTSpec) -> None:
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    path, engine = export(tmp_path, spec, tokenizer, dtype=dtype)
    llama, ids = LlamaCpp(path, tokenizer), prompts(tokenizer)[0]
    error = np.abs(llama.log_probabilities(ids) - ours(engine, ids)[-1]).max()
    # Measured: f16 3.1e-3 and 9.5e-3, bf16 0.027 and 0.091, q8_0 0.081 and 0.14.
    assert error < {"f16": 0.03, "bf16": 0.3, "q8_0": 0.4}[dtype], error
    assert error > 1e-4, error
    assert path.stat().st_size < 0.8 * 4 * sum(array.size for array in engine.export_state().values())


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (SEED, ["activation gelu", "--approximate gelu", "gpt2"]),
        (dataclasses.replace(SEED, activation="relu2"), ["activation relu2", "gpt2"]),
        (dataclasses.replace(LLAMA, bias=True), ["bias true", "preset", "llama"]),
        (dataclasses.replace(QWEN3, activation="relu2"), ["Qwen3 in llama.cpp", "activation relu2", "modern"]),
        (dataclasses.replace(SEED, activation="gelu_tanh", n_kv_head=2), ["n_kv_head 2", "gpt2"]),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused_by_name(
    tmp_path: Path, tokenizer: Tokenizer, spec: GPTSpec, named: list[str]
) -> None:
    save_run(tmp_path / "run", spec, tokenizer)
    with pytest.raises(TwinGPTError) as refusal:
        convert_model(tmp_path / "run", tmp_path / "out", "gguf", None)
    assert all(word in str(refusal.value) for word in named), refusal.value
    assert not (tmp_path / "out").exists()


def test_an_exact_gelu_is_approximated_when_asked_to(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")
    save_run(tmp_path / "run", SEED, tokenizer)
    notes = convert_model(tmp_path / "run", tmp_path / "out", "gguf", None, approximate="gelu")
    assert len(notes) == 1
    told = re.search(r"logits differ by up to ([\d.e-]+) .* is the same at (\d+) of 512 places", notes[0])
    assert told is not None, notes
    assert 1e-4 < float(told[1]) < 0.1
    assert int(told[2]) > 400
    engine = create_backend("mlx", dataclasses.replace(SEED, activation="gelu_tanh"), EngineConfig(device="cpu"))
    engine.load_state(save_run(tmp_path / "run", SEED, tokenizer))
    ids = prompts(tokenizer)[0]
    error = np.abs(
        LlamaCpp(tmp_path / "out" / "model.gguf", tokenizer).log_probabilities(ids) - ours(engine, ids)[-1]
    ).max()
    assert error < LOGITS["gpt2"], error
    with pytest.raises(TwinGPTError, match="relu2"):
        save_run(tmp_path / "other", dataclasses.replace(SEED, activation="relu2"), tokenizer)
        convert_model(tmp_path / "other", tmp_path / "out2", "gguf", None, approximate="gelu")


def test_a_gguf_needs_a_tokenizer_of_ours(tmp_path: Path) -> None:
    save_run(tmp_path / "run", GPT2, None)
    with pytest.raises(TwinGPTError, match="--tokenizer"):
        convert_model(tmp_path / "run", tmp_path / "out", "gguf", None)
    (tmp_path / "other.json").write_text('{"added_tokens": [], "model": {"type": "BPE"}}')
    with pytest.raises(TwinGPTError, match=r"other\.json is not one that twingpt made"):
        convert_model(tmp_path / "run", tmp_path / "out", "gguf", tmp_path / "other.json")
    with pytest.raises(UsageError, match="int4"):
        convert_model(tmp_path / "run", tmp_path / "out", "gguf", None, dtype="int4")


def test_ollama_gets_a_recipe(tmp_path: Path, tokenizer: Tokenizer) -> None:
    export(tmp_path, GPT2, tokenizer)
    recipe = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert recipe.startswith("FROM ./model.gguf\n")
    assert f"num_ctx {BLOCK}" in recipe
    # Ollama adds [BOS] itself: with it, what is left without the conditions is the prompt of question and document.
    template = re.sub(r"\{\{-? *(?:range|if|end)[^}]*\}\}", "", recipe.split('"""')[1])
    filled = template.replace("{{ .Content }}", "여권은?").replace("{{ $.System }}", "[DOC]공관.[/DOC]")
    assert f"[BOS]{filled}" == tokenizer.decode(question_prompt(tokenizer, "여권은?", "공관.", BLOCK))


def test_ollamas_recipe_of_plain_text_asks_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_run(tmp_path / "run", GPT2, tokenizer)
    (tmp_path / "run" / "config.toml").write_text('template = "plain"\n')
    convert_model(tmp_path / "run", tmp_path / "out", "gguf", None)
    recipe = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert 'TEMPLATE """{{ .Prompt }}"""' in recipe
    assert "[QUESTION]" not in recipe
