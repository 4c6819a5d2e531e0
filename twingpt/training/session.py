"""From folders and options to a Trainer: what is checked, and in which order, before anything is written."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.checks.causality import probe_spec, startup_check
from twingpt.core import dropout
from twingpt.core.backend import Backend, DeviceChoice, create_backend, join_world
from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import os_reason, tr
from twingpt.core.memory import machine_memory
from twingpt.core.spec import GPTSpec, build
from twingpt.core.world import Alone, World, launched_for
from twingpt.data.files import ARRAYS
from twingpt.data.tokens.arrays import TokenArrays
from twingpt.data.tokens.batches import BatchSource
from twingpt.data.tokens.windows import STREAM, fixed_stream
from twingpt.training.config import CONFIG_FILE, RunConfig, TrainConfig, make_config, named_settings
from twingpt.training.estimate import GIB, LESS_MEMORY, USABLE, MemoryPlan, plan_memory, smaller_micro_batch
from twingpt.training.guards import check_disk
from twingpt.training.lock import RunLock
from twingpt.training.probe import probe
from twingpt.training.ranks import Watchdog, check_agreement, check_launcher, local_batch
from twingpt.training.recipe import LARGEST_COUNT
from twingpt.training.restart import RunningMark
from twingpt.training.soft_targets import TEACHERS, StoredTargets, stored_targets
from twingpt.training.sources import DataArrays, DataFolder, RunData
from twingpt.training.starting_point import StartingPoint
from twingpt.training.trainer import DROPOUT_STREAM, Trainer, check_resumable
from twingpt.weights.checkpoint import Checkpoint, CheckpointStore
from twingpt.weights.run_files import is_recorded, record_files

DEFAULT_PRESET = "seed"
PROBE_STEPS = 2
"""Steps of a trial: the first has all the memory of the others, unless a cache grows."""


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What the command line, or a program, asks for. model and train hold only the settings that were given."""

    run_dir: Path
    data_dir: Path | None
    """None: the run's own, or the arrays."""
    backend: str
    arrays: TokenArrays | None = None
    """What to train on instead of DATA."""
    device: DeviceChoice = "auto"
    preset: str | None = None
    """None: DEFAULT_PRESET for a new run."""
    config_file: Path | None = None
    resume: bool = False
    start_from: Path | None = None
    """A run or checkpoint with whose weights a new run begins."""
    moments: bool = False
    """Begin with its optimizer's moments too."""
    student: bool = False
    """A new run is to learn from the soft targets that its folder holds; one that goes on does so by itself."""
    memory_limit: float | None = None
    """GiB that the run may plan with; None: what the device or machine has."""
    probe_memory: bool | None = None
    """Try the micro-batch in a process of its own first; None: one that was chosen for a device other than the CPU."""
    rank_timeout: float = 300.0
    """Seconds that one of several ranks waits for the others before it gives up."""
    stop_at: int | None = None
    estimate_time: bool = True
    """The last two are for run_shown; several ranks must agree on them."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    trainer: Trainer
    backend: Backend
    config: RunConfig
    memory: MemoryPlan
    notes: list[str]
    """What the user should know before it starts, a line each."""
    lock: RunLock | None
    """No other process writes to the run while this is held; by rank 0, where there are several."""
    world: World


@dataclass(frozen=True)
class Resolved:
    """What a request means, with nothing checked against the machine yet.

    checkpoint: where the run goes on; None for its start. soft: what its teachers foretold, if it is a student.
    fingerprint: what makes it this run and no other. start: what a new run begins with, where that is not drawn from
    its seed.
    """

    config: RunConfig
    data: RunData
    checkpoint: Checkpoint | None
    soft: StoredTargets | None
    fingerprint: dict[str, str]
    notes: list[str]
    start: StartingPoint | None = None


@dataclass(frozen=True)
class Checked:
    """What was found fit to begin: the data, and how many sequences fit into memory at a time."""

    train: BatchSource
    val: BatchSource
    memory: MemoryPlan
    notes: list[str]


def open_session(request: TrainRequest) -> Session:
    """Resolve the request, check everything, then create or open the run: three steps, of which only the last writes.

    Where a launcher started this process as one of several ranks, it joins the others first.
    Raises TwinGPTError or UsageError, with nothing written, if the request cannot be carried out.
    """
    check_launcher(request.backend)
    _check_limits(request)
    watchdog = Watchdog(request.rank_timeout) if launched_for() is not None else None
    beat = watchdog.beat if watchdog else lambda: None
    world = join_world(request.backend, request.rank_timeout) if watchdog else Alone()
    beat()
    if world.rank == 0:
        # Before its checkpoints are looked at, of which the other process makes and deletes some at any moment.
        RunLock.check_free(request.run_dir)
    resolved = resolve(request)
    checked = check(request, resolved, world, beat)
    return open_run(request, resolved, checked, world, beat)


def _check_limits(request: TrainRequest) -> None:
    """What is no setting of the run, but a number that somebody gave. Asked so that a NaN is out of all bounds."""
    for option, value, most in (
        ("--memory-limit", request.memory_limit, 1e6),
        ("--rank-timeout", request.rank_timeout, 1e7),
        ("--stop-at", request.stop_at, float(LARGEST_COUNT)),
    ):
        if value is not None and not 0 < value <= most:
            raise UsageError(
                tr(
                    "{option} {value} cannot be meant: give a number above 0, up to {most:,.0f}",
                    option=option,
                    value=value,
                    most=most,
                )
            )


def resolve(request: TrainRequest) -> Resolved:
    """Preset, config file, options, the run's own folder and DATA, brought together; files are read, none is written.

    Raises UsageError for settings that cannot be meant, TwinGPTError for a run or DATA that cannot be used.
    """
    checkpoint, notes = _find_checkpoint(request)
    data = _data(request)
    start = _starting_point(request, data)
    config, more = _config(request, data, checkpoint, start)
    order = STREAM if config.train.cut == "anew" else fixed_stream()
    # The seed decides the data order and dropout, if the numbers are drawn from it in the same way: another one would
    # be another run.
    fingerprint = {**data.fingerprint(), "seed": str(config.train.seed), "order of batches": order}
    fingerprint[DROPOUT_STREAM] = dropout.STREAM
    more += _dropout_notes(config, checkpoint)
    recorded = None if checkpoint is None else checkpoint.progress.fingerprint
    soft = stored_targets(request.run_dir, fingerprint, recorded, new_student=request.student, resume=request.resume)
    if soft is not None:
        fingerprint[TEACHERS] = soft.fingerprint
        more.append(soft.note)
    return Resolved(config, data, checkpoint, soft, fingerprint, notes + more, start)


def check(request: TrainRequest, resolved: Resolved, world: World, beat: Callable[[], None]) -> Checked:
    """Whether the checkpoint belongs to the run, the data to the model, the chip computes right, and memory is enough.

    Nothing is written. Raises TwinGPTError or UsageError for the first of these that does not hold.
    """
    config = resolved.config
    if resolved.checkpoint is not None:
        check_resumable(config, resolved.fingerprint, resolved.checkpoint)
    else:
        resolved.data.check_new_run()
    if resolved.start is not None:
        resolved.start.begin(request.run_dir, config.model, config.train, resolved.fingerprint)
    train, val = resolved.data.batches(config.model.block_size, config.train.seed, config.train.cut)
    startup_check(request.backend, config.model, config.train.engine(request.device))
    beat()
    memory, halved = _plan_memory(request, config, local_batch(config.train.batch_size, world), beat)
    return Checked(train, val, memory, halved)


def open_run(
    request: TrainRequest, resolved: Resolved, checked: Checked, world: World, beat: Callable[[], None]
) -> Session:
    """Make the engine, agree with the other ranks, claim the folder, and make what trains.

    Raises TwinGPTError if the ranks disagree, another process trains the run, or its folder cannot be written to.
    """
    config, checkpoint = resolved.config, resolved.checkpoint
    backend = create_backend(request.backend, config.model, config.train.engine(request.device), world)
    together = {"--stop-at": str(request.stop_at), "--json": str(not request.estimate_time)}
    together["--from"] = resolved.start.digest if resolved.start else "nothing"
    check_agreement(world, config, resolved.fingerprint, checkpoint, together)
    first = world.rank == 0
    begun = None
    if resolved.start is not None:
        begun = resolved.start.begin(request.run_dir, config.model, config.train, resolved.fingerprint)
    lock = _open_folder(request.run_dir, resolved.data, config, checkpoint, begun) if first else None
    trainer = Trainer(
        request.run_dir,
        dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=checked.memory.micro_batch)),
        backend,
        checked.train,
        checked.val,
        token_bytes=resolved.data.token_bytes(config.model.vocab_size),
        fingerprint=resolved.fingerprint,
        write_sample=resolved.data.sample_writer(backend, config.train) if first else None,
        resume_from=begun or checkpoint,
        soft=resolved.soft,
        world=world,
        beat=beat,
    )
    return Session(trainer, backend, config, checked.memory, resolved.notes + checked.notes, lock, world)


def _open_folder(
    run_dir: Path, data: RunData, config: RunConfig, checkpoint: Checkpoint | None, begun: Checkpoint | None
) -> RunLock:
    """begun: of a new run, what it begins with, where that is not drawn from its seed."""
    check_disk(CheckpointStore(run_dir), config.model, config.train)
    lock = _claim(run_dir, checkpoint)
    try:
        data.copy_files(run_dir, new=checkpoint is None)
        if begun is not None:
            # Before the settings: a run that has them, and no checkpoint, begins again with weights from its seed.
            CheckpointStore(run_dir).save(begun.spec, begun.state, begun.progress)
        if checkpoint is None or checkpoint.progress.step < config.train.steps:
            config.save(run_dir)
            record_files(run_dir, [CONFIG_FILE])
    except OSError as error:
        raise TwinGPTError(
            tr("{run_dir} cannot be written to: {reason}", run_dir=run_dir, reason=os_reason(error))
        ) from None
    return lock


def _claim(run_dir: Path, checkpoint: Checkpoint | None) -> RunLock:
    """Raises TwinGPTError if another process trains the run, or has done so since the checkpoint was chosen."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwinGPTError(tr("{run_dir} cannot be made: {reason}", run_dir=run_dir, reason=os_reason(error))) from None
    lock = RunLock(run_dir)
    steps = CheckpointStore(run_dir).steps()
    if (checkpoint is None and steps) or (checkpoint is not None and checkpoint.progress.step not in steps):
        raise TwinGPTError(
            tr("{run_dir} was trained by another twingpt meanwhile: run the same command again", run_dir=run_dir)
        )
    return lock


