"""The parity ladder: the two engines against each other, and against Hugging Face's GPT-2 as a third opinion.

Each rung reports the largest error it measured. Tolerances stand in checks/ladder.py, beside the errors they were
set from.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twingpt.checks.ladder import TOLERANCES, Rung, largest, tensor_error, update_rungs
from twingpt.checks.ladder import key_bias as key_bias
from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, SoftTargets, State, create_backend
from twingpt.core.engines import compared, engines, framework_installed
from twingpt.core.errors import TwinGPTError
from twingpt.core.init import initial_weights
from twingpt.core.language import tr
from twingpt.core.params import parameter_table
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, expected_shapes
from twingpt.weights.checkpoint import load_checkpoint

GREEDY_TOKENS = 64
LEARNING_RATE = 1e-3
SOFT_TOKENS = 9
"""Tokens that have shares of one target."""

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
    """The rungs for one model, in order: the first engine against each of the others."""
    first, *others = compared()
    for name in others:
        # With two engines there is only one pair to speak of.
        pair = label if len(others) == 1 else f"{label}, {first} and {name}"
        yield from _climb(pair, spec, weights, device, (first, name))


def _climb(label: str, spec: GPTSpec, weights: State, device: DeviceChoice, names: tuple[str, str]) -> Iterator[Rung]:
    one, other = (create_backend(name, spec, EngineConfig(device=device)) for name in names)
    for engine in (one, other):
        engine.load_state(weights)
    inputs, targets = _batch(spec)

    yield Rung(label, 1, "names and shapes", "keys", _key_differences(spec, one, other), 0)
    logits = [engine.logits(inputs) for engine in (one, other)]
    logit_error = largest(logits[0] - logits[1])
    yield Rung(label, 2, "logits", "of the largest", _logit_error(*logits), TOLERANCES["logits"])
    losses, gradients = zip(*(engine.loss_and_grads(inputs, targets) for engine in (one, other)), strict=True)
    yield Rung(label, 3, "loss", "nats/token", abs(losses[0] - losses[1]), TOLERANCES["loss"])
    yield from _third_opinion(label, spec, weights, inputs, targets, logits, list(losses))
    yield Rung(
        label,
        4,
        "gradients",
        "of the largest",
        tensor_error(spec, *gradients),
        TOLERANCES["gradients"],
    )
    yield from _by_hand(label, spec, weights, inputs, targets, logits, list(losses), list(gradients))
    yield from _soft_rungs(label, spec, weights, inputs, targets, (one, other))
    yield from _usual_update(label, spec, (one, other), inputs, targets, gradients[0])
    yield _muon_rung(label, spec, weights, device, names, inputs, targets)

    def loaded(name: str, config: EngineConfig) -> Backend:
        engine = create_backend(name, spec, config)
        engine.load_state(weights)
        return engine

    yield from update_rungs(label, spec, gradients[0], device, names, loaded)
    for engine in (one, other):
        engine.load_state(weights)
    yield Rung(
        label,
        8,
        "greedy text",
        f"of {GREEDY_TOKENS} tokens",
        _greedy_differences(spec, one, other, logit_error),
        0,
    )


def _batch(spec: GPTSpec) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Random windows, the last quarter of one left uncounted."""
    generator = np.random.Generator(np.random.PCG64(1))
    tokens = generator.integers(0, spec.vocab_size, (3, min(spec.block_size, 256) + 1), dtype=np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:].copy()
    targets[0, -(targets.shape[1] // 4) :] = -1
    return inputs, targets


def soft_targets(spec: GPTSpec, targets: NDArray[np.int32]) -> SoftTargets:
    """Shares of random tokens for every target, which is among them, and twice, as where teachers foretell it too."""
    generator = np.random.Generator(np.random.PCG64(3))
    ids = generator.integers(0, spec.vocab_size, (*targets.shape, SOFT_TOKENS), dtype=np.int32)
    ids[..., :2] = np.maximum(targets, 0)[..., None]
    drawn = generator.exponential(size=ids.shape)
    return SoftTargets(ids, (drawn / drawn.sum(axis=-1, keepdims=True)).astype(np.float32))


def _soft_rungs(
    label: str,
    spec: GPTSpec,
    weights: State,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    compared_engines: tuple[Backend, Backend],
) -> Iterator[Rung]:
    """Rungs 3 and 4 with soft targets: engine against engine, and both against the pass by hand."""
    soft = soft_targets(spec, targets)
    ours = [engine.loss_and_grads(inputs, targets, soft) for engine in compared_engines]
    for pair, others in (("", ours[1:]), (", by hand", _opinions_by_hand(spec, weights, inputs, targets, soft))):
        for their_loss, their_gradients in others:
            # The first engine's difference from itself is none, so that both are held against the others.
            loss = max(abs(loss - their_loss) for loss, _ in ours)
            yield Rung(label, 3, f"loss, soft targets{pair}", "nats/token", loss, TOLERANCES["soft loss"])
            error = max(tensor_error(spec, gradients, their_gradients) for _, gradients in ours)
            name = f"gradients, soft targets{pair}"
            yield Rung(label, 4, name, "of the largest", error, TOLERANCES["soft gradients"])


def _opinions_by_hand(
    spec: GPTSpec,
    weights: State,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    soft: SoftTargets,
) -> Iterator[tuple[float, State]]:
    for name in (engine.name for engine in engines() if engine.by_hand):
        other = create_backend(name, spec, EngineConfig())
        other.load_state(weights)
        yield other.loss_and_grads(inputs, targets, soft)


def _key_differences(spec: GPTSpec, *engines: Backend) -> int:
    expected = set(expected_shapes(spec, optimizer="adamw").items())
    found = [{(key, array.shape) for key, array in engine.export_state().items()} for engine in engines]
    return sum(len(expected ^ keys) for keys in found)


def _logit_error(logits: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """The largest difference beside the largest logit, or 1 if that is more.

    Rounding grows with the logits: those of a model that was trained for long reach 30 and more.
    """
    return largest(logits - others) / max(1.0, largest(others))


def _usual_update(
    label: str,
    spec: GPTSpec,
    engines: tuple[Backend, Backend],
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    gradients: State,
) -> Iterator[Rung]:
    """Rung 5 with the usual settings.

    Where a gradient is rounding noise, Adam's first step is its sign: bounded by 2 lr, apart.
    """
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
        clear = max(clear, largest(difference[~uncertain]))
        noise = max(noise, largest(difference[uncertain]))
    yield Rung(label, 5, "one update", "learning rates", clear, TOLERANCES["update"])
    yield Rung(label, 5, "one update, noise", "learning rates", noise, 2.0)


def _muon_rung(
    label: str,
    spec: GPTSpec,
    weights: State,
    device: DeviceChoice,
    names: tuple[str, str],
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
) -> Rung:
    """Rung 5 with Muon, of which AdamW's share is left out: what it moves is compared above."""
    states = []
    for name in names:
        engine = create_backend(name, spec, EngineConfig(device=device, optimizer="muon"))
        engine.load_state(weights)
        engine.train_step(inputs[None], targets[None], LEARNING_RATE, 0)
        engine.read_stats()
        states.append(engine.export_state())
    by_muon = [MODEL + name for name, param in parameter_table(spec).items() if param.optimizer == "muon"]
    error = max(largest(states[0][key] - states[1][key]) for key in by_muon) / LEARNING_RATE
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


def _by_hand(
    label: str,
    spec: GPTSpec,
    weights: State,
    inputs: NDArray[np.int32],
    targets: NDArray[np.int32],
    logits: list[NDArray[np.float32]],
    losses: list[float],
    gradients: list[State],
) -> Iterator[Rung]:
    """Rungs 2 to 4 against each engine whose forward and backward passes are written out by hand.

    Two frameworks may take one derivative in the same wrong way; a pass by hand does not share it.
    """
    for name in (engine.name for engine in engines() if engine.by_hand):
        other = create_backend(name, spec, EngineConfig())
        other.load_state(weights)
        loss, by_hand = other.loss_and_grads(inputs, targets)
        yield from _opinion(label, "by hand", logits, losses, other.logits(inputs), loss)
        error = max(tensor_error(spec, ours, by_hand) for ours in gradients)
        yield Rung(label, 4, "gradients, by hand", "of the largest", error, TOLERANCES["gradients"])


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
    from twingpt.weights.targets import obstacles

    if not framework_installed("transformers") or not framework_installed("torch") or obstacles("hf", spec):
        return
    their_logits, their_loss = hugging_face_opinion(spec, weights, inputs, targets)
    yield from _opinion(label, "Hugging Face", logits, losses, their_logits, their_loss)


def _opinion(
    label: str,
    whose: str,
    logits: list[NDArray[np.float32]],
    losses: list[float],
    their_logits: NDArray[np.float32],
    their_loss: float,
) -> Iterator[Rung]:
    """Rungs 2 and 3: the logits and losses of all engines against those of a further opinion."""
    error = max(_logit_error(ours, their_logits) for ours in logits)
    yield Rung(label, 2, f"logits, {whose}", "of the largest", error, TOLERANCES["logits"])
    error = max(abs(ours - their_loss) for ours in losses)
    yield Rung(label, 3, f"loss, {whose}", "nats/token", error, TOLERANCES["loss"])


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
        raise TwinGPTError(
            tr("transformers does not take our tensors: {missing}", missing=missing or result.unexpected_keys)
        )
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs.astype(np.int64))).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets.astype(np.int64)).flatten(), ignore_index=-1
        )
    return logits.numpy(), loss.item()


