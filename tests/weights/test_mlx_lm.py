"""mlx-lm opens what `convert --to mlx-lm` writes: the same logits, the same greedy text, the same chat."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.weights.models import BLOCK, FAMILIES, GPT2, LLAMA, QWEN3, SEED, VOCAB, save_run
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.prompts import question_prompt
from twingpt.interchange.convert import convert_model, read_model

mlx_lm = pytest.importorskip("mlx_lm", reason="the package mlx-lm opens the folder")

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 60), dtype=np.int32)
# Largest logit error measured over every model here: 2.1e-5.
LOGITS = 1e-4

VARIANTS = {
    **FAMILIES,
    "gpt2 without biases": dataclasses.replace(GPT2, bias=False),
    "llama with biases": dataclasses.replace(LLAMA, bias=True, tie_embeddings=True),
    "qwen3 untied": dataclasses.replace(QWEN3, tie_embeddings=False),
}


@pytest.fixture(autouse=True)
def on_the_cpu() -> Iterator[None]:
    import mlx.core as mx

    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@pytest.mark.parametrize("name", VARIANTS)
def test_mlx_lm_gives_our_logits_and_text(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    import mlx.core as mx

    spec = VARIANTS[name]
    state = save_run(tmp_path / "run", spec, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None)
    model, theirs = mlx_lm.load(str(tmp_path / "out"))
    logits = np.array(model(mx.array(TOKENS)))
    for backend in compared():
        engine = create_backend(backend, spec, EngineConfig(device="cpu"))
        engine.load_state(state)
        error = np.abs(engine.logits(TOKENS) - logits).max()
        assert error < LOGITS, (backend, error)

    prompt = theirs.apply_chat_template([{"role": "user", "content": "비자는?"}], add_generation_prompt=True)
    assert prompt == question_prompt(tokenizer, "비자는?", None, BLOCK)
    stops = {tokenizer.id(mark) for mark in ("[EOS]", "[/ANSWER]", "[/SUMMARY]")}
    assert set(theirs.eos_token_ids) == stops
    steps = list(mlx_lm.stream_generate(model, theirs, prompt, max_tokens=32))
    ids = [step.token for step in steps]
    expected = engine.logits(np.array([[*prompt, *ids]], dtype=np.int32))[0, len(prompt) - 1 :]
    for step, token in enumerate(ids):
        best, runner_up = np.sort(expected[step])[-1:-3:-1]
        assert int(expected[step].argmax()) == token or best - runner_up < 10 * LOGITS, step
    assert len(ids) == 32 or ids[-1] in stops


@pytest.mark.parametrize("name", FAMILIES)
def test_what_mlx_lm_opens_comes_back(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    state = save_run(tmp_path / "run", FAMILIES[name], tokenizer)
    convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None)
    back = read_model(tmp_path / "out")
    assert all(np.array_equal(weight, state[MODEL + key]) for key, weight in back.weights.items())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(tmp_path: Path, tokenizer: Tokenizer, dtype: str) -> None:
    import mlx.core as mx

    state = save_run(tmp_path / "run", QWEN3, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None, dtype=dtype)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {array.dtype.name for array in weights.values()} == {dtype}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    model, _ = mlx_lm.load(str(tmp_path / "out"))
    logits = np.array(model(mx.array(TOKENS)).astype(mx.float32))
    engine = create_backend("mlx", QWEN3, EngineConfig(device="cpu"))
    engine.load_state(state)
    error = np.abs(engine.logits(TOKENS) - logits).max()
    # Measured: float16 0.021, bfloat16 0.19.
    assert 1e-4 < error < {"float16": 0.1, "bfloat16": 1.0}[dtype], error


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (SEED, ["GPT-2 in mlx-lm", "activation gelu", "tie_embeddings false", "gpt2"]),
        (dataclasses.replace(GPT2, tie_embeddings=False), ["tie_embeddings false", "gpt2"]),
        (dataclasses.replace(GPT2, mlp_ratio=3), ["mlp_ratio 3 (it has 4 * n_embd)"]),
        (dataclasses.replace(GPT2, n_hidden=100), ["n_hidden 100"]),
        (dataclasses.replace(GPT2, head_size=32), ["head_size 32"]),
        (dataclasses.replace(LLAMA, norm="layernorm"), ["Llama in mlx-lm", "norm layernorm", "llama"]),
        (dataclasses.replace(QWEN3, bias=True), ["Qwen3 in mlx-lm", "bias true", "modern"]),
    ],
)
def test_what_mlx_lm_does_not_compute_is_refused_by_name(
    tmp_path: Path, tokenizer: Tokenizer, spec: GPTSpec, named: list[str]
) -> None:
    save_run(tmp_path / "run", spec, tokenizer)
    with pytest.raises(TwinGPTError) as refusal:
        convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None)
    assert all(word in str(refusal.value) for word in named), refusal.value
    assert not (tmp_path / "out").exists()


def test_a_tied_model_of_exact_gelu_is_approximated_when_asked_to(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_run(tmp_path / "run", dataclasses.replace(SEED, tie_embeddings=True), tokenizer)
    with pytest.raises(TwinGPTError, match="--approximate gelu"):
        convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None)
    (note,) = convert_model(tmp_path / "run", tmp_path / "out", "mlx-lm", None, approximate="gelu")
    assert "logits differ by up to" in note
    mlx_lm.load(str(tmp_path / "out"))
