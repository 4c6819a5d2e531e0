"""The parity ladder: the two engines against each other, and against Hugging Face's GPT-2 as a third opinion.

Each rung reports the largest error it measured. Tolerances stand in TOLERANCES beside the errors they were set from.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.core.backend import BACKENDS, Backend, DeviceChoice, EngineConfig, State, create_backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, expected_shapes
from twingpt.weights.checkpoint import load_checkpoint

# Float32, no dropout. Behind each: the largest error over SPECS measured on a CPU (x86-64, torch 2.13, mlx 0.32.4).
TOLERANCES = {
    "logits": 1e-5,  # 1.1e-6 of the largest; 2.1e-6 in a model learned by heart, logits of 33
    "loss": 1e-5,  # 2.1e-6 nats a token
    "gradients": 1e-5,  # 2.6e-6 of the tensor's largest
    "update": 1e-3,  # 1.8e-4 learning rates: one unit in the last place of a norm's weight
    "muon": 2.5e-4,  # 2.6e-5 learning rates, in the matrices
}
GREEDY_TOKENS = 64
LEARNING_RATE = 1e-3

_SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "block_size": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
}
_LLAMA: dict[str, Any] = {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "bias": False}

SPECS: dict[str, GPTSpec] = {
    name: GPTSpec(**_SMALL, **options)
    for name, options in dict[str, dict[str, Any]](
        {
            "seed style": {},
            "gpt2 style": {"activation": "gelu_tanh", "tie_embeddings": True, "residual_init": "scaled"},
            "no biases": {"bias": False},
            "llama style": _LLAMA,
            "llama style, tied, grouped": {**_LLAMA, "n_kv_head": 2, "tie_embeddings": True},
            "qwen3 style": {**_LLAMA, "qk_norm": True},
            "qwen3 style, wide heads": {**_LLAMA, "qk_norm": True, "n_kv_head": 1, "head_size": 48, "n_hidden": 200},
            "rope, layer norm": {"position": "rope", "rope_theta": 500.0},
            "rmsnorm, learned": {"norm": "rmsnorm", "norm_eps": 1e-6},
            "squared ReLU": {"activation": "relu2", "residual_init": "zero"},
            "swiglu, biases": {"activation": "swiglu"},
            "qk_norm, learned": {"qk_norm": True, "n_kv_head": 2},
            "head_size 64": {"head_size": 64},
        }
    ).items()
}


@dataclass(frozen=True)
class Rung:
    """One comparison. error and tolerance share a unit."""

    model: str
    number: int
    name: str
    unit: str
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def run_ladder(run: Path | None = None, device: DeviceChoice = "auto") -> list[Rung]:
    """Climb the ladder on the built-in specs and, if a run is given, on its newest checkpoint.

    Raises TwinGPTError if an engine is missing.
    """
    rungs: list[Rung] = []
    for label, spec in SPECS.items():
        rungs += climb(label, spec, perturbed(spec), device)
    if run is not None:
        checkpoint = load_checkpoint(run, optimizer=False)
        weights = checkpoint.state
        spec = dataclasses.replace(checkpoint.spec, dropout=0.0)
        rungs += climb(checkpoint.path.name, spec, weights, device)
    return rungs


def perturbed(spec: GPTSpec, seed: int = 0) -> State:
    """Initial weights with every zero and one moved a little, so that no parameter's effect can hide."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return {
        MODEL + name: weight + generator.standard_normal(weight.shape, dtype=np.float32) * np.float32(0.02)
        for name, weight in initial_weights(spec, seed).items()
    }