def _plan_memory(
    request: TrainRequest, config: RunConfig, batch_size: int, beat: Callable[[], None]
) -> tuple[MemoryPlan, list[str]]:
    """(the plan, a line for each micro-batch that was tried and did not fit). batch_size: this rank's.

    Raises TwinGPTError if not even one sequence at a time fits into the user's own limit, or into memory.
    """
    # A small engine knows the device as well, and the run's own would take memory from the trial.
    device = create_backend(request.backend, probe_spec(config.model), config.train.engine(request.device))
    limit = device.memory_limit() or int(USABLE * machine_memory())
    if request.memory_limit is not None:
        limit = int(request.memory_limit * GIB)
    # A run that went on with more ranks may have a micro-batch that no longer divides what each has.
    micro_batch = math.gcd(config.train.micro_batch, batch_size) if config.train.micro_batch else 0
    spec = config.model
    train = dataclasses.replace(config.train, batch_size=batch_size, micro_batch=micro_batch)
    strict = request.memory_limit is not None
    plan = plan_memory(spec, train, device.name, device.device, limit, strict=strict)
    if plan.estimate.weights > limit:
        raise TwinGPTError(
            tr(
                "the model's weights alone take {weights:,.1f} GiB of the {limit:.1f} GiB that "
                "can be used here: choose a smaller n_layer, n_embd or vocabulary",
                weights=plan.estimate.weights / GIB,
                limit=limit / GIB,
            )
        )
    wanted = request.probe_memory
    if wanted is None:
        wanted = train.micro_batch == 0 and device.device != "cpu"
    halved: list[str] = []
    while wanted:
        tried = plan.micro_batch
        beat()
        result = probe(spec, train, request.backend, request.device, tried, PROBE_STEPS)
        if result.fits:
            break
        smaller = smaller_micro_batch(train.batch_size, tried)
        if smaller is None:
            raise TwinGPTError(
                tr(
                    "{reason}, with one sequence at a time: {advice}, or close other programs",
                    reason=result.reason,
                    advice=tr(LESS_MEMORY),
                )
            )
        halved.append(
            tr(
                "{tried} sequences at a time did not fit into memory in a trial ({reason}): {smaller} now",
                tried=tried,
                reason=result.reason,
                smaller=smaller,
            )
        )
        smaller_train = dataclasses.replace(train, micro_batch=smaller)
        plan = plan_memory(spec, smaller_train, device.name, device.device, limit, strict=strict)
    return plan, halved


