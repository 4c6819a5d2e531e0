"""twingpt.load: one way in, for every command and for other programs."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import twingpt
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.sampling import Sampling
from twingpt.data.files import LIBRARY_FILE
from twingpt.data.library.build import build_library, split_document
from twingpt.weights.checkpoint import OPTIMIZER_FILE, load_checkpoint

OLDER = Path(__file__).parents[1] / "fixtures" / "v0.1" / "run"
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(OLDER, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_and_its_checkpoint_are_the_same_model_in_both_engines(run: Path) -> None:
    step = run / "checkpoints" / "step-00000004"
    texts = set()
    for path, backend in ((run, "mlx"), (str(step), "mlx"), (run / "best", "mps")):
        model = twingpt.load(path, backend, "cpu")
        assert (model.step, model.checkpoint, model.run_dir) == (4, step, run)
        texts.add(model.generate(question="여권?", sampling=GREEDY, max_new_tokens=8))
        assert model.generate("여권", sampling=GREEDY, max_new_tokens=8) == "".join(
            model.stream("여권", sampling=GREEDY, max_new_tokens=8)
        )
    assert len(texts) == 1


def test_the_optimizer_is_not_read(run: Path) -> None:
    """Damaged, it stops a resume and nobody else."""
    (run / "checkpoints" / "step-00000004" / OPTIMIZER_FILE).write_bytes(b"damaged")
    with pytest.raises(TwinGPTError, match="optimizer"):
        load_checkpoint(run)
    assert twingpt.load(run, "mlx", "cpu").step == 4


def test_a_score_is_the_probability_of_each_token_after_the_ones_before(run: Path) -> None:
    model = twingpt.load(run, "mlx", "cpu")
    logits = model.logits("여권을 잃어버렸다")
    log_probability, tokens = model.score("여권을 잃어버렸다")
    ids = model.tokenizer.encode("여권을 잃어버렸다")
    assert tokens == len(ids) and logits.shape == (len(ids) + 1, model.spec.vocab_size)
    probabilities = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    expected = sum(np.log(probabilities[i, token]) for i, token in enumerate(ids))
    assert log_probability == pytest.approx(expected, rel=1e-9)


def test_what_cannot_be_asked(run: Path) -> None:
    model = twingpt.load(run, "mlx", "cpu")
    for text, question in ((None, None), ("가", "나")):
        with pytest.raises(UsageError, match="give a text to write on from, or a question"):
            model.generate(text, question=question)
    with pytest.raises(UsageError, match="the model's context is 128"):
        model.score("여권을 잃어버렸다 " * 60)
    with pytest.raises(TwinGPTError, match="does not exist"):
        twingpt.load(run / "nowhere")


def test_it_answers_from_the_text_of_its_run_and_from_a_document(run: Path) -> None:
    text = "여권을 잃어버리면 대사관에 갑니다.\n\n김치는 배추로 담급니다."
    build_library(run / LIBRARY_FILE, (split_document(one.split("\n")) for one in text.split("\n\n")))
    model = twingpt.load(run, "mlx", "cpu")
    answer = model.ask("여권을 잃어버리면 어디에 가나요?")
    assert answer.sections["요약"] == ["- 여권을 잃어버리면 대사관에 갑니다. [1]"]
    assert answer == twingpt.ask(run, "여권을 잃어버리면 어디에 가나요?")
    other = model.ask("김치는 무엇으로 담그나요?", doc="김치는 무로도 담급니다.")
    assert other.sections["요약"] == ["- 김치는 무로도 담급니다. [1]"]


@pytest.mark.parametrize("wrong", [0, -5, 10**20])
def test_so_many_tokens_cannot_be_meant(run: Path, wrong: int) -> None:
    with pytest.raises(UsageError, match="max_new_tokens"):
        twingpt.load(run, "mlx", "cpu").request("여권", max_new_tokens=wrong)
