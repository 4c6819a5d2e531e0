"""Fixtures that several folders share."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from twingpt.checks.parity import perturbed
from twingpt.core.backend import Backend, EngineConfig, create_backend
from twingpt.core.engines import compared, find_engine
from twingpt.core.language import choose
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.manifest import Manifest, Split
from twingpt.data.tokens.tokenizer import Tokenizer, train_tokenizer

# Before any test imports MLX, which binds its BLAS for good.
find_engine("mlx").prepare()

EXAMPLE = Path(__file__).parents[1] / "twingpt" / "examples" / "ph_life_ko.txt"


# The tests read what is said in English, in whatever language their reader's computer speaks.
choose("en")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered of files goes with the tests, and not into the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWINGPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=compared())
def backend_name(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    name: str = request.param
    return name


@pytest.fixture
def spec() -> GPTSpec:
    return GPTSpec(vocab_size=211, block_size=32, n_layer=2, n_head=2, n_embd=32, dropout=0.0)


def make_engine(name: str, spec: GPTSpec, **config: object) -> Backend:
    """An engine on the CPU with weights of which none is zero."""
    engine = create_backend(name, spec, EngineConfig(device="cpu", **config))  # type: ignore[arg-type]
    engine.load_state(perturbed(spec))
    return engine


@pytest.fixture
def engine(backend_name: str, spec: GPTSpec) -> Backend:
    return make_engine(backend_name, spec)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(EXAMPLE.read_text(encoding="utf-8").split("\n\n")), 600)


@pytest.fixture(scope="session")
def plain_data(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small DATA folder of plain text, as `pack` lays it out."""
    folder = tmp_path_factory.mktemp("data")
    documents = EXAMPLE.read_text(encoding="utf-8").split("\n\n")[:24]
    tokenizer.save(folder / "tokenizer.json")
    splits = {}
    for name, part in (("train", documents[4:]), ("val", documents[:4])):
        ids = [i for text in part for i in (tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id)]
        tokens = np.array(ids, dtype=np.uint16)
        tokens.tofile(folder / f"{name}.bin")
        splits[name] = Split(
            file=f"{name}.bin",
            tokens=len(tokens),
            documents=len(part),
            text_bytes=sum(len(text.encode()) for text in part),
            sha256=hashlib.sha256(tokens.tobytes()).hexdigest(),
        )
    Manifest(
        layout="contiguous",
        dtype="uint16",
        vocab_size=tokenizer.vocab_size,
        block_size=256,
        pad_id=tokenizer.pad_id,
        template="plain",
        text_sha256="of the test",
        tokenizer_sha256=tokenizer.sha256,
        train=splits["train"],
        val=splits["val"],
    ).save(folder)
    yield folder
