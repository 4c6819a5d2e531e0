"""README.md of an exported folder: what the model is, for people and for the Hub."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.params import parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.data.files import REPORT_FILE
from twingpt.data.tokens.marks import TEMPLATES, Template
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.training.config import RunConfig
from twingpt.training.log import METRICS_FILE, metric_lines
from twingpt.training.sources import DataFolder
from twingpt.weights.targets import Target, family_of

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD_FILE = "README.md"
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})*")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_HANGUL = re.compile("[가-힣]")

_LIBRARIES: dict[Target, str] = {"hf": "transformers", "mlx-lm": "mlx", "gguf": "llama.cpp"}
_FIGURES = {"loss": "Loss (nats a token)", "perplexity": "Perplexity", "bits_per_byte": "Bits per byte"}

_USE: dict[Target, dict[Template, str]] = {
    "hf": {
        "qa": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
messages = [{"role": "user", "content": "..."}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))
```""",
        "plain": """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("FOLDER")
model = AutoModelForCausalLM.from_pretrained("FOLDER")
print(tokenizer.decode(model.generate(**tokenizer("...", return_tensors="pt"))[0], skip_special_tokens=True))
```""",
    },
    "mlx-lm": dict.fromkeys(TEMPLATES, '```sh\nmlx_lm.generate --model FOLDER --prompt "..."\n```'),
    "gguf": {
        "qa": """\
```sh
llama-cli --model FOLDER/model.gguf --jinja --prompt "..."
ollama create NAME -f FOLDER/Modelfile
```""",
        "plain": """\
```sh
llama-completion --model FOLDER/model.gguf --prompt "..."
ollama create NAME -f FOLDER/Modelfile
```""",
    },
}

_WRITES: dict[Template, str] = {
    "qa": (
        "It answers one question at a time: the last message of the user. A system message may bring a document to "
        "answer from, between `[DOC]` and `[/DOC]`; earlier messages are not read."
    ),
    "plain": (
        "It was trained on plain text and writes on from a text. It knows no questions, so it has no chat template."
    ),
}


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the owner of a model says of it.

    language: two or three letters, such as ko; None: Korean if the vocabulary is, else not told. license: as the Hub
    names it, such as apache-2.0. figures: what `twingpt eval RUN --data DATA --json` wrote; None: what the run's log
    has of the same checkpoint.
    """

    language: str | None = None
    license: str | None = None
    figures: Path | None = None

    def __post_init__(self) -> None:
        if self.language is not None and not _LANGUAGE.fullmatch(self.language):
            raise UsageError(f"--language {self.language}: give the two or three letters of ISO 639, such as ko")
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise UsageError(f"--license {self.license}: give its name on the Hub in small letters, such as apache-2.0")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What is known of a model. run: the folder that it was trained in, if it was; step: after how many updates."""

    name: str
    target: Target
    spec: GPTSpec
    step: int = 0
    template: Template | None = None
    masked: bool = False
    tokenizer: Tokenizer | None = None
    fingerprint: dict[str, str] = field(default_factory=dict)
    run: Path | None = None


