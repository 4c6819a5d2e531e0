"""`twingpt convert`: whole models with their tokenizer, from one format to another."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from twingpt.core.errors import NotFiniteError, TwinGPTError, UsageError
from twingpt.core.init import Weights
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec
from twingpt.core.state import MODEL, check_state, first_not_finite
from twingpt.data.files import TOKENIZER_FILE
from twingpt.data.prepare.settings import Contacts
from twingpt.data.tokens.marks import Template
from twingpt.interchange.chat_template import modelfile
from twingpt.interchange.foreign_tokenizer import ExportTokenizer, copy_foreign, template_of_export
from twingpt.interchange.hub_cache import from_hub_cache
from twingpt.interchange.model_card import CardFacts, CardOptions, write_card
from twingpt.training.config import RunConfig, TrainConfig
from twingpt.weights import gguf, huggingface
from twingpt.weights.checkpoint import (
    MODEL_FILE,
    CheckpointStore,
    Progress,
    load_checkpoint,
    read_progress,
)
from twingpt.weights.foreign import SOURCES, Source, detect_format, import_torch, load_pickle
from twingpt.weights.format import load_tensors
from twingpt.weights.huggingface import Types, export_hf, import_hf, read_json
from twingpt.weights.run_folder import check_tokenizer, template_of, trained_on_placeholders
from twingpt.weights.targets import TARGETS, Target, approximable, check

IMPORTED_FILE = "imported.json"
GGUF_FILE = "model.gguf"
DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The short names of types, as GGUF's users write them."""


@dataclass(frozen=True)
class WholeModel:
    """A model without its optimizer.

    types: in which the checkpoint that it was imported from keeps its tensors. tokenizer: the tokenizer.json that lay
    beside it, if any. masked: it was trained on placeholders for contacts. fingerprint: what the checkpoint says of the
    data and the tokenizer that it was trained with. template: what its training text was made into; None where nothing
    says so, and then it leaves as one that answers questions. run: the folder that it was trained in.
    """

    source: Source
    spec: GPTSpec
    weights: Weights
    step: int
    tokenizer: Path | None
    types: Types = field(default_factory=Types)
    masked: bool = False
    fingerprint: dict[str, str] = field(default_factory=dict)
    template: Template | None = None
    run: Path | None = None


def convert_model(
    source: Path,
    target: Path,
    to: str,
    tokenizer: Path | None,
    *,
    dtype: str | None = None,
    approximate: str | None = None,
    expect: str | None = None,
    card: CardOptions | None = None,
) -> list[str]:
    """Read `source`, whatever it is, and write the folder `target`. Returns what its owner should know, in lines.

    source: a file, a folder, or the id of a model on the Hub that lies in its local cache.
    dtype: of the tensors there; None: that of the checkpoint that the model was imported from, else float32.
    approximate: "gelu" lets a format that has only the tanh approximation have an exact GELU.
    expect: the format that `source` should have; None: whichever it has. card: what its owner says of the model, for
    the README.md beside it, which a native checkpoint does without.
    Raises UsageError for an option that cannot be meant, TwinGPTError if the source cannot be read, the format cannot
    hold the model or the target exists; nothing is left at `target` then.
    """
    wanted = _target(to)
    _check_options(wanted, dtype, approximate, expect)
    if wanted == "native" and card not in (None, CardOptions()):
        raise UsageError(
            tr("--language, --license and --figures go into a model card, which a native checkpoint has not")
        )
    if target.exists():
        raise UsageError(tr("{target} exists: choose another folder, or delete it first", target=target))
    model = read_model(from_hub_cache(source))
    if expect is not None and model.source != expect:
        raise UsageError(
            tr(
                "{source} is of the format {model_source}, not {expect}",
                source=source,
                model_source=model.source,
                expect=expect,
            )
        )
    if tokenizer is not None:
        model = dataclasses.replace(model, tokenizer=tokenizer)
    if model.tokenizer is not None and not model.tokenizer.is_file():
        raise TwinGPTError(tr("{tokenizer} does not exist", tokenizer=model.tokenizer))
    if model.tokenizer is not None:
        sha256 = hashlib.sha256(model.tokenizer.read_bytes()).hexdigest()
        check_tokenizer(model.tokenizer, sha256, model.fingerprint)
    notes = []
    if approximate is not None and approximable(wanted, model.spec):
        model, note = _approximated(model)
        notes.append(note)
    check(wanted, model.spec)
    if dtype is not None:
        model = dataclasses.replace(model, types=Types(DTYPES.get(dtype, dtype)))
    with _folder_in_one_piece(target) as folder:
        if wanted == "native":
            _write_native(folder, model)
        elif wanted == "gguf":
            _write_gguf(folder, target.name, model)
        else:
            _write_hf(folder, model, mlx_lm=wanted == "mlx-lm")
        if wanted != "native":
            write_card(folder, _facts(model, target.name, wanted), card or CardOptions())
    return notes


