"""RUN/sessions.jsonl: which engine, device and machine trained a run, from which step on."""

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from twingpt.checks.machine import machine, versions
from twingpt.core.backend import Backend
from twingpt.core.engines import find_engine
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.weights.format import write_whole

SESSIONS_FILE = "sessions.jsonl"


@dataclass(frozen=True, kw_only=True)
class SessionRecord:
    """One process, or one group of ranks, that trained a run: what it began with.

    step: updates done before it. started: UTC, ISO 8601. machine, versions: as `doctor` tells them, no names or paths.
    """

    step: int
    started: str
    backend: str
    device: str
    ranks: int = 1
    micro_batch: int = 0
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def record_session(run_dir: Path, step: int, backend: Backend, ranks: int, micro_batch: int) -> None:
    """Add what begins here, in place of the sessions that began at `step` or later: nothing that they did is left."""
    facts = machine()
    gpu = find_engine(backend.name).device_name(backend.device)
    if gpu is not None:
        facts["gpu"] = gpu
    session = SessionRecord(
        step=step,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        backend=backend.name,
        device=backend.device,
        ranks=ranks,
        micro_batch=micro_batch,
        machine=facts,
        versions=versions(),
    )
    kept = [earlier for earlier in read_sessions(run_dir) if earlier.step < step]
    content = "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in (*kept, session))
    try:
        write_whole(run_dir / SESSIONS_FILE, content.encode())
    except OSError as error:
        raise TwinGPTError(
            tr("{path} cannot be written: {reason}", path=run_dir / SESSIONS_FILE, reason=os_reason(error))
        ) from None


def read_sessions(run_dir: Path) -> list[SessionRecord]:
    """Oldest first; none for a run of before they were recorded. A line that cannot be read is passed over."""
    try:
        lines = (run_dir / SESSIONS_FILE).read_bytes().split(b"\n")
    except OSError:
        return []
    return [session for line in lines if (session := _parsed(line)) is not None]


def _parsed(line: bytes) -> SessionRecord | None:
    known = {each.name for each in fields(SessionRecord)}
    try:
        values: dict[str, Any] = json.loads(line)
        return SessionRecord(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return None