def verdict(rungs: list[Rung]) -> str:
    """One line: whether anything differs, and what was the first to."""
    failed = [rung for rung in rungs if not rung.passed]
    if failed:
        first = tr(
            "{model}, rung {number}, {name}", model=failed[0].model, number=failed[0].number, name=failed[0].name
        )
        return tr(
            "{failed} of {rungs} comparisons differ; the first: {first}.",
            failed=len(failed),
            rungs=len(rungs),
            first=first,
        )
    return tr(
        "Every rung is the same: {rungs} comparisons over {models} models.",
        rungs=len(rungs),
        models=len({rung.model for rung in rungs}),
    )


def print_ladder(rungs: list[Rung], *, details: bool = False) -> None:
    """The verdict and what differs; with `details` every comparison but those of updates, of which there are many:
    of these what came nearest to differing.
    """
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(verdict(rungs), soft_wrap=True, markup=False, highlight=False)
    shown = _worth_a_line(rungs) if details else [rung for rung in rungs if not rung.passed]
    if shown:
        table = Table(title=tr("parity of the two engines"))
        for column in (tr("model"), tr("rung"), tr("error"), tr("tolerance"), tr("unit"), ""):
            table.add_column(column, overflow="fold")
        for rung in shown:
            colour, word = ("green", tr("same")) if rung.passed else ("red", tr("DIFFERS"))
            table.add_row(
                rung.model,
                f"{rung.number} {rung.name}",
                f"{rung.error:.2g}",
                f"{rung.tolerance:.0g}",
                rung.unit,
                f"[{colour}]{word}[/]",
            )
        console.print(table)
    if not details:
        console.print(tr("every rung with its error: twingpt parity --details"), highlight=False)


def _worth_a_line(rungs: list[Rung]) -> list[Rung]:
    """Without the updates' comparisons that passed with more room than another of the same rung and model."""
    nearest: dict[tuple[str, int], Rung] = {}
    for rung in rungs:
        known = nearest.setdefault((rung.model, rung.number), rung)
        if rung.passed and rung.error * known.tolerance > known.error * rung.tolerance:
            nearest[rung.model, rung.number] = rung
    return [
        rung
        for rung in rungs
        if not rung.passed or "update" not in rung.name or rung is nearest[rung.model, rung.number]
    ]
