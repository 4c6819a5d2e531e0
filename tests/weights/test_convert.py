"""Conversion: logits survive it, in both engines, and nothing is dropped in silence."""

import dataclasses
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.weights import seed_script
from twingpt.checks.parity import perturbed
from twingpt.core.backend import EngineConfig, create_backend
from twingpt.core.engines import compared
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.interchange.convert import convert_model, read_model
from twingpt.weights.checkpoint import CheckpointStore, Progress, load_checkpoint
from twingpt.weights.format import Tensors, save_tensors
from twingpt.weights.gguf import gguf_tensors
from twingpt.weights.huggingface import hf_tensors
from twingpt.weights.naming import HF_GPT2, NANOGPT, SEED_SCRIPT, from_foreign, to_foreign

TOKENS = np.random.default_rng(0).integers(0, 211, (2, 24), dtype=np.int32)
# Largest logit error measured over every conversion here: 1.2e-6.
LOGITS = 1e-5
SHAPE = {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 32, "dropout": 0.1}
NANOGPT_ARGS = {**SHAPE, "bias": True, "vocab_size": 211}


def assert_logits(spec: GPTSpec, weights: dict[str, Any], expected: np.ndarray[Any, Any]) -> None:
    """Both engines, holding these weights, give the expected logits."""
    for name in compared():
        engine = create_backend(name, spec, EngineConfig(device="cpu"))
        engine.load_state({MODEL + key: weight for key, weight in weights.items()})
        assert np.abs(engine.logits(TOKENS) - expected).max() < LOGITS, name


@pytest.fixture
def run(tmp_path: Path, spec: GPTSpec) -> Path:
    CheckpointStore(tmp_path / "run").save(spec, perturbed(spec), Progress(step=3))
    return tmp_path / "run"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"activation": "gelu_tanh", "tie_embeddings": True},
        {"bias": False},
        {"bias": False, "tie_embeddings": True, "mlp_ratio": 3, "norm_eps": 1e-3},
    ],
)
def test_transformers_loads_what_we_export(tmp_path: Path, spec: GPTSpec, change: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    spec = dataclasses.replace(spec, **change)
    state = perturbed(spec)
    CheckpointStore(tmp_path / "run").save(spec, state, Progress(step=1))
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    assert_logits(spec, {key.removeprefix(MODEL): array for key, array in state.items()}, theirs)

    back = read_model(tmp_path / "hf")
    assert_logits(back.spec, back.weights, theirs)
    for name in parameter_table(spec):
        assert np.array_equal(back.weights[name], state[MODEL + name]), name


def test_what_transformers_saves_imports(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=211, n_positions=32, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "theirs")
    imported = read_model(tmp_path / "theirs")
    assert imported.spec.tie_embeddings
    assert imported.spec.activation == "gelu_tanh"
    with torch.no_grad():
        theirs = model(torch.from_numpy(TOKENS.astype(np.int64))).logits.numpy()
    assert_logits(imported.spec, imported.weights, theirs)


def test_the_exported_tokenizer_gives_the_same_ids(tmp_path: Path, tokenizer: Tokenizer, spec: GPTSpec) -> None:
    from transformers import AutoTokenizer

    spec = dataclasses.replace(spec, vocab_size=tokenizer.vocab_size)
    CheckpointStore(tmp_path / "run").save(spec, perturbed(spec), Progress(step=1))
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    convert_model(tmp_path / "run", tmp_path / "hf", "hf", None)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "여권을 잃어버렸을 때  경찰서에 갑니다.\n- Tel: 02-8555-0123 🙂"
    assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id) == (tokenizer.bos_id, tokenizer.eos_id)
    assert theirs("[QUESTION]")["input_ids"] == [tokenizer.bos_id, tokenizer.id("[QUESTION]")]


