"""Telephone numbers of the Philippines and Korea: found, judged and written in one form.

The one written form is phonenumbers' international format with blanks only: `+63 2 8555 0123`, `+63 917 555 0123`,
`+82 2 3210 0404`, an extension as ` 내선 12`. A number given without its area code (`8555-0123`) cannot be dialled as
`+63 8555 0123`, so it keeps its digits: `8555 0123`. Short codes (`911`) stay as they are.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

# Emergencies, police, fire, MMDA, Red Cross, utilities, hotlines of government offices.
_PHILIPPINES = "911 117 136 143 160 163 166 168 1300 1322 1326 1343 1348 1349 1383 1555 1626 1627 2920 8888 16211 16565"
# Emergencies, immigration, government call centres.
_KOREA = "110 111 112 113 114 117 118 119 120 128 129 132 182 1330 1332 1339 1345 1350 1355 1366 1372 1388 1393"
SHORT_CODES = frozenset(f"{_PHILIPPINES} {_KOREA}".split())

_GROUP = r"[ ]?[-–.·]?[ ]?"
# The shape only; `read_number` judges the digits. Parentheses belong to country and area codes, never to later groups.
_SHAPE = re.compile(
    rf"(?:\(?\+[ ]?\d{{1,3}}\)?(?:{_GROUP}\(0\))?|\(\d{{2,4}}\)|\d{{1,12}})"
    rf"(?:{_GROUP}\(\d{{1,4}}\))?(?:{_GROUP}\d{{1,12}}){{0,5}}"
)
_EXTENSION = re.compile(
    r"[ ,]{0,2}\(?(?:내선(?:번호)?|구내|[Ll]oc(?:al)?\.?|LOCAL|[Ee]xt(?:ension)?\.?|EXT\.?)[ :]{0,2}(\d{1,5})(?!\d)\)?"
)
_GROUP_END = re.compile(r"\d\)?(?=[ .·(–-]|$)")
# What stands right before or after digits that are an amount, a date, a time or an identifier.
_BEFORE_NOT = re.compile(r"(?:[\w₱$€¥￦#/@=]|\d[.,:-]|[A-Za-z][-.])$")
_AFTER_NOT = re.compile(
    r"[ ]?(?:원|페소|달러|만|천|억|년|월|일|시|분|개|명|장|층|호|평|%|％|°|kg|km|m²|㎡|pesos?\b|PHP\b|USD\b|KRW\b)"
    r"|:\d|,\d{3}|[A-Za-z_@]|[-–.]\d"
)
_IDENTIFIER = re.compile(
    r"(?:계좌|여권|접수|사건|예약|송장|운송장|카드|회원|사업자|등록|증권|참조|주문|티켓|항공권|허가|면허|납세|주민|우편|고객|관리"
    r"|[Aa]ccount|ACCOUNT|[Pp]assport|TIN|SSS|ACR|[Rr]ef(?:erence)?|[Zz]ip|[Ii]nvoice|[Pp]ermit|[Ll]icen[sc]e)"
    r"[ ]?(?:번호|[Nn]o\.?|[Nn]umber|#|ID)?[ ]?(?:은|는|이|가|[:：.])?[ ]*$"
)
_DATE = re.compile(
    r"(?:19|20)\d\d[-. ]{1,2}\d{1,2}[-. ]{1,2}\d{1,2}\.?$|\d{1,2}[-.]\d{1,2}[-.](?:19|20)\d\d$"
    r"|(?:19|20)\d\d[-~](?:19|20)?\d\d$"
)
_KOREA_CUE = re.compile(
    r"서울|외교부|영사콜|한국에서|한국 번호|국내에서|국내 번호|Seoul|부산|인천|대한민국 본사|한국 본사"
)
# Numbers without an area code that only exist in Korea.
_KOREAN_SERVICE = re.compile(r"(?:15|16|18)\d\d[ -]?\d{4}$")


# The longest number in use after the country code; one that is merely possible may not be longer.
_NATIONAL_DIGITS = 10


@dataclass(frozen=True, slots=True)
class Number:
    """A telephone number in a text: text[start:end] as found, `written` in the one form."""

    start: int
    end: int
    written: str


def digits(text: str) -> str:
    """The decimal digits of `text`."""
    return re.sub(r"\D", "", text)


def korea_is_meant(line: str, position: int) -> bool:
    """Whether the words before a number at `position` say that it is dialled in Korea (default: the Philippines)."""
    return _first_cue_end(line) <= position


@lru_cache(maxsize=8)
def _first_cue_end(line: str) -> int:
    # Asked for at every number of a line: looking through the words before each would take the square of its length.
    match = _KOREA_CUE.search(line)
    return len(line) + 1 if match is None else match.end()


@lru_cache(maxsize=65536)
def _judge(found: str, korea: bool, labelled: bool) -> str | None:
    """The written form of `found`, or None where it is no number: valid without a label, possible after one."""
    bare = re.sub(r"\(0\)", "", found)
    # What is dialled before a country code: 00 in the Philippines, 001 and the like in Korea.
    bare = re.sub(r"^00(?:[1-9]|7\d\d|)[- ]?(?=(?:63|82)[- (]?\d)", "+", bare)
    only = digits(bare)
    if not 7 <= len(only) <= 15:
        return None
    if (
        "+" not in bare
        and re.match(r"63[ -]?\(?(?:2|9\d\d|[3-8]\d)\)?|82[ -]?\(?(?:2|10|[3-7]\d)\)?", bare)
        and len(only) >= 10
    ):
        bare = "+" + bare.lstrip("(")
    if "+" in bare:
        return _international(bare, labelled)
    if _KOREAN_SERVICE.match(bare):
        return f"+82 {only[:4]} {only[4:]}" if labelled else None
    if not bare.lstrip("(").startswith("0") and not only.startswith("1800"):
        # No trunk prefix: a number without its area code, trusted only after a label.
        if labelled and bare[0] == "9" and len(only) == 10:
            return _valid(only, "PH")
        return " ".join(re.findall(r"\d+", bare)) if labelled and len(only) <= 8 else None
    if not korea and re.match(r"\(?02\)?", bare) and len(only) == 9:
        # 02 and seven digits: Manila before 2019, or Seoul today. It takes a word about Korea to make it Seoul.
        return _by_groups(bare, "63") if labelled else None
    regions = ("KR", "PH") if korea else ("PH", "KR")
    for region in regions:
        if (written := _valid(bare, region)) is not None:
            return written
    return (
        _by_groups(bare, "82" if korea else "63")
        if labelled and len(only) <= _NATIONAL_DIGITS + 1 and _possible(bare, regions[0])
        else None
    )


def _parse(text: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None


def _possible(text: str, region: str | None) -> bool:
    number = _parse(text, region)
    return number is not None and phonenumbers.is_possible_number(number)


def _valid(text: str, region: str | None) -> str | None:
    number = _parse(text, region)
    if number is None or not phonenumbers.is_valid_number(number):
        return None
    written = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    return written.replace("-", " ")


def _international(text: str, labelled: bool) -> str | None:
    if (written := _valid(text, None)) is not None:
        return written
    country = re.search(r"\+\s?(63|82)", text)
    if not labelled or country is None or not _possible(text, None):
        return None
    national = text[country.end() :]
    return _by_groups(national, country[1]) if len(digits(national)) <= _NATIONAL_DIGITS else None


def _by_groups(text: str, country: str) -> str:
    """A possible, not valid number: its own groups, the trunk 0 replaced by the country code."""
    groups = re.findall(r"\d+", text)
    groups[0] = groups[0].removeprefix("0")
    return " ".join([f"+{country}", *(group for group in groups if group)])


def read_number(text: str, position: int, *, labelled: bool, korea: bool = False) -> Number | None:
    """The longest telephone number that starts exactly at `position`, or None.

    labelled: the words before say that a telephone number follows, so a possible number or a local one suffices.
    """
    shape = _SHAPE.match(text, position)
    if shape is None:
        return None
    found = shape[0]
    ends = [m.end() for m in _GROUP_END.finditer(found)]
    for end in reversed(ends):
        piece = found[:end]
        if _AFTER_NOT.match(text, position + end) or _DATE.match(piece):
            continue
        if text.startswith(")", position + end) and piece.count("(") > piece.count(")"):
            piece, end = piece + ")", end + 1
        if piece.count("(") != piece.count(")"):
            continue
        written = _judge(piece, korea, labelled)
        if written is not None:
            return _with_extension(text, position, position + end, written)
    return None


def _with_extension(text: str, start: int, end: int, written: str) -> Number:
    extension = _EXTENSION.match(text, end)
    if extension is None:
        return Number(start, end, written)
    stop = extension.end()
    if extension[0].endswith(")") and "(" not in extension[0]:
        stop -= 1
    return Number(start, stop, f"{written} 내선 {extension[1]}")


_SHORT = re.compile(
    r"\d{3,5}(?!\d|[ ]?(?:원|페소|달러|만|천|억|년|월|일|시간|시|분|개|명|장|층|호|평|건|통|%|kg|km|m)"
    r"|[-.,:/~–]\d|[A-Za-z])"
)


def read_short_code(text: str, position: int, *, known_only: bool) -> Number | None:
    """An emergency or service number of 3-5 digits at `position`; known_only: only those in SHORT_CODES."""
    match = _SHORT.match(text, position)
    if match is None or (known_only and match[0] not in SHORT_CODES):
        return None
    return Number(match.start(), match.end(), match[0])


# A short code in running text is one to call when its neighbours say so: "911에 신고", "경찰 112".
_CALLED = re.compile(
    r"(?:(?<=긴급 )|(?<=경찰 )|(?<=소방 )|(?<=구급 )|(?<=구조 )|(?<=신고 )|(?<=응급 ))"
    r"\d{3,4}(?!\d|[ ]?[가-힣]|[-,.:/~]\d)"
    r"|(?<![\d.,:/₱$+-])\d{3,5}"
    r"(?=번?(?:으로|로|에)[ ]?(?:바로 |먼저 |즉시 )?(?:전화|신고|연락|문의|물어|알리|알려))"
)


# More than the longest match of `_CALLED` or `_BARE_START` with all that it looks ahead at.
_REACH = 64


def find_short_codes(line: str, start: int, end: int) -> Iterator[Number]:
    """Known short codes that running text tells the reader to call, beginning in line[start:end]."""
    for match in _CALLED.finditer(line, start, end + _REACH):
        if match.start() >= end:
            return
        if match[0] in SHORT_CODES:
            yield Number(match.start(), match.end(), match[0])


_BARE_START = re.compile(r"\(?\+[ ]?(?:63|82)|\(0\d{1,3}\)|0\d|63[ -]?\(?[29]|82[ -]?\(?[12]|1[ -]?800[ -]?1")


def find_numbers(line: str, start: int, end: int) -> Iterator[Number]:
    """Numbers without a label that begin in line[start:end]: valid for the Philippines or Korea, and no amount, date or
    identifier. What stands after `end` is seen: a unit or a date there decides whether it is one.
    """
    position = start
    while (match := _BARE_START.search(line, position, end + _REACH)) is not None:
        position = match.end()
        begin = match.start()
        if begin >= end:
            return
        before = line[max(0, begin - 24) : begin]
        # Hangul may touch a number ("전화02-..."); Latin letters and digits may not.
        if _BEFORE_NOT.search(re.sub(r"[가-힣]$", " ", before)) or _IDENTIFIER.search(before):
            continue
        number = read_number(line, begin, labelled=False, korea=korea_is_meant(line, begin))
        if number is not None:
            yield number
            position = number.end
