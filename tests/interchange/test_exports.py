"""What goes with an exported model: how it samples, where it ends, what opens it, and where it may come from."""

import json
import shutil
import urllib.error
from pathlib import Path

import pytest
import torch

from tests.test_cli_generate import run_cli
from tests.weights.models import BLOCK, FAMILIES, GPT2, QWEN3, save_run
from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.tokens.marks import SPECIAL_TOKENS
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.model import load
from twingpt.generation.prompts import text_prompt
from twingpt.interchange.chat_template import GUARD, chat_template
from twingpt.interchange.convert import convert_model, read_model
from twingpt.weights.run_folder import template_of


def exported(folder: Path, spec: GPTSpec, tokenizer: Tokenizer, to: str = "hf", template: str = "qa") -> Path:
    save_run(folder / "run", spec, tokenizer)
    (folder / "run" / "config.toml").write_text(f'template = "{template}"\n')
    convert_model(folder / "run", folder / to, to, None)
    return folder / to


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_samples_as_we_do_and_ends_with_the_context(
    tmp_path: Path, tokenizer: Tokenizer, name: str
) -> None:
    from transformers import AutoModelForCausalLM, GenerationConfig

    folder = exported(tmp_path, FAMILIES[name], tokenizer)
    config, usual = GenerationConfig.from_pretrained(folder), Sampling()
    found = (config.do_sample, config.temperature, config.top_k, config.top_p, config.repetition_penalty)
    assert found == (True, usual.temperature, usual.top_k, usual.top_p, usual.repetition_penalty)
    model = AutoModelForCausalLM.from_pretrained(folder)
    # Where nothing ends it, the context does.
    model.generation_config.eos_token_id = None
    written = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        ids = torch.tensor([text_prompt(tokenizer, "비자 연장은")])
        written.append(model.generate(ids, attention_mask=torch.ones_like(ids))[0].tolist())
    assert [len(tokens) for tokens in written] == [BLOCK, BLOCK]
    assert written[0] != written[1]


def test_what_each_program_does_beyond_the_context(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """docs/en/convert.md tells it: whoever changes this changes that page."""
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    mlx_lm = pytest.importorskip("mlx_lm")
    import mlx.core as mx
    from transformers import AutoModelForCausalLM

    from tests.weights.test_gguf import LlamaCpp

    too_long = [tokenizer.bos_id, *[300] * BLOCK]
    with pytest.raises(IndexError):
        AutoModelForCausalLM.from_pretrained(exported(tmp_path / "a", GPT2, tokenizer))(torch.tensor([too_long]))
    turning = AutoModelForCausalLM.from_pretrained(exported(tmp_path / "b", QWEN3, tokenizer))
    assert turning(torch.tensor([too_long])).logits.shape[1] == BLOCK + 1
    model, _ = mlx_lm.load(str(exported(tmp_path / "c", GPT2, tokenizer, "mlx-lm")))
    assert model(mx.array([too_long])).shape[1] == BLOCK + 1
    for name, spec in (("d", GPT2), ("e", QWEN3)):
        llama = LlamaCpp(exported(tmp_path / name, spec, tokenizer, "gguf") / "model.gguf", tokenizer, 2 * BLOCK)
        with pytest.raises(urllib.error.HTTPError) as refusal:
            llama.complete(too_long, 4)
        assert "exceed" in refusal.value.read().decode()


def test_every_class_that_opens_a_tokenizer_opens_this_one(tmp_path: Path, tokenizer: Tokenizer) -> None:
    gguf = pytest.importorskip("gguf")
    from transformers import AutoProcessor, AutoTokenizer

    folder = exported(tmp_path, GPT2, tokenizer)
    text = "여권 [참고] a b"
    expected = text_prompt(tokenizer, text)
    for kind in (AutoTokenizer, AutoProcessor):
        theirs = kind.from_pretrained(folder)
        assert theirs(text)["input_ids"] == expected
        assert theirs.decode(expected, skip_special_tokens=True) == text
        assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(len(SPECIAL_TOKENS)))
        named = (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, theirs.model_max_length)
        assert named == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, BLOCK)
        # What fills up a batch stands before the prompts, so that each answer begins after its own.
        assert theirs(["가", text], padding=True)["input_ids"][0][0] == tokenizer.pad_id
    # What llama.cpp's own converter reads of such a folder.
    special = gguf.SpecialVocab(folder, load_merges=True)
    assert special.special_token_ids["bos"] == tokenizer.bos_id
    assert special.special_token_ids["eos"] == tokenizer.eos_id
    assert special.special_token_ids["pad"] == tokenizer.pad_id
    assert special.add_special_token["bos"] is True
    assert special.chat_template == chat_template(GUARD)