def test_the_old_scripts_checkpoint_imports(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = seed_script.GPT(vocab_size=211, **SHAPE)  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    model.train()(torch.from_numpy(TOKENS.astype(np.int64))).sum().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optim": optimizer.state_dict(),
        "step": 500,
        "cfg": {"train_bin": "data/train.bin", **SHAPE, "lr": 3e-4},
    }
    torch.save(content, tmp_path / "ckpt.pt")

    imported = read_model(tmp_path / "ckpt.pt")
    assert imported.step == 500
    assert not imported.spec.tie_embeddings
    with torch.no_grad():
        theirs = model.eval()(torch.from_numpy(TOKENS.astype(np.int64))).numpy()
    assert_logits(imported.spec, imported.weights, theirs)

    convert_model(tmp_path / "ckpt.pt", tmp_path / "native", "native", None)
    again = read_model(tmp_path / "native")
    assert again.step == 500
    assert_logits(again.spec, again.weights, theirs)


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_layout_imports(tmp_path: Path, spec: GPTSpec, bias: bool) -> None:
    """The names of nanoGPT's state dict, compiled prefix and mask buffer included, written from a known model."""
    spec = dataclasses.replace(spec, bias=bias, tie_embeddings=True, residual_init="scaled", dropout=0.2)
    weights = {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()}
    tensors = {f"_orig_mod.{name}": torch.from_numpy(t) for name, t in to_foreign(NANOGPT, spec, weights).items()}
    tensors["_orig_mod.lm_head.weight"] = tensors["_orig_mod.transformer.wte.weight"]
    tensors["_orig_mod.transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "bias": bias, "vocab_size": 211, "dropout": 0.2}
    torch.save({"model": tensors, "model_args": args, "iter_num": 9, "best_val_loss": 1.0}, tmp_path / "ckpt.pt")
    imported = read_model(tmp_path / "ckpt.pt")
    assert imported.step == 9
    assert imported.spec == spec
    assert all(np.array_equal(imported.weights[name], weights[name]) for name in weights)


@pytest.mark.skipif("TWINGPT_NANOGPT" not in os.environ, reason="TWINGPT_NANOGPT names no nanoGPT checkout")
@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpts_own_code_imports(tmp_path: Path, bias: bool) -> None:
    module_spec = importlib.util.spec_from_file_location("nanogpt", Path(os.environ["TWINGPT_NANOGPT"]) / "model.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    nanogpt = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(nanogpt)
    torch.manual_seed(0)
    args = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "bias": bias, "vocab_size": 211, "dropout": 0.0}
    model = nanogpt.GPT(nanogpt.GPTConfig(**args)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save({"model": model.state_dict(), "model_args": args, "iter_num": 1}, tmp_path / "ckpt.pt")
    imported = read_model(tmp_path / "ckpt.pt")
    with torch.no_grad():
        tokens = torch.from_numpy(TOKENS.astype(np.int64))
        theirs = model(tokens, targets=tokens)[0].numpy()
    assert_logits(imported.spec, imported.weights, theirs)


@pytest.mark.parametrize("naming", [HF_GPT2, NANOGPT, SEED_SCRIPT])
def test_a_rename_table_is_its_own_inverse(naming: Any, spec: GPTSpec) -> None:
    weights = {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()}
    back = from_foreign(naming, spec, to_foreign(naming, spec, weights))
    assert back.keys() == weights.keys()
    assert all(np.array_equal(back[name], weights[name]) for name in weights)


def test_a_missing_an_unused_and_a_misshapen_tensor_are_named(spec: GPTSpec) -> None:
    tensors = to_foreign(HF_GPT2, spec, {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()})
    with pytest.raises(TwinGPTError, match=r"transformer\.extra"):
        from_foreign(HF_GPT2, spec, {**tensors, "transformer.extra": np.zeros(1, np.float32)})
    with pytest.raises(TwinGPTError, match=r"ln_f\.bias has shape \[3\]"):
        from_foreign(HF_GPT2, spec, {**tensors, "transformer.ln_f.bias": np.zeros(3, np.float32)})
    del tensors["transformer.h.1.ln_2.weight"]
    with pytest.raises(TwinGPTError, match=r"h\.1\.ln_2\.weight is missing"):
        from_foreign(HF_GPT2, spec, tensors)


def test_a_head_that_is_not_tied_is_not_dropped(spec: GPTSpec) -> None:
    tied = dataclasses.replace(spec, tie_embeddings=True)
    tensors = to_foreign(HF_GPT2, tied, {key.removeprefix(MODEL): array for key, array in perturbed(tied).items()})
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1
    with pytest.raises(TwinGPTError, match="tied"):
        from_foreign(HF_GPT2, tied, tensors)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": Payload(tmp_path / "pwned")}, tmp_path / "ckpt.pt")
    with pytest.raises(TwinGPTError, match="cannot be read"):
        read_model(tmp_path / "ckpt.pt")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"weights": {}}, "no key 'model'"),
        ({"model": {}}, "neither"),
        ([1, 2], "neither"),
        ({"model": {"a": 1}, "model_args": {}}, "under 'model' no table of tensors"),
        ({"model": {1: torch.zeros(1)}, "model_args": {}}, "under 'model' no table of tensors"),
        ({"model": torch.zeros(1), "cfg": {}}, "under 'model' no table of tensors"),
        ({"model": {}, "model_args": [1]}, "under 'model_args' no table of settings"),
        ({"model": {}, "cfg": None}, "under 'cfg' no table of settings"),
        ({"model": {}, "model_args": {}}, "no setting or tensor 'vocab_size'"),
        ({"model": {}, "model_args": {**NANOGPT_ARGS, "n_layer": "2"}}, "n_layer"),
        ({"model": {}, "model_args": {**NANOGPT_ARGS, "dropout": [0.1]}}, "describes no model"),
        ({"model": {"tok_emb.weight": torch.tensor(1.0)}, "cfg": SHAPE}, "describes no model"),
        ({"model": {}, "model_args": NANOGPT_ARGS, "iter_num": "x"}, "describes no model"),
    ],
)
def test_another_torch_file_is_refused(tmp_path: Path, content: Any, named: str) -> None:
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(TwinGPTError, match=named) as refusal:
        read_model(tmp_path / "ckpt.pt")
    assert str(tmp_path / "ckpt.pt") in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("to", ["native", "hf"])
