"""Rename tables: our parameters under a foreign format's names, as data, each used in both directions.

A tensor that a table does not know, or that is missing, is an error: nothing is dropped in silence.
"""

import dataclasses
import re
from dataclasses import dataclass

import numpy as np

from twingpt.core.errors import TwinGPTError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.params import HEAD, TOKEN_EMBEDDING, parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.weights.format import Tensors

FLOATS = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Naming:
    """How a foreign format names and lays out our parameters.

    modules: our module name -> theirs; {i} stands for the layer. Several: ours holds them one above the other.
    transposed: our modules whose weight they keep as [in, out].
    ignored: patterns of tensors that carry nothing learned (masks).
    """

    modules: dict[str, str | tuple[str, ...]]
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()

    def theirs(self, name: str) -> tuple[tuple[str, ...], bool]:
        """(their names of our parameter, whether they are transposed there)."""
        module, kind = name.rsplit(".", 1)
        layer = re.search(r"\.(\d+)\.", name)
        pattern = module.replace(f".{layer[1]}.", ".{i}.", 1) if layer else module
        foreign = self.modules[pattern]
        modules = (foreign,) if isinstance(foreign, str) else foreign
        names = tuple(f"{one.replace('{i}', layer[1] if layer else '')}.{kind}" for one in modules)
        return names, kind == "weight" and pattern in self.transposed


GPT2_MODULES: dict[str, str | tuple[str, ...]] = {
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
    modules=GPT2_MODULES,
    # Hugging Face keeps these four as Conv1D.
    transposed=frozenset(f"blocks.{{i}}.{m}" for m in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")),
    ignored=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)
HF_LLAMA = Naming(
    modules={
        "tok_emb": "model.embed_tokens",
        "blocks.{i}.ln1": "model.layers.{i}.input_layernorm",
        "blocks.{i}.attn.qkv": tuple(f"model.layers.{{i}}.self_attn.{part}_proj" for part in "qkv"),
        "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_norm",
        "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_norm",
        "blocks.{i}.attn.proj": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.ln2": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.mlp.fc": "model.layers.{i}.mlp.up_proj",
        "blocks.{i}.mlp.gate": "model.layers.{i}.mlp.gate_proj",
        "blocks.{i}.mlp.proj": "model.layers.{i}.mlp.down_proj",
        "ln_f": "model.norm",
        "head": "lm_head",
    },
    # Checkpoints of older releases carry the rotation's frequencies, which follow from the config.
    ignored=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
)
GGUF = Naming(
    modules={
        "tok_emb": "token_embd",
        "pos_emb": "position_embd",
        "blocks.{i}.ln1": "blk.{i}.attn_norm",
        "blocks.{i}.attn.qkv": tuple(f"blk.{{i}}.attn_{part}" for part in "qkv"),
        "blocks.{i}.attn.q_norm": "blk.{i}.attn_q_norm",
        "blocks.{i}.attn.k_norm": "blk.{i}.attn_k_norm",
        "blocks.{i}.attn.proj": "blk.{i}.attn_output",
        "blocks.{i}.ln2": "blk.{i}.ffn_norm",
        "blocks.{i}.mlp.fc": "blk.{i}.ffn_up",
        "blocks.{i}.mlp.gate": "blk.{i}.ffn_gate",
        "blocks.{i}.mlp.proj": "blk.{i}.ffn_down",
        "ln_f": "output_norm",
        "head": "output",
    }
)
GGUF_GPT2 = Naming(modules={**GGUF.modules, "blocks.{i}.attn.qkv": "blk.{i}.attn_qkv"})
NANOGPT = Naming(modules=GPT2_MODULES, ignored=(r"transformer\.h\.\d+\.attn\.bias",))
SEED_SCRIPT = Naming(
    modules={module: module for module in GPT2_MODULES},
    ignored=(r"blocks\.\d+\.attn\.bias",),
)


def to_foreign(naming: Naming, spec: GPTSpec, weights: Weights) -> Tensors:
    """Our weights under their names. Raises TwinGPTError on a missing tensor."""
    tensors: Tensors = {}
    for name in parameter_table(spec):
        if name not in weights:
            raise TwinGPTError(tr("tensor {name} is missing from the model", name=name))
        foreign, transposed = naming.theirs(name)
        rows = _rows(spec, name) if len(foreign) > 1 else ()
        for theirs, part in zip(foreign, np.split(weights[name], np.cumsum(rows)[:-1].astype(int)), strict=True):
            tensors[theirs] = np.ascontiguousarray(part.T if transposed else part)
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
        rows = _rows(spec, name) if len(foreign) > 1 else param.shape[:1]
        parts = []
        for theirs, count in zip(foreign, rows, strict=True):
            if theirs not in remaining:
                raise TwinGPTError(tr("tensor {name} is missing from the checkpoint", name=theirs))
            part = remaining.pop(theirs)
            part, expected = part.T if transposed else part, (count, *param.shape[1:])
            if part.shape != expected:
                raise TwinGPTError(
                    tr(
                        "tensor {name} has shape {found}, expected {expected}",
                        name=theirs,
                        found=list(part.shape),
                        expected=list(expected),
                    )
                )
            if part.dtype.name not in FLOATS:
                raise TwinGPTError(
                    tr(
                        "tensor {name} is {dtype}: import the checkpoint that was not quantized",
                        name=theirs,
                        dtype=part.dtype.name,
                    )
                )
            parts.append(np.asarray(part, dtype=np.float32))
        weights[name] = np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])
    if remaining:
        raise TwinGPTError(tr("tensor {name} of the checkpoint has no place in this model", name=sorted(remaining)[0]))
    return weights


def with_zero_biases(spec: GPTSpec, weights: Weights) -> tuple[GPTSpec, Weights]:
    """The same model for a format that always has biases: zeros leave the result as it is."""
    biased = dataclasses.replace(spec, bias=True)
    own = parameter_table(spec)
    zeros = {
        name: np.zeros(param.shape, dtype=np.float32)
        for name, param in parameter_table(biased).items()
        if name not in own
    }
    return biased, zeros | weights


def _rows(spec: GPTSpec, name: str) -> tuple[int, ...]:
    """How many rows of this parameter belong to each of the matrices that lie in it."""
    return parameter_table(spec)[f"{name.rsplit('.', 1)[0]}.weight"].parts


def _drop_tied_head(naming: Naming, tensors: Tensors) -> None:
    (head,), (embedding,) = naming.theirs(HEAD)[0], naming.theirs(TOKEN_EMBEDDING)[0]
    if head in tensors and embedding in tensors:
        if not np.array_equal(tensors[head], tensors[embedding]):
            raise TwinGPTError(
                tr(
                    "tensor {head} differs from {embedding}, but the checkpoint says they are tied",
                    head=head,
                    embedding=embedding,
                )
            )
        del tensors[head]
