"""How fast does the MLX engine train beside mlx-lm's gpt2 and mlx-examples' transformer_lm?

    pip install mlx-lm
    python benchmarks/peers/train_mlx.py --transformer-lm PATH/transformer_lm/main.py [--rounds 7] [--steps 6] [--quick]

Batch 4 x 256 of preset seed with a tied head, dropout 0, float32; every candidate in a fresh process, in turn. The
peers train as their own programs do: value_and_grad and AdamW in one compiled step, evaluated every step, no clipping.
mlx-lm's gpt2 has the tanh GELU, so that `twingpt, tanh GELU` is the same model; transformer_lm has a ReLU, sinusoidal
positions and an untied head. On Linux every candidate gets OpenBLAS, loaded into the global scope before MLX as the
engine itself does: opening its backend is what does it. Memory is the peak of the resident set above what it
was after the imports. Writes results/train_mlx.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    started,
    target,
)

from twingpt.core.engines import find_engine
from twingpt.core.memory import process_memory
from twingpt.core.spec import GPTSpec

OURS, OURS_TANH = "twingpt", "twingpt, tanh GELU"
MLX_LM, TRANSFORMER_LM = "mlx-lm gpt2", "transformer_lm"
CANDIDATES = (OURS, OURS_TANH, MLX_LM, TRANSFORMER_LM)
BATCH = 4
LOG_EVERY = 10


def random_tokens(spec: GPTSpec) -> Any:
    """int32 [batch, block_size + 1]."""
    import numpy as np

    return np.random.default_rng(0).integers(0, spec.vocab_size, (BATCH, spec.block_size + 1), dtype=np.int32)


def train_ours(spec: GPTSpec, device: str) -> Callable[[int], None]:
    from twingpt.core.backend import EngineConfig, create_backend
    from twingpt.core.init import initial_weights
    from twingpt.core.state import MODEL

    backend = create_backend("mlx", spec, EngineConfig(device=device))  # type: ignore[arg-type]
    backend.load_state({MODEL + name: weight for name, weight in initial_weights(spec, 0).items()})
    tokens = random_tokens(spec)[None]

    def train(steps: int) -> None:
        for step in range(steps):
            backend.train_step(tokens[..., :-1], tokens[..., 1:], LEARNING_RATE, step)
            if step % LOG_EVERY == 0:
                backend.read_stats()
        backend.read_stats()
        backend.synchronize()

    return train


def mlx_lm_gpt2(spec: GPTSpec) -> Any:
    import importlib

    gpt2 = importlib.import_module("mlx_lm.models.gpt2")
    return gpt2.Model(
        gpt2.ModelArgs(
            model_type="gpt2",
            n_ctx=spec.block_size,
            n_embd=spec.n_embd,
            n_head=spec.n_head,
            n_layer=spec.n_layer,
            n_positions=spec.block_size,
            layer_norm_epsilon=spec.norm_eps,
            vocab_size=spec.vocab_size,
        )
    )


def transformer_lm(spec: GPTSpec, path: Path) -> Any:
    # Its neighbour datasets.py is imported by name.
    sys.path.insert(0, str(path.parent))
    source = load_file(path, "transformer_lm_main")
    return source.TransformerLM(spec.vocab_size, spec.n_layer, spec.n_embd, spec.n_head, checkpoint=False)


def train_peer(model: Any, spec: GPTSpec) -> Callable[[int], None]:
    import mlx.core as mx
    import mlx.nn as nn
    import mlx.optimizers as optim

    mx.eval(model.parameters())
    optimizer = optim.AdamW(learning_rate=LEARNING_RATE, weight_decay=0.01)

    def loss_of(model: Any, inputs: Any, targets: Any) -> Any:
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    state = [model.state, optimizer.state]

    def step(inputs: Any, targets: Any) -> Any:
        loss, grads = nn.value_and_grad(model, loss_of)(model, inputs, targets)
        optimizer.update(model, grads)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    tokens = mx.array(random_tokens(spec))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = compiled(inputs, targets)
            mx.eval(state, loss)

    return train


def work(options: argparse.Namespace) -> Row:
    """One candidate, in this process."""
    # OpenBLAS first, for every candidate.
    engine = find_engine("mlx").part("backend")

    if options.worker == MLX_LM:
        import importlib

        importlib.import_module("mlx_lm.models.gpt2")
    imported = process_memory()[0]
    if options.worker in (OURS, OURS_TANH):
        spec = compared_spec(activation="gelu_tanh" if options.worker == OURS_TANH else "gelu")
        train = train_ours(spec, options.device)
    else:
        import mlx.core as mx

        mx.set_default_device(engine.choose_device(options.device)[0])
        spec = compared_spec()
        model = mlx_lm_gpt2(spec) if options.worker == MLX_LM else transformer_lm(spec, options.transformer_lm)
        train = train_peer(model, spec)
    train(1 if options.quick else 2)
    begun = time.perf_counter()
    train(options.steps)
    step = (time.perf_counter() - begun) / options.steps
    return {
        "tokens_per_second": BATCH * spec.block_size / step,
        "step_seconds": step,
        "peak_megabytes": (process_memory()[1] - imported) / 1e6,
    }


def main() -> None:
    made = parser(__doc__, "train_mlx", rounds=7)
    made.add_argument("--transformer-lm", type=Path, required=True, help="mlx-examples' transformer_lm/main.py")
    made.add_argument("--steps", type=int, default=6, help="timed in each process, after two (default 6)")
    options = made.parse_args()
    if options.worker:
        print(json.dumps(work(options)))
        return

    before = started()
    arguments = ["--transformer-lm", options.transformer_lm, "--device", options.device]
    arguments += ["--steps", 1, "--quick"] if options.quick else ["--steps", options.steps]
    rounds = in_turn(__file__, CANDIDATES, 1 if options.quick else options.rounds, arguments)
    same_model = ratio(rounds, "tokens_per_second", OURS_TANH, MLX_LM)
    example = ratio(rounds, "tokens_per_second", OURS, TRANSFORMER_LM)
    result = {
        **before,
        "rounds": rounds,
        "tokens_per_second": {name: median(rounds, name, "tokens_per_second") for name in CANDIDATES},
        "peak_megabytes": {name: median(rounds, name, "peak_megabytes") for name in CANDIDATES},
        "exact_gelu_beside_mlx_lm": ratio(rounds, "tokens_per_second", OURS, MLX_LM),
        "targets": [
            target("tokens/s beside mlx-lm's gpt2, the same model", same_model, at_least=1.5),
            target("tokens/s beside transformer_lm", example, at_least=1.0),
        ],
    }
    finish("train_mlx", options, result)


if __name__ == "__main__":
    main()