def check_new(run_dir: Path) -> None:
    """Raises UsageError if the folder holds a run that has been trained."""
    if steps := CheckpointStore(run_dir).steps():
        raise UsageError(
            tr(
                "{run_dir} holds a run at step {step}: add --resume to go on with it, or choose another --out",
                run_dir=run_dir,
                step=steps[-1],
            )
        )


def _find_checkpoint(request: TrainRequest) -> tuple[Checkpoint | None, list[str]]:
    store = CheckpointStore(request.run_dir)
    if request.start_from is not None and request.resume:
        raise UsageError(tr("--from begins a new run, --resume goes on with one: give one of them"))
    if request.moments and request.start_from is None:
        raise UsageError(tr("--moments goes with --from: it says what else is taken of that run"))
    if not request.resume:
        check_new(request.run_dir)
        return None, []
    mark = RunningMark.read(request.run_dir)
    notes = [] if mark is None else [mark.advice]
    checkpoint, damaged = store.load_latest()
    if checkpoint is not None:
        return checkpoint, notes + [
            tr("{line}; using {checkpoint} instead", line=line, checkpoint=checkpoint.path.name) for line in damaged
        ]
    if damaged:
        raise TwinGPTError(tr("{run_dir} cannot be resumed: {reason}", run_dir=request.run_dir, reason=damaged[0]))
    if not (request.run_dir / CONFIG_FILE).is_file():
        raise TwinGPTError(tr("{run_dir} cannot be resumed: it holds no checkpoint", run_dir=request.run_dir))
    return None, [
        *notes,
        tr("{run_dir} ended before its first checkpoint: starting from step 0", run_dir=request.run_dir),
    ]


