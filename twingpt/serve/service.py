"""What the server serves: one run's model, tokenizer, contacts and folder, and the limits set for it."""

import importlib.util
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from twingpt.core.backend import Backend, DeviceChoice, EngineConfig, create_backend
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import tr
from twingpt.core.params import parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.data.files import CONTACTS_FILE, LIBRARY_FILE
from twingpt.data.library.contact_store import ContactStore
from twingpt.data.library.search import Library
from twingpt.data.tokens.tokenizer import Tokenizer
from twingpt.generation.answer_sections import SECTION_HEADS
from twingpt.generation.model import Model, default_backend, open_model
from twingpt.serve.run_view import RunView
from twingpt.serve.worker import Worker
from twingpt.weights.checkpoint import STATE_FILE, Checkpoint, CheckpointStore, find_checkpoint, read_checkpoint
from twingpt.weights.run_files import check_file
from twingpt.weights.run_folder import load_tokenizer, open_contacts

READ_ATTEMPTS = 3
SUGGESTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """max_tokens: of one answer. max_waiting: requests beyond the slots. seconds: from arrival to the last token."""

    max_tokens: int = 1024
    max_waiting: int = 128
    seconds: float = 600.0


class ServedModel:
    """The model that is served, and where its weights come from.

    path: a run, of which the newest checkpoint counts whenever `find` is called, or one checkpoint, RUN/best too.
    loaded: None before the run has a checkpoint.
    """

    def __init__(self, path: Path, backend: str, device: DeviceChoice) -> None:
        if not path.is_dir():
            path = find_checkpoint(path)
        self._fixed = (path / STATE_FILE).is_file()
        self._path = path
        self._backend, self._device = backend, device
        self.run_dir = path.resolve().parent.parent if self._fixed else path.resolve()
        self.tokenizer = load_tokenizer(self.run_dir)
        self.loaded: Model | None = None

    @property
    def follows(self) -> bool:
        """Newer checkpoints of the run are found; where one checkpoint is served, it stays that one."""
        return not self._fixed

    def find(self) -> Callable[[], Backend] | None:
        """Read the newest weights; returns what puts them into the engine. None while the run has no checkpoint.

        Both are to be called in the engine's thread.
        """
        checkpoint = self._read()
        return None if checkpoint is None else partial(self._load, checkpoint)

    def _load(self, checkpoint: Checkpoint) -> Backend:
        if self.loaded is None or self.loaded.spec != checkpoint.spec:
            # The old model goes first: two at once may not fit into memory.
            self.loaded = None
            engine = create_backend(self._backend, checkpoint.spec, EngineConfig(device=self._device))
        else:
            engine = self.loaded.engine
        self.loaded = open_model(checkpoint, self.tokenizer, engine)
        return engine

    def _read(self) -> Checkpoint | None:
        if self._fixed:
            return read_checkpoint(self._path, optimizer=False)
        damaged: list[str] = []
        # A run in training may delete an old checkpoint while it is read; then there is a newer one.
        for _ in range(READ_ATTEMPTS):
            checkpoint, damaged = CheckpointStore(self.run_dir).load_latest(optimizer=False)
            if checkpoint is not None or not damaged:
                return checkpoint
        raise TwinGPTError(damaged[0])


@dataclass(slots=True)
class Service:
    """Everything that the HTTP side asks of the rest."""

    name: str
    model: ServedModel
    worker: Worker
    view: RunView
    limits: Limits
    template: str | None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def has_contacts(self) -> bool:
        return (self.model.run_dir / CONTACTS_FILE).is_file()

    @property
    def library(self) -> Path:
        return self.model.run_dir / LIBRARY_FILE

    @property
    def free_name(self) -> str:
        """What the model that writes freely is called; the run's own name answers from its text."""
        return f"{self.name}:free"

    def contacts(self) -> ContactStore | None:
        """Opened anew for each answer, since SQLite ties a connection to its thread; the caller closes it."""
        return open_contacts(self.model.run_dir)

    @property
    def spec(self) -> GPTSpec | None:
        """Of the loaded model, or of the one in training."""
        if self.model.loaded is not None:
            return self.model.loaded.spec
        config = self.view.config()
        return None if config is None else config.model

    def questions(self) -> list[str]:
        """Titles of the run's own text, to ask about; the same ones for the same library."""
        if not self.library.is_file():
            return []
        with Library(self.library) as library:
            return library.titles(SUGGESTED)

    def describe(self) -> dict[str, Any]:
        """What the page shows of the model, the server and the run."""
        spec, model, load = self.spec, self.model.loaded, self.worker.load
        return {
            "name": self.name,
            "spec": None if spec is None else asdict(spec),
            "parameters": None if spec is None else parameter_count(spec),
            "backend": None if model is None else model.engine.name,
            "device": None if model is None else model.engine.device,
            "loaded_step": None if model is None else model.step,
            "follows": self.model.follows,
            "template": self.template,
            "contacts": self.has_contacts,
            "library": self.library.is_file(),
            "questions": self.questions(),
            "heads": SECTION_HEADS,
            "max_tokens": self.limits.max_tokens,
            "slots": self.worker.slots,
            "active": load.active,
            "waiting": load.waiting,
            **self.view.describe(),
        }


def open_service(
    path: Path, backend: str | None, device: DeviceChoice, *, slots: int = 8, limits: Limits | None = None
) -> Service:
    """Load the model and start its worker. Raises TwinGPTError if there is nothing to serve, or another run's."""
    limits = limits or Limits()
    model = ServedModel(path, backend or default_backend(), device)
    view = RunView(model.run_dir)
    if view.newest_step() is None and view.config() is None:
        raise TwinGPTError(tr("{path} is no run: it has neither a checkpoint nor a config.toml", path=path))
    for name in (CONTACTS_FILE, LIBRARY_FILE):
        check_file(model.run_dir, name)
    worker = Worker(model.find, slots=slots, max_waiting=limits.max_waiting)
    worker.start()
    return Service(
        name=model.run_dir.name,
        model=model,
        worker=worker,
        view=view,
        limits=limits,
        template=view.template(),
    )


def require_packages() -> None:
    """Raises TwinGPTError if what `serve` alone needs is not installed."""
    missing = [name for name in ("fastapi", "uvicorn", "uplot") if importlib.util.find_spec(name) is None]
    if missing:
        raise TwinGPTError(tr("serve needs {packages}: pip install 'twingpt[serve]'", packages=", ".join(missing)))


def new_seed() -> int:
    """For a request that gives none."""
    return secrets.randbits(31)
