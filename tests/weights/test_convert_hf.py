"""Hugging Face: transformers opens what we write and we open what it writes, in every family, tensor for tensor."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.test_cli_generate import run_cli
from tests.weights.models import BLOCK, GPT2, LLAMA, QWEN3, SEED, VOCAB, loud_state, save_run
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.interchange.convert import convert_model, read_model
from twingpt.weights.checkpoint import CheckpointStore, Progress
from twingpt.weights.run_folder import load_tokenizer

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 60), dtype=np.int32)
# Largest logit error measured over every model here: 1.6e-5.
LOGITS = 1e-4

VARIANTS = {
    "gpt2": GPT2,
    "seed": SEED,
    "gpt2 with squared ReLU": dataclasses.replace(GPT2, activation="relu2", n_hidden=100),
    "llama": LLAMA,
    "llama with biases": dataclasses.replace(LLAMA, bias=True, tie_embeddings=True, n_kv_head=0),
    "qwen3": QWEN3,
    "qwen3 untied": dataclasses.replace(QWEN3, tie_embeddings=False, n_embd=100),
}


def assert_logits(spec: GPTSpec, weights: dict[str, Any], expected: np.ndarray[Any, Any]) -> None:
    """Both engines, holding these weights, give the expected logits."""
    for name in compared():
        engine = create_backend(name, spec, EngineConfig(device="cpu"))
        engine.load_state({MODEL + key: weight for key, weight in weights.items()})
        error = np.abs(engine.logits(TOKENS) - expected).max()
        assert error < LOGITS, (name, error)


def their_logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        logits: np.ndarray[Any, Any] = model.float().eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    return logits


def theirs(kind: str, **changes: Any) -> Any:
    """A tiny model made by transformers alone, with weights large enough to matter."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": VOCAB, "initializer_range": 0.15, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(**{**common, "n_positions": BLOCK, "n_embd": 64, "n_layer": 2, "n_head": 4, **changes})
        return GPT2LMHeadModel(config).eval()
    modern = {
        **common,
        "hidden_size": 64,
        "intermediate_size": 150,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "max_position_embeddings": BLOCK,
        "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**{**modern, **changes})).eval()
    return Qwen3ForCausalLM(Qwen3Config(**{**modern, **changes})).eval()


@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_opens_what_we_export(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = VARIANTS[name]
    state = save_run(tmp_path / "run", spec, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    weights = {key.removeprefix(MODEL): array for key, array in state.items()}
    assert_logits(spec, weights, their_logits(model))
    convert_model(tmp_path / "hf", tmp_path / "native", "native", None)
    assert (tmp_path / "native" / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()
    back = read_model(tmp_path / "native")
    assert_logits(back.spec, back.weights, their_logits(model))
    assert all(np.array_equal(back.weights[key], weights[key]) for key in weights)

    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert their_tokenizer("비자 연장은")["input_ids"] == text_prompt(tokenizer, "비자 연장은")
    chat = their_tokenizer.apply_chat_template(
        [{"role": "user", "content": "비자는?"}], add_generation_prompt=True, return_dict=False
    )
    assert chat == question_prompt(tokenizer, "비자는?", None, BLOCK)
    stops = [tokenizer.id(mark) for mark in ("[EOS]", "[/ANSWER]", "[/SUMMARY]")]
    assert model.generation_config.eos_token_id == stops
    answer = model.generate(torch.tensor([chat]), max_new_tokens=8, do_sample=False)[0, len(chat) :].tolist()
    assert len(answer) == 8 or answer[-1] in stops


@pytest.mark.parametrize(
    ("dtype", "shards"), [(torch.float32, True), (torch.float16, False), (torch.bfloat16, True)], ids=str
)
@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3"])
def test_what_transformers_saves_comes_back_byte_for_byte(
    tmp_path: Path, kind: str, dtype: torch.dtype, shards: bool
) -> None:
    from transformers import AutoModelForCausalLM

    model = theirs(kind, tie_word_embeddings=kind != "llama").to(dtype)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="60KB" if shards else "1GB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists() == shards

    convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    imported = read_model(tmp_path / "native")
    # What .to(dtype) does to the rotation's frequencies, loading does not.
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32)
    assert_logits(imported.spec, imported.weights, their_logits(loaded))
    convert_model(tmp_path / "native", tmp_path / "back", "hf", None)
    before: dict[str, Any] = {}
    for part in (tmp_path / "theirs").glob("*.safetensors"):
        before.update(load_file(part))
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype == str(dtype).removeprefix("torch."), name
        assert tensor.tobytes() == after[name].tobytes(), name


def test_tensors_of_mixed_types_each_keep_their_own(tmp_path: Path) -> None:
    theirs("qwen3").to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "model.safetensors"
    before = load_file(path)
    before = {name: t.astype(np.float32) if "norm" in name else t for name, t in before.items()}
    save_file(before, path, {"format": "pt"})
    convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    convert_model(tmp_path / "native", tmp_path / "back", "hf", None)
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert all(t.dtype == after[name].dtype and t.tobytes() == after[name].tobytes() for name, t in before.items())


def test_the_type_of_the_source_holds_until_the_model_is_trained_on(tmp_path: Path) -> None:
    theirs("llama").to(torch.bfloat16).save_pretrained(tmp_path / "theirs")
    convert_model(tmp_path / "theirs", tmp_path / "run", "native", None)

    def exported(name: str, **options: Any) -> set[str]:
        convert_model(tmp_path / "run", tmp_path / name, "hf", None, **options)
        return {tensor.dtype.name for tensor in load_file(tmp_path / name / "model.safetensors").values()}

    assert exported("same") == {"bfloat16"}
    assert exported("asked", dtype="f32") == {"float32"}
    model = read_model(tmp_path / "run")
    state = {MODEL + name: weight + np.float32(1e-6) for name, weight in model.weights.items()}
    CheckpointStore(tmp_path / "run").save(model.spec, state, Progress(step=1))
    assert exported("trained") == {"float32"}
    (tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000001")
    (tmp_path / "run" / "imported.json").write_text(
        (tmp_path / "run" / "imported.json").read_text().replace("bfloat16", "int4")
    )
    with pytest.raises(TwinGPTError, match=r"imported\.json is damaged"):
        exported("damaged")


def test_rounding_is_to_the_nearest_and_float16_never_overflows(tmp_path: Path) -> None:
    save_run(tmp_path / "run", LLAMA, None)
    convert_model(tmp_path / "run", tmp_path / "bf16", "hf", None, dtype="bfloat16")
    weight = load_file(tmp_path / "bf16" / "model.safetensors")["lm_head.weight"]
    exact = loud_state(LLAMA)[f"{MODEL}head.weight"]
    rounded = torch.from_numpy(exact).to(torch.bfloat16).float().numpy()
    assert np.array_equal(weight.astype(np.float32), rounded)

    state = loud_state(LLAMA)
    state[f"{MODEL}ln_f.weight"][3] = 1e5
    CheckpointStore(tmp_path / "loud").save(LLAMA, state, Progress(step=1))
    with pytest.raises(TwinGPTError, match=r"model\.norm\.weight holds values beyond"):
        convert_model(tmp_path / "loud", tmp_path / "f16", "hf", None, dtype="f16")


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}}, "of type llama3"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling of type linear"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention in rope_parameters"),
        ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 16}, "sliding_window = 16"),
        ("llama", {"sliding_window": 16}, "sliding_window = 16"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ("qwen3", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"attention_bias": True}, "attention_bias = True"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"model_type": "mistral"}, "model_type 'mistral'"),
        ("llama", {"hidden_size": "64"}, "describes no model"),
        ("llama", {"num_attention_heads": 0}, "describes no model"),
        ("gpt2", {"activation_function": "silu"}, "activation_function 'silu'"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = False"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_a_spec_cannot_express_is_refused_by_name(
    tmp_path: Path, kind: str, changes: dict[str, Any], named: str
) -> None:
    theirs(kind).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(TwinGPTError) as refusal:
        convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    assert named in str(refusal.value), refusal.value
    assert not (tmp_path / "native").exists()


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (dataclasses.replace(QWEN3, activation="relu2"), ["Qwen3 in transformers", "activation relu2", "modern"]),
        (dataclasses.replace(LLAMA, norm="layernorm"), ["norm layernorm (it takes rmsnorm)", "llama"]),
        (dataclasses.replace(LLAMA, n_head=6, n_embd=64), ["n_head 6", "divides n_embd 64"]),
        (dataclasses.replace(GPT2, activation="swiglu"), ["GPT-2 in transformers", "activation swiglu", "gpt2"]),
        (dataclasses.replace(GPT2, qk_norm=True), ["qk_norm true"]),
    ],
)
def test_what_transformers_does_not_compute_is_refused_by_name(tmp_path: Path, spec: GPTSpec, named: list[str]) -> None:
    save_run(tmp_path / "run", spec, None)
    with pytest.raises(TwinGPTError) as refusal:
        convert_model(tmp_path / "run", tmp_path / "out", "hf", None)
    assert all(word in str(refusal.value) for word in named), refusal.value
    assert not (tmp_path / "out").exists()


