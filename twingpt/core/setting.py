"""One setting, told once: its default, what it may be, and what it means. The command line makes an option of it."""

import math
from dataclasses import Field, field, fields
from typing import Any

from twingpt.core.errors import UsageError
from twingpt.core.language import mark, tr

LARGEST_SEED = 2**63 - 1
"""What TOML, SQLite and both frameworks can hold."""


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    none: str | None = None,
) -> Any:
    """A field of a dataclass of settings. least, most: its bounds; above, below: those that it must not reach.

    none: what it means to leave it out, where that is None.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    return field(default=default, metadata={"help": help, "none": none, **bounds})


def check_bounds(settings: Any, section: str | None = None) -> None:
    """Raises UsageError for a setting out of its bounds, by the name of its option, or of its place in a section.

    A number that is not finite is out of any bounds, named or not.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        least, most, above, below = (each.metadata.get(name) for name in ("least", "most", "above", "below"))
        # Asked so that a NaN is out of all bounds.
        if value is None or (
            (least is None or value >= least)
            and (most is None or value <= most)
            and (above is None or value > above)
            and (below is None or value < below)
            and not (isinstance(value, float) and not math.isfinite(value))
        ):
            continue
        words = {
            mark("at least {bound:,}"): least,
            mark("above {bound:,}"): above,
            mark("at most {bound:,}"): most,
            mark("below {bound:,}"): below,
        }
        bounds = tr(" and ").join(tr(word, bound=bound) for word, bound in words.items() if bound is not None)
        if section is not None:
            raise UsageError(
                tr(
                    "{section}.{setting} = {value}: it must be {bounds}",
                    section=section,
                    setting=each.name,
                    value=value,
                    bounds=bounds or tr("a finite number"),
                )
            )
        if least is not None and above is None and below is None:
            bounds = (
                tr("{least:,} or more", least=least)
                if most is None
                else tr("{least:,} to {most:,}", least=least, most=most)
            )
        raise UsageError(
            tr(
                "{option} {value} cannot be meant: give {bounds}",
                option=option_name(each),
                value=value,
                bounds=bounds or tr("a finite number"),
            )
        )


def option_name(setting: "Field[Any]") -> str:
    """Its option on the command line."""
    return "--" + setting.name.replace("_", "-")
