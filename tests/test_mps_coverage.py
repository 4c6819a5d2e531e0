"""Every aten operation of the PyTorch engine has a Metal kernel in the installed torch; see tests/mps_coverage.py."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from tests.mps_coverage import Gap, cpu_fallbacks, gaps, kernel_table
from twingpt.backends.torch_mps import model as torch_model
from twingpt.backends.torch_mps.backend import TorchBackend
from twingpt.backends.torch_mps.linux_cpu import PLAIN
from twingpt.checks.parity import perturbed, soft_targets
from twingpt.core.backend import Backend, EngineConfig, Precision
from twingpt.core.presets import PRESETS
from twingpt.core.sampling import Sampling, sample
from twingpt.core.spec import Activation, GPTSpec

BASE = GPTSpec(vocab_size=211, block_size=96, n_layer=1, n_head=2, n_embd=32, dropout=0.0)
# Fields that say how much of something there is: other numbers run the same operations.
SIZES = {
    GPTSpec: "vocab_size block_size n_layer n_head n_embd head_size mlp_ratio n_hidden rope_theta norm_eps init_std",
    EngineConfig: "muon_lr_scale muon_momentum beta1 beta2 eps weight_decay loss_chunk seed",
}
# Numbers of which one value turns an operation on or off.
SWITCHES: dict[type, dict[str, tuple[float, ...]]] = {
    GPTSpec: {"dropout": (0.1,), "n_kv_head": (1,)},
    EngineConfig: {"grad_clip": (0.0,)},
}
# Every case is traced in both precisions; weights are initialised in NumPy.
OUTSIDE = {"device", "precision", "residual_init"}

Case = tuple[GPTSpec, dict[str, Any]]
"""A model, and what its engine is given besides."""


def choices(cls: type, base: object) -> dict[str, list[Any]]:
    """Field -> the values of it that differ from the base's: each of a Literal, the other bool, those of SWITCHES."""
    found: dict[str, list[Any]] = {}
    for name, kind in get_type_hints(cls).items():
        values = SWITCHES[cls].get(name, (False, True) if kind is bool else get_args(kind))
        if name not in OUTSIDE:
            found[name] = [value for value in values if value != getattr(base, name)]
    return {name: values for name, values in found.items() if values}


