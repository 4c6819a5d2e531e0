"""The tokenizer in other programs: the files, marks and templates that go with an exported model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.files import TOKENIZER_FILE
from twingpt.data.tokens.marks import BOS, END_ANSWER, END_SUMMARY, EOS, PAD, SPECIAL_TOKENS, UNK, Template
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.interchange.chat_template import GUARD, chat_template
from twingpt.weights.gguf import Vocabulary
from twingpt.weights.huggingface import GENERATION_FILE, read_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
FOREIGN_FILES = (TOKENIZER_CONFIG_FILE, GENERATION_FILE, "special_tokens_map.json", CHAT_TEMPLATE_FILE)

# AutoTokenizer takes from tokenizer.json alone whether to put [BOS] before a text, as twingpt does.
_WITH_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [
        {"SpecialToken": {"id": BOS, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 0}},
    ],
    "special_tokens": {BOS: {"id": BOS, "ids": [SPECIAL_TOKENS.index(BOS)], "tokens": [BOS]}},
}
# Marks are found before it works, text is cut after it: what the chat template parted is whole again, and text.
_WITHOUT_GUARD = {"type": "Replace", "pattern": {"String": GUARD}, "content": ""}


@dataclass(frozen=True)
class ExportTokenizer:
    """One of twingpt's tokenizers, about to leave with a model that was trained on this template."""

    tokenizer: Tokenizer
    template: Template = "qa"

    @classmethod
    def load(cls, path: Path, spec: GPTSpec, template: Template = "qa") -> "ExportTokenizer | None":
        """None if the file is a tokenizer of someone else's.

        One that `write` wrote comes back byte for byte, also when transformers has saved it since. Raises TwinGPTError
        if the file cannot be read, is none that twingpt can use, or does not fit the model.
        """
        config = read_json(path)
        if not _has_our_marks(config):
            return None
        if config.get("post_processor") == _WITH_BOS:
            # transformers saves the padding and the truncation of the last call along.
            ours = {"post_processor": None, "padding": None, "truncation": None}
            if config.get("normalizer") == _WITHOUT_GUARD:
                ours["normalizer"] = None
            content = _as_tokenizers_writes({**config, **ours})
        else:
            content = path.read_bytes().decode("utf-8")
        tokenizer = Tokenizer(content, source=str(path))
        if tokenizer.vocab_size != spec.vocab_size:
            raise TwinGPTError(
                tr(
                    "{path} has {vocab_size} tokens, the model's vocabulary is {spec_vocab_size}",
                    path=path,
                    vocab_size=tokenizer.vocab_size,
                    spec_vocab_size=spec.vocab_size,
                )
            )
        return cls(tokenizer, template)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def model_ids(self) -> dict[str, int]:
        """bos_token_id, eos_token_id and pad_token_id."""
        return {
            "bos_token_id": self.tokenizer.bos_id,
            "eos_token_id": self.tokenizer.eos_id,
            "pad_token_id": self.tokenizer.pad_id,
        }

    def generation(self, block_size: int) -> dict[str, Any]:
        """generation_config.json: it samples and stops as twingpt's own generation does, at the context's end too."""
        usual = Sampling()
        return {
            **self.model_ids(),
            "eos_token_id": [self.tokenizer.id(mark) for mark in (EOS, END_ANSWER, END_SUMMARY)],
            "do_sample": True,
            "temperature": usual.temperature,
            "top_k": usual.top_k,
            "top_p": usual.top_p,
            "repetition_penalty": usual.repetition_penalty,
            "max_length": block_size,
        }

    def write(self, folder: Path, block_size: int) -> None:
        """tokenizer.json and tokenizer_config.json, with which AutoTokenizer encodes as twingpt does, with [BOS]."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "model_max_length": block_size,
            # An answer begins where its prompt ends: what fills up a batch stands before it.
            "padding_side": "left",
            "model_input_names": ["input_ids", "attention_mask"],
            "clean_up_tokenization_spaces": False,
            **({} if self.template == "plain" else {"chat_template": chat_template(GUARD)}),
        }
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / TOKENIZER_CONFIG_FILE).write_text(text, encoding="utf-8")
        ours = json.loads(self.tokenizer.content)
        content = _as_tokenizers_writes({**ours, "normalizer": _WITHOUT_GUARD, "post_processor": _WITH_BOS})
        (folder / TOKENIZER_FILE).write_text(content, encoding="utf-8", newline="")

    def vocabulary(self) -> Vocabulary:
        model = json.loads(self.tokenizer.content)["model"]
        ids: dict[str, int] = model["vocab"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        return Vocabulary(
            tokens=sorted(ids, key=lambda text: ids[text]),
            merges=merges,
            special=frozenset(range(len(SPECIAL_TOKENS))),
            bos=self.tokenizer.bos_id,
            eos=self.tokenizer.eos_id,
            pad=self.tokenizer.pad_id,
            unknown=self.tokenizer.id(UNK),
            end_of_turn=self.tokenizer.id(END_ANSWER),
            end_of_message=self.tokenizer.id(END_SUMMARY),
            # A GGUF file cannot take a character out of a text, so a blank parts what was typed.
            chat_template=None if self.template == "plain" else chat_template(" "),
        )


def _has_our_marks(config: dict[str, Any]) -> bool:
    entries = config.get("added_tokens")
    added = [entry.get("content") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return all(mark in added for mark in SPECIAL_TOKENS)


def _as_tokenizers_writes(config: dict[str, Any]) -> str:
    return json.dumps(config, ensure_ascii=False, separators=(",", ":"))


def copy_foreign(source: Path, folder: Path) -> dict[str, Any]:
    """Carry what lies beside someone else's tokenizer.json; returns its generation_config.json, or nothing."""
    for name in FOREIGN_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return read_json(source / GENERATION_FILE) if (source / GENERATION_FILE).is_file() else {}


def template_of_export(folder: Path) -> Template | None:
    """What a folder of Hugging Face that twingpt wrote says of its model; None for anyone else's."""
    if not (folder / TOKENIZER_FILE).is_file() or not (folder / TOKENIZER_CONFIG_FILE).is_file():
        return None
    if not _has_our_marks(read_json(folder / TOKENIZER_FILE)):
        return None
    has_chat = (folder / CHAT_TEMPLATE_FILE).is_file() or "chat_template" in read_json(folder / TOKENIZER_CONFIG_FILE)
    return "qa" if has_chat else "plain"
