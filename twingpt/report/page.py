"""The pages: one HTML file each, that loads nothing and runs nothing."""

import locale
import os
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twingpt import __version__
from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.report.plots import Panel, png, require_matplotlib, svg
from twingpt.report.words import LANGUAGES, WORDS

if TYPE_CHECKING:
    from jinja2 import Environment

MIB = 1024**2


def require_packages() -> None:
    """Raises TwinGPTError that names the extra, before anything is read or written."""
    require_matplotlib()
    try:
        import jinja2  # noqa: F401
    except ImportError:
        raise TwinGPTError(tr("a report needs jinja2, which is not installed: pip install 'twingpt[report]'")) from None


def write_page(path: Path, template: str, panels: list[Panel], **values: Any) -> list[Path]:
    """Fill a template and draw its pictures, into the page and beside it. Returns the files written, the page first.

    Raises TwinGPTError if one cannot be written.
    """
    drawn = [panel for panel in panels if panel.drawn]
    html = (
        _environment()
        .get_template(template)
        .render(
            pictures=[(panel, svg(panel)) for panel in drawn],
            smoothed=any(line.smoothed for panel in drawn for line in panel.lines),
            language=default_language(),
            when=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            version=__version__,
            **values,
        )
    )
    files = [path, *(path.with_name(f"{path.stem}-{panel.name}.png") for panel in drawn)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None
    for panel, file in zip(drawn, files[1:], strict=True):
        png(panel, file)
    return files


def default_language() -> str:
    """The one that the page opens in: that of the person who makes it."""
    named = next(filter(None, (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))), "")
    return "ko" if (named or locale.getlocale()[0] or "").lower().startswith("ko") else "en"


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    # Escaping is on for everything: a sample is a model's text, and a run may be called anything.
    made = Environment(
        loader=PackageLoader("twingpt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    theme = Markup((Path(__file__).parents[1] / "theme.css").read_text(encoding="utf-8"))
    made.globals.update(t=partial(_in_both, False), block=partial(_in_both, True), languages=LANGUAGES, words=WORDS)
    made.globals.update(theme=theme)
    made.filters.update(count=count, figure=figure, bytes=size, duration=duration)
    made.filters.update(value=value, tera=tera, readable=readable)
    return made


def _in_both(block: bool, key: str, /, **values: object) -> Any:
    from markupsafe import Markup

    tag = "p" if block else "span"
    texts = (text.format(**values) for text in WORDS[key])
    parts = (
        Markup('<{0} lang="{1}">{2}</{0}>').format(tag, language, text)
        for language, text in zip(LANGUAGES, texts, strict=True)
    )
    return Markup("").join(parts)


def count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def figure(number: float | None) -> str:
    return "–" if number is None else f"{number:.4f}"


def size(number: float | None) -> str:
    if number is None:
        return "–"
    for unit, whole in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= whole:
            return f"{number / whole:.1f} {unit}"
    return f"{number:.0f} B"


def duration(seconds: float | None) -> str:
    return "–" if seconds is None else str(timedelta(seconds=round(seconds)))


def tera(flops: float | None) -> str:
    if flops is None:
        return "–"
    return f"{flops / 1e12:.2f} TFLOP/s" if flops >= 1e12 else f"{flops / 1e9:.1f} GFLOP/s"


def readable(text: str) -> str:
    """A sample without U+FFFD, which stands for bytes of a young model that are no letter."""
    return text.replace("\ufffd", "")


def value(setting: object) -> str:
    """A setting as config.toml has it."""
    if isinstance(setting, bool):
        return str(setting).lower()
    return f"{setting:g}" if isinstance(setting, float) else str(setting)