def _data(request: TrainRequest) -> RunData:
    if request.arrays is not None:
        return DataArrays(request.arrays)
    if request.data_dir is not None:
        return DataFolder.open(request.data_dir)
    if not request.resume:
        raise UsageError(tr("--data is missing: the folder that `twingpt prepare` wrote"))
    data = RunConfig.load(request.run_dir).data
    if data == ARRAYS:
        raise UsageError(
            tr(
                "{run_dir} was trained on arrays of tokens: go on in Python, with "
                "twingpt.train(RUN, data=(train_tokens, val_tokens), resume=True)",
                run_dir=request.run_dir,
            )
        )
    return DataFolder.open(Path(data))


def _starting_point(request: TrainRequest, data: RunData) -> StartingPoint | None:
    """Raises TwinGPTError if what --from names cannot be read, or knows other tokens than DATA."""
    if request.start_from is None:
        return None
    start = StartingPoint.read(request.start_from, moments=request.moments)
    start.check_tokenizer(data.fingerprint().get("tokenizer"), data.name)
    return start


def _config(
    request: TrainRequest, data: RunData, checkpoint: Checkpoint | None, start: StartingPoint | None
) -> tuple[RunConfig, list[str]]:
    """(the settings of the run, what should be known of them)."""
    if start is not None:
        config = start.make_config(request.preset, request.config_file, request.model, _train(request), data.name)
        config = _in_steps(config, data)
        notes = [*start.notes(config.train), *data.model_settings({})[1]]
    elif not request.resume:
        preset = request.preset or DEFAULT_PRESET
        named, _ = named_settings(None, request.config_file)
        own, notes = data.model_settings({**named, **request.model})
        model = {**own, **request.model}
        config = make_config(
            preset=preset, config_file=request.config_file, model=model, train=_train(request), data=data.name
        )
        config = _in_steps(config, data)
    else:
        stored = RunConfig.load(request.run_dir)
        config = RunConfig(
            model=build(GPTSpec, {**stored.model.to_dict(), **request.model}, "model"),
            train=build(TrainConfig, {**dataclasses.asdict(stored.train), **_train(request)}, "train"),
            data=data.name,
        )
        config = _in_steps(config, data)
        _check_named(request, config)
        notes = _schedule_notes(stored.train, config.train, checkpoint)
        if not is_recorded(request.run_dir, CONFIG_FILE):
            notes.append(
                tr(
                    "{file} is not as the run last wrote it: it goes on with what stands there",
                    file=request.run_dir / CONFIG_FILE,
                )
            )
    data.check_model(config.model)
    return dataclasses.replace(config, contacts=data.contacts, template=data.template), notes