def cases() -> dict[str, Case]:
    """The base, each option of model and engine alone, the last of each together, and every preset."""
    model, engine = choices(GPTSpec, BASE), choices(EngineConfig, EngineConfig())
    found: dict[str, Case] = {"base": (BASE, {})}
    for name, values in model.items():
        found |= {f"{name} {value}": (replace(BASE, **{name: value}), {}) for value in values}
    for name, values in engine.items():
        found |= {f"{name} {value}": (BASE, {name: value}) for value in values}
    last = ({name: values[-1] for name, values in options.items()} for options in (model, engine))
    found["all together"] = (replace(BASE, **next(last)), next(last))
    small = {name: getattr(BASE, name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd")}
    for name, preset in PRESETS.items():
        shared = {field.name for field in dataclasses.fields(EngineConfig)} & preset.train.keys()
        found[f"preset {name}"] = (
            GPTSpec(**{**preset.model, **small}),
            {field: preset.train[field] for field in shared if field in choices(EngineConfig, EngineConfig())},
        )
    # Made small, some presets are the same.
    return {
        name: case for number, (name, case) in enumerate(found.items()) if case not in list(found.values())[:number]
    }


CASES = cases()

# One operation of every phase: that none is missing shows that the trace has seen them all.
PHASES = {
    "forward": "linear",
    "backward of a linear layer, on MPS": "linear_backward",
    "chunked loss": "scatter_add_",
    "gradient norm": "linalg_vector_norm",
    "clipping": "_foreach_mul_.Tensor",
    "update": "_fused_adamw_",
    "a skipped update": "_foreach_sub_.List",
    "attention, differentiable": "_scaled_dot_product_attention_math",
    "attention without gradients, on MPS": "_scaled_dot_product_attention_math_for_mps",
    "writing the cache": "_index_put_impl_",
    "reading the cache": "index.Tensor",
    "reading the statistics": "stack",
}
# An operation of an option, without which its case would not show the option.
MARKS = {
    "base": "native_layer_norm_backward",
    "activation gelu_tanh": "gelu",
    "activation swiglu": "silu",
    "activation relu2": "relu",
    "norm rmsnorm": "rsqrt",
    "position rope": "neg",
    "qk_norm True": "rsqrt",
    "optimizer muon": "baddbmm",
    "dropout 0.1": "masked_fill.Scalar",
}


class Called:
    """An engine, and the names of what was asked of it."""

    def __init__(self, engine: TorchBackend) -> None:
        self.engine, self.names = engine, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.engine, name)


def everything(
    spec: GPTSpec, precision: Precision, config: dict[str, Any] | None = None, called: set[str] | None = None
) -> Callable[[], None]:
    """All that the engine does from its making to its export, evaluation and generation with sampling among it."""

    @patch.dict(os.environ, {PLAIN: "1"})
    def run() -> None:
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, spec.vocab_size, (2, 2, spec.block_size + 1), dtype=np.int32)
        inputs, targets = tokens[..., :-1], tokens[..., 1:].copy()
        targets[0, 0, 5:] = -1
        options: dict[str, Any] = {"loss_chunk": 64, **(config or {})}
        engine = Called(TorchBackend(spec, EngineConfig(device="cpu", precision=precision, **options)))
        engine.load_state(perturbed(spec))
        for on_device_skip in (True, False):
            engine._optimizer._on_device_skip = on_device_skip
            engine.train_step(inputs, targets, 1e-3, 0)
        engine.read_stats()
        engine.eval_step(inputs[0], targets[0])
        engine.loss_and_grads(inputs[0], targets[0])
        engine.train_step(inputs, targets, 1e-3, 1, None, soft_targets(spec, targets))
        for explicit_mask in (False, True):
            engine._model.use_explicit_mask(explicit_mask)
            engine.logits(inputs[0])
            engine.loss_and_grads(inputs[0], targets[0])
            cache = engine.new_cache(2, spec.block_size)
            engine.prefill(cache, 0, inputs[0, 0, :20])
            logits = engine.prefill(cache, 1, inputs[0, 1, :70])
            chosen = sample(logits, Sampling(repetition_penalty=1.1), 70, seen=inputs[0, 1])
            for slots in ([0, 1], [1, 0]):  # as they lie in the cache, and gathered from it
                engine.decode(cache, slots, np.array([3, chosen], dtype=np.int32))
            engine.free(cache, 0)
        engine.load_state(engine.export_state())
        engine.memory()
        engine.memory_limit()
        engine.synchronize()
        if called is not None:
            called.update(engine.names)

    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_every_operation_has_a_metal_kernel(case: str, precision: Precision) -> None:
    spec, config = CASES[case]
    seen, found = gaps(kernel_table(), everything(spec, precision, config))
    assert [str(gap) for gap in found] == []
    unseen = {phase: op for phase, op in PHASES.items() if op not in seen}
    assert unseen == {}
    assert case not in MARKS or MARKS[case] in seen, case


def test_the_recomputed_forward_pass_is_in_the_trace() -> None:
    """Activation checkpointing runs no other operation, but runs them once more."""
    counts = []
    for on in (False, True):
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            everything(BASE, "float32", {"activation_checkpointing": on})()
        counts.append(sum(event.name == "aten::gelu" for event in trace.events()))
    assert counts[1] > counts[0]


