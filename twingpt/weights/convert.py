"""Foreign checkpoint formats: rename tables as data, each used in both directions.

A tensor that a table does not know, or that is missing, is an error: nothing is dropped in silence.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.params import HEAD, TOKEN_EMBEDDING, parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.weights.format import Tensors, read_safetensors, write_safetensors


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a foreign format names and lays out our parameters.

    modules: our module name -> theirs; {i} stands for the layer.
    transposed: our modules whose weight they keep as [in, out].
    ignored: patterns of tensors that carry nothing learned (masks).
    """

    modules: dict[str, str]
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def theirs(self, name: str) -> tuple[str, bool]:
        """(their name of our parameter, whether it is transposed there)."""
        module, kind = name.rsplit(".", 1)
        layer = re.search(r"\.(\d+)\.", name)
        pattern = module.replace(f".{layer[1]}.", ".{i}.", 1) if layer else module
        foreign = self.modules[pattern].replace("{i}", layer[1] if layer else "")
        return f"{foreign}.{kind}", kind == "weight" and pattern in self.transposed


_GPT2_MODULES = {
    "tok_emb": "transformer.wte",
    "pos_emb": "transformer.wpe",
    "blocks.{i}.ln1": "transformer.h.{i}.ln_1",
    "blocks.{i}.attn.qkv": "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.attn.proj": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.ln2": "transformer.h.{i}.ln_2",
    "blocks.{i}.mlp.fc": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.proj": "transformer.h.{i}.mlp.c_proj",
    "ln_f": "transformer.ln_f",
    "head": "lm_head",
}

HF_GPT2 = Naming(
    modules=_GPT2_MODULES,
    # Hugging Face keeps these four as Conv1D.
    transposed=frozenset(f"blocks.{{i}}.{m}" for m in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)
NANOGPT = Naming(modules=_GPT2_MODULES, ignored=(r"transformer\.h\.\d+\.attn\.bias",))
SEED_SCRIPT = Naming(
    modules={module: module for module in _GPT2_MODULES},
    ignored=(r"blocks\.\d+\.attn\.bias",),
)


def to_foreign(naming: Naming, spec: GPTSpec, weights: Weights) -> Tensors:
    """Our weights under their names."""
    tensors: Tensors = {}
    for name in parameter_table(spec):
        foreign, transposed = naming.theirs(name)
        tensors[foreign] = np.ascontiguousarray(weights[name].T) if transposed else weights[name]
    return tensors


def from_foreign(naming: Naming, spec: GPTSpec, tensors: Tensors) -> Weights:
    """Their tensors under our names, as float32. Raises TwinGPTError on a missing, unused or misshapen tensor."""
    remaining = {
        name: tensor
        for name, tensor in tensors.items()
        if not any(re.fullmatch(pattern, name) for pattern in naming.ignored)
    }
    if spec.tie_embeddings:
        _drop_tied_head(naming, remaining)
    weights: Weights = {}
    for name, param in parameter_table(spec).items():
        foreign, transposed = naming.theirs(name)
        if foreign not in remaining:
            raise TwinGPTError(f"tensor {foreign} is missing from the checkpoint")
        tensor = remaining.pop(foreign)
        tensor = tensor.T if transposed else tensor
        if tensor.shape != param.shape:
            raise TwinGPTError(f"tensor {foreign} has shape {list(tensor.shape)}, expected {list(param.shape)}")
        weights[name] = np.ascontiguousarray(tensor, dtype=np.float32)
    if remaining:
        raise TwinGPTError(f"tensor {sorted(remaining)[0]} of the checkpoint has no place in this model")
    return weights


def _drop_tied_head(naming: Naming, tensors: Tensors) -> None:
    head, embedding = naming.theirs(HEAD)[0], naming.theirs(TOKEN_EMBEDDING)[0]
    if head in tensors and embedding in tensors:
        if not np.array_equal(tensors[head], tensors[embedding]):
            raise TwinGPTError(f"tensor {head} differs from {embedding}, but the checkpoint says they are tied")
        del tensors[head]


# Hugging Face GPT-2

_HF_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
_OUR_ACTIVATION = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def hf_config(spec: GPTSpec) -> dict[str, Any]:
    """`config.json` of a GPT2LMHeadModel that computes what this spec computes."""
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "activation_function": _HF_ACTIVATION[spec.activation],
        "vocab_size": spec.vocab_size,
        "n_positions": spec.block_size,
        "n_ctx": spec.block_size,
        "n_embd": spec.n_embd,
        "n_layer": spec.n_layer,
        "n_head": spec.n_head,
        "n_inner": spec.mlp_ratio * spec.n_embd,
        "layer_norm_epsilon": spec.norm_eps,
        "initializer_range": spec.init_std,
        "resid_pdrop": spec.dropout,
        "embd_pdrop": spec.dropout,
        "attn_pdrop": spec.dropout,
        "tie_word_embeddings": spec.tie_embeddings,
        "scale_attn_weights": True,
        "use_cache": True,
        "dtype": "float32",
    }


