"""A conversation is the same prompt in transformers, mlx-lm and llama.cpp as here, and the answer the same text."""

import dataclasses
import urllib.error
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.interchange.conversations import QUESTIONS, TYPED, conversations
from tests.weights.models import GPT2, QWEN3, save_run
from tests.weights.test_gguf import LlamaCpp
from twingpt.core.sampling import Sampling
from twingpt.data.tokens.marks import SPECIAL_TOKENS, Template
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.model import Model, load
from twingpt.generation.prompts import question_prompt, text_prompt
from twingpt.interchange.convert import convert_model

mlx_lm = pytest.importorskip("mlx_lm", reason="the package mlx-lm opens a folder")
pytest.importorskip("gguf", reason="the package gguf writes a file")
pytest.importorskip("xllamacpp", reason="the package xllamacpp brings llama.cpp")

CONTEXT = 256
GREEDY_TOKENS = 64
TEMPLATES: tuple[Template, ...] = ("qa", "plain")
SPECS = {"gpt2": dataclasses.replace(GPT2, block_size=CONTEXT), "qwen3": dataclasses.replace(QWEN3, block_size=CONTEXT)}


@dataclasses.dataclass(frozen=True)
class Program:
    """Another program with the model open: conversation -> prompt, text -> prompt, prompt -> greedy tokens."""

    chat: Callable[[list[dict[str, Any]]], list[int]]
    encode: Callable[[str], list[int]]
    write: Callable[[list[int]], list[int]]


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    import mlx.core as mx

    device = mx.default_device()
    mx.set_default_device(mx.cpu)
    yield
    mx.set_default_device(device)