def climb(label: str, spec: GPTSpec, weights: State, device: DeviceChoice) -> Iterator[Rung]:
    """The rungs for one model, in order."""
    torch_engine, mlx_engine = (create_backend(name, spec, EngineConfig(device=device)) for name in BACKENDS)
    for engine in (torch_engine, mlx_engine):
        engine.load_state(weights)
    inputs, targets = _batch(spec)

    yield Rung(label, 1, "names and shapes", "keys", _key_differences(spec, torch_engine, mlx_engine), 0)
    logits = [engine.logits(inputs) for engine in (torch_engine, mlx_engine)]
    logit_error = _largest(logits[0] - logits[1])
    yield Rung(label, 2, "logits", "of the largest", _of_the_largest(*logits), TOLERANCES["logits"])
    losses, gradients = zip(
        *(engine.loss_and_grads(inputs, targets) for engine in (torch_engine, mlx_engine)), strict=True
    )
    yield Rung(label, 3, "loss", "nats/token", abs(losses[0] - losses[1]), TOLERANCES["loss"])
    yield from _third_opinion(label, spec, weights, inputs, targets, logits, list(losses))
    yield Rung(
        label,
        4,
        "gradients",
        "of the largest",
        _gradient_error(spec, *gradients),
        TOLERANCES["gradients"],
    )
    yield from _update_rungs(label, spec, (torch_engine, mlx_engine), inputs, targets, gradients[0])
    yield _muon_rung(label, spec, weights, device, inputs, targets)
    for engine in (torch_engine, mlx_engine):
        engine.load_state(weights)
    yield Rung(
        label,
        7,
        "greedy text",
        f"of {GREEDY_TOKENS} tokens",
        _greedy_differences(spec, torch_engine, mlx_engine, logit_error),
        0,
    )


def _batch(spec: GPTSpec) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Random windows, the last quarter of one left uncounted."""
    generator = np.random.Generator(np.random.PCG64(1))
    tokens = generator.integers(0, spec.vocab_size, (3, min(spec.block_size, 256) + 1), dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, -(targets.shape[1] // 4) :] = -1
    return inputs, targets


def _key_differences(spec: GPTSpec, *engines: Backend) -> int:
    expected = set(expected_shapes(spec, optimizer="adamw").items())
    found = [{(key, array.shape) for key, array in engine.export_state().items()} for engine in engines]
    return sum(len(expected ^ keys) for keys in found)


def _largest(difference: NDArray[Any]) -> float:
    largest = np.abs(difference).max(initial=0.0)
    return float("inf") if np.isnan(largest) else float(largest)


def _of_the_largest(logits: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """The largest difference beside the largest logit, or 1 if that is more.

    Rounding grows with the logits: those of a model that was trained for long reach 30 and more.
    """
    return _largest(logits - others) / max(1.0, _largest(others))


def key_bias(spec: GPTSpec, name: str) -> slice | None:
    """The part of a qkv bias that belongs to the keys: softmax cancels it, so its true gradient is zero.

    What an engine computes for it is rounding noise, which Adam scales up to whole steps. Norms and rotations come
    between the bias and the softmax, and leave it a gradient.
    """
    if not name.endswith("attn.qkv.bias") or spec.qk_norm or spec.position == "rope":
        return None
    queries = spec.n_head * spec.head_dim
    return slice(queries, queries + spec.kv_heads * spec.head_dim)


def _without_key_bias(spec: GPTSpec, name: str, array: NDArray[Any]) -> NDArray[Any]:
    part = key_bias(spec, name)
    return array if part is None else np.delete(array, part)


def _gradient_error(spec: GPTSpec, first: State, second: State) -> float:
    errors = []
    for name in first:
        a, b = (_without_key_bias(spec, name, gradients[name]) for gradients in (first, second))
        errors.append(_largest(a - b) / _largest(a))
    return max(errors)


def _update_rungs(
    label: str,
    spec: GPTSpec,
    engines: tuple[Backend, Backend],
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    gradients: State,
) -> Iterator[Rung]:
    """Rung 5. Where a gradient is rounding noise, Adam's first step is its sign: bounded by 2 lr, apart."""
    states = []
    for engine in engines:
        engine.train_step(inputs[None], targets[None], LEARNING_RATE, 0)
        engine.read_stats()
        states.append(engine.export_state())
    clear, noise = 0.0, 0.0
    for name, gradient in gradients.items():
        difference = np.abs(states[0][name] - states[1][name]) / LEARNING_RATE
        uncertain = np.abs(gradient) <= 10 * TOLERANCES["gradients"] * np.abs(gradient).max()
        uncertain &= gradient != 0.0
        part = key_bias(spec, name)
        if part is not None:
            uncertain[part] = True
        clear = max(clear, _largest(difference[~uncertain]))
        noise = max(noise, _largest(difference[uncertain]))
    yield Rung(label, 5, "one update", "learning rates", clear, TOLERANCES["update"])
    yield Rung(label, 5, "one update, noise", "learning rates", noise, 2.0)