def hf_spec(config: dict[str, Any]) -> GPTSpec:
    """The spec of a Hugging Face `config.json`. Raises TwinGPTError for what a spec cannot express."""
    kind = config.get("model_type")
    if kind != "gpt2":
        raise TwinGPTError(f"config.json is of model_type {kind!r}: this twingpt imports gpt2")
    activation = config.get("activation_function", "gelu_new")
    if activation not in _OUR_ACTIVATION:
        raise TwinGPTError(f"config.json has activation_function {activation!r}: one of {', '.join(_OUR_ACTIVATION)}")
    for option in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        if config.get(option):
            raise TwinGPTError(f"config.json sets {option}, which twingpt does not compute")
    if not config.get("scale_attn_weights", True):
        raise TwinGPTError("config.json turns scale_attn_weights off, which twingpt does not compute")
    try:
        n_embd = config["n_embd"]
        hidden = config.get("n_inner") or 4 * n_embd
        if hidden % n_embd:
            raise TwinGPTError(f"config.json has n_inner {hidden}, which is no multiple of n_embd {n_embd}")
        return GPTSpec(
            vocab_size=config["vocab_size"],
            block_size=config.get("n_positions", 1024),
            n_layer=config["n_layer"],
            n_head=config["n_head"],
            n_embd=n_embd,
            mlp_ratio=hidden // n_embd,
            activation=_OUR_ACTIVATION[activation],  # type: ignore[arg-type]
            norm_eps=config.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=config.get("tie_word_embeddings", True),
            dropout=float(config.get("resid_pdrop", 0.1)),
            init_std=config.get("initializer_range", 0.02),
        )
    except KeyError as error:
        raise TwinGPTError(f"config.json has no {error}") from None


def export_hf(folder: Path, spec: GPTSpec, weights: Weights, token_ids: dict[str, int]) -> None:
    """Write config.json, generation_config.json and model.safetensors of a GPT2LMHeadModel into an existing folder.

    token_ids: bos_token_id, eos_token_id and pad_token_id, as far as there are any.
    """
    tensors = to_foreign(HF_GPT2, spec, weights)
    if not spec.bias:
        # GPT2LMHeadModel always has biases; zeros leave the result as it is.
        with_bias = GPTSpec.from_dict({**spec.to_dict(), "bias": True})
        for name, param in parameter_table(with_bias).items():
            tensors.setdefault(HF_GPT2.theirs(name)[0], np.zeros(param.shape, dtype=np.float32))
    _write_json(folder / "config.json", {**hf_config(spec), **token_ids})
    _write_json(folder / "generation_config.json", token_ids)
    # transformers refuses a file that does not say which framework's layout it holds.
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})


