"""What a plan says: whether n machines help, as a table for people and as plain values for a program."""

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from twingpt.core.backend import BackendName
from twingpt.core.language import tr
from twingpt.core.params import parameter_count
from twingpt.core.spec import GPTSpec
from twingpt.measure.cost import FLOAT, HELPS, MOST, Cost, Machine, helps_from, predict, speed_up
from twingpt.measure.links import Link
from twingpt.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """machines: how many together, each number of them a column of the table."""

    spec: GPTSpec
    config: TrainConfig
    backend: BackendName
    machine: Machine
    links: list[Link]
    machines: list[int]

    @property
    def alone(self) -> Cost:
        # No link is used, so any will do.
        return predict(self.spec, self.config, self.backend, self.machine, self.links[0], 1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One link and number of machines. cost None: they cannot share the batch evenly. from_batch: see helps_from."""

    link: Link
    machines: int
    batch_size: int
    alone: Cost
    cost: Cost | None
    from_batch: int | None

    @property
    def speed_up(self) -> float | None:
        return speed_up(self.cost, self.alone) if self.cost else None

    @property
    def verdict(self) -> str:
        if self.speed_up is None:
            return tr("a batch of {batch_size} cannot be shared evenly", batch_size=self.batch_size)
        if self.speed_up >= HELPS:
            return f"yes: {self.speed_up:.1f}x"
        short = tr("slower than one") if self.speed_up < 1.0 else tr("only {speed_up:.2f}x", speed_up=self.speed_up)
        later = (
            tr("from batch_size {from_batch:,} on", from_batch=self.from_batch)
            if self.from_batch
            else tr("nor up to batch_size {most:,}", most=MOST)
        )
        return tr("no: {short}; {later}", short=short, later=later) + (tr(" it helps") if self.from_batch else "")


def plans(request: PlanRequest) -> list[Plan]:
    """A plan for each link and number of machines, links outermost."""
    spec, config, backend, machine = request.spec, request.config, request.backend, request.machine

    def plan(link: Link, machines: int) -> Plan:
        even = config.batch_size % machines == 0
        return Plan(
            link=link,
            machines=machines,
            batch_size=config.batch_size,
            alone=request.alone,
            cost=predict(spec, config, backend, machine, link, machines) if even else None,
            from_batch=helps_from(spec, config, backend, machine, link, machines),
        )

    return [plan(link, machines) for link in request.links for machines in request.machines]


def to_dict(request: PlanRequest, found: list[Plan]) -> dict[str, Any]:
    """For --json: all figures, times in seconds."""
    return {
        "machine": asdict(request.machine),
        "backend": request.backend,
        "parameters": parameter_count(request.spec),
        "gradient_bytes": FLOAT * parameter_count(request.spec),
        "batch_size": request.config.batch_size,
        "block_size": request.spec.block_size,
        "one": _figures(request.alone),
        "plans": [
            {
                "link": asdict(plan.link),
                "machines": plan.machines,
                "helps": plan.speed_up is not None and plan.speed_up >= HELPS,
                "speed_up": plan.speed_up,
                "from_batch_size": plan.from_batch,
                **(_figures(plan.cost) if plan.cost else {}),
            }
            for plan in found
        ],
    }


def _figures(cost: Cost) -> dict[str, float]:
    named = {name: value for name, value in asdict(cost).items() if name not in ("machines", "tokens")}
    return {**named, "step": cost.step, "tokens_per_second": cost.tokens_per_second}


def print_plans(request: PlanRequest, found: list[Plan], console: Console) -> None:
    spec, config, machine, alone = request.spec, request.config, request.machine, request.alone
    parameters = parameter_count(spec)
    for line in (
        tr(
            "{machine}: {flops:.3g} TFLOP/s in training ({source})",
            machine=machine.name,
            flops=machine.flops / 1e12,
            source=machine.source,
        ),
        tr(
            "{parameters:,} parameters, {megabytes:,.0f} MB of gradients an update, batch "
            "{batch_size} x {block_size} tokens, {backend}",
            parameters=parameters,
            megabytes=FLOAT * parameters / 1e6,
            batch_size=config.batch_size,
            block_size=spec.block_size,
            backend=request.backend,
        ),
        tr(
            "one machine: {step} an update, {tokens_per_second:,.0f} tokens/s",
            step=_time(alone.step),
            tokens_per_second=alone.tokens_per_second,
        ),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(found) == 1:
        _print_one(found[0], console)
    else:
        _print_table(found, console)
    marks = [plan.link.title for plan in found if plan.link.estimate]
    if marks:
        console.print(tr("* {link}: its speed is an estimate", link=marks[0]), style="dim", highlight=False)


def _print_table(found: list[Plan], console: Console) -> None:
    numbers = list(dict.fromkeys(plan.machines for plan in found))
    table = Table(tr("do they help?"), *(tr("{number} machines", number=number) for number in numbers))
    for link in dict.fromkeys(plan.link for plan in found):
        row = [plan for plan in found if plan.link == link]
        table.add_row(_titled(link), *(_cell(plan) for plan in row))
    console.print(table)


def _titled(link: Link) -> str:
    return f"{link.title}{'*' if link.estimate else ''}\n{link.gbits:g} Gbit/s, {link.latency_ms:g} ms"


def _cell(plan: Plan) -> str:
    if plan.cost is None:
        return plan.verdict
    return (
        f"{plan.verdict.replace('; ', chr(10))}\n{_time(plan.cost.step)}, {plan.cost.tokens_per_second:,.0f} tokens/s"
    )


def _print_one(plan: Plan, console: Console) -> None:
    console.print(
        tr(
            "{machines} machines over {link}: {verdict}",
            machines=plan.machines,
            link=plan.link.title,
            verdict=plan.verdict,
        ),
        highlight=False,
        soft_wrap=True,
    )
    if plan.cost is None:
        return
    table = Table(tr("an update"), tr("1 machine"), tr("{number} machines", number=plan.machines), show_edge=False)
    pairs = [(plan.alone, plan.cost)]
    for name, attribute in (
        (tr("forward and backward"), "compute"),
        (tr("communication"), "communication"),
        (tr("  not hidden by the backward pass"), "exposed"),
        (tr("copies of the gradients"), "copies"),
        (tr("clipping and optimizer"), "update"),
        (tr("in all"), "step"),
    ):
        table.add_row(name, *(_time(getattr(cost, attribute)) for cost in pairs[0]))
    table.add_row("tokens/s", *(f"{cost.tokens_per_second:,.0f}" for cost in pairs[0]))
    console.print(table)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{seconds * 1000:.1f} ms"
