"""What a check found, and how a report reaches the terminal."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from twingpt.core.language import mark, tr

if TYPE_CHECKING:
    from rich.console import Console

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question to the device.

    measured and tolerance share `unit`; both None where the check was skipped or could not be carried out.
    detail: what was looked at, or why not. advice: what to do if it failed.
    """

    engine: str
    device: str
    name: str
    status: Status
    measured: float | None = None
    tolerance: float | None = None
    unit: str = ""
    detail: str = ""
    advice: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def judged(
    measured: float, tolerance: float, *, engine: str, device: str, name: str, unit: str, detail: str, advice: str
) -> Check:
    """Passed if measured is at most the tolerance; NaN is not."""
    return Check(
        engine=engine,
        device=device,
        name=name,
        status="passed" if measured <= tolerance else "failed",
        measured=measured,
        tolerance=tolerance,
        unit=unit,
        detail=detail,
        advice=advice,
    )


@dataclass(kw_only=True)
class Report:
    """facts: tables of name and value, by title. notes: what is worth knowing, a line each."""

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.status == "failed"]

    def to_dict(self) -> dict[str, Any]:
        """For --json. A measured NaN or infinity, which JSON has no word for, becomes its name."""
        return {
            "passed": not self.failed,
            "facts": self.facts,
            "notes": self.notes,
            "checks": [_finite(check.to_dict()) for check in self.checks],
        }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    unfit = ("inf", "-inf", "nan")
    return {name: str(v) if isinstance(v, float) and str(v) in unfit else v for name, v in values.items()}


def verdict(report: Report) -> str:
    """One line: whether what this machine computes is right."""
    ran = [check for check in report.checks if check.status != "skipped"]
    places = list(
        dict.fromkeys(tr("{engine} on {device}", engine=check.engine, device=check.device) for check in report.checks)
    )
    skipped = len(report.checks) - len(ran)
    left_out = tr("; {skipped} skipped", skipped=skipped) if skipped else ""
    if not report.checks:
        return tr("Nothing was checked: no engine is installed.")
    if report.failed:
        return tr(
            "{failed} of {ran} checks failed ({places}){left_out}.",
            failed=len(report.failed),
            ran=len(ran),
            places=", ".join(places),
            left_out=left_out,
        )
    return tr(
        "Every check passed that this machine can run: {ran} ({places}){left_out}.",
        ran=len(ran),
        places=", ".join(places),
        left_out=left_out,
    )


def print_report(report: Report, *, details: bool = False) -> None:
    """The verdict, what failed with what to do, what is worth knowing; with `details` everything that was measured."""
    from rich.console import Console

    console = Console()
    console.print(verdict(report), markup=False, highlight=False, soft_wrap=True)
    for check in report.failed:
        line = tr("failed: {engine}, {check}: {detail}", engine=check.engine, check=tr(check.name), detail=check.detail)
        console.print(line, markup=False, highlight=False)
        console.print(tr("  what to do: {advice}", advice=check.advice), markup=False, highlight=False)
    for note in report.notes:
        console.print(tr("note: {note}", note=note), markup=False, highlight=False)
    if details:
        _print_details(report, console)
    else:
        console.print(tr("versions, this machine and every check: twingpt doctor --details"), highlight=False)


def _print_details(report: Report, console: Console) -> None:
    from rich.table import Table

    for title, rows in report.facts.items():
        table = Table(title=tr(title), show_header=False, title_justify="left")
        for name, value in rows.items():
            table.add_row(tr(name), str(value))
        console.print(table)
    table = Table(title=tr("checks"), title_justify="left")
    for column in (tr("engine"), tr("check"), tr("measured"), tr("tolerance"), tr("unit"), ""):
        table.add_column(column, overflow="fold")
    colours = {mark("passed"): "green", mark("failed"): "red", mark("skipped"): "yellow"}
    for check in report.checks:
        table.add_row(
            tr("{engine} on {device}", engine=check.engine, device=check.device),
            tr(check.name),
            "" if check.measured is None else f"{check.measured:.2g}",
            "" if check.tolerance is None else f"{check.tolerance:.2g}",
            tr(check.unit),
            f"[{colours[check.status]}]{tr(check.status)}[/]",
        )
    console.print(table)
    for check in report.checks:
        if check.status == "skipped":
            line = tr(
                "skipped: {engine}, {check}: {detail}", engine=check.engine, check=tr(check.name), detail=check.detail
            )
            console.print(line, markup=False, highlight=False)
