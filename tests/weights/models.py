"""Small models of every family that can leave, with weights large enough that no error can hide."""

from pathlib import Path

import numpy as np

from twingpt.core.backend import State
from twingpt.core.init import initial_weights
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.weights.checkpoint import CheckpointStore, Progress

VOCAB, BLOCK = 600, 128

GPT2 = GPTSpec(
    vocab_size=VOCAB,
    block_size=BLOCK,
    n_layer=2,
    n_head=4,
    n_embd=64,
    activation="gelu_tanh",
    tie_embeddings=True,
    dropout=0.0,
)
# Grouped queries, heads that are not n_embd / n_head wide, and a hidden layer that is no multiple of the width.
LLAMA = GPTSpec(
    vocab_size=VOCAB,
    block_size=BLOCK,
    n_layer=2,
    n_head=4,
    n_kv_head=2,
    n_embd=64,
    head_size=32,
    n_hidden=160,
    activation="swiglu",
    norm="rmsnorm",
    position="rope",
    rope_theta=500.0,
    bias=False,
    dropout=0.0,
)
QWEN3 = GPTSpec(
    vocab_size=VOCAB,
    block_size=BLOCK,
    n_layer=2,
    n_head=6,
    n_kv_head=3,
    n_embd=96,
    head_size=32,
    n_hidden=200,
    activation="swiglu",
    norm="rmsnorm",
    norm_eps=1e-6,
    position="rope",
    rope_theta=1e6,
    qk_norm=True,
    tie_embeddings=True,
    bias=False,
    dropout=0.0,
)
SEED = GPTSpec(vocab_size=VOCAB, block_size=BLOCK, n_layer=2, n_head=4, n_embd=64, dropout=0.0)

FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "qwen3": QWEN3}


def loud_state(spec: GPTSpec, seed: int = 0) -> State:
    """Logits of a spread near 1, as a trained model's."""
    generator = np.random.default_rng(seed)
    return {
        MODEL + name: weight + generator.standard_normal(weight.shape, dtype=np.float32) * np.float32(0.15)
        for name, weight in initial_weights(spec, seed).items()
    }


def save_run(folder: Path, spec: GPTSpec, tokenizer: Tokenizer | None) -> State:
    """A run of one checkpoint; returns its weights by `model/<name>`."""
    state = loud_state(spec)
    CheckpointStore(folder).save(spec, state, Progress(step=1))
    if tokenizer is not None:
        tokenizer.save(folder / "tokenizer.json")
    return state