def _drop_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[0].unlink()


def _drop_tensor(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def _add_tensor(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    save_file({**load_file(path), "extra": np.zeros(2, np.float32)}, path)


def _leave_the_folder(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))


def _no_map(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def _no_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()


def _quantized(folder: Path) -> None:
    path = sorted(folder.glob("model-*.safetensors"))[0]
    save_file({name: tensor.astype(np.int8) for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_drop_shard, "does not exist"),
        (_drop_tensor, "is not in model-00001"),
        (_add_tensor, "tensor extra is in model-00001"),
        (_leave_the_folder, "no file of the folder"),
        (_no_map, "no weight_map"),
        (_no_index, "neither model.safetensors nor"),
        (_quantized, "is int8"),
    ],
)
def test_a_damaged_set_of_shards_is_named(tmp_path: Path, damage: Callable[[Path], None], named: str) -> None:
    theirs("llama").save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    damage(tmp_path / "theirs")
    with pytest.raises(TwinGPTError) as refusal:
        convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    assert named in str(refusal.value), refusal.value


def test_an_export_that_transformers_saved_again_is_twingpts_once_more(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    save_run(tmp_path / "run", GPT2, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    # What a call asked for stays in the tokenizer, and is saved with it.
    their_tokenizer(["비자", "비자 연장은"], padding=True, truncation=True, max_length=4)
    their_tokenizer.save_pretrained(tmp_path / "theirs")
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "theirs")
    saved = json.loads((tmp_path / "theirs" / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["padding"] and saved["truncation"] and saved["post_processor"]

    convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    assert (tmp_path / "native" / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()
    for text in (
        "여권을 잃어버렸을 때  경찰서에 갑니다.",
        "비자 연장은 어떻게 하나요?\n- 02-8555-0123 🙂",
        "[BOS] 태풍",
    ):
        assert load_tokenizer(tmp_path / "native").encode(text) == tokenizer.encode(text)
    texts = []
    for run in ("run", "native"):
        asked = ["generate", tmp_path / run, "--prompt", "비자 연장은", "--max-new-tokens", 8, "--device", "cpu"]
        assert run_cli(monkeypatch, *asked) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != ""
    convert_model(tmp_path / "theirs", tmp_path / "again", "hf", None)
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (tmp_path / "hf" / "tokenizer.json").read_bytes()


def test_however_a_tokenizer_is_laid_out_its_export_begins_with_bos(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    save_run(tmp_path / "run", GPT2, tokenizer)
    path = tmp_path / "run" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer.content), indent=2), encoding="utf-8")
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("비자 연장은")["input_ids"]
    assert ids == text_prompt(tokenizer, "비자 연장은")
    # Byte for byte: its digest is what a run agrees on.
    convert_model(tmp_path / "run", tmp_path / "native", "native", None)
    assert (tmp_path / "native" / "tokenizer.json").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}}, "post_processor"),
        ({"normalizer": {"type": "NFC"}}, "normalizer"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "should have the id 0"),
    ],
)
def test_an_import_that_generate_could_not_use_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, change: dict[str, Any], named: str
) -> None:
    save_run(tmp_path / "run", GPT2, tokenizer)
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    path = tmp_path / "hf" / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(TwinGPTError, match=named):
        convert_model(tmp_path / "hf", tmp_path / "native", "native", None)
    assert not (tmp_path / "native").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    save_run(tmp_path / "run", dataclasses.replace(GPT2, vocab_size=VOCAB + 8), tokenizer)
    with pytest.raises(TwinGPTError, match=f"has {VOCAB} tokens, the model's vocabulary is {VOCAB + 8}"):
        convert_model(tmp_path / "run", tmp_path / "native", "native", None)


