"""How fast do the engines generate, beside Hugging Face and nanoGPT (PyTorch) and mlx-lm (MLX)?

    pip install mlx-lm
    python benchmarks/peers/generate.py --nanogpt PATH/model.py [--rounds 7] [--repeats 3] [--quick]

200 tokens from a prompt of 56, preset seed with a tied head, random weights, temperature 0.8, top-k 50; every candidate
in a fresh process, in turn, the median of its repeats after a warm-up. Hugging Face and mlx-lm use their caches,
nanoGPT has none. `8 prompts` decodes eight prompts at once and counts the tokens of all. The engines are used as
`twingpt generate` uses them: prefill, decode, and the sampler of twingpt.core. On Linux mlx-lm gets OpenBLAS as
LD_PRELOAD would give it, without the engine's own way with few rows. Writes results/generate.json.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pairs import Row, compared_spec, finish, in_turn, load_file, median, parser, ratio, started, target

from twingpt.core.engines import find_engine
from twingpt.core.spec import GPTSpec

PROMPT, NEW_TOKENS = 56, 200
TEMPERATURE, TOP_K = 0.8, 50
MANY = 8
TORCH, TORCH_MANY = "twingpt torch", f"twingpt torch, {MANY} prompts"
MLX, MLX_MANY = "twingpt mlx", f"twingpt mlx, {MANY} prompts"
HF, HF_MANY, NANOGPT, MLX_LM = "huggingface", f"huggingface, {MANY} prompts", "nanogpt", "mlx-lm gpt2"
CANDIDATES = (TORCH, HF, NANOGPT, TORCH_MANY, HF_MANY, MLX, MLX_LM, MLX_MANY)

Generate = Callable[[int], int]
"""Generates up to so many tokens from each prompt; returns how many there were in all."""


def prompts(spec: GPTSpec, number: int) -> list[list[int]]:
    import numpy as np

    return [list(row) for row in np.random.default_rng(0).integers(0, spec.vocab_size, (number, PROMPT)).tolist()]


def ours(name: str, spec: GPTSpec, device: str, number: int) -> Generate:
    import numpy as np

    from twingpt.core.backend import EngineConfig, create_backend
    from twingpt.core.init import initial_weights
    from twingpt.core.sampling import Sampling, sample
    from twingpt.core.state import MODEL
    from twingpt.generation.batching import Request
    from twingpt.generation.writing import stream_tokens

    backend = create_backend(name, spec, EngineConfig(device=device))  # type: ignore[arg-type]
    backend.load_state({MODEL + key: weight for key, weight in initial_weights(spec, 0).items()})
    samplings = [Sampling(temperature=TEMPERATURE, top_k=TOP_K, seed=seed) for seed in range(number)]
    texts = prompts(spec, number)

    def one(new_tokens: int) -> int:
        return len(list(stream_tokens(backend, Request(texts[0], samplings[0], new_tokens))))

    def many(new_tokens: int) -> int:
        cache, slots = backend.new_cache(number, spec.block_size), list(range(number))
        seen = [list(text) for text in texts]
        rows = [backend.prefill(cache, slot, np.array(seen[slot], dtype=np.int32)) for slot in slots]
        logits = np.stack(rows)
        for count in range(1, new_tokens + 1):
            tokens = [sample(logits[i], samplings[i], len(seen[i]), np.array(seen[i])) for i in slots]
            for slot, token in zip(slots, tokens, strict=True):
                seen[slot].append(token)
            if count < new_tokens:
                logits = backend.decode(cache, slots, np.array(tokens, dtype=np.int32))
        return sum(len(text) - PROMPT for text in seen)

    return one if number == 1 else many


def nanogpt(spec: GPTSpec, options: argparse.Namespace) -> Generate:
    import torch

    from twingpt.backends.torch_mps.backend import choose_device

    source, device = load_file(options.nanogpt, "nanogpt_model"), choose_device(options.device)
    config = source.GPTConfig(
        block_size=spec.block_size,
        vocab_size=spec.vocab_size,
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        n_embd=spec.n_embd,
    )
    model = source.GPT(config).to(device).eval()
    text = torch.tensor(prompts(spec, 1), device=device)

    def generate(new_tokens: int) -> int:
        out = model.generate(text, new_tokens, temperature=TEMPERATURE, top_k=TOP_K)
        return len(out[0].tolist()) - PROMPT

    return generate


def huggingface(spec: GPTSpec, options: argparse.Namespace, number: int) -> Generate:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from twingpt.backends.torch_mps.backend import choose_device

    device = choose_device(options.device)
    config = GPT2Config(
        vocab_size=spec.vocab_size,
        n_positions=spec.block_size,
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        n_embd=spec.n_embd,
        activation_function="gelu",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config).to(device).eval()
    text = torch.tensor(prompts(spec, number), device=device)
    mask = torch.ones_like(text)

    def generate(new_tokens: int) -> int:
        out = model.generate(
            text,
            attention_mask=mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_k=TOP_K,
            max_new_tokens=new_tokens,
            use_cache=True,
        )
        return sum(len(row) - PROMPT for row in out.tolist())

    return generate


def mlx_lm(spec: GPTSpec, options: argparse.Namespace) -> Generate:
    import mlx.core as mx
    from train_mlx import mlx_lm_gpt2

    from twingpt.backends.mlx.backend import choose_device

    mx.set_default_device(choose_device(options.device)[0])
    generation = importlib.import_module("mlx_lm.generate")
    sampler = importlib.import_module("mlx_lm.sample_utils").make_sampler(temp=TEMPERATURE, top_k=TOP_K)
    model = mlx_lm_gpt2(spec)
    mx.eval(model.parameters())
    text = mx.array(prompts(spec, 1)[0])

    def generate(new_tokens: int) -> int:
        return sum(1 for _ in generation.generate_step(text, model, max_tokens=new_tokens, sampler=sampler))

    return generate


def work(options: argparse.Namespace) -> Row:
    """One candidate, in this process."""
    spec, name = compared_spec(), options.worker
    if name in (MLX, MLX_MANY, MLX_LM):
        # mlx-lm's gpt2 has the tanh GELU.
        spec = compared_spec(activation="gelu_tanh")
        if name == MLX_LM:
            # Before the engine is imported, whose own products come second then.
            with contextlib.suppress(OSError):
                ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
        find_engine("mlx").prepare()
    makers: dict[str, Callable[[], Generate]] = {
        TORCH: lambda: ours("mps", spec, options.device, 1),
        TORCH_MANY: lambda: ours("mps", spec, options.device, MANY),
        MLX: lambda: ours("mlx", spec, options.device, 1),
        MLX_MANY: lambda: ours("mlx", spec, options.device, MANY),
        HF: lambda: huggingface(spec, options, 1),
        HF_MANY: lambda: huggingface(spec, options, MANY),
        NANOGPT: lambda: nanogpt(spec, options),
        MLX_LM: lambda: mlx_lm(spec, options),
    }
    generate = makers[name]()
    wanted = NEW_TOKENS * (MANY if name.endswith("prompts") else 1)
    generate(20)
    rates, firsts = [], []
    for _ in range(options.repeats):
        begun = time.perf_counter()
        generate(1)
        firsts.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        made = generate(NEW_TOKENS)
        rates.append(made / (time.perf_counter() - begun))
        if made != wanted:
            raise SystemExit(f"{name} made {made} tokens, not {wanted}")
    return {"tokens_per_second": statistics.median(rates), "one_token_seconds": statistics.median(firsts)}


def main() -> None:
    made = parser(__doc__, "generate", rounds=7)
    made.add_argument("--nanogpt", type=Path, required=True, help="nanoGPT's model.py")
    made.add_argument("--repeats", type=int, default=3, help="in each process, after a warm-up (default 3)")
    options = made.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return

    before = started()
    repeats = 1 if options.quick else options.repeats
    arguments = ["--nanogpt", options.nanogpt, "--repeats", repeats, "--device", options.device]
    rounds = in_turn(__file__, CANDIDATES, 1 if options.quick else options.rounds, arguments)
    wanted = (
        ("PyTorch beside Hugging Face with its cache, 1 prompt", TORCH, HF, 1.3),
        (f"PyTorch, {MANY} prompts at once beside 1", TORCH_MANY, TORCH, 3.0),
        ("MLX beside mlx-lm, 1 prompt", MLX, MLX_LM, 1.25),
        (f"MLX, {MANY} prompts at once beside 1", MLX_MANY, MLX, 3.0),
    )
    result = {
        **before,
        "rounds": rounds,
        "tokens_per_second": {name: median(rounds, name, "tokens_per_second") for name in CANDIDATES},
        "one_token_seconds": {name: median(rounds, name, "one_token_seconds") for name in CANDIDATES},
        "targets": [
            target(what, ratio(rounds, "tokens_per_second", first, second), at_least=goal)
            for what, first, second, goal in wanted
        ],
    }
    finish("generate", options, result)


if __name__ == "__main__":
    main()
