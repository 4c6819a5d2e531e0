"""`train --from RUN`: a new run that begins with the weights of another one, for text that came later.

It is a run of its own: its steps count from 0, and so do its schedule and its order of batches. What it begins with
becomes its checkpoint of step 0, so that it can be resumed whatever becomes of the other run.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twingpt.core.errors import TwinGPTError, UsageError
from twingpt.core.language import tr
from twingpt.core.spec import GPTSpec, build
from twingpt.core.state import check_state, initial_state, state_optimizer, weights_only
from twingpt.data.files import TOKENIZER_FILE
from twingpt.training.config import CONFIG_FILE, RunConfig, TrainConfig, named_settings
from twingpt.weights.checkpoint import Checkpoint, CheckpointStore, Progress, load_checkpoint, read_progress


@dataclass(frozen=True)
class StartingPoint:
    """given: what the user named. checkpoint: with the optimizer's state if `moments`, else weights alone.

    train: how its run was trained; None for a checkpoint that lies in no run.
    """

    given: Path
    checkpoint: Checkpoint
    moments: bool
    train: TrainConfig | None

    @classmethod
    def read(cls, given: Path, *, moments: bool) -> "StartingPoint":
        """Raises TwinGPTError if there is no checkpoint, or moments are wanted that it does not have."""
        checkpoint = load_checkpoint(given, optimizer=moments)
        if moments and state_optimizer(checkpoint.state) is None:
            raise TwinGPTError(
                tr("{checkpoint} holds weights alone, without moments: leave out --moments", checkpoint=checkpoint.path)
            )
        run = checkpoint.path.parent.parent
        train = RunConfig.load(run).train if (run / CONFIG_FILE).is_file() else None
        return cls(given, checkpoint, moments, train)

    @property
    def digest(self) -> str:
        """What the checkpoint's files hold, by which several ranks know that they begin with the same."""
        return " ".join(sorted(read_progress(self.checkpoint.path)[1].values())) + (" moments" if self.moments else "")

    def make_config(
        self,
        preset: str | None,
        config_file: Path | None,
        model: dict[str, Any],
        train: dict[str, Any],
        data: str,
    ) -> RunConfig:
        """The model's own shape, trained as it was or, where a preset or a file is named, as that says.

        Raises UsageError for a setting that no model of this shape has; only dropout may differ, which is no shape.
        """
        named_model, named_train = named_settings(preset, config_file)
        own, asked = self.checkpoint.spec.to_dict(), {**named_model, **model}
        for name, value in asked.items():
            if name != "dropout" and name in own and own[name] != value:
                raise UsageError(
                    tr(
                        "model.{name} = {value!r}, but {given} has {own!r}: weights keep the shape of their "
                        "model, so leave that setting out",
                        name=name,
                        value=value,
                        given=self.given,
                        own=own[name],
                    )
                )
        # A name that no model has is refused where the others are.
        model_settings = {**own, **asked}
        base = {} if self.train is None else {**dataclasses.asdict(self.train), "micro_batch": 0}
        return RunConfig(
            model=build(GPTSpec, model_settings, "model"),
            train=build(TrainConfig, {**(named_train if preset or config_file else base), **train}, "train"),
            data=data,
        )

    def check_tokenizer(self, sha256: str | None, data: str) -> None:
        """Raises TwinGPTError if DATA was packed with another tokenizer; where either does not say, sizes decide."""
        own = self.checkpoint.progress.fingerprint.get("tokenizer")
        if None not in (own, sha256) and own != sha256:
            raise TwinGPTError(
                tr(
                    "{data} was packed with another {tokenizer_file} than {given} was trained with "
                    "({there}… there, {here}… here): "
                    "run `twingpt prepare` with --tokenizer {given}",
                    data=data,
                    tokenizer_file=TOKENIZER_FILE,
                    given=self.given,
                    there=sha256[:12] if sha256 else "",
                    here=own[:12] if own else "",
                )
            )

    def begin(self, run_dir: Path, spec: GPTSpec, train: TrainConfig, fingerprint: dict[str, str]) -> Checkpoint:
        """The checkpoint of step 0 of the new run; nothing is written yet.

        Raises TwinGPTError if the moments are those of another optimizer.
        """
        state = initial_state(spec, train.seed, train.optimizer)
        found = self.checkpoint.state if self.moments else weights_only(self.checkpoint.state)
        try:
            check_state(spec, found, train.optimizer)
        except TwinGPTError as error:
            raise TwinGPTError(
                tr(
                    "{checkpoint}: {error}: leave out --moments, or name that optimizer",
                    checkpoint=self.checkpoint.path,
                    error=error,
                )
            ) from None
        progress = Progress(step=0, fingerprint=fingerprint)
        return Checkpoint(CheckpointStore(run_dir).path(0), spec, {**state, **found}, progress)

    def notes(self, train: TrainConfig) -> list[str]:
        """What the new run begins with, and what its learning rate will do."""
        step, loss = self.checkpoint.progress.step, self.checkpoint.progress.val_loss
        measured = "" if loss is None else tr(", validation loss {loss:.3f} on its own text", loss=loss)
        moments = tr("its optimizer's moments") if self.moments else tr("moments of zero")
        schedule = train.lr_schedule()
        rate = tr(
            "from {learning_rate:.3g}, {warmup_steps:,} steps of warm-up to {peak:.3g}",
            learning_rate=schedule.learning_rate(0),
            warmup_steps=train.warmup_steps,
            peak=schedule.peak,
        )
        if not train.warmup_steps:
            rate = tr("{peak:.3g} from the first step on", peak=schedule.peak)
        then = (
            "constant"
            if train.schedule == "constant"
            else tr("{schedule} down to {floor:.3g}", schedule=train.schedule, floor=schedule.floor)
        )
        before = ""
        if self.train is not None:
            before = tr(
                "; {given} had come to {learning_rate:.3g}",
                given=self.given,
                learning_rate=self.train.lr_schedule().learning_rate(max(0, step - 1)),
            )
        return [
            tr(
                "begins with the weights of {checkpoint} (step {step:,}{measured}) and {moments}",
                checkpoint=self.checkpoint.path,
                step=step,
                measured=measured,
                moments=moments,
            ),
            tr(
                "a new schedule over {steps:,} steps: {rate}, then {then}{before}",
                steps=train.steps,
                rate=rate,
                then=then,
                before=before,
            ),
        ]
