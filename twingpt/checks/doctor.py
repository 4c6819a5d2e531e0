"""The whole examination."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from twingpt.checks import machine
from twingpt.checks.arithmetic import CHECKS, Subject
from twingpt.checks.findings import Check, Report
from twingpt.core.backend import DeviceChoice
from twingpt.core.engines import find_engine, how_to_install, installed_backends
from twingpt.core.language import mark, tr


def run_doctor(device: DeviceChoice = "auto", progress: Callable[[str], None] | None = None) -> Report:
    """Examine every installed engine on this machine. progress: told what is being checked.

    A check that cannot be carried out has failed, and says why; nothing is raised for it.
    """
    report = Report(
        facts={mark("versions"): machine.versions(), mark("machine"): machine.machine()}, notes=machine.notes()
    )
    names = installed_backends()
    if not names:
        report.notes.append(tr("no engine is installed: {advice}", advice=how_to_install()))
    for name in names:
        try:
            engine = find_engine(name).operations(device)
        except Exception as error:
            # A framework that is installed but broken, or the device asked for is not there.
            report.checks.append(_broken(name, device, "the engine starts", error))
            continue
        try:
            report.facts[name] = engine.facts()
        except Exception as error:
            report.notes.append(
                tr("what {name} says of its devices cannot be read: {error}", name=name, error=_line(error))
            )
        subject = Subject(engine, device)
        for title, check in CHECKS.items():
            if progress is not None:
                progress(f"{name} on {engine.device}: {title}")
            report.checks += _carried_out(subject, title, check)
    return report


def _carried_out(subject: Subject, title: str, check: Callable[[Subject], Iterator[Check]]) -> list[Check]:
    found: list[Check] = []
    try:
        found.extend(check(subject))
    except Exception as error:
        # A device can fail in any way at all: an operation without a kernel, no memory, a compiler that is missing.
        found.append(_broken(subject.engine.name, subject.engine.device, title, error))
    return found


def _broken(engine: str, device: str, name: str, error: Exception) -> Check:
    return Check(
        engine=engine,
        device=device,
        name=name,
        status="failed",
        detail=_line(error),
        advice=tr("use the other engine (--backend) or --device cpu, or install another release of the framework"),
    )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
