"""Curves as pictures: SVG that takes its colours from the page around it, and PNG for everywhere else."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr
from twingpt.report.words import WORDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float]

MAX_POINTS = 800
"""More than a picture can show: of a longer curve, means of neighbours are drawn."""

SMOOTH_FROM = 60
"""Points from which on a noisy curve gets its running mean, the curve itself faint behind it."""

LIGHT = {
    "ink": "#1d1f1e",
    "soft": "#5f635f",
    "line": "#e4dfd4",
    "s1": "#0b6f61",
    "s2": "#b94a15",
    "s3": "#3f5fbf",
    "s4": "#8a3ea8",
    "s5": "#8a6800",
    "s6": "#b3264e",
}
SERIES = [name for name in LIGHT if name.startswith("s") and name != "soft"]
# Colours that nothing else has: each becomes a CSS variable of the page.
_SENTINELS = {name: f"#0102{number:02x}" for number, name in enumerate(LIGHT, 3)}
_PAPER = "#ffffff"
HANGUL_FONTS = (
    "Apple SD Gothic Neo",
    "AppleGothic",
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
)
_SIZE = (4.6, 2.5)


@dataclass(frozen=True, kw_only=True)
class Line:
    """label: for the legend. smooth: noisy, so that its running mean is what the eye should follow."""

    label: str
    points: Sequence[Point]
    colour: str
    smooth: bool = False
    marks: bool = False

    @property
    def smoothed(self) -> bool:
        return self.smooth and len(self.points) >= SMOOTH_FROM


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One picture. name: in WORDS, perhaps with what it is drawn over; prefixes: k and M on its y axis.

    verticals: x of dashed lines. spikes: where crosses are.
    """

    name: str
    lines: list[Line]
    prefixes: bool = False
    verticals: Sequence[float] = ()
    spikes: Sequence[Point] = ()
    from_zero: bool = False

    @property
    def title(self) -> str:
        name, _, over = self.name.partition("-over-")
        return f"{WORDS[name][0]}, over {over or 'steps'}"

    @property
    def drawn(self) -> bool:
        return any(line.points for line in self.lines)


def require_matplotlib() -> None:
    """Raises TwinGPTError, before anything is read or written, if there is nothing to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise TwinGPTError(
            tr("a report needs matplotlib, which is not installed: pip install 'twingpt[report]'")
        ) from None


def svg(panel: Panel) -> str:
    """An <svg> element without ids that others on the page have, whose colours are var(--ink), var(--s1) and so on."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": panel.name}):
        buffer = io.StringIO()
        _figure(panel, _SENTINELS).savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # Its rules would hold for the whole page; and what it says of its maker is no one's here.
    text = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|url\(#|href="#)', rf"\g<1>{panel.name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for name, colour in _SENTINELS.items():
        text = text.replace(colour, f"var(--{name})")
    return text.strip()


def png(panel: Panel, path: Path) -> None:
    """Raises TwinGPTError if the file cannot be written."""
    import matplotlib as mpl
    from matplotlib.font_manager import get_font_names

    fonts = ["DejaVu Sans", *(name for name in HANGUL_FONTS if name in get_font_names())]
    try:
        # Without one of those fonts, a Korean name is boxes, and each of them would be a warning.
        with mpl.rc_context({"font.family": fonts}), warnings.catch_warnings(action="ignore", category=UserWarning):
            _figure(panel, LIGHT, legend=True).savefig(path, format="png", dpi=200, facecolor=_PAPER)
    except OSError as error:
        raise TwinGPTError(tr("{path} cannot be written: {reason}", path=path, reason=os_reason(error))) from None


def _figure(panel: Panel, colours: dict[str, str], *, legend: bool = False) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.subplots()
    for line in panel.lines:
        points = thin(line.points)
        if not points:
            continue
        xs, ys = zip(*points, strict=True)
        colour = colours[line.colour]
        marker = "o" if (line.marks and len(points) <= 40) or len(points) == 1 else None
        style: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.6}
        if line.smoothed:
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(xs, smoothed(ys), label=line.label, **style)
        else:
            axes.plot(xs, ys, label=line.label, **style)
    for x in panel.verticals:
        axes.axvline(x, color=colours["soft"], linewidth=1, linestyle="--")
    if panel.spikes:
        axes.plot(*zip(*panel.spikes, strict=True), "x", color=colours["s6"], markersize=6)
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if panel.prefixes else "{x:g}")
    axes.grid(color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=colours["soft"], length=0, labelsize=9)
    if legend:
        axes.set_title(panel.title, fontsize=10, color=colours["ink"], loc="left")
        if len(panel.lines) > 1:
            for text in axes.legend(frameon=False, fontsize=8).get_texts():
                # A run may be called anything, $ included.
                text.set_parse_math(False)
    return figure


def thin(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS of them: means over groups of neighbours."""
    if len(points) <= MAX_POINTS:
        return list(points)
    size = -(-len(points) // MAX_POINTS)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over a thirtieth of the curve, of as many values behind as ahead, so that they never lag."""
    half, out = max(1, len(values) // 60), []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        out.append(sum(values[place - reach : place + reach + 1]) / (2 * reach + 1))
    return out