@pytest.mark.parametrize("template", ["qa", "plain"])
def test_a_template_goes_out_and_comes_back(tmp_path: Path, tokenizer: Tokenizer, template: str) -> None:
    from transformers import AutoTokenizer

    folder = exported(tmp_path, GPT2, tokenizer, template=template)
    assert ("chat_template" in json.loads((folder / "tokenizer_config.json").read_text())) == (template == "qa")
    # As transformers lays it out when it saves, the template is a file of its own.
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    shutil.copyfile(folder / "config.json", tmp_path / "saved" / "config.json")
    shutil.copyfile(folder / "model.safetensors", tmp_path / "saved" / "model.safetensors")
    for source in (folder, tmp_path / "saved"):
        target = tmp_path / f"native of {source.name}"
        convert_model(source, target, "native", None)
        assert template_of(target) == template
        assert (target / "tokenizer.json").read_bytes() == (tmp_path / "run" / "tokenizer.json").read_bytes()


def test_a_plain_model_says_what_it_is(
    plain_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(plain_data, tmp_path / "data")
    train = ["train", "--data", data, "--out", tmp_path / "run", "--preset", "tiny", "--steps", 1]
    assert run_cli(monkeypatch, *train, "--device", "cpu", "--block-size", 32, "--batch-size", 1) == 0
    shutil.rmtree(data)
    capsys.readouterr()
    assert template_of(tmp_path / "run") == "plain"
    assert run_cli(monkeypatch, "generate", tmp_path / "run", "--device", "cpu", "--question", "비자는?") == 1
    assert "plain text" in capsys.readouterr().err
    assert run_cli(monkeypatch, "generate", tmp_path / "run", "--device", "cpu", "--prompt", "비자는") == 0


def test_ask_says_that_plain_text_is_found_and_not_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "\n\n".join(
        f"비자 {number}번 안내\n비자 {number}번은 이민국에서 연장합니다. 여권이 필요합니다." for number in range(60)
    )
    (tmp_path / "raw.txt").write_text(text, encoding="utf-8")
    for template in ("plain", "qa"):
        prepare = ["prepare", tmp_path / "raw.txt", "--out", tmp_path / template, "--template", template]
        assert run_cli(monkeypatch, *prepare) == 0
        capsys.readouterr()
        assert run_cli(monkeypatch, "ask", tmp_path / template, "비자 3번은 어디서 연장하나요?") == 0
        said = capsys.readouterr()
        assert "이민국에서 연장합니다" in said.out
        assert ("plain text" in said.err) == (template == "plain")


def test_a_run_of_before_templates_were_recorded_is_known_by_its_data(plain_data: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'data = "{plain_data}"\n')
    assert template_of(tmp_path) == "plain"
    (tmp_path / "config.toml").write_text(f'data = "{tmp_path / "gone"}"\n')
    assert template_of(tmp_path) is None
    (tmp_path / "config.toml").write_text('template = "other"\n')
    assert template_of(tmp_path) is None


def test_the_chat_template_parts_every_mark_and_no_more(tokenizer: Tokenizer) -> None:
    assert json.dumps(SPECIAL_TOKENS) in chat_template(GUARD)
    assert "MARKS" not in chat_template(GUARD)
    assert f"'[{GUARD}'" in chat_template(GUARD)
    # The invisible character leaves every text on its way in, so that no text of ours is changed by its removal.
    assert text_prompt(tokenizer, f"여{GUARD}권") == text_prompt(tokenizer, "여권")


def test_a_model_of_the_hub_comes_from_its_local_cache(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    folder = exported(tmp_path, QWEN3, tokenizer)
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    stored = cache / "models--someone--small-model"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, stored / "snapshots" / ("0" * 40))
    for name in ("someone/small-model", "someone/small-model@main"):
        convert_model(Path(name), tmp_path / name.replace("/", "-"), "native", None)
        assert read_model(tmp_path / name.replace("/", "-")).spec == QWEN3
        assert load(tmp_path / name.replace("/", "-"), "reference").template == "qa"
    for name in ("someone/other-model", "someone/small-model@v2", "no/folder--"):
        with pytest.raises(TwinGPTError, match=f"{name} is neither .* `hf download {name.partition('@')[0]}"):
            convert_model(Path(name), tmp_path / "out", "native", None)
    assert not (tmp_path / "out").exists()
