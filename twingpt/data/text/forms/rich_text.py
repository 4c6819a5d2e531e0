"""RTF, read with striprtf, which knows its code pages."""

from collections.abc import Iterator

from twingpt.data.text.forms.form import ReadAs, TextForm, whole


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    from striprtf.striprtf import rtf_to_text

    text = whole(pieces, read_as)
    try:
        yield rtf_to_text(text, encoding="cp949", errors="replace")
    except TypeError as error:
        # What the library makes of a control word without its number.
        raise ValueError(str(error)) from None


RTF = TextForm("RTF", lambda head: head.lstrip("\ufeff \r\n").startswith("{\\rtf"), _read)
