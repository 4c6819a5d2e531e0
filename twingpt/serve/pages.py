"""The page's files, read once: what is not in this table cannot be asked for."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from twingpt.core.errors import TwinGPTError
from twingpt.core.language import os_reason, tr

STATIC = Path(__file__).parent / "static"
THEME = Path(__file__).parents[1] / "theme.css"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Page:
    content: bytes
    type: str
    etag: str


def load_pages() -> dict[str, Page]:
    """By path below /static/; "index.html" is the page itself.

    The charts are uPlot's, from the package uplot-python: a tenth of what plotly or bokeh would load, and drawn on a
    canvas, so that the content security policy needs no exception.
    """
    pages = {path.name: _page(path) for path in (THEME, *STATIC.iterdir()) if path.suffix in TYPES}
    library = importlib.util.find_spec("uplot")
    if library is None or not library.submodule_search_locations:
        raise TwinGPTError(tr("the page needs uplot-python for its charts: pip install 'twingpt[serve]'"))
    static = Path(library.submodule_search_locations[0]) / "static"
    pages["vendor/uPlot.js"] = _page(static / "uPlot.iife.js")
    pages["vendor/uPlot.min.css"] = _page(static / "uPlot.min.css")
    return pages


def _page(path: Path) -> Page:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TwinGPTError(
            tr("{path} cannot be read ({reason}): install twingpt[serve] again", path=path, reason=os_reason(error))
        ) from None
    return Page(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
