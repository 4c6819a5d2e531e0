"""How fast, and in how much memory, does the PyTorch engine train beside nanoGPT, Hugging Face and the old script?

    python benchmarks/peers/train_torch.py --nanogpt PATH/model.py [--rounds 7] [--steps 8] [--quick]

Preset seed with a tied head, dropout 0, float32, batch 4 x 256 and 16 x 256; every candidate in a fresh process, in
turn. `sgemm` is the machine's own limit: torch.mm at the shapes of the step's products, forward and both backward ones,
and nothing else. nanoGPT's file comes from the caller; its loop is followed: fused AdamW on CUDA only, gradients
clipped at 1. Hugging Face is GPT2LMHeadModel with the Trainer's defaults (fused AdamW, clipping at 1), and the old
script (manual attention, untied head) is tests/weights/seed_script.py. Memory is the peak of the resident set above
what it was after the imports. Writes results/train_torch.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pairs import (
    LEARNING_RATE,
    Row,
    compared_spec,
    finish,
    in_turn,
    load_file,
    median,
    parser,
    ratio,
    spread,
    started,
    target,
)

from twingpt.core.memory import process_memory
from twingpt.core.spec import GPTSpec

if TYPE_CHECKING:
    import torch

OURS, LIMIT = "twingpt", "sgemm"
PEERS = ("nanogpt", "huggingface", "old script")
BATCHES = (4, 16)
LOG_EVERY = 10
OLD_SCRIPT = Path(__file__).parents[2] / "tests" / "weights" / "seed_script.py"


def windows(spec: GPTSpec, batch: int) -> Iterator[tuple[Any, Any]]:
    """Random windows of made-up tokens as int64 [batch, block_size], and what comes next."""
    import numpy as np

    generator = np.random.default_rng(0)
    tokens = generator.integers(0, spec.vocab_size, 1_000_000, dtype=np.uint16)
    while True:
        starts = generator.integers(0, len(tokens) - spec.block_size - 1, batch)
        rows = np.stack([tokens[start : start + spec.block_size + 1] for start in starts]).astype(np.int64)
        yield rows[:, :-1], rows[:, 1:]


def train_ours(spec: GPTSpec, batch: int, device: str) -> Callable[[int], None]:
    from twingpt.core.backend import EngineConfig, create_backend
    from twingpt.core.init import initial_weights
    from twingpt.core.state import MODEL

    backend = create_backend("mps", spec, EngineConfig(device=device))  # type: ignore[arg-type]
    backend.load_state({MODEL + name: weight for name, weight in initial_weights(spec, 0).items()})
    data = windows(spec, batch)

    def train(steps: int) -> None:
        for step in range(steps):
            inputs, targets = next(data)
            backend.train_step(inputs[None], targets[None], LEARNING_RATE, step)
            if step % LOG_EVERY == 0:
                backend.read_stats()
        backend.read_stats()

    return train


def train_peer(name: str, spec: GPTSpec, batch: int, options: argparse.Namespace) -> Callable[[int], None]:
    import torch

    from twingpt.backends.torch_mps.backend import choose_device

    device = choose_device(options.device)
    torch.manual_seed(0)
    model, optimizer, forward = {"nanogpt": nanogpt, "huggingface": huggingface, "old script": old_script}[name](
        spec, device, options
    )
    data = windows(spec, batch)

    def train(steps: int) -> None:
        for step in range(steps):
            inputs, targets = (torch.from_numpy(part.copy()).to(device) for part in next(data))
            # Both scripts hold the logits until the next pass has made new ones, and so does this loop.
            logits, loss = forward(inputs, targets)  # noqa: RUF059
            if name == "old script":
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if name != "old script":
                optimizer.zero_grad(set_to_none=True)
            if step % LOG_EVERY == 0:
                loss.item()
        loss.item()

    return train


Peer = tuple["torch.nn.Module", "torch.optim.Optimizer", Callable[[Any, Any], tuple[Any, Any]]]


def nanogpt(spec: GPTSpec, device: torch.device, options: argparse.Namespace) -> Peer:
    source = load_file(options.nanogpt, "nanogpt_model")
    config = source.GPTConfig(
        block_size=spec.block_size,
        vocab_size=spec.vocab_size,
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        n_embd=spec.n_embd,
        dropout=0.0,
        bias=True,
    )
    model = source.GPT(config).to(device)
    return model, model.configure_optimizers(0.1, LEARNING_RATE, (0.9, 0.95), device.type), model


def huggingface(spec: GPTSpec, device: torch.device, options: argparse.Namespace) -> Peer:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=spec.vocab_size,
        n_positions=spec.block_size,
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        n_embd=spec.n_embd,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model: Any = GPT2LMHeadModel(config).to(device).train()

    def forward(inputs: Any, targets: Any) -> tuple[None, Any]:
        # It shifts the labels itself; the Trainer keeps nothing but the loss.
        return None, model(input_ids=inputs, labels=inputs).loss

    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True), forward


def old_script(spec: GPTSpec, device: torch.device, options: argparse.Namespace) -> Peer:
    import torch

    sizes = (spec.vocab_size, spec.block_size, spec.n_layer, spec.n_head, spec.n_embd, 0.0)
    model = load_file(OLD_SCRIPT, "seed_script").GPT(*sizes).to(device)

    def forward(inputs: Any, targets: Any) -> tuple[Any, Any]:
        logits = model(inputs)
        return logits, torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))

    return model, torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE), forward


def products(spec: GPTSpec) -> list[tuple[str, int, int, int]]:
    """(name, inputs, outputs, how many) of every linear layer of a step."""
    C, hidden = spec.n_embd, spec.mlp_ratio * spec.n_embd
    body = [("qkv", C, 3 * C), ("attention out", C, C), ("mlp in", C, hidden), ("mlp out", hidden, C)]
    return [*((name, i, o, spec.n_layer) for name, i, o in body), ("head", C, spec.vocab_size, 1)]


def sgemm_limit(spec: GPTSpec, batch: int, options: argparse.Namespace) -> Row:
    """Seconds of the step's matrix products alone."""
    import torch

    from twingpt.backends.torch_mps.backend import choose_device

    device, M = choose_device(options.device), batch * spec.block_size
    repeats = 1 if options.quick else 5
    seconds, flops, shapes = 0.0, 0, {}
    for name, K, N, count in products(spec):
        x, w, dy = (torch.randn(*shape, device=device) for shape in ((M, K), (N, K), (M, N)))
        took = 0.0
        for a, b in ((x, w.T), (dy, w), (dy.T, x)):
            out = torch.empty(a.shape[0], b.shape[1], device=device)
            torch.mm(a, b, out=out)
            times = []
            for _ in range(repeats):
                begun = time.perf_counter()
                torch.mm(a, b, out=out)
                if device.type != "cpu":
                    getattr(torch, device.type).synchronize()
                times.append(time.perf_counter() - begun)
            took += statistics.median(times)
        seconds += count * took
        flops += count * 6 * M * K * N
        shapes[name] = 6 * M * K * N / took / 1e9
    return {"tokens_per_second": M / seconds, "step_seconds": seconds, "gflop": flops / 1e9, "gflops": shapes}