def _muon_rung(
    label: str,
    spec: GPTSpec,
    weights: State,
    device: DeviceChoice,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
) -> Rung:
    """Rung 5 with Muon, of which AdamW's share is left out: what it moves is compared above."""
    states = []
    for name in BACKENDS:
        engine = create_backend(name, spec, EngineConfig(device=device, optimizer="muon"))
        engine.load_state(weights)
        engine.train_step(inputs[None], targets[None], LEARNING_RATE, 0)
        engine.read_stats()
        states.append(engine.export_state())
    by_muon = [MODEL + name for name, param in parameter_table(spec).items() if param.optimizer == "muon"]
    error = max(_largest(states[0][key] - states[1][key]) for key in by_muon) / LEARNING_RATE
    return Rung(label, 5, "one update, Muon", "learning rates", error, TOLERANCES["muon"])


def _greedy_differences(spec: GPTSpec, first: Backend, second: Backend, logit_error: float) -> int:
    """Tokens on which the engines disagree although the best two logits lie ten times the logit error apart."""
    prompt = np.arange(8, dtype=np.int32) % spec.vocab_size
    length = min(GREEDY_TOKENS, spec.block_size - len(prompt))
    caches = [engine.new_cache(1, spec.block_size) for engine in (first, second)]
    pairs = [engine.prefill(cache, 0, prompt) for engine, cache in zip((first, second), caches, strict=True)]
    differing = 0
    for _ in range(length):
        token = int(pairs[0].argmax())
        best, runner_up = np.sort(pairs[0])[-1:-3:-1]
        if int(pairs[1].argmax()) != token and best - runner_up > 10 * logit_error:
            differing += 1
        step = np.array([token], dtype=np.int32)
        pairs = [engine.decode(cache, [0], step)[0] for engine, cache in zip((first, second), caches, strict=True)]
    return differing


def _third_opinion(
    label: str,
    spec: GPTSpec,
    weights: State,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    logits: list[NDArray[np.float32]],
    losses: list[float],
) -> Iterator[Rung]:
    """Rungs 2 and 3 against transformers, where it is installed and has a model that computes this spec."""
    from twingpt.core.backend import framework_installed
    from twingpt.weights.targets import obstacles

    if not framework_installed("transformers") or not framework_installed("torch") or obstacles("hf", spec):
        return
    their_logits, their_loss = hugging_face_opinion(spec, weights, inputs, targets)
    error = max(_of_the_largest(ours, their_logits) for ours in logits)
    yield Rung(label, 2, "logits, Hugging Face", "of the largest", error, TOLERANCES["logits"])
    error = max(abs(ours - their_loss) for ours in losses)
    yield Rung(label, 3, "loss, Hugging Face", "nats/token", error, TOLERANCES["loss"])


def hugging_face_opinion(
    spec: GPTSpec, weights: State, inputs: NDArray[np.int32], targets: NDArray[np.int32]
) -> tuple[NDArray[np.float32], float]:
    """(logits [B, T, V], mean loss) of transformers' GPT-2, Llama or Qwen3 with these weights, on the CPU.

    Raises TwinGPTError if transformers does not take every tensor, or misses one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from twingpt.weights.huggingface import hf_config, hf_tensors

    config = hf_config(spec)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config)).eval()
    tensors = hf_tensors(spec, {key.removeprefix(MODEL): array for key, array in weights.items()})
    result = model.load_state_dict({name: torch.from_numpy(t) for name, t in tensors.items()}, strict=False)
    missing = [name for name in result.missing_keys if name != "lm_head.weight" or not spec.tie_embeddings]
    if missing or result.unexpected_keys:
        raise TwinGPTError(f"transformers does not take our tensors: {missing or result.unexpected_keys}")
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs.astype(np.int64))).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
        )
    return logits.numpy(), loss.item()


def print_ladder(rungs: list[Rung]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="parity of the two engines")
    for column in ("model", "rung", "error", "tolerance", "unit", ""):
        table.add_column(column, overflow="fold")
    for rung in rungs:
        mark = "[green]same[/green]" if rung.passed else "[red]DIFFERS[/red]"
        table.add_row(
            rung.model, f"{rung.number} {rung.name}", f"{rung.error:.2g}", f"{rung.tolerance:.0g}", rung.unit, mark
        )
    Console().print(table)
