"""Subtitles (.srt, .vtt, .smi, .ass), read with pysubs2: what is said, without numbers, times and marks of style."""

import re
from collections.abc import Iterator

from twingpt.core.language import mark
from twingpt.data.text.forms.form import ReadAs, TextForm, whole

# Silence that a scene ends in, in milliseconds.
_PAUSE = 8000
_BEGINNINGS = {
    "srt": re.compile(r"\s*\d+[ \t]*\r?\n\d{1,2}:\d\d:\d\d[,.]\d{1,3} --> \d"),
    "vtt": re.compile(r"WEBVTT\b"),
    "sami": re.compile(r"\s*<SAMI\b", re.IGNORECASE),
    "ass": re.compile(r"\s*\[Script Info\]"),
}


def _format(head: str) -> str | None:
    beginning = head.lstrip("\ufeff")
    return next((name for name, pattern in _BEGINNINGS.items() if pattern.match(beginning)), None)


def _read(pieces: Iterator[str], read_as: ReadAs) -> Iterator[str]:
    import pysubs2

    text = whole(pieces, read_as).lstrip("\ufeff")
    end, before = 0, ""
    for event in pysubs2.SSAFile.from_string(text, format_=_format(text)):
        said = " ".join(event.plaintext.replace("\xa0", " ").split())
        if event.start - end > _PAUSE and before:
            yield "\n"
        end = event.end
        # Captions that roll on say each line twice.
        if said and said != before:
            yield f"{said}\n"
            before = said
    read_as.changes.count(mark("subtitles read without numbers and times"))


SUBTITLES = TextForm("subtitles", lambda head: _format(head) is not None, _read)