def _train(request: TrainRequest) -> dict[str, Any]:
    """The settings of the training that were given: steps undo epochs that a file names. Raises UsageError for both."""
    given = dict(request.train)
    for steps, epochs in (
        ("steps", "epochs"),
        ("eval_every", "eval_epochs"),
        ("weight_decay", "decay_epochs"),
    ):
        if given.get(epochs) and steps in given:
            names = [f"--{name.replace('_', '-')}" for name in (steps, epochs)]
            raise UsageError(
                tr("{name} and {other} say the same thing: give one of them", name=names[0], other=names[1])
            )
        if steps in given:
            given[epochs] = 0.0
    return given


def _in_steps(config: RunConfig, data: RunData) -> RunConfig:
    windows = data.windows(config.model.block_size)
    return dataclasses.replace(config, train=config.train.in_steps(windows)) if windows else config


def _check_named(request: TrainRequest, config: RunConfig) -> None:
    """A run goes on as it is: a preset or a config file that says otherwise is refused, by the setting's name."""
    model, train = named_settings(request.preset, request.config_file)
    for section, named, settings in (("model", model, config.model), ("train", train, config.train)):
        for name, value in named.items():
            own = getattr(settings, name, None)
            if own != value and name not in getattr(request, section):
                raise UsageError(
                    tr(
                        "{section}.{name} = {value!r}, but {run_dir} has {own!r}: with --resume leave out "
                        "--preset and --config, or give the one setting that is to change as an option",
                        section=section,
                        name=name,
                        value=value,
                        run_dir=request.run_dir,
                        own=own,
                    )
                )


def _dropout_notes(config: RunConfig, checkpoint: Checkpoint | None) -> list[str]:
    """Other masks are no other run, as another rate of dropout is none, but they are no secret either."""
    if checkpoint is None or not config.model.dropout:
        return []
    if checkpoint.progress.fingerprint.get(DROPOUT_STREAM) == dropout.STREAM:
        return []
    return [
        tr(
            "from step {step} on, other values drop out than this run would have dropped in the "
            "version of twingpt that began it: as often, and the same however a batch is cut",
            step=checkpoint.progress.step + 1,
        )
    ]


def _schedule_notes(stored: TrainConfig, config: TrainConfig, checkpoint: Checkpoint | None) -> list[str]:
    """What more steps do to the learning rate of a run that goes on: its schedule is drawn anew over all of them."""
    if checkpoint is None or config.steps == stored.steps:
        return []
    step = checkpoint.progress.step
    before, after = (each.lr_schedule().learning_rate(step) for each in (stored, config))
    rate = tr("the learning rate goes on at {after:.3g}", after=after)
    if not math.isclose(before, after):
        rate += tr(" instead of {before:.3g}, as its schedule is drawn anew over all steps", before=before)
    return [
        tr(
            "{steps:,} steps instead of {stored_steps:,}: {rate}",
            steps=config.steps,
            stored_steps=stored.steps,
            rate=rate,
        )
    ]