def import_hf(folder: Path) -> tuple[GPTSpec, Weights]:
    """Read a GPT-2 folder as transformers writes it. Raises TwinGPTError."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TwinGPTError(f"{folder / 'config.json'} cannot be read: {error}") from None
    spec = hf_spec(config)
    tensors, _ = read_safetensors(folder / "model.safetensors")
    # The checkpoints on the hub that are older than GPT2LMHeadModel's own saving leave the prefix out.
    tensors = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in tensors.items()
    }
    return spec, from_foreign(HF_GPT2, spec, tensors)


# Pickled torch checkpoints: only read, never written, and only with weights_only=True


def import_torch(path: Path, load: Callable[[Path], Any]) -> tuple[GPTSpec, Weights, int]:
    """(spec, weights, step) of nanoGPT's ckpt.pt or of the seed script's, told apart by their keys.

    load: reads the pickle safely (see `load_pickle`). Raises TwinGPTError for anything else.
    """
    content = load(path)
    if not isinstance(content, dict) or "model" not in content:
        raise TwinGPTError(f"{path} is neither nanoGPT's ckpt.pt nor the old training script's: no key 'model'")
    tensors = {
        name.removeprefix("_orig_mod."): np.asarray(tensor.detach().float().cpu().numpy())
        for name, tensor in content["model"].items()
    }
    try:
        if "model_args" in content:
            return *_from_nanogpt(content["model_args"], tensors), int(content.get("iter_num", 0))
        if "cfg" in content:
            return *_from_seed_script(content["cfg"], tensors), int(content.get("step", 0))
    except KeyError as error:
        raise TwinGPTError(f"{path} has no setting or tensor {error}") from None
    raise TwinGPTError(f"{path} is neither nanoGPT's ckpt.pt (model_args) nor the old training script's (cfg)")


def _from_nanogpt(args: dict[str, Any], tensors: Tensors) -> tuple[GPTSpec, Weights]:
    spec = GPTSpec(
        vocab_size=args["vocab_size"],
        block_size=args["block_size"],
        n_layer=args["n_layer"],
        n_head=args["n_head"],
        n_embd=args["n_embd"],
        bias=args["bias"],
        dropout=float(args.get("dropout", 0.0)),
        activation="gelu",
        tie_embeddings=True,
        residual_init="scaled",
    )
    return spec, from_foreign(NANOGPT, spec, tensors)


def _from_seed_script(cfg: dict[str, Any], tensors: Tensors) -> tuple[GPTSpec, Weights]:
    spec = GPTSpec(
        vocab_size=tensors[TOKEN_EMBEDDING].shape[0],
        block_size=cfg["block_size"],
        n_layer=cfg["n_layer"],
        n_head=cfg["n_head"],
        n_embd=cfg["n_embd"],
        dropout=float(cfg["dropout"]),
    )
    return spec, from_foreign(SEED_SCRIPT, spec, tensors)


def load_pickle(path: Path) -> Any:
    """torch.load with weights_only=True, which runs no code from the file. Raises TwinGPTError."""
    if not path.is_file():
        raise TwinGPTError(f"{path} does not exist")
    try:
        import torch
    except ImportError:
        raise TwinGPTError("reading a .pt file needs torch: pip install 'twingpt[torch]'") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a foreign or damaged pickle raises
        raise TwinGPTError(f"{path} cannot be read as a torch checkpoint: {str(error).splitlines()[0]}") from None


FORMATS = ("native", "hf", "torch")


def detect_format(source: Path) -> str:
    """native, hf or torch, from what lies there. Raises UsageError if it is none of them."""
    if source.suffix in (".pt", ".pth", ".bin"):
        return "torch"
    if (source / "config.json").is_file():
        return "hf"
    if source.is_dir() or source.suffix == ".safetensors":
        return "native"
    if not source.exists():
        raise TwinGPTError(f"{source} does not exist")
    raise UsageError(f"{source} is no checkpoint that twingpt knows: a run, a Hugging Face folder or a ckpt.pt")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