def test_a_tokenizer_of_someone_elses_goes_along_untouched(tmp_path: Path) -> None:
    model = theirs("qwen3")
    model.generation_config.temperature = 0.6
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path / "theirs")
    files = {
        "tokenizer.json": '{"added_tokens": [7, {"content": []}], "model": {"type": "BPE"}}',
        "tokenizer_config.json": '{"a": 1}',
    }
    for name, text in files.items():
        (tmp_path / "theirs" / name).write_text(text)
    convert_model(tmp_path / "theirs", tmp_path / "native", "native", None)
    convert_model(tmp_path / "native", tmp_path / "back", "hf", None)
    for name, text in files.items():
        assert (tmp_path / "back" / name).read_text() == text
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text())["temperature"] == 0.6
    assert json.loads((tmp_path / "back" / "config.json").read_text())["eos_token_id"] == 3


def test_options_that_cannot_be_meant(tmp_path: Path) -> None:
    save_run(tmp_path / "run", LLAMA, None)
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("hf", {"dtype": "q8_0"}, "q8_0: hf takes float32"),
        ("native", {"dtype": "float16"}, "always float32"),
        ("hf", {"approximate": "softmax"}, "--approximate softmax"),
        ("hf", {"expect": "onnx"}, "--from onnx"),
        ("hf", {"expect": "nanogpt"}, "of the format native, not nanogpt"),
    )
    for to, options, named in cases:
        with pytest.raises(UsageError) as refusal:
            convert_model(tmp_path / "run", tmp_path / "out", to, None, **options)
        assert named in str(refusal.value), refusal.value
    convert_model(tmp_path / "run", tmp_path / "out", "hf", None, expect="native")
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype != ml_dtypes.bfloat16
