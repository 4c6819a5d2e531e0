"""What an engine promises holds for the user's model and for the modern one."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from twingpt.backends.mlx.linux_cpu import PLAIN
from twingpt.core.spec import GPTSpec

OPTIONS: dict[str, dict[str, Any]] = {
    "seed": {},
    "modern": {
        "position": "rope",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "qk_norm": True,
        "n_kv_head": 1,
        "bias": False,
        "tie_embeddings": True,
    },
}


@pytest.fixture(params=OPTIONS)
def spec(request: pytest.FixtureRequest) -> GPTSpec:
    return GPTSpec(vocab_size=211, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.0, **OPTIONS[request.param])


@pytest.fixture
def mlx_on_the_cpu() -> Iterator[None]:
    """MLX's own functions on the CPU, whatever device it would take by itself."""
    import mlx.core as mx

    with mx.stream(mx.Device(mx.cpu)):
        yield


@pytest.fixture(params=["linux_cpu", "plain"])
def ops_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each set of operations in turn, for both engines: what a Linux CPU computes with, and what a Mac does."""
    name: str = request.param
    if name == "linux_cpu" and sys.platform != "linux":
        pytest.skip("this set is for Linux alone")
    monkeypatch.setenv(PLAIN, "1" if name == "plain" else "0")
    return name
