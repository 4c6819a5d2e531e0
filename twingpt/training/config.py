"""What a run was asked to do: RUN/config.toml, and how preset, config file and options make it."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.presets import find_preset
from twingpt.core.spec import GPTSpec, build
from twingpt.data.prepare.settings import Contacts
from twingpt.data.tokens.marks import Template
from twingpt.training.recipe import TrainConfig as TrainConfig
from twingpt.weights.format import write_whole

CONFIG_FILE = "config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run: the model, how it is trained, and on which data.

    contacts: as `prepare --contacts` made them; a model that knows only placeholders must be asked with them.
    template: as `prepare --template` made the samples; "" where nobody knows: arrays, and runs of before it was kept.
    """

    model: GPTSpec
    train: TrainConfig
    data: str
    contacts: Contacts = "keep"
    template: Template | Literal[""] = ""

    def __post_init__(self) -> None:
        if self.contacts not in get_args(Contacts):
            raise UsageError(
                tr(
                    "contacts = {contacts!r}: it must be one of {choices}",
                    contacts=self.contacts,
                    choices=", ".join(get_args(Contacts)),
                )
            )
        if self.template not in ("", *get_args(Template)):
            raise UsageError(
                tr(
                    "template = {template!r}: it must be one of {choices}",
                    template=self.template,
                    choices=", ".join(get_args(Template)),
                )
            )

    def save(self, run_dir: Path) -> None:
        content = {
            "data": self.data,
            "contacts": self.contacts,
            **({"template": self.template} if self.template else {}),
            "model": self.model.to_dict(),
            "train": dataclasses.asdict(self.train),
        }
        write_whole(run_dir / CONFIG_FILE, tomli_w.dumps(content).encode())

    @classmethod
    def load(cls, run_dir: Path) -> "RunConfig":
        """Raises TwinGPTError if RUN/config.toml is missing, UsageError if a setting in it cannot be meant."""
        content = read_toml(run_dir / CONFIG_FILE)
        check_sections(content, run_dir / CONFIG_FILE)
        # A run that says nothing of it was begun before there was anything to choose.
        train = {"cut": "fixed", **content.get("train", {})}
        return cls(
            model=GPTSpec.from_dict(content.get("model", {})),
            train=build(TrainConfig, train, "train"),
            data=content.get("data", ""),
            contacts=content.get("contacts", "keep"),
            template=content.get("template", ""),
        )


def make_config(
    *, preset: str, config_file: Path | None, model: dict[str, Any], train: dict[str, Any], data: str
) -> RunConfig:
    """Preset, then config file, then options: the later one wins. Raises UsageError on anything unknown."""
    base_model, base_train = named_settings(preset, config_file)
    return RunConfig(
        model=build(GPTSpec, {**base_model, **model}, "model"),
        train=build(TrainConfig, {**base_train, **train}, "train"),
        data=data,
    )


def named_settings(preset: str | None, config_file: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(settings of the model, of the training) that a preset and a config file name, the file's before the preset's.

    Raises UsageError for an unknown preset, and for a file that names DATA: that is what --data is for.
    """
    model: dict[str, Any] = {}
    train: dict[str, Any] = {}
    if preset is not None:
        base = find_preset(preset)
        model, train = {**base.model}, {**base.train}
    if config_file is not None:
        content = read_toml(config_file)
        check_sections(content, config_file)
        if content.get("data"):
            raise UsageError(
                tr(
                    "data in {config_file} is not used: name the folder with --data, and take that line out",
                    config_file=config_file,
                )
            )
        model |= content.get("model", {})
        train |= content.get("train", {})
    return model, train


def read_toml(path: Path) -> dict[str, Any]:
    """Raises TwinGPTError if the file is missing or is not TOML."""
    if path.exists() and not path.is_file():
        raise TwinGPTError(tr("{path} is no file: name a TOML file", path=path))
    try:
        # Some editors put a mark before the text, which is none of it.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise TwinGPTError(tr("{path} does not exist", path=path)) from None
    except (OSError, ValueError, RecursionError) as error:
        raise TwinGPTError(tr("{path} cannot be read as TOML: {error}", path=path, error=error)) from None


def check_sections(content: dict[str, Any], path: Path) -> None:
    for key, value in content.items():
        if key not in ("data", "contacts", "template", "model", "train"):
            raise UsageError(
                tr(
                    "unknown setting {key} in {path}: it may hold [model], [train], data, contacts and template",
                    key=key,
                    path=path,
                )
            )
        if key in ("model", "train") and not isinstance(value, dict):
            raise UsageError(tr("{key} in {path} must be a table: [{key}]", key=key, path=path))
        if key in ("data", "contacts", "template") and not isinstance(value, str):
            raise UsageError(tr("{key} = {value!r} in {path} must be a text", key=key, value=value, path=path))
