"""HTML: of a whole page its main text, found by trafilatura; of a fragment all of its text, laid out by inscriptis."""

import logging
import re
from collections.abc import Iterator

from twingpt.core.language import mark
from twingpt.data.text.forms.form import ReadAs, TextForm, whole

_PAGE = re.compile(
    r"\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL
)
_TAG = re.compile(
    r"</?(?:p|br|div|span|a|ul|ol|li|h[1-6]|table|tbody|tr|td|th|b|i|u|em|strong|font|img|hr|blockquote|pre|article|"
    r"section)\b[^<>]*>",
    re.IGNORECASE,
)
# Main text shorter than this may be a caption that was taken for it.
_LEAST_SHARE = 0.1


def is_page(head: str) -> bool:
    """Whether a whole page begins here, and no fragment."""
    return _PAGE.match(head.lstrip("\ufeff")) is not None


def _is_html(head: str) -> bool:
    if is_page(head):
        return True
    beginning = head.lstrip("\ufeff")
    sample = beginning[:65536]
    tags = _TAG.findall(sample)
    if _TAG.match(sample.lstrip()) is not None and len(tags) >= 2:
        return True
    # Elsewhere a few tags are part of what somebody wrote about.
    return len(tags) >= 10 and sum(map(len, tags)) > 0.1 * len(sample)


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    html = whole(pieces, read_as).lstrip("\ufeff")
    if not is_page(html):
        yield laid_out(html)
        return
    everything = laid_out(html)
    main = _main_text(html)
    if len(main) < _LEAST_SHARE * len(everything):
        read_as.changes.count(mark("web pages read whole, as no main text stands out"))
        yield everything
        return
    read_as.changes.count(mark("web pages read without menus, comments and other matter around their text"))
    yield main


def laid_out(html: str) -> str:
    """All visible text of some HTML, paragraphs and rows of tables on lines of their own."""
    from inscriptis import get_text

    return get_text(re.sub(r"\s*<\?xml[^>]*\?>", "", html)) if html.strip() else ""


def _main_text(html: str) -> str:
    import trafilatura
    from trafilatura.settings import use_config

    # It tells the terminal what it thinks of a broken page.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    config = use_config()
    # The defaults pass over a short note, and take the menu in with the whole page instead.
    config.set("DEFAULT", "MIN_EXTRACTED_SIZE", "30")
    config.set("DEFAULT", "MIN_OUTPUT_SIZE", "1")
    config.set("DEFAULT", "EXTRACTION_TIMEOUT", "0")
    text = trafilatura.extract(html, config=config, include_comments=False, include_tables=True) or ""
    metadata = trafilatura.extract_metadata(html)
    title = (metadata.title if metadata is not None else None) or ""
    # Cells stand between bars.
    text = re.sub(r"^\|[-|: ]+\|\s*$\n?", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\|\s*(.*?)\s*\|\s*$", lambda row: re.sub(r"\s*\|\s*", " ", row[1]), text, flags=re.MULTILINE)
    return f"{title}\n{text}" if text and title and title not in text[: len(title) + 40] else text


HTML = TextForm("HTML", _is_html, _read)
