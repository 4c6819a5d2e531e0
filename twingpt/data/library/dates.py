"""When a document was written, as far as its own text says."""

import re

_MONTH, _DAY = "(1[0-2]|0?[1-9])", r"(3[01]|[12]\d|0?[1-9])"
# A number of four digits alone is a price or a part of a telephone number.
_DATE = re.compile(
    rf"(?<![\d-])((?:19|20)\d\d)(?:\s?년(?:\s?{_MONTH}\s?월(?:\s?{_DAY}\s?일)?)?"
    rf"|\s?[.\-/]\s?{_MONTH}(?!\d)(?:\s?[.\-/]\s?{_DAY}(?!\d))?)"
)


def newest_date(text: str) -> str:
    """The latest date that a text names, as YYYY-MM-DD, YYYY-MM or YYYY; "" where it names none.

    A guide that was brought up to date names older dates too: the latest one says how far it reaches.
    """
    dates = ("-".join(part.zfill(2) for part in match.groups() if part) for match in _DATE.finditer(text))
    return max(dates, default="")
