"""`twingpt report`: one run told whole."""

import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from twingpt.core.engines import engines
from twingpt.core.spec import GPTSpec
from twingpt.measure.chips import this_chip
from twingpt.report.history import History, read_data, read_history
from twingpt.report.page import MIB, require_packages, value, write_page
from twingpt.report.plots import Line, Panel
from twingpt.training.record import SessionRecord
from twingpt.weights.targets import Target, approximable, family_of, obstacles

REPORT_FILE = "report.html"
PROGRAMS: dict[Target, str] = {"hf": "transformers", "mlx-lm": "mlx-lm", "gguf": "llama.cpp, Ollama, LM Studio"}
FAMILIES = {"gpt2": "GPT-2", "llama": "Llama", "qwen3": "Qwen3"}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Whether a format takes this model. reasons: what it has no place for; empty if it has a place for all."""

    target: Target
    program: str
    family: str
    reasons: str
    approximable: bool


def write_report(run_dir: Path, data_dir: Path | None, out: Path | None) -> list[Path]:
    """The page of a run and its pictures, by default in its folder. Returns the files, the page first.

    Raises TwinGPTError if there is no such run, nothing was logged in it yet, DATA cannot be read, or a package is
    missing.
    """
    require_packages()
    history = read_history(run_dir)
    data = read_data(history, data_dir)
    figures = history.figures
    return write_page(
        out or run_dir / REPORT_FILE,
        "report.html",
        panels(history),
        history=history,
        figures=figures,
        framework=framework,
        chip_share=_chip_share(history, figures.flops),
        data=data,
        spec=history.config.model.to_dict(),
        recipe=asdict(history.config.train),
        openings=openings(history.config.model),
        run=shlex.quote(str(run_dir) if not run_dir.is_absolute() else run_dir.name),
        data_name=shlex.quote(
            str(data_dir) if data_dir and not data_dir.is_absolute() else data.name if data else "DATA"
        ),
    )


def framework(session: SessionRecord) -> str:
    """What a session's engine computed with, and its version; the engine may be one that is not here."""
    packages = next((engine.packages for engine in engines() if engine.name == session.backend), ())
    return ", ".join(f"{package} {session.versions.get(package, '–')}" for package in packages) or "–"


def panels(history: History) -> list[Panel]:
    spikes = [(line["step"], line["spike_loss"]) for line in history.asides if "spike_loss" in line]
    memory = [(step, size / MIB) for step, size in history.points("memory")]

    def one(
        name: str, points: list[tuple[float, float]], colour: str, *, prefixes: bool = False, marks: bool = False
    ) -> Panel:
        line = Line(label=name, points=points, colour=colour, smooth=name == "gradient-norm", marks=marks)
        return Panel(
            name=name,
            lines=[line],
            prefixes=prefixes,
            from_zero=name in ("learning-rate", "memory"),
            verticals=history.handovers,
        )

    averaged = history.points("average_val_loss")
    return [
        Panel(
            name="loss",
            lines=[
                Line(label="training", points=history.points("loss"), colour="s1", smooth=True),
                Line(label="validation", points=history.points("val_loss"), colour="s2", marks=True),
                *([Line(label="averaged", points=averaged, colour="s3", marks=True)] if averaged else []),
            ],
            spikes=spikes,
            verticals=history.handovers,
        ),
        one("bits-per-byte", history.points("bits_per_byte"), "s2", marks=True),
        one("learning-rate", history.points("lr"), "s3"),
        one("gradient-norm", history.points("grad_norm"), "s4"),
        one("tokens-per-second", history.points("tokens_per_second"), "s1", prefixes=True),
        one("memory", memory, "s5"),
    ]


def openings(spec: GPTSpec) -> list[Opening]:
    found = []
    for target, program in PROGRAMS.items():
        in_the_way = obstacles(target, spec)
        found.append(
            Opening(
                target=target,
                program=program,
                family=FAMILIES[family_of(spec)],
                reasons=", ".join(f"{name} {value(getattr(spec, name))}" for name in in_the_way),
                approximable=approximable(target, spec),
            )
        )
    return found


def _chip_share(history: History, flops: float | None) -> str | None:
    """Of what the GPU can do at most, where the report is made on the one chip that trained and its limit is known."""
    chip = this_chip()
    trained_here = all(each.machine.get("chip") == chip.name and each.device != "cpu" for each in history.sessions)
    several = any(each.ranks > 1 for each in history.sessions)
    if flops is None or chip.flops is None or not history.sessions or not trained_here or several:
        return None
    return f"{flops / chip.flops:.0%}"
