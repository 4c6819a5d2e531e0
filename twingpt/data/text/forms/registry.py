"""Every form that is read, one line each, in the order in which they are tried."""

from twingpt.data.text.forms import (
    csv_rows,
    docx,
    hwpx,
    json_text,
    kakaotalk,
    markdown,
    rich_text,
    subtitles,
    web_page,
)
from twingpt.data.text.forms.form import TextForm, ZippedForm

TEXT_FORMS: tuple[TextForm, ...] = (
    rich_text.RTF,
    json_text.JSON_LINES,
    json_text.JSON,
    subtitles.SUBTITLES,
    kakaotalk.WINDOWS,
    kakaotalk.MOBILE,
    kakaotalk.CSV,
    csv_rows.TABLE,
    # Notes about web pages are full of tags.
    markdown.MARKDOWN,
    web_page.HTML,
)
ZIPPED_FORMS: tuple[ZippedForm, ...] = (
    docx.DOCX,
    hwpx.HWPX,
)


def form_of(head: str) -> TextForm | None:
    """The form of a file by its first characters; None for text as it stands."""
    return next((form for form in TEXT_FORMS if form.recognise(head)), None)