def write_card(folder: Path, facts: CardFacts, options: CardOptions) -> None:
    """Raises TwinGPTError if the file of figures is none."""
    from huggingface_hub import ModelCardData

    figures = _figures(facts, options)
    language = options.language or _language_of(facts.tokenizer)
    data = ModelCardData(
        language=None if language is None else [language],
        license=options.license,
        library_name=_LIBRARIES[facts.target],
        pipeline_tag="text-generation",
        tags=["twingpt", family_of(facts.spec), *(["gguf"] if facts.target == "gguf" else [])],
        model_name=facts.name,
        eval_results=_results(figures) or None,
    )
    parts = [f"---\n{data.to_yaml()}\n---\n\n# {facts.name}", *_paragraphs(facts, options, figures)]
    (folder / CARD_FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _paragraphs(facts: CardFacts, options: CardOptions, figures: dict[str, float]) -> list[str]:
    spec, trained = facts.spec, "data" in facts.fingerprint
    made = f"trained with twingpt in {facts.step:,} updates" if trained else "brought into this form by twingpt"
    shape = (
        f"A {family_of(spec)} of {parameter_count(spec):,} parameters, {made}: {spec.n_layer} layers of "
        f"{spec.n_embd}, a vocabulary of {spec.vocab_size:,} tokens and a context of {spec.block_size:,}."
    )
    parts = [shape, "## Text", _text(facts)]
    if facts.tokenizer is not None:
        template: Template = facts.template or "qa"
        parts += ["## Use", _WRITES[template], _USE[facts.target][template].replace("FOLDER", facts.name)]
    if facts.masked:
        parts.append("Its text had placeholders such as `[TEL_1]` for contacts, and it writes them in their place.")
    if figures:
        rows = "\n".join(f"| {_FIGURES[name]} | {value:.4g} |" for name, value in figures.items())
        parts += ["## Figures", f"On the held-out part of its text:\n\n| | |\n|---|---|\n{rows}"]
    limits = (
        "It says what such a text might say, true or not: check it before anyone relies on it. Beyond its context it "
        "has learned nothing."
    )
    return [*parts, "## Limits", limits, "## Licence", options.license or "Its owner has named none."]


def _text(facts: CardFacts) -> str:
    """What the model was trained on, in numbers that tell nothing of its content."""
    unknown = "What it was trained on is not recorded here."
    data = _data_of(facts)
    if data is None:
        return unknown
    try:
        clean = json.loads((data.folder / REPORT_FILE).read_text(encoding="utf-8"))["clean"]
        documents, size = int(clean["documents"]), int(clean["cleaned_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return unknown
    made = "questions and answers made from it" if data.manifest.template == "qa" else "the text as it is"
    return (
        f"{documents:,} documents of its owner, {size:,} bytes of UTF-8 after cleaning. It was trained on {made}: "
        f"{data.manifest.train.tokens:,} tokens. The text itself is not in this folder."
    )


def _data_of(facts: CardFacts) -> DataFolder | None:
    """The DATA that a run was trained on, if it is still where it was, and still the same."""
    if facts.run is None or "data" not in facts.fingerprint:
        return None
    try:
        data = DataFolder.open(Path(RunConfig.load(facts.run).data))
    except TwinGPTError:
        return None
    return data if data.fingerprint()["data"] == facts.fingerprint["data"] else None


def _figures(facts: CardFacts, options: CardOptions) -> dict[str, float]:
    """Those of _FIGURES that are known of this checkpoint."""
    found: dict[str, Any] = {}
    if options.figures is not None:
        try:
            found = json.loads(options.figures.read_text(encoding="utf-8"))
            figures = {name: float(found[name]) for name in _FIGURES if math.isfinite(found[name])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TwinGPTError(
                f"{options.figures} has no figures ({error}): write it with `twingpt eval RUN --data DATA --json`"
            ) from None
        return figures
    if facts.run is not None:
        for line in metric_lines(facts.run / METRICS_FILE):
            if line["step"] == facts.step and "val_loss" in line:
                found = {**line, "loss": line["val_loss"]}
    # A text of which no token stands for a byte has no finite number of bits a byte, which is no figure.
    return {name: float(found[name]) for name in _FIGURES if name in found and math.isfinite(found[name])}


def _results(figures: dict[str, float]) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type="text",
            dataset_name="the held-out part of its text",
            metric_type=name,
            metric_value=value,
            metric_name=_FIGURES[name],
        )
        for name, value in figures.items()
    ]


def _language_of(tokenizer: Tokenizer | None) -> str | None:
    """Korean, if most of the words and syllables that a vocabulary has learned are; None: it does not say."""
    if tokenizer is None:
        return None
    texts = (tokenizer.decode([token]) for token in range(tokenizer.vocab_size))
    letters = Counter(bool(_HANGUL.search(text)) for text in texts if len(text) > 1 and any(map(str.isalpha, text)))
    return "ko" if letters[True] > letters[False] else None
