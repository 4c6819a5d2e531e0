"""One setting, told once: its default, what it may be, and what it means. The command line makes an option of it."""

from dataclasses import Field, field, fields
from typing import Any

from twingpt.core.errors import UsageError


def setting(
    default: Any, help: str, *, least: float | None = None, most: float | None = None, none: str | None = None
) -> Any:
    """A field of a dataclass of settings. least, most: its bounds. none: what it means to leave it out, where that is
    None."""
    return field(default=default, metadata={"help": help, "least": least, "most": most, "none": none})


def check_bounds(settings: Any) -> None:
    """Raises UsageError for a setting out of its bounds, by the name of its option."""
    for each in fields(settings):
        value = getattr(settings, each.name)
        least, most = each.metadata.get("least"), each.metadata.get("most")
        if value is None or ((least is None or value >= least) and (most is None or value <= most)):
            continue
        bounds = (
            f"{least:,} or more" if most is None else f"at most {most:,}" if least is None else f"{least:,} to {most:,}"
        )
        raise UsageError(f"{option_name(each)} {value} cannot be meant: give {bounds}")


def option_name(setting: "Field[Any]") -> str:
    """Its option on the command line."""
    return "--" + setting.name.replace("_", "-")