def test_every_field_is_an_option_or_a_size() -> None:
    """A new field of the model or of the engine is traced by itself, or somebody decides here that it is a size."""
    for cls, base in ((GPTSpec, BASE), (EngineConfig, EngineConfig())):
        known = choices(cls, base).keys() | set(SIZES[cls].split()) | OUTSIDE
        assert {field.name for field in dataclasses.fields(cls)} - known == set()
    assert {f"activation {name}" for name in get_args(Activation)} - CASES.keys() == {f"activation {BASE.activation}"}


def test_every_method_of_an_engine_is_traced() -> None:
    called: set[str] = set()
    everything(BASE, "float32", called=called)()
    methods = {name for name, value in vars(Backend).items() if callable(value) and not name.startswith("_")}
    assert len(methods) > 10
    assert methods - called == set()


def by_name(found: list[Gap]) -> dict[str, Gap]:
    return {gap.op: gap for gap in found}


UNCOVERED: dict[str, tuple[Callable[[Tensor], Tensor], str, tuple[str, ...]]] = {
    "a kernel": (lambda x: torch.heaviside(x, x), "heaviside", ()),
    "a kernel inside a composite one": (lambda x: torch.frexp(x).mantissa, "frexp.Tensor_out", ("frexp.Tensor",)),
}


@pytest.mark.parametrize(("function", "op", "path"), UNCOVERED.values(), ids=UNCOVERED)
def test_an_uncovered_operation_is_named(
    function: Callable[[Tensor], Tensor], op: str, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """heaviside and frexp have kernels on the CPU and on CUDA, none on MPS."""
    gelu = F.gelu

    def activation(x: Tensor, approximate: str) -> Tensor:
        return gelu(x, approximate=approximate) + 0.0 * function(x.detach())

    monkeypatch.setattr(F, "gelu", activation)
    _, found = gaps(kernel_table(), everything(BASE, "float32"))
    assert found == [Gap(op, "no MPS kernel", path)]


def test_an_uncovered_backward_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """RMSNorm: forward has a Metal kernel, backward has none, and a CPU shows neither."""

    class RMSNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.rms_norm(x, self.normalized_shape, self.weight, 1e-5)

    monkeypatch.setattr(torch_model, "norm", lambda spec: RMSNorm(spec.n_embd))
    spec = GPTSpec(vocab_size=211, block_size=96, n_layer=1, n_head=2, n_embd=32, bias=False)

    def run() -> None:
        model = torch_model.GPT(spec)
        model.logits(model(torch.zeros(1, 8, dtype=torch.int64))).sum().backward()  # type: ignore[no-untyped-call]

    _, found = gaps(kernel_table(), run)
    assert "_fused_rms_norm_backward" in by_name(found)


def test_only_the_inside_of_a_composite_counts() -> None:
    """Neither has a kernel of its own; all that kl_div calls has Metal kernels, what linalg_cond comes to has none."""

    def run() -> None:
        torch.linalg.cond(torch.eye(3))
        F.kl_div(torch.zeros(3), torch.ones(3), reduction="sum")

    found = by_name(gaps(kernel_table(), run)[1])
    assert list(found) == ["_linalg_svd"]
    assert found["_linalg_svd"].path[0] == "linalg_cond"


def test_a_registered_fallback_is_named() -> None:
    tokens, weight = torch.tensor([0, 1]), torch.ones(2, 3)
    _, found = gaps(kernel_table(), lambda: F.embedding(tokens, weight, max_norm=1.0))
    assert [gap.op for gap in found] == ["embedding_renorm_"]
    assert "fallback" in str(found[0])


def test_a_covered_operation_is_not_named() -> None:
    _, found = gaps(kernel_table(), lambda: torch.ones(3).cumsum(0).sort())
    assert found == []


def test_the_fallbacks_of_a_release_hold_until_the_next_table() -> None:
    assert cpu_fallbacks("2.9.1") == cpu_fallbacks("2.13.0+cpu")
    unknown = {op for op in cpu_fallbacks(torch.__version__) if op not in kernel_table()}
    assert unknown == set()
