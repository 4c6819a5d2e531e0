"""Folders of Hugging Face transformers: GPT-2, Llama and Qwen3, config.json and safetensors, in both directions."""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec
from twingpt.weights.format import Tensors, read_safetensors, write_safetensors
from twingpt.weights.naming import HF_GPT2, HF_LLAMA, Naming, from_foreign, to_foreign, with_zero_biases
from twingpt.weights.targets import Family, check, family_of

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("float32", "float16", "bfloat16")

_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu2": "relu2"}
_OUR_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu2": "relu2"}


@dataclass(frozen=True)
class Types:
    """In which type a foreign checkpoint keeps its tensors: most of them, and the others by their name there."""

    usual: str = "float32"
    others: dict[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        return self.others.get(name, self.usual)

    @classmethod
    def found_in(cls, tensors: Tensors) -> "Types":
        names = {name: tensor.dtype.name for name, tensor in tensors.items() if tensor.dtype.name in DTYPES}
        usual = Counter(names.values()).most_common(1)[0][0] if names else "float32"
        return cls(usual, {name: dtype for name, dtype in names.items() if dtype != usual})


# config.json


def hf_config(spec: GPTSpec) -> dict[str, Any]:
    """`config.json` of the transformers model that computes what this spec computes.

    Raises TwinGPTError, naming the setting, if there is none.
    """
    check("hf", spec)
    family = family_of(spec)
    config = _gpt2_config(spec) if family == "gpt2" else _llama_config(spec, family)
    return {
        **config,
        "tie_word_embeddings": spec.tie_embeddings,
        "use_cache": True,
        "dtype": "float32",
        # Their defaults are ids of the published models' vocabularies.
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _gpt2_config(spec: GPTSpec) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": _ACTIVATIONS[spec.activation],
        "vocab_size": spec.vocab_size,
        "n_positions": spec.block_size,
        "n_ctx": spec.block_size,
        "n_embd": spec.n_embd,
        "n_layer": spec.n_layer,
        "n_head": spec.n_head,
        "n_inner": spec.hidden,
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.dropout,
        "scale_attn_weights": True,
    }


def _llama_config(spec: GPTSpec, family: Family) -> dict[str, Any]:
    config = {
        "model_type": family,
        "architectures": ["Qwen3ForCausalLM" if family == "qwen3" else "LlamaForCausalLM"],
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.block_size,
        "hidden_size": spec.n_embd,
        "intermediate_size": spec.hidden,
        "num_hidden_layers": spec.n_layer,
        "num_attention_heads": spec.n_head,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": spec.norm_eps,
        # transformers 5 reads it from the table, mlx-lm and older releases beside it.
        "rope_theta": spec.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": spec.rope_theta},
        "attention_bias": spec.bias,
        "attention_dropout": spec.dropout,
        "initializer_range": spec.init_std,
    }
    return config | ({"use_sliding_window": False} if family == "qwen3" else {"mlp_bias": spec.bias})


def hf_spec(config: dict[str, Any]) -> GPTSpec:
    """The spec of a `config.json`. Raises TwinGPTError for what a spec cannot express."""
    readers: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "gpt2": _gpt2_spec,
        "llama": _llama_spec,
        "qwen3": _llama_spec,
    }
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in readers:
        raise TwinGPTError(
            tr(
                "config.json is of model_type {kind!r}: twingpt imports {choices}",
                kind=kind,
                choices=", ".join(readers),
            )
        )
    if config.get("quantization_config"):
        raise TwinGPTError(tr("config.json has a quantization_config: import the checkpoint that was not quantized"))
    try:
        spec = GPTSpec(**readers[kind](config))
        usual = dataclasses.replace(spec, n_hidden=0)
        return usual if usual.hidden == spec.hidden else spec
    except KeyError as error:
        raise TwinGPTError(tr("config.json has no {error}", error=error)) from None
    except (UsageError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise TwinGPTError(tr("config.json describes no model that twingpt knows: {error}", error=error)) from None


def _gpt2_spec(config: dict[str, Any]) -> dict[str, Any]:
    activation = config.get("activation_function", "gelu_new")
    if activation not in _OUR_ACTIVATIONS:
        raise TwinGPTError(
            tr(
                "config.json has activation_function {activation!r}: one of {choices}",
                activation=activation,
                choices=", ".join(_OUR_ACTIVATIONS),
            )
        )
    for option in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        _refuse(config, option, bool(config.get(option)))
    _refuse(config, "scale_attn_weights", not config.get("scale_attn_weights", True))
    n_embd = config["n_embd"]
    return {
        "vocab_size": config["vocab_size"],
        "block_size": config.get("n_positions", 1024),
        "n_layer": config["n_layer"],
        "n_head": config["n_head"],
        "n_embd": n_embd,
        "n_hidden": config.get("n_inner") or 4 * n_embd,
        "activation": _OUR_ACTIVATIONS[activation],
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": config.get("tie_word_embeddings", True),
        "dropout": float(config.get("resid_pdrop", 0.1)),
        "init_std": config.get("initializer_range", 0.02),
    }


def _llama_spec(config: dict[str, Any]) -> dict[str, Any]:
    qwen3 = config["model_type"] == "qwen3"
    _refuse(config, "hidden_act", config.get("hidden_act", "silu") != "silu")
    sliding = config.get("sliding_window") if config.get("use_sliding_window", not qwen3) else None
    _refuse(config, "sliding_window", sliding is not None)
    _refuse(config, "layer_types", bool(set(config.get("layer_types") or ()) - {"full_attention"}))
    bias = bool(config.get("attention_bias", False))
    _refuse(config, "attention_bias", bias and (qwen3 or not config.get("mlp_bias", False)))
    _refuse(config, "mlp_bias", bool(config.get("mlp_bias", False)) and not bias)
    n_embd, n_head = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"] if qwen3 else config.get("num_key_value_heads") or n_head
    head_dim = config["head_dim"] if qwen3 else config.get("head_dim") or n_embd // n_head
    return {
        "vocab_size": config["vocab_size"],
        "block_size": config["max_position_embeddings"],
        "n_layer": config["num_hidden_layers"],
        "n_head": n_head,
        "n_kv_head": 0 if kv_heads == n_head else kv_heads,
        "n_embd": n_embd,
        "head_size": 0 if head_dim * n_head == n_embd else head_dim,
        "n_hidden": config["intermediate_size"],
        "activation": "swiglu",
        "norm": "rmsnorm",
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "position": "rope",
        "rope_theta": _rope_theta(config),
        "qk_norm": qwen3,
        "bias": bias,
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "dropout": float(config.get("attention_dropout") or 0.0),
        "init_std": config.get("initializer_range", 0.02),
    }


def _rope_theta(config: dict[str, Any]) -> float:
    """transformers 5 nests the rotation's settings, earlier releases keep its base beside rope_scaling."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name) or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise TwinGPTError(
                tr("config.json has {name} of type {kind}, which twingpt does not compute", name=name, kind=kind)
            )
        strange = set(rope) - {"rope_type", "type", "rope_theta"}
        if strange - {"partial_rotary_factor"} or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise TwinGPTError(
                tr(
                    "config.json has {setting} in {name}, which twingpt does not compute",
                    setting=sorted(strange)[0],
                    name=name,
                )
            )
    theta = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 10_000.0))
    return float(theta)


def _refuse(config: dict[str, Any], option: str, wrong: bool) -> None:
    if wrong:
        raise TwinGPTError(
            tr(
                "config.json has {option} = {value!r}, which twingpt does not compute",
                option=option,
                value=config.get(option),
            )
        )


# Tensors


def hf_tensors(spec: GPTSpec, weights: Weights) -> Tensors:
    """The state dict of the model that `hf_config` describes, float32."""
    if family_of(spec) == "gpt2":
        spec, weights = with_zero_biases(spec, weights)
    return to_foreign(_naming(family_of(spec)), spec, weights)


def export_hf(
    folder: Path,
    spec: GPTSpec,
    weights: Weights,
    *,
    config: dict[str, Any],
    generation: dict[str, Any],
    types: Types,
    bare_names: bool = False,
) -> None:
    """Write config.json, generation_config.json and model.safetensors into an existing folder.

    config: settings besides `hf_config`'s. generation: content of generation_config.json. bare_names: GPT-2's tensors
    without "transformer.", as mlx-lm reads them; transformers reads them too. Raises TwinGPTError.
    """
    tensors = {name: cast(name, tensor, types.of(name)) for name, tensor in hf_tensors(spec, weights).items()}
    if bare_names:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    _write_json(folder / CONFIG_FILE, {**hf_config(spec), "dtype": types.usual, **config})
    _write_json(folder / GENERATION_FILE, generation)
    # transformers refuses a file that does not say which framework's layout it holds.
    write_safetensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def import_hf(folder: Path) -> tuple[GPTSpec, Weights, Types]:
    """Read a folder as transformers writes it, of one file or several. Raises TwinGPTError."""
    config = read_json(folder / CONFIG_FILE)
    spec = hf_spec(config)
    tensors = _read_tensors(folder)
    if family_of(spec) == "gpt2":
        # The checkpoints on the hub that are older than GPT2LMHeadModel's own saving leave the prefix out.
        tensors = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
            for name, tensor in tensors.items()
        }
    types = Types.found_in(tensors)
    return spec, from_foreign(_naming(family_of(spec)), spec, tensors), types


def cast(name: str, tensor: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    """A float32 tensor in another type, rounded to the nearest. Raises TwinGPTError where float16 would overflow."""
    import ml_dtypes

    if dtype == "bfloat16":
        return tensor.astype(ml_dtypes.bfloat16)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            half = tensor.astype(np.float16)
        if not np.isfinite(half).all() and np.isfinite(tensor).all():
            raise TwinGPTError(
                tr("{name} holds values beyond float16's 65504: take --dtype bfloat16 or float32", name=name)
            )
        return half
    return tensor


def read_json(path: Path) -> dict[str, Any]:
    """Raises TwinGPTError if the file is missing or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TwinGPTError(tr("{path} cannot be read: {error}", path=path, error=error)) from None
    if not isinstance(content, dict):
        raise TwinGPTError(tr("{path} cannot be read: it holds no JSON object", path=path))
    return content


def _naming(family: Family) -> Naming:
    return HF_GPT2 if family == "gpt2" else HF_LLAMA


def _read_tensors(folder: Path) -> Tensors:
    """Every tensor of the folder in its own type."""
    import ml_dtypes  # noqa: F401 - gives NumPy the type bfloat16, which safetensors then reads

    if (folder / WEIGHTS_FILE).is_file():
        return read_safetensors(folder / WEIGHTS_FILE)[0]
    if not (folder / INDEX_FILE).is_file():
        raise TwinGPTError(
            tr(
                "{folder} holds neither {weights_file} nor {index_file}: save it as safetensors first",
                folder=folder,
                weights_file=WEIGHTS_FILE,
                index_file=INDEX_FILE,
            )
        )
    parts = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise TwinGPTError(tr("{file} has no weight_map from tensors to files", file=folder / INDEX_FILE))
    tensors: Tensors = {}
    for part in sorted(set(parts.values())):
        if Path(part).name != part:
            raise TwinGPTError(
                tr("{file} names {part!r}, which is no file of the folder", file=folder / INDEX_FILE, part=part)
            )
        for name, tensor in read_safetensors(folder / part)[0].items():
            if parts.get(name) != part:
                raise TwinGPTError(
                    tr(
                        "tensor {name} is in {part}, where {index_file} does not have it",
                        name=name,
                        part=part,
                        index_file=INDEX_FILE,
                    )
                )
            tensors[name] = tensor
    missing = sorted(parts.keys() - tensors.keys())
    if missing:
        raise TwinGPTError(
            tr(
                "tensor {name} is not in {part}, where {index_file} has it",
                name=missing[0],
                part=parts[missing[0]],
                index_file=INDEX_FILE,
            )
        )
    return tensors


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
