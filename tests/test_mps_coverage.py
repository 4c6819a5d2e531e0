"""Every aten operation of the PyTorch engine has a Metal kernel in the installed torch; see tests/mps_coverage.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.mps_coverage import Gap, cpu_fallbacks, gaps, kernel_table
from twingpt.backends.torch_mps import model as torch_model
from twingpt.backends.torch_mps.backend import TorchBackend
from twingpt.core.backend import EngineConfig, Precision
from twingpt.core.spec import GPTSpec
from twingpt.parity import perturbed

SPECS = {
    "seed": GPTSpec(vocab_size=211, block_size=96, n_layer=1, n_head=2, n_embd=32, dropout=0.0),
    "seed, dropout": GPTSpec(vocab_size=211, block_size=96, n_layer=1, n_head=2, n_embd=32, dropout=0.1),
    "gpt2, no biases": GPTSpec(
        vocab_size=211,
        block_size=96,
        n_layer=1,
        n_head=2,
        n_embd=32,
        dropout=0.1,
        activation="gelu_tanh",
        bias=False,
        tie_embeddings=True,
    ),
}

# One operation of every phase: that none is missing shows that the trace has seen them all.
PHASES = {
    "forward": "native_layer_norm",
    "backward": "native_layer_norm_backward",
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


def everything(spec: GPTSpec, precision: Precision) -> Callable[[], None]:
    """All that the engine does from its making to its export. Sampling is NumPy and needs no operation."""

    def run() -> None:
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, spec.vocab_size, (2, 2, spec.block_size + 1), dtype=np.int32)
        inputs, targets = tokens[..., :-1], tokens[..., 1:].copy()
        targets[0, 0, 5:] = -1
        engine = TorchBackend(spec, EngineConfig(device="cpu", precision=precision, loss_chunk=64))
        engine.load_state(perturbed(spec))
        for on_device_skip in (True, False):
            engine._on_device_skip = on_device_skip
            engine.train_step(inputs, targets, 1e-3, 0)
        engine.read_stats()
        engine.eval_step(inputs[0], targets[0])
        engine.loss_and_grads(inputs[0], targets[0])
        for explicit_mask in (False, True):
            engine._model.use_explicit_mask(explicit_mask)
            engine.logits(inputs[0])
            engine.loss_and_grads(inputs[0], targets[0])
            cache = engine.new_cache(2, spec.block_size)
            engine.prefill(cache, 0, inputs[0, 0, :20])
            engine.prefill(cache, 1, inputs[0, 1, :70])
            engine.decode(cache, [0, 1], np.array([3, 4], dtype=np.int32))
            engine.free(cache, 0)
        engine.load_state(engine.export_state())
        engine.memory()
        engine.synchronize()

    return run


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_every_operation_has_a_metal_kernel(spec: GPTSpec, precision: Precision) -> None:
    seen, found = gaps(kernel_table(), everything(spec, precision))
    assert [str(gap) for gap in found] == []
    unseen = {phase: op for phase, op in PHASES.items() if op not in seen}
    assert unseen == {}
    assert ("bernoulli_.float" in seen) == (spec.dropout > 0.0)


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
    _, found = gaps(kernel_table(), everything(SPECS["seed"], "float32"))
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