def work(options: argparse.Namespace) -> Row:
    """One candidate, in this process."""
    # What every candidate imports is not counted; what it alone imports is not either.
    import twingpt.backends.torch_mps.backend  # noqa: F401

    spec = compared_spec()
    if options.worker == LIMIT:
        return sgemm_limit(spec, options.batch, options)
    if options.worker == "huggingface":
        from transformers import GPT2LMHeadModel  # noqa: F401
    imported = process_memory()[0]
    if options.worker == OURS:
        train = train_ours(spec, options.batch, options.device)
    else:
        train = train_peer(options.worker, spec, options.batch, options)
    train(1 if options.quick else 2)
    begun = time.perf_counter()
    train(options.steps)
    step = (time.perf_counter() - begun) / options.steps
    return {
        "tokens_per_second": options.batch * spec.block_size / step,
        "step_seconds": step,
        "peak_megabytes": (process_memory()[1] - imported) / 1e6,
    }


def main() -> None:
    made = parser(__doc__, "train_torch", rounds=7)
    made.add_argument("--nanogpt", type=Path, required=True, help="nanoGPT's model.py")
    made.add_argument("--steps", type=int, default=8, help="timed in each process, after two (default 8)")
    made.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = made.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return

    result = {**started(), "batches": {}, "targets": []}
    candidates = (OURS, *PEERS, LIMIT)
    for batch in BATCHES:
        steps = 1 if options.quick else max(1, options.steps * BATCHES[0] // batch)
        arguments = ["--nanogpt", options.nanogpt, "--batch", batch, "--steps", steps, "--device", options.device]
        # The larger batch is there for the memory, which hardly varies.
        number = 1 if options.quick else options.rounds if batch == BATCHES[0] else -(-options.rounds // 2)
        rounds = in_turn(__file__, candidates, number, [*arguments, *(["--quick"] * options.quick)])
        share = spread([row[OURS]["tokens_per_second"] / row[LIMIT]["tokens_per_second"] for row in rounds])
        result["batches"][str(batch)] = {
            "rounds": rounds,
            "tokens_per_second": {name: median(rounds, name, "tokens_per_second") for name in candidates},
            "peak_megabytes": {name: median(rounds, name, "peak_megabytes") for name in (OURS, *PEERS)},
            "speed_ratio": {name: ratio(rounds, "tokens_per_second", OURS, name) for name in PEERS},
            "memory_ratio": {name: ratio(rounds, "peak_megabytes", OURS, name) for name in PEERS},
            "share_of_limit": share,
        }
    small, large = (result["batches"][str(batch)] for batch in BATCHES)
    result["targets"] = [
        target("tokens/s beside nanoGPT, batch 4", small["speed_ratio"]["nanogpt"], at_least=1.25),
        target("share of the machine's sgemm limit, batch 4", small["share_of_limit"], at_least=0.80),
        target("memory beside nanoGPT, batch 4", small["memory_ratio"]["nanogpt"], at_most=0.80),
        target("memory beside nanoGPT, batch 16", large["memory_ratio"]["nanogpt"], at_most=0.65),
    ]
    finish("train_torch", options, result)


if __name__ == "__main__":
    main()
