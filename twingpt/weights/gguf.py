"""GGUF, the file of llama.cpp, Ollama and LM Studio: GPT-2, Llama and Qwen3, with the tokenizer inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.core.errors import TwinGPTError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec
from twingpt.weights.format import Tensors, fsync
from twingpt.weights.huggingface import cast
from twingpt.weights.naming import GGUF, GGUF_GPT2, to_foreign, with_zero_biases
from twingpt.weights.targets import check, family_of

DTYPES = ("float32", "float16", "bfloat16", "q8_0")


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE tokenizer as GGUF keeps it.

    tokens: texts by id, in ByteLevel's stand-ins for bytes. merges: "left right", the most frequent first.
    special: ids that stand for marks, not for text. end_of_turn, end_of_message: generation stops there, besides at
    eos. chat_template: None for a model that knows no questions.
    """

    tokens: Sequence[str]
    merges: Sequence[str]
    special: frozenset[int]
    bos: int
    eos: int
    pad: int
    unknown: int
    end_of_turn: int
    end_of_message: int
    chat_template: str | None


def export_gguf(path: Path, name: str, spec: GPTSpec, weights: Weights, vocabulary: Vocabulary, dtype: str) -> None:
    """Write one .gguf file. dtype: of the matrices; norms, biases and positions stay float32.

    Raises TwinGPTError if the package gguf is missing or llama.cpp has no such model, OSError if the disk refuses.
    """
    try:
        import gguf
    except ImportError:
        raise TwinGPTError(tr("writing GGUF needs the package gguf: pip install 'twingpt[gguf]'")) from None
    check("gguf", spec)
    kind = {
        "float32": gguf.GGMLQuantizationType.F32,
        "float16": gguf.GGMLQuantizationType.F16,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }[dtype]
    file_type = {
        "float32": gguf.LlamaFileType.ALL_F32,
        "float16": gguf.LlamaFileType.MOSTLY_F16,
        "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }[dtype]
    writer = gguf.GGUFWriter(path, family_of(spec))
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_architecture(writer, spec)
    _add_vocabulary(writer, vocabulary)
    for tensor_name, tensor in gguf_tensors(spec, weights).items():
        stored = _stored_as(tensor_name, tensor.shape, kind)
        if stored == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(tensor_name, cast(tensor_name, tensor, "float16"))
        else:
            writer.add_tensor(tensor_name, gguf.quantize(tensor, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fsync(path)


def gguf_tensors(spec: GPTSpec, weights: Weights) -> Tensors:
    """Our weights under llama.cpp's names and in its layout, float32."""
    family = family_of(spec)
    if family == "gpt2":
        return to_foreign(GGUF_GPT2, *with_zero_biases(spec, weights))
    tensors = to_foreign(GGUF, spec, weights)
    if family == "llama":
        for name in tensors:
            heads = {"attn_q": spec.n_head, "attn_k": spec.kv_heads}.get(name.split(".")[-2])
            if heads is not None:
                tensors[name] = interleaved(tensors[name], heads)
    return tensors


def interleaved(matrix: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows [heads * head_dim, ...] of half-split rotation, reordered: llama.cpp turns neighbours in "llama"."""
    halves = matrix.reshape(heads, 2, -1, *matrix.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(matrix.shape))


def _stored_as(name: str, shape: tuple[int, ...], kind: Any) -> Any:
    """A row that is no whole number of q8_0's blocks of 32 is kept as float16, as llama.cpp does."""
    import gguf

    if len(shape) == 1 or name == "position_embd.weight":
        return gguf.GGMLQuantizationType.F32
    if kind == gguf.GGMLQuantizationType.Q8_0 and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        return gguf.GGMLQuantizationType.F16
    return kind


def _add_architecture(writer: Any, spec: GPTSpec) -> None:
    writer.add_vocab_size(spec.vocab_size)
    writer.add_context_length(spec.block_size)
    writer.add_embedding_length(spec.n_embd)
    writer.add_block_count(spec.n_layer)
    writer.add_feed_forward_length(spec.hidden)
    writer.add_head_count(spec.n_head)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    if spec.norm == "layernorm":
        writer.add_layer_norm_eps(spec.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(spec.norm_eps)
    if spec.position == "rope":
        writer.add_rope_dimension_count(spec.head_dim)
        writer.add_rope_freq_base(spec.rope_theta)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    import gguf

    writer.add_tokenizer_model("gpt2")
    # Names the rule by which llama.cpp cuts text into words before merging: ByteLevel's own pattern.
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary.tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types(
        [control if token in vocabulary.special else normal for token in range(len(vocabulary.tokens))]
    )
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_eot_token_id(vocabulary.end_of_turn)
    writer.add_eom_token_id(vocabulary.end_of_message)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
