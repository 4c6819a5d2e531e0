"""`manifest.json`: what the packed token files hold, written by `pack`, read by the trainer."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.data.files import MANIFEST_FILE

FORMAT_VERSION = 1

Layout = Literal["rows", "contiguous"]


@dataclass(frozen=True, kw_only=True)
class Split:
    """One packed file.

    tokens: tokens in the file, [PAD] tails included.
    text_bytes: UTF-8 bytes of the text behind the tokens, special tokens counting zero.
    mask_file: one byte a token, 1 = counted in the loss when it is the target; None = every token but [PAD] counts.
    mask_sha256: None in folders of version 0.1, and where there is no mask.
    """

    file: str
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    mask_file: str | None = None
    mask_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contract between `pack` and `train`.

    layout "rows": the file is rows of block_size + 1 tokens, each starting at a [BOS].
    layout "contiguous": one stream of documents; any block_size up to its length can be trained on.
    """

    layout: Layout
    dtype: Literal["uint16", "uint32"]
    vocab_size: int
    block_size: int
    pad_id: int
    template: str
    text_sha256: str
    tokenizer_sha256: str
    train: Split
    val: Split
    format_version: int = FORMAT_VERSION

    @property
    def validation_split(self) -> Literal["train", "val"]:
        """What to validate with: where nothing is held out, the training text: it still shows a run diverge."""
        return "val" if self.val.tokens else "train"

    @classmethod
    def load(cls, data_dir: Path) -> "Manifest":
        """Read DATA/manifest.json. Raises TwinGPTError if it is missing, damaged or of another version."""
        path = data_dir / MANIFEST_FILE
        try:
            raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise TwinGPTError(
                tr(
                    "{data_dir} holds no {manifest_file}: make it with `twingpt prepare RAW.txt --out {data_dir}`",
                    data_dir=data_dir,
                    manifest_file=MANIFEST_FILE,
                )
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise TwinGPTError(
                tr("{path} cannot be read ({error}): run `twingpt prepare` again", path=path, error=error)
            ) from None
        if not isinstance(raw, dict):
            raise TwinGPTError(tr("{path} is damaged (it holds no object): run `twingpt prepare` again", path=path))
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise TwinGPTError(
                tr(
                    "{path} has format version {version}, this twingpt reads {format_version}: run `twingpt prepare` "
                    "again",
                    path=path,
                    version=version,
                    format_version=FORMAT_VERSION,
                )
            )
        try:
            return cls(**{**raw, "train": Split(**raw["train"]), "val": Split(**raw["val"])})
        except (TypeError, KeyError) as error:
            raise TwinGPTError(
                tr("{path} is damaged ({error}): run `twingpt prepare` again", path=path, error=error)
            ) from None

    def save(self, data_dir: Path) -> None:
        content = dataclasses.asdict(self)
        for split in (content["train"], content["val"]):
            # Version 0.1 reads folders without a mask, and knows no such name.
            if split["mask_sha256"] is None:
                del split["mask_sha256"]
        text = json.dumps(content, ensure_ascii=False, indent=2)
        (data_dir / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")
