"""`--shard` and `twingpt data merge`: the two stages that take long, done by several machines.

Pieces are dealt out in turn: chunks of the raw text to clean, batches of documents to make samples of. A merge puts
them back in their order, so that the stage is, byte for byte, what one machine makes. What needs the whole text is left
to the merge (duplicates, lines that repeat) and to the stages that are never shared (tokenizer, pack).
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.data import files, reading, shares, spool
from twingpt.data.changes import Changes
from twingpt.data.parallel import default_workers
from twingpt.data.pipeline import FIELDS, VERSIONS, Job, StageName, StdinAsFile, Watcher
from twingpt.data.settings import PrepareSettings
from twingpt.data.shares import Shard, Share
from twingpt.data.stages import Report, StageResult, Workspace
from twingpt.data.write_cleaned import write_spool
from twingpt.data.write_samples import Tally, samples_report, write_samples_share

# The lines of a share of samples, and the bytes of each batch of them (int64).
LINES, BATCHES = "lines.jsonl", "batches"
_OF_DATA = (files.CLEANED_FILE, files.SAMPLES_FILE, files.TOKENIZER_FILE, files.MANIFEST_FILE)


def _share(stage: StageName, shard: Shard, settings: PrepareSettings, **made: Any) -> Share:
    return Share(
        stage=stage,
        shard=shard,
        versions=shares.versions(stage, VERSIONS[stage], settings.template),
        settings={name: getattr(settings, name) for name in FIELDS[stage]},
        **{"sources": [], **made},
    )


def _keep(workspace: Workspace, share: Share, make: Any, needed: int) -> StageResult:
    """The share as a stage of its folder: kept, or made whole. make(folder) writes it and returns its report."""

    def write(folder: Path) -> Report:
        report: Report = make(folder)
        dataclasses.replace(share, report=report).save(folder)
        return {"stage": share.stage, "shard": str(share.shard)}

    return workspace.run("share", dataclasses.asdict(share), write, needed=needed)


def clean_share(
    inputs: Sequence[str],
    out: Path,
    settings: PrepareSettings,
    shard: Shard,
    *,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> StageResult:
    """This machine's share of the stage clean, into the folder `out`. Every machine is given the same inputs.

    Raises TwinGPTError for text that cannot be read, and for a folder that holds something else.
    """
    if not inputs:
        raise UsageError("no text given: name files or folders, or - for stdin")
    watcher = watcher or Watcher()
    shares.check_target(out, "clean", shard, _OF_DATA)
    workspace = Workspace(out)
    with workspace.locked(), StdinAsFile(inputs, out) as given:
        sources = reading.find_sources(given)
        fingerprints = [reading.fingerprint(source) for source in sources]
        size = sum(file.size for file in fingerprints)
        raw = {"raw text": reading.fingerprint_of_all(fingerprints)}
        share = _share("clean", shard, settings, inputs=raw, sources=fingerprints, report={})
        watcher.start("clean", size)

        def make(folder: Path) -> Report:
            changes = write_spool(
                sources,
                size,
                folder,
                settings,
                share=shard.dealt,
                workers=workers or default_workers(),
                advance=watcher.advance,
            )
            return {"reading": changes.to_json()}

        result = _keep(workspace, share, make, needed=4 * size // shard.of)
        watcher.finish(result)
        return result


def samples_share(
    data: Path,
    out: Path,
    settings: PrepareSettings,
    shard: Shard,
    *,
    workers: int | None = None,
    watcher: Watcher | None = None,
) -> StageResult:
    """This machine's share of the stage samples of DATA = data, into the folder `out`. Every machine has the same DATA.

    Raises UsageError with max_samples, TwinGPTError if DATA lacks the stages before.
    """
    if settings.max_samples is not None:
        raise UsageError("--max-samples has no --shard: one machine stops as soon as it has that many")
    watcher = watcher or Watcher()
    shares.check_target(out, "samples", shard, _OF_DATA)
    workspace = Workspace(out)
    with workspace.locked():
        job = Job(Workspace(data), settings, workers or default_workers(), watcher, scratch=workspace.scratch)
        documents = job.sampled_documents()
        validation = job.validation(documents)
        share = _share("samples", shard, settings, inputs=_sampled_inputs(job, validation), report={})
        size = int(documents.sizes().sum())
        watcher.start("samples", size)

        def make(folder: Path) -> Report:
            tally, sizes = write_samples_share(
                documents,
                validation,
                data / files.TOKENIZER_FILE,
                folder / LINES,
                settings,
                share=shard.dealt,
                workers=job.workers,
                advance=watcher.advance,
            )
            (folder / BATCHES).write_bytes(np.asarray(sizes, dtype="<i8").tobytes())
            return dataclasses.asdict(tally)

        result = _keep(workspace, share, make, needed=8 * size // shard.of)
        watcher.finish(result)
        return result


def _sampled_inputs(job: Job, validation: npt.NDArray[np.bool_]) -> dict[str, str]:
    """sha256 of all that the samples depend on, the split into training and validation included."""
    made_from = job.samples_key()["inputs"]
    return {
        files.CLEANED_FILE: made_from["text"],
        files.TOKENIZER_FILE: made_from["tokenizer"],
        "split into training and validation (its .stages folder)": hashlib.sha256(validation.tobytes()).hexdigest(),
    }


def merge(folders: Sequence[Path], out: Path, *, watcher: Watcher | None = None) -> tuple[StageName, StageResult]:
    """Put the shares of a stage together in DATA = out; the stage is then as one machine makes it, and kept there.

    Raises TwinGPTError that names the share if they do not fit together, or fit DATA.
    """
    found = shares.fitting(folders)
    first = found[0][1]
    stage: StageName = "clean" if first.stage == "clean" else "samples"
    settings = PrepareSettings(**first.settings)
    here = shares.versions(stage, VERSIONS[stage], settings.template)
    if here != first.versions:
        name = next(name for name in {**here, **first.versions} if here.get(name) != first.versions.get(name))
        raise TwinGPTError(f"{found[0][0]} was made with {shares.unlike(name, first.versions, here)}")
    if (out / shares.SHARE_FILE).exists():
        raise TwinGPTError(f"{out} holds a share: give another --out")
    job = Job(Workspace(out), settings, 1, watcher or Watcher())
    with job.workspace.locked():
        result = _merge_clean(job, found) if stage == "clean" else _merge_samples(job, found)
        job.watcher.finish(result)
    return stage, result


def _merge_clean(job: Job, found: Sequence[tuple[Path, Share]]) -> StageResult:
    sizes = [sum((folder / name).stat().st_size for name in spool.SPOOL_FILES) for folder, _ in found]
    first_folder, first = found[0]
    for folder, share in found[1:]:
        if share.report != first.report:
            raise TwinGPTError(f"{folder} does not fit {first_folder}: it read the same files otherwise")
    job.watcher.start("clean", sum(sizes))

    def put(folder: Path) -> Changes:
        spool.interleave([share for share, _ in found], folder, job.watcher.advance)
        return Changes.from_json(first.report["reading"])

    return job.put_cleaned(first.sources, put, needed=3 * sum(sizes))


def _merge_samples(job: Job, found: Sequence[tuple[Path, Share]]) -> StageResult:
    documents = job.sampled_documents()
    validation = job.validation(documents)
    first_folder, first = found[0]
    for name, sha256 in _sampled_inputs(job, validation).items():
        if first.inputs.get(name) != sha256:
            raise TwinGPTError(
                f"{first_folder} does not fit {job.workspace.folder}: it was made from another {name}: "
                "copy this DATA to all machines, then make the shares again"
            )
    size = sum((folder / LINES).stat().st_size for folder, _ in found)
    job.watcher.start("samples", size)

    def make(folder: Path) -> Report:
        tally = Tally()
        for _, share in found:
            tally.merge(Tally(**share.report))
        batches = [np.fromfile(share / BATCHES, dtype="<i8") for share, _ in found]
        if [len(one) for one in batches] != shares.dealt_out(sum(map(len, batches)), len(found)):
            raise TwinGPTError(f"{first_folder} and the others do not add up to all samples: make the shares again")
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context((share / LINES).open("rb")) for share, _ in found]
            target = stack.enter_context((folder / files.SAMPLES_FILE).open("wb"))
            for number in range(sum(map(len, batches))):
                place, turn = number % len(found), number // len(found)
                batch = int(batches[place][turn])
                spool.copy(lines[place], target, batch)
                job.watcher.advance(batch)
        return samples_report(tally, documents, validation, folder / files.SAMPLES_FILE)

    return job.workspace.run("samples", job.samples_key(), make, needed=size)