def test_whatever_names_a_checkpoint_for_generate_does_for_convert(tmp_path: Path, spec: GPTSpec, to: str) -> None:
    run = tmp_path / "run.pt"
    store = CheckpointStore(run)
    for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
        store.save(spec, perturbed(spec, seed=step), Progress(step=step, val_loss=loss))
    for source, step in (
        (run, 3),
        (run / "checkpoints", 3),
        (run / "checkpoints" / "step-00000001", 1),
        (run / "best", 2),
    ):
        assert read_model(source).step == load_checkpoint(source).progress.step == step
    convert_model(run / "best", tmp_path / "out", to, None)
    weight = read_model(tmp_path / "out").weights["head.weight"]
    assert np.array_equal(weight, perturbed(spec, seed=2)[f"{MODEL}head.weight"])
    for nothing in ("nothing", "ckpt.pt", "model.safetensors", "empty/best"):
        with pytest.raises(TwinGPTError, match=f"{nothing} does not exist"):
            read_model(tmp_path / nothing)


@pytest.mark.parametrize("to", ["native", "hf", "gguf", "mlx-lm"])
def test_a_file_that_is_not_a_whole_model_is_refused(
    tmp_path: Path, spec: GPTSpec, tokenizer: Tokenizer, to: str
) -> None:
    spec = dataclasses.replace(spec, activation="gelu_tanh", tie_embeddings=True, vocab_size=tokenizer.vocab_size)
    tokenizer.save(tmp_path / "tokenizer.json")
    weights = {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()}
    moments = {f"adamw.m/{name}": array for name, array in weights.items()}
    without = {name: array for name, array in weights.items() if name != "blocks.1.ln2.bias"}
    half = {**weights, "ln_f.bias": weights["ln_f.bias"].astype(np.float16)}
    for name, tensors, named in (
        ("optimizer", moments, "adamw.m/"),
        ("without", without, "blocks.1.ln2.bias is missing"),
        ("half", half, "ln_f.bias is float16"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_tensors(path, tensors, spec)
        with pytest.raises(TwinGPTError) as refusal:
            convert_model(path, tmp_path / "out", to, None)
        assert named in str(refusal.value) and str(path) in str(refusal.value), refusal.value
        assert not (tmp_path / "out").exists()
    save_tensors(tmp_path / "whole.safetensors", weights, spec)
    convert_model(tmp_path / "whole.safetensors", tmp_path / "out", to, None)


@pytest.mark.parametrize("tensors", [hf_tensors, gguf_tensors])
@pytest.mark.parametrize(("bias", "gone"), [(True, "ln_f.bias"), (True, "ln_f.weight"), (False, "tok_emb.weight")])
def test_only_biases_that_a_model_does_without_become_zeros(
    spec: GPTSpec, tensors: Callable[[GPTSpec, Weights], Tensors], bias: bool, gone: str
) -> None:
    spec = dataclasses.replace(spec, activation="gelu_tanh", bias=bias)
    weights = {key.removeprefix(MODEL): array for key, array in perturbed(spec).items()}
    written = tensors(spec, weights)
    assert all(array.any() or (not bias and name.endswith(".bias")) for name, array in written.items())
    del weights[gone]
    with pytest.raises(TwinGPTError, match=f"{gone} is missing"):
        tensors(spec, weights)


def test_nothing_is_left_where_a_conversion_failed(tmp_path: Path, run: Path) -> None:
    with pytest.raises(UsageError, match="--to gguf2"):
        convert_model(run, tmp_path / "out", "gguf2", None)
    with pytest.raises(TwinGPTError, match="does not exist"):
        convert_model(run, tmp_path / "out", "hf", tmp_path / "no-tokenizer.json")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(TwinGPTError, match="mamba"):
        convert_model(tmp_path / "hf", tmp_path / "out", "native", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]
    with pytest.raises(UsageError, match="exists"):
        convert_model(run, tmp_path / "hf", "hf", None)


def test_an_imported_model_is_not_resumed_with_another_tokenizer(
    tmp_path: Path, plain_data: Path, tokenizer: Tokenizer, spec: GPTSpec
) -> None:
    from twingpt.training.session import TrainRequest, open_session

    spec = dataclasses.replace(spec, vocab_size=tokenizer.vocab_size)
    CheckpointStore(tmp_path / "run").save(spec, perturbed(spec), Progress(step=1))
    for name, change in (("same", ""), ("other", " ")):
        path = tmp_path / f"{name}.json"
        path.write_text(tokenizer.content + change, encoding="utf-8")
        convert_model(tmp_path / "run", tmp_path / name, "native", path)
    request = TrainRequest(run_dir=tmp_path / "same", data_dir=plain_data, backend="mlx", device="cpu", resume=True)
    assert open_session(request).trainer.step == 1
    with pytest.raises(TwinGPTError, match="trained with other tokenizer"):
        open_session(dataclasses.replace(request, run_dir=tmp_path / "other"))