def read_model(source: Path) -> WholeModel:
    """Raises TwinGPTError, or UsageError if `source` is nothing that twingpt knows; NotFiniteError for weights that no
    format should be made of.
    """
    model = _read(source)
    if (key := first_not_finite(model.weights)) is not None:
        raise NotFiniteError(str(source), key)
    return model


def _read(source: Path) -> WholeModel:
    kind = detect_format(source)
    if kind == "torch":
        found, spec, weights, step = import_torch(source, load_pickle)
        return WholeModel(found, spec, weights, step, _beside(source.parent))
    if kind == "hf":
        spec, weights, types = import_hf(source)
        return WholeModel("hf", spec, weights, 0, _beside(source), types, template=template_of_export(source))
    if source.is_file():
        spec, tensors, _ = load_tensors(source)
        try:
            check_state(spec, {MODEL + name: tensor for name, tensor in tensors.items()})
        except TwinGPTError as error:
            raise TwinGPTError(tr("{source} is not a whole model: {error}", source=source, error=error)) from None
        return WholeModel("native", spec, tensors, 0, _beside(source.parent))
    checkpoint = load_checkpoint(source, optimizer=False)
    weights = {k.removeprefix(MODEL): v for k, v in checkpoint.state.items() if k.startswith(MODEL)}
    run = checkpoint.path.parent.parent
    types, masked = _types(run, checkpoint.path), trained_on_placeholders(run)
    return WholeModel(
        "native",
        checkpoint.spec,
        weights,
        checkpoint.progress.step,
        _beside(run),
        types,
        masked,
        checkpoint.progress.fingerprint,
        template_of(run),
        run,
    )


def _target(name: str) -> Target:
    for target in TARGETS:
        if target == name:
            return target
    raise UsageError(tr("--to {name}: choose one of {choices}", name=name, choices=", ".join(TARGETS)))


def _check_options(target: Target, dtype: str | None, approximate: str | None, expect: str | None) -> None:
    choices = {"native": (), "gguf": gguf.DTYPES}.get(target, huggingface.DTYPES)
    if dtype is not None and DTYPES.get(dtype, dtype) not in choices:
        if target == "native":
            raise UsageError(tr("--dtype: a native checkpoint is always float32"))
        raise UsageError(
            tr("--dtype {dtype}: {target} takes {choices}", dtype=dtype, target=target, choices=", ".join(choices))
        )
    if approximate not in (None, "gelu"):
        raise UsageError(tr("--approximate {approximate}: only gelu can be approximated", approximate=approximate))
    if expect is not None and expect not in SOURCES:
        raise UsageError(tr("--from {expect}: choose one of {choices}", expect=expect, choices=", ".join(SOURCES)))


def _beside(folder: Path) -> Path | None:
    path = folder / TOKENIZER_FILE
    return path if path.is_file() else None


def _types(run: Path, checkpoint: Path) -> Types:
    """Those of the checkpoint that a run was imported from, as long as it has not been trained on."""
    if not (run / IMPORTED_FILE).is_file():
        return Types()
    record = read_json(run / IMPORTED_FILE)
    if record.get("model") != read_progress(checkpoint)[1].get(MODEL_FILE):
        return Types()
    try:
        types = Types(**record["types"])
        names = {types.usual, *types.others.values()}
    except (KeyError, TypeError, AttributeError):
        names = {""}
    if not names <= set(huggingface.DTYPES):
        raise TwinGPTError(tr("{path} is damaged: delete it, and name the type with --dtype", path=run / IMPORTED_FILE))
    return types


