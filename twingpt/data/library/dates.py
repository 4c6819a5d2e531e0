"""When a document was written, as far as its own text, or the name of its file, says."""

import re

_MONTH, _DAY = "(1[0-2]|0?[1-9])", r"(3[01]|[12]\d|0?[1-9])"
# A number of four digits alone is a price or a part of a telephone number.
_DATE = re.compile(
    rf"(?<![\d-])((?:19|20)\d\d)(?:\s?년(?:\s?{_MONTH}\s?월(?:\s?{_DAY}\s?일)?)?"
    rf"|\s?[.\-/]\s?{_MONTH}(?!\d)(?:\s?[.\-/]\s?{_DAY}(?!\d))?)"
)


# In a file's name a date may stand without marks: guide_20240301.txt.
_PACKED = re.compile(r"(?<!\d)((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])?(?!\d)")
_YEAR = re.compile(r"(?<!\d)(?:19|20)\d\d(?!\d)")


def newest_date(text: str) -> str:
    """The latest date that a text names, as YYYY-MM-DD, YYYY-MM or YYYY; "" where it names none.

    A guide that was brought up to date names older dates too: the latest one says how far it reaches.
    """
    dates = ("-".join(part.zfill(2) for part in match.groups() if part) for match in _DATE.finditer(text))
    return max(dates, default="")


def date_of_name(file: str) -> str:
    """The latest date in the name of a file, in the form of `newest_date`; a year may stand alone there."""
    name = re.split(r"[/\\]", file)[-1].replace("_", " ")
    packed = ("-".join(part for part in match.groups() if part) for match in _PACKED.finditer(name))
    years = (match.group() for match in _YEAR.finditer(name))
    return max([newest_date(name), *packed, *years])
