"""The tokenizer in other programs: the files, marks and templates that go with an exported model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.sampling import Sampling
from twingpt.core.spec import GPTSpec
from twingpt.data.files import TOKENIZER_FILE
from twingpt.data.tokens.marks import (
    ANSWER,
    BOS,
    END_ANSWER,
    END_QUESTION,
    END_SUMMARY,
    EOS,
    PAD,
    QUESTION,
    SPECIAL_TOKENS,
    UNK,
)
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.weights.gguf import Vocabulary
from twingpt.weights.huggingface import GENERATION_FILE, read_json

TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
FOREIGN_FILES = (TOKENIZER_CONFIG_FILE, GENERATION_FILE, "special_tokens_map.json", "chat_template.jinja")

# Each question is a sample of its own, as `pack` lays samples in a row.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '" + BOS + QUESTION + "' + message['content'] + '" + END_QUESTION + "' }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ANSWER + "' + message['content'] + '" + END_ANSWER + EOS + "' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ANSWER + "' }}{% endif %}"
)

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


@dataclass(frozen=True)
class ExportTokenizer:
    """One of twingpt's tokenizers, about to leave."""

    tokenizer: Tokenizer

    @classmethod
    def load(cls, path: Path, spec: GPTSpec) -> "ExportTokenizer | None":
        """None if the file is a tokenizer of someone else's.

        One that `write` wrote comes back byte for byte, also when transformers has saved it since. Raises TwinGPTError
        if the file cannot be read, is none that twingpt can use, or does not fit the model.
        """
        config = read_json(path)
        if not _has_our_marks(config):
            return None
        if config.get("post_processor") == _WITH_BOS:
            # transformers saves the padding and the truncation of the last call along.
            content = _as_tokenizers_writes({**config, "post_processor": None, "padding": None, "truncation": None})
        else:
            content = path.read_bytes().decode("utf-8")
        tokenizer = Tokenizer(content, source=str(path))
        if tokenizer.vocab_size != spec.vocab_size:
            raise TwinGPTError(f"{path} has {tokenizer.vocab_size} tokens, the model's vocabulary is {spec.vocab_size}")
        return cls(tokenizer)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def model_ids(self) -> dict[str, int]:
        """bos_token_id, eos_token_id and pad_token_id."""
        return {
            "bos_token_id": self.tokenizer.bos_id,
            "eos_token_id": self.tokenizer.eos_id,
            "pad_token_id": self.tokenizer.pad_id,
        }

    def generation(self) -> dict[str, Any]:
        """generation_config.json: it stops where twingpt's own generation does."""
        stops = [self.tokenizer.id(mark) for mark in (EOS, END_ANSWER, END_SUMMARY)]
        return {**self.model_ids(), "eos_token_id": stops}

    def write(self, folder: Path, block_size: int) -> None:
        """tokenizer.json and tokenizer_config.json, with which AutoTokenizer encodes as twingpt does, with [BOS]."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "unk_token": UNK,
            "model_max_length": block_size,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        }
        text = json.dumps(config, ensure_ascii=False, indent=2) + "\n"
        (folder / TOKENIZER_CONFIG_FILE).write_text(text, encoding="utf-8")
        content = _as_tokenizers_writes({**json.loads(self.tokenizer.content), "post_processor": _WITH_BOS})
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
            chat_template=CHAT_TEMPLATE,
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


def modelfile(gguf_file: str, block_size: int) -> str:
    """Ollama's recipe beside the file. Ollama puts [BOS] before the prompt by itself."""
    usual = Sampling()
    return (
        f"FROM ./{gguf_file}\n"
        f'TEMPLATE """{QUESTION}{{{{ .Prompt }}}}{END_QUESTION}{ANSWER}{{{{ .Response }}}}{END_ANSWER}{EOS}"""\n'
        f'PARAMETER stop "{END_ANSWER}"\n'
        f'PARAMETER stop "{EOS}"\n'
        f"PARAMETER num_ctx {block_size}\n"
        f"PARAMETER temperature {usual.temperature}\n"
        f"PARAMETER top_k {usual.top_k}\n"
        f"PARAMETER top_p {usual.top_p}\n"
        f"PARAMETER repeat_penalty {usual.repetition_penalty}\n"
    )