def _write_native(folder: Path, model: WholeModel) -> None:
    state = {MODEL + name: weight for name, weight in model.weights.items()}
    fingerprint = {}
    if model.tokenizer is not None:
        tokenizer = ExportTokenizer.load(model.tokenizer, model.spec)
        content = model.tokenizer.read_bytes() if tokenizer is None else tokenizer.tokenizer.content.encode()
        (folder / TOKENIZER_FILE).write_bytes(content)
        copy_foreign(model.tokenizer.parent, folder)
        # Resuming on data of another tokenizer would train on with tokens that mean something else.
        fingerprint = {"tokenizer": hashlib.sha256(content).hexdigest()}
    saved = CheckpointStore(folder).save(model.spec, state, Progress(step=model.step, fingerprint=fingerprint))
    contacts: Contacts = "mask" if model.masked else "keep"
    RunConfig(model=model.spec, train=TrainConfig(), data="", contacts=contacts, template=model.template or "").save(
        folder
    )
    if model.types != Types():
        record = {"model": read_progress(saved)[1][MODEL_FILE], "types": dataclasses.asdict(model.types)}
        (folder / IMPORTED_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _write_hf(folder: Path, model: WholeModel, *, mlx_lm: bool) -> None:
    if mlx_lm and model.tokenizer is None:
        raise TwinGPTError(tr("mlx-lm needs the tokenizer: name its tokenizer.json with --tokenizer"))
    generation = {}
    config = {}
    if model.tokenizer is not None:
        tokenizer = ExportTokenizer.load(model.tokenizer, model.spec, model.template or "qa")
        if tokenizer is None:
            generation = copy_foreign(model.tokenizer.parent, folder)
            config = {name: generation[name] for name in generation if name in ("bos_token_id", "eos_token_id")}
            shutil.copyfile(model.tokenizer, folder / TOKENIZER_FILE)
        else:
            tokenizer.write(folder, model.spec.block_size)
            config, generation = tokenizer.model_ids(), tokenizer.generation(model.spec.block_size)
    export_hf(
        folder,
        model.spec,
        model.weights,
        config=config,
        generation=generation,
        types=model.types,
        bare_names=mlx_lm,
    )


def _write_gguf(folder: Path, name: str, model: WholeModel) -> None:
    if model.tokenizer is None:
        raise TwinGPTError(tr("a GGUF file holds the tokenizer: name its tokenizer.json with --tokenizer"))
    tokenizer = ExportTokenizer.load(model.tokenizer, model.spec, model.template or "qa")
    if tokenizer is None:
        raise TwinGPTError(
            tr("{tokenizer} is not one that twingpt made: GGUF takes no other from it", tokenizer=model.tokenizer)
        )
    vocabulary = tokenizer.vocabulary()
    gguf.export_gguf(folder / GGUF_FILE, name, model.spec, model.weights, vocabulary, model.types.usual)
    recipe = modelfile(GGUF_FILE, model.spec.block_size, tokenizer.template)
    (folder / "Modelfile").write_text(recipe, encoding="utf-8")


def _approximated(model: WholeModel) -> tuple[WholeModel, str]:
    """The model with the tanh GELU, and a line that says what it costs."""
    from twingpt.interchange.approximate import activation_error

    changed = dataclasses.replace(model, spec=dataclasses.replace(model.spec, activation="gelu_tanh"))
    tokenizer = None if model.tokenizer is None else ExportTokenizer.load(model.tokenizer, model.spec)
    error = activation_error(model.weights, model.spec, changed.spec, None if tokenizer is None else tokenizer.encode)
    return changed, tr("tanh GELU in place of the exact one: {error}", error=error)


def _facts(model: WholeModel, name: str, target: Target) -> CardFacts:
    exported = None if model.tokenizer is None else ExportTokenizer.load(model.tokenizer, model.spec)
    return CardFacts(
        name=name,
        target=target,
        spec=model.spec,
        step=model.step,
        template=model.template,
        masked=model.masked,
        tokenizer=None if exported is None else exported.tokenizer,
        fingerprint=model.fingerprint,
        run=model.run,
    )


@contextmanager
def _folder_in_one_piece(target: Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is whole."""
    writing = target.with_name(f".writing-{target.name}")
    shutil.rmtree(writing, ignore_errors=True)
    try:
        writing.mkdir(parents=True)
        yield writing
        writing.rename(target)
    except OSError as error:
        raise TwinGPTError(tr("{target} could not be written: {error}", target=target, error=error)) from None
    finally:
        shutil.rmtree(writing, ignore_errors=True)
