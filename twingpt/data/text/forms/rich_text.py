"""RTF, read with striprtf, which knows its code pages."""

from collections.abc import Iterator

from twingpt.data.text.forms.form import ReadAs, TextForm, whole


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    from striprtf.striprtf import rtf_to_text

    yield rtf_to_text(whole(pieces, read_as), encoding="cp949", errors="replace")


RTF = TextForm("RTF", lambda head: head.lstrip("\ufeff \r\n").startswith("{\\rtf"), _read)
