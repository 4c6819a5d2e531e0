"""What a run was asked to do: RUN/config.toml, and how preset, config file and options make it."""

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, get_args

import tomli_w

from twingpt.core.backend import DeviceChoice, EngineConfig, EngineSettings, Precision
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.params import OptimizerName
from twingpt.core.presets import find_preset
from twingpt.core.schedule import Schedule, ScheduleKind
from twingpt.core.spec import GPTSpec, build
from twingpt.data.prepare.settings import Contacts
from twingpt.weights.format import write_whole

CONFIG_FILE = "config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(EngineSettings):
    """Defaults are the user's recipe: AdamW at a constant 3e-4.

    steps: updates in all; it defines the schedule.
    batch_size: sequences an update; micro_batch divides it (0: chosen so that it fits into memory).
    schedule, decay_fraction: see core.schedule. The engine's own settings: see core.backend.EngineSettings.
    eval_every, save_every: in steps, 0 = only at the end. log_every: steps between two lines of metrics.
    eval_windows: validation windows an evaluation looks at, spread evenly (0: all).
    keep_last: checkpoints kept besides the best one (0: all).
    """

    steps: int = 20_000
    batch_size: int = 16
    micro_batch: int = 0
    learning_rate: float = 3e-4
    min_learning_rate: float = 0.0
    schedule: ScheduleKind = "constant"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    eval_every: int = 500
    save_every: int = 500
    log_every: int = 10
    eval_windows: int = 100
    keep_last: int = 3
    sample_tokens: int = 120

    def __post_init__(self) -> None:
        EngineSettings.__post_init__(self)
        for name in ("steps", "batch_size", "log_every", "loss_chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"train.{name} = {getattr(self, name)}: it must be at least 1")
        for name in ("micro_batch", "warmup_steps", "eval_every", "save_every", "eval_windows", "keep_last", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"train.{name} = {getattr(self, name)}: it must be at least 0")
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise UsageError(f"train.micro_batch = {self.micro_batch} does not divide batch_size = {self.batch_size}")
        for name in ("learning_rate", "muon_lr_scale"):
            if getattr(self, name) <= 0.0:
                raise UsageError(f"train.{name} = {getattr(self, name)}: it must be above 0")

    @property
    def accumulation(self) -> int:
        """Micro-batches an update."""
        return self.batch_size // (self.micro_batch or self.batch_size)

    def lr_schedule(self) -> Schedule:
        return Schedule(
            kind=self.schedule,
            peak=self.learning_rate,
            floor=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            steps=self.steps,
            decay_fraction=self.decay_fraction,
        )

    def engine(self, device: DeviceChoice) -> EngineConfig:
        shared = [field.name for field in dataclasses.fields(EngineSettings)]
        return EngineConfig(device=device, **{name: getattr(self, name) for name in shared})


class TrainSettings(TypedDict, total=False):
    """The fields of TrainConfig, any of which may be given by name: what a type checker and an editor know of them."""

    precision: Precision
    optimizer: OptimizerName
    muon_lr_scale: float
    muon_momentum: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip: float
    loss_chunk: int
    activation_checkpointing: bool
    seed: int
    steps: int
    batch_size: int
    micro_batch: int
    learning_rate: float
    min_learning_rate: float
    schedule: ScheduleKind
    warmup_steps: int
    decay_fraction: float
    eval_every: int
    save_every: int
    log_every: int
    eval_windows: int
    keep_last: int
    sample_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run: the model, how it is trained, and on which data.

    contacts: as `prepare --contacts` made them; a model that knows only placeholders must be asked with them.
    """

    model: GPTSpec
    train: TrainConfig
    data: str
    contacts: Contacts = "keep"

    def __post_init__(self) -> None:
        if self.contacts not in get_args(Contacts):
            raise UsageError(f"contacts = {self.contacts!r}: it must be one of {', '.join(get_args(Contacts))}")

    def save(self, run_dir: Path) -> None:
        content = {
            "data": self.data,
            "contacts": self.contacts,
            "model": self.model.to_dict(),
            "train": dataclasses.asdict(self.train),
        }
        write_whole(run_dir / CONFIG_FILE, tomli_w.dumps(content).encode())

    @classmethod
    def load(cls, run_dir: Path) -> "RunConfig":
        """Raises TwinGPTError if RUN/config.toml is missing, UsageError if a setting in it cannot be meant."""
        content = read_toml(run_dir / CONFIG_FILE)
        check_sections(content, run_dir / CONFIG_FILE)
        return cls(
            model=GPTSpec.from_dict(content.get("model", {})),
            train=build(TrainConfig, content.get("train", {}), "train"),
            data=content.get("data", ""),
            contacts=content.get("contacts", "keep"),
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
            raise UsageError(f"data in {config_file} is not used: name the folder with --data, and take that line out")
        model |= content.get("model", {})
        train |= content.get("train", {})
    return model, train


def read_toml(path: Path) -> dict[str, Any]:
    """Raises TwinGPTError if the file is missing or is not TOML."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise TwinGPTError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise TwinGPTError(f"{path} cannot be read as TOML: {error}") from None


def check_sections(content: dict[str, Any], path: Path) -> None:
    for key, value in content.items():
        if key not in ("data", "contacts", "model", "train"):
            raise UsageError(f"unknown setting {key} in {path}: it may hold [model], [train], data and contacts")
        if key in ("model", "train") and not isinstance(value, dict):
            raise UsageError(f"{key} in {path} must be a table: [{key}]")