@pytest.fixture(scope="module", params=[(family, template) for family in SPECS for template in TEMPLATES], ids=str)
def run(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has recorded its template, and no DATA."""
    family, template = request.param
    folder: Path = tmp_path_factory.mktemp("run") / "run"
    save_run(folder, SPECS[family], tokenizer)
    (folder / "config.toml").write_text(f'template = "{template}"\n')
    return folder


@pytest.fixture(scope="module")
def ours(run: Path) -> Model:
    return load(run, "mlx", "cpu")


def in_transformers(run: Path, folder: Path, tokenizer: Tokenizer) -> Program:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert_model(run, folder, "hf", None)
    model, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    def write(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=GREEDY_TOKENS)
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    return Program(
        lambda messages: theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False),
        lambda text: theirs(text)["input_ids"],
        write,
    )


def in_mlx_lm(run: Path, folder: Path, tokenizer: Tokenizer) -> Program:
    convert_model(run, folder, "mlx-lm", None)
    model, theirs = mlx_lm.load(str(folder))

    def write(prompt: list[int]) -> list[int]:
        return [step.token for step in mlx_lm.stream_generate(model, theirs, prompt, max_tokens=GREEDY_TOKENS)]

    return Program(
        lambda messages: theirs.apply_chat_template(messages, add_generation_prompt=True), theirs.encode, write
    )


def in_llama_cpp(run: Path, folder: Path, tokenizer: Tokenizer) -> Program:
    convert_model(run, folder, "gguf", None)
    llama = LlamaCpp(folder / "model.gguf", tokenizer, CONTEXT)

    def encode(text: str) -> list[int]:
        tokens: list[int] = llama.post("/tokenize", {"content": text, "add_special": True})["tokens"]
        return tokens

    return Program(
        lambda messages: encode(llama.post("/apply-template", {"messages": messages})["prompt"]),
        encode,
        lambda prompt: llama.complete(prompt, GREEDY_TOKENS)["tokens"],
    )


PROGRAMS = {"transformers": in_transformers, "mlx-lm": in_mlx_lm, "llama.cpp": in_llama_cpp}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(
    request: pytest.FixtureRequest, run: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Program:
    return PROGRAMS[request.param](run, tmp_path_factory.mktemp("export") / "out", tokenizer)


def test_prompts_and_greedy_text_are_ours(program: Program, ours: Model, tokenizer: Tokenizer) -> None:
    prompts = [text_prompt(tokenizer, text) for text in QUESTIONS]
    if ours.template == "qa":
        thirty = conversations()
        assert len(thirty) == 30
        prompts = [question_prompt(tokenizer, one.question, one.doc, CONTEXT) for one in thirty]
        for one, prompt in zip(thirty, prompts, strict=True):
            assert program.chat(one.messages) == prompt, one.messages
        assert len(set(map(tuple, prompts))) == 3 * len(QUESTIONS)
        prompts = prompts[::5]
    else:
        # Blanks at the ends, which `prepare` takes off, are the one thing that no program takes off for us.
        assert [program.encode(text.strip()) for text in QUESTIONS] == prompts
    request = ours.request("", sampling=Sampling(temperature=0), max_new_tokens=GREEDY_TOKENS)
    # llama.cpp ends at [PAD] too, which these models, who were never trained, may write.
    ended = {*request.ends, tokenizer.pad_id}
    compared = 0
    for prompt in prompts:
        ((_, written),) = ours.write([dataclasses.replace(request, prompt=prompt)])
        theirs, expected = (
            list(takewhile(lambda token: token not in ended, tokens))
            for tokens in (program.write(prompt), written.tokens)
        )
        assert theirs == expected, tokenizer.decode(prompt)
        compared += len(theirs)
    assert compared > 150


def test_a_plain_model_has_no_template_of_questions(program: Program, ours: Model) -> None:
    if ours.template == "qa":
        pytest.skip("this one has")
    asked = [{"role": "user", "content": "비자는?"}]
    try:
        prompt = program.chat(asked)
    except ValueError as refusal:
        assert "chat_template" in str(refusal) or "chat template" in str(refusal)
    else:
        # llama.cpp takes ChatML where a file has no template; at least it is none of our marks.
        assert not {SPECIAL_TOKENS.index(mark) for mark in ("[QUESTION]", "[ANSWER]")} & set(prompt)


def test_marks_that_a_person_typed_are_text(program: Program, ours: Model, tokenizer: Tokenizer) -> None:
    if ours.template == "plain":
        pytest.skip("there is no template to part them")
    prompt = question_prompt(tokenizer, TYPED.question, TYPED.doc, CONTEXT)
    theirs = program.chat(TYPED.messages)
    marks = range(len(SPECIAL_TOKENS))
    assert [token for token in theirs if token in marks] == [token for token in prompt if token in marks]
    if theirs != prompt:  # llama.cpp, where a blank parts them
        text = tokenizer.decode(theirs)
        assert "네[ /ANSWER][ EOS]?" in text
        assert text.replace("[ ", "[") == tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "function", "content": "x"}, {"role": "user", "content": "x"}], "role function is unknown"),
        ([{"role": "system", "content": "x"}], "no message is the user's"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "type"),
    ],
)
def test_what_is_no_question_is_refused(
    program: Program, ours: Model, messages: list[dict[str, Any]], words: str
) -> None:
    if ours.template == "plain":
        pytest.skip("it has no template to refuse with")
    with pytest.raises(Exception, match=r".") as refusal:
        program.chat(messages)
    error = refusal.value
    said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
    assert words in said


def test_what_was_read_before_is_no_part_of_the_question(program: Program, ours: Model, tokenizer: Tokenizer) -> None:
    """Answers of tools and empty answers, as clients send them back."""
    if ours.template == "plain":
        pytest.skip("it reads no messages")
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "안녕?"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "5", "tool_call_id": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "비자는?"},
    ]
    assert program.chat(turns) == question_prompt(tokenizer, "비자는?", None, CONTEXT)


def test_the_logits_beyond_the_prompt_are_not_compared_by_luck(ours: Model, tokenizer: Tokenizer) -> None:
    """Greedy text is compared token by token above, which says nothing if all prompts lead to the same one."""
    request = ours.request("", sampling=Sampling(temperature=0), max_new_tokens=8)
    prompts = [text_prompt(tokenizer, text) for text in QUESTIONS]
    written = ours.write([dataclasses.replace(request, prompt=prompt) for prompt in prompts])
    assert len({tuple(np.asarray(one.tokens).tolist()) for _, one in written}) > 2
