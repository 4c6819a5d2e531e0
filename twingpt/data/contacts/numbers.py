"""Telephone numbers: found, judged and written in one form.

The one written form is phonenumbers' international format with blanks only: `+63 2 8555 0123`, `+63 917 555 0123`,
`+82 2 3210 0404`, an extension as ` 내선 12`. A number of seven digits without its area code (`555-0123`) cannot be
dialled as `+63 555 0123`, so it keeps its digits: `555 0123`; eight digits in text of the Philippines are Manila's.
Korean service numbers (`1588-0000`) stay as they are, since +82 does not reach them from abroad, and so do short codes
(`911`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import phonenumbers

from twingpt.data.contacts import labels as L
from twingpt.data.contacts.signs import BOTH

DEFAULT_COUNTRY = "PH"
COUNTRIES: frozenset[str] = frozenset(phonenumbers.SUPPORTED_REGIONS)

# Emergencies, police, fire, MMDA, Red Cross, utilities, hotlines of government offices.
_PHILIPPINES = "911 117 136 143 160 163 166 168 1300 1322 1326 1343 1348 1349 1383 1555 1626 1627 2920 8888 16211 16565"
# Emergencies, immigration, government call centres.
_KOREA = "110 111 112 113 114 117 118 119 120 128 129 132 182 1330 1332 1339 1345 1350 1355 1366 1372 1388 1393"
SHORT_CODES = frozenset(f"{_PHILIPPINES} {_KOREA}".split())

# Characters that stand for those of a number, one for one, so that places in the line stay what they are.
_HYPHENS = (
    "\u00ad\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u208b\u2212\u02d7\u2500\u2501\u2796"
    "\u30fc\u3161\u1173\ufe58\ufe63\uff0d\uff70\uffda"
)
_ALIKE = {
    **dict.fromkeys(_HYPHENS, "-"),
    **dict.fromkeys("\u2024\uff0e\uff61\ufe52", "."),
    **dict.fromkeys("\u2027\u2219\u22c5\u30fb\u318d\uff65\u2022\u1427\u119e", "·"),
    **dict.fromkeys("\u223c\u301c\uff5e\u02dc\u223d", "~"),
    **dict.fromkeys("（﹙〔", "("),
    **dict.fromkeys("）﹚〕", ")"),
    **dict.fromkeys("［【", "["),
    **dict.fromkeys("］】", "]"),
    **dict.fromkeys(
        "\t\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "
    ),
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    **dict(zip("﹢＋，／：；＊＃＿？", "++,/:;*#_?", strict=True)),
}
_PLAIN = str.maketrans(_ALIKE)
# Dots and tildes part the groups of one number only where all of its groups are written so: else they part numbers.
_PARTED = re.compile(r"(?<!\d)(\+?\d{2,4})([~·_/一])(\d{3,4})\2(\d{4})(?!\d)")

_PARTS = re.compile("[~·_/一]")

_GROUP = r"[ ]?[-.]?[ ]?"
# The shape only; `read_number` judges the digits. Brackets belong to country and area codes, never to later groups.
_SHAPE = re.compile(
    rf"(?:[(\[][ ]?\+?[ ]?\d{{1,4}}(?:[-. ]?\d{{1,3}})?[ ]?[)\]]|\+[ ]?\d{{1,3}}\)?|\d{{1,4}}[ ]?\)|\d{{1,14}})"
    rf"(?:{_GROUP}\(0\))?(?:{_GROUP}\(\d{{1,4}}\))?(?:{_GROUP}\d{{1,12}}){{0,6}}"
)
_EXTENSION = re.compile(
    r"[ ,]{0,2}\(?(?:내선(?:번호)?|구내|[Ll]oc(?:al)?\.?|LOCAL|[Ee]xt(?:ension)?\.?|EXT\.?)[ :]{0,2}(\d{1,5})(?!\d)\)?"
)
_GROUP_END = re.compile(r"\d\)?(?=[ ]|$)")
_MASK = r"*○●◯◦□■×#_☆★◇◆△▲"
# What stands right before or after digits that are an amount, a date, a time, an identifier, or a part of more.
_BEFORE_NOT = re.compile(rf"(?:[\w₱$€¥￦#/@=%{_MASK}]|\d[ ]?[.:~-]|\d,[ ]|[A-Za-z{_MASK}][-.]|--)$")
_ENDINGS = (
    "을|를|이|가|은|는|의|에|에서|으로|로|까지|부터|정도|이상|이하|씩|짜리|쯤|마다|동안|간|째|입니다|이다|이며|이고"
)
# A unit ends there: the number before 대표 is no amount. After a blank only money and heads are counted so.
_AFTER_NOT = re.compile(
    r"(?:[ ]?(?:원|페소|달러|명|개|년)|만|천|억|월|일|시|분|장|층|호|평|건|대|통|동)"
    rf"(?=$|[^가-힣]|(?:{_ENDINGS})(?![가-힣]))|[ ]?(?:[%°㎡]|kg|km|m²|pesos?\b|PHP\b|USD\b|KRW\b)"
    rf"|:\d|,\d{{3}}|[A-Za-z_@]|[.]\d|-(?:[\dA-Za-z?{_MASK}]|$)|[{_MASK}]|[?]{{2}}|[(\[]\d+[)\]]|[)\]]\d"
)
_IDENTIFIER = re.compile(
    r"(?:계좌|여권|접수|사건|예약|송장|운송장|카드|회원|사업자|등록|증권|참조|주문|티켓|항공권|허가|면허|납세|주민|우편|고객|관리|부품|일련|모델|학번"
    r"|[Aa]ccount|ACCOUNT|[Pp]assport|TIN|SSS|ACR|[Rr]ef(?:erence)?|[Zz]ip|[Ii]nvoice|[Pp]ermit|[Ll]icen[sc]e)"
    r"[ ]?(?:번호|[Nn]o\.?|[Nn]umber|#|ID)?[ ]?(?:은|는|이|가|[:：.])?[ ]*$"
)
_IDENTIFIER_AFTER = re.compile(r"[ ]?\(?(?:계좌|예금주|송장|운송장)")
_DATE = re.compile(
    r"(?:19|20)\d\d[-. ]{1,2}\d{1,2}[-. ]{1,2}\d{1,2}\.?$|\d{1,2}[-.]\d{1,2}[-.](?:19|20)\d\d$"
    r"|(?:19|20)\d\d[-~](?:19|20)?\d\d$"
)
# Numbers without an area code that only exist in Korea.
_SERVICE = re.compile(r"1[568]\d\d(?:[ ]?[-.][ ]?|[ ]?)\d{4}$")
# The prefixes in use: without a word before it a pair of years (1592-1598) has the same shape.
_BARE_SERVICE = re.compile(
    r"1(?:5(?:22|33|44|66|77|88|99)|6(?:00|44|60|61|66|68|70|88)|8(?:00|11|33|55|77|99))-(?!1[0-9]{3}|20)\d{4}"
)
_SERVICE_DESK = re.compile(
    r"(?:고객|콜|상담|서비스|지원|예약)[ ]?센터|ARS|자동응답|대표|대표번호|수신자[ ]?부담|분실[ ]?신고|상담$"
)


# Who answers there: a number of eight digits after it is Manila's, as after a label.
_ANSWERED = re.compile(
    r"(?:(?:고객|콜|상담|서비스|지원|예약|안내)[ ]?센터|ARS|데스크|상담실|관리실|경비실|사무실|사무소|프[런론]트|접수처"
    r"|[가-힣]문의|배달|(?:예약|상담|대표|접수)(?=[ ]?:))[ ]?:?[ ]*$"
)


@dataclass(frozen=True, slots=True)
class Number:
    """A telephone number in a text: text[start:end] as found, `written` in the one form."""

    start: int
    end: int
    written: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line with what decides how its numbers are read.

    plain: the text, with look-alikes as the characters that they stand for. country: whose numbers are meant where
    nothing else says so. sign: the country that the places around text[start:end] name, "" for none, or BOTH.
    """

    text: str
    plain: str
    country: str
    sign: Callable[[int, int], str]


def plain_of(line: str) -> str:
    """`line` with full-width digits, hyphens, brackets and blanks of any kind as ASCII, each in its place."""
    plain = line if line.isascii() else line.translate(_PLAIN)
    return _PARTED.sub(lambda m: f"{m[1]}-{m[3]}-{m[4]}", plain) if _PARTS.search(plain) else plain


def digits(text: str) -> str:
    """The decimal digits of `text`."""
    return re.sub(r"\D", "", text)


def _parse(text: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None


def _written(number: phonenumbers.PhoneNumber) -> str:
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.INTERNATIONAL).replace("-", " ")


@lru_cache(maxsize=65536)
def _valid(text: str, region: str | None) -> str | None:
    number = _parse(text, region)
    return _written(number) if number is not None and phonenumbers.is_valid_number(number) else None


def _fitting(text: str, region: str) -> str | None:
    """The written form of a national number that `region` has, if its groups are those that it is spoken in."""
    written = _valid(text, region)
    if written is None:
        return None
    groups = re.findall(r"\d+", text)
    if len(groups) < 2 or not groups[0].startswith("0"):
        return written
    number = _parse(text, region)
    area = phonenumbers.length_of_national_destination_code(number) if number is not None else 0
    trunk = groups[0].removeprefix("0")
    if region == "KR" and len(groups[-1]) != 4:
        return None
    # 0555-0123-45 has the digits of a number in Changwon (055), and is none.
    spoken = not area or len(trunk) == area or len(trunk) > 4 or (region == "KR" and trunk[:2] == "50")
    return written if spoken and len(groups[-1]) >= 3 else None


@lru_cache(maxsize=65536)
def _judge(found: str, country: str, sign: str, labelled: bool) -> str | None:
    """The written form of `found`, or None where it is no number: valid without a label, possible after one."""
    bare = re.sub(r"[()\[\]]", " ", re.sub(r"\(0\)", "", found)).strip()
    # What is dialled before a country code: 00 in the Philippines, 001 and the like in Korea.
    bare = re.sub(r"^00(?:[1-9]|7\d\d|)[- ]?(?=(?:63|82)[- ]?\d)", "+", bare)
    only = digits(bare)
    if not 7 <= len(only) <= 15 or only in "01234567890":
        return None
    if (
        "+" not in bare
        and re.match(r"63[ .-]*0?(?:2|9\d\d|[3-8]\d)|82[ .-]*0?(?:2|10|[3-7]\d)", bare)
        and len(only) >= 10
    ):
        bare = "+" + bare
    if "+" in bare:
        # "+82 2 555 0123 4층": what a blank parts from a whole number would make a longer one of it.
        last = re.findall(r"\d+", bare)[-1]
        cut = re.match(r"\+[ ]?(63|82)", bare)
        return None if cut and len(last) < (4 if cut[1] == "82" else 3) else _valid(bare, None)
    if _SERVICE.match(bare):
        return bare if labelled else None
    if bare.startswith("0") or only.startswith("1800"):
        return _with_trunk(bare, country, sign, labelled)
    return _local(bare, sign or country) if labelled and sign != BOTH else None


def _with_trunk(text: str, country: str, sign: str, labelled: bool) -> str | None:
    """A number with its area code, of the country that is meant, or of the only one that has it."""
    regions = dict.fromkeys([country, "PH", "KR"])
    fits = {region: written for region in regions if (written := _fitting(text, region)) is not None}
    if len(fits) == 1:
        return next(iter(fits.values()))
    if fits:
        return None if sign == BOTH else fits.get(sign) or fits.get(country) or next(iter(fits.values()))
    return None


def _local(text: str, region: str) -> str | None:
    """A number without a trunk prefix, which only a label makes one."""
    only = digits(text)
    groups = re.findall(r"\d+", text)
    if region == "PH":
        if only[0] == "9" and len(only) == 10:
            return _valid(only, "PH")
        if len(only) == 8 and len(groups[0]) >= 4 and len(groups[-1]) >= 4 and not _price_range(groups):
            return _valid(f"02{only}", "PH")
    elif region != "KR" and (written := _valid(text, region)) is not None:
        return written
    # Hours of opening (0930-1730) have eight digits and two groups too, but no number starts with 0 here.
    local = len(only) == 7 or (len(only) == 8 and region == "KR")
    return " ".join(groups) if local and only[0] not in "01" and len(groups[-1]) >= 4 else None


def _price_range(groups: list[str]) -> bool:
    """Whether two groups of four are amounts (3000-5000) as likely as a number."""
    return len(groups) == 2 and groups[0] < groups[1] and all(group.endswith("00") for group in groups)


def _continued(line: Line, start: int, end: int) -> bool:
    """Whether what stands after a number makes it a part of something else."""
    after = _AFTER_NOT.match(line.plain, end)
    if after is None:
        return _IDENTIFIER_AFTER.match(line.plain, end) is not None
    if after[0].isalpha() and L.LABEL.match(line.text, end) is not None:
        return False  # "...0123FAX: ..."
    marks = re.match(r"[*_]{1,3}(?![\d*_])", line.plain[end : end + 5])
    # Bold type of Markdown closes as it opened.
    return marks is None or not (
        line.plain[max(0, start - 4) : start].endswith(marks[0]) or marks[0] in line.plain[:start]
    )


def read_number(line: Line, position: int, *, labelled: bool) -> Number | None:
    """The longest telephone number that starts exactly at `position`, or None.

    labelled: the words before say that a telephone number follows, so a possible number or a local one suffices.
    """
    text = line.plain
    shape = _SHAPE.match(text, position)
    if shape is None:
        return None
    found = shape[0]
    # Digits that a hyphen or a dot joins are one: only at a blank may a number end before its run of digits does.
    for end in reversed([m.end() for m in _GROUP_END.finditer(found)]):
        piece = found[:end]
        if _DATE.match(piece) or _continued(line, position, position + end):
            continue
        if re.match(r"\+?\d+[ ]?\)", piece) and text[max(0, position - 1) : position] == "(":
            continue
        written = _judge(piece, line.country, "", labelled)
        if written is None:
            continue
        if "+" not in piece:
            written = _judge(piece, line.country, line.sign(position, position + end), labelled)
            if written is None:
                return None
        return _with_extension(text, position, position + end, written)
    return None


def read_further(line: Line, position: int, before: str) -> Number | None:
    """A number at `position` that leaves out what it shares with the one before it, written `before`: its area code,
    or all but its last four digits.
    """
    match = re.compile(r"\d{3,4}[- ]?\d{4}(?!\d)|\d{4}(?!\d)").match(line.plain, position)
    number = _parse(before.split(" 내선")[0], None) if before.startswith("+") else None
    if match is None or number is None or _continued(line, position, match.end()):
        return None
    glued = line.plain[position - 1] in "/·"
    if len(match[0]) == 4 and (match[0] in SHORT_CODES or (not glued and re.match("19|20", match[0]))):
        return None
    national = phonenumbers.national_significant_number(number)
    own = digits(match[0])
    area = phonenumbers.length_of_national_destination_code(number)
    if len(own) >= len(national) or (len(own) > 4 and len(own) != len(national) - area):
        return None
    written = _valid(f"+{number.country_code}{national[: -len(own)]}{own}", None)
    return None if written is None else Number(position, match.end(), written)


def _with_extension(text: str, start: int, end: int, written: str) -> Number:
    extension = _EXTENSION.match(text, end)
    if extension is None:
        return Number(start, end, written)
    stop = extension.end()
    if extension[0].endswith(")") and "(" not in extension[0]:
        stop -= 1
    return Number(start, stop, f"{written} 내선 {extension[1]}")


_SHORT = re.compile(
    r"[1-9]\d{2,4}(?!\d|[ ]?(?:원|페소|달러|만|천|억|년|월|일|시간|시|분|개|명|장|층|호|평|건|통|대|동|%|kg|km|m)"
    rf"|[-.,:/~]\d|[ ]?-|[A-Za-z{_MASK}]|[ ]?[.]?\d|[)\]][ ]?\d)"
)
# A word that is a label by chance takes more: the end, or what is said of a number that is called.
_DIALLED = re.compile(
    r"(?:번)?(?:으로|로|에)(?![가-힣])|[ ]*(?:$|[,/|)\]·;]|[(])|\.(?!\d)"
    r"|(?:번)?(?:입니다|이에요|예요|이다)|[ ]?번(?![가-힣])"
)
_PARTICLE = re.compile(r"[ ]?[가-힣]")


def read_short_code(line: Line, position: int, *, known_only: bool) -> Number | None:
    """An emergency or service number of 3-5 digits at `position`; known_only: only those in SHORT_CODES."""
    match = _SHORT.match(line.plain, position)
    if match is None or (known_only and match[0] not in SHORT_CODES):
        return None
    if re.match(r"(?:19|20)\d\d$", match[0]):
        return None
    hangul = _PARTICLE.match(line.plain, match.end()) is not None
    if (known_only or hangul) and _DIALLED.match(line.plain, match.end()) is None:
        spaced = hangul and line.plain[match.end()] == " " and match[0] in SHORT_CODES
        if not spaced:
            return None
    return Number(match.start(), match.end(), match[0])


# A short code in running text is one to call when its neighbours say so: "911에 신고", "경찰 112".
_CALLED = re.compile(
    r"(?:(?<=긴급 )|(?<=경찰 )|(?<=소방 )|(?<=구급 )|(?<=구조 )|(?<=신고 )|(?<=신고는 )|(?<=응급 ))"
    r"\d{3,4}(?!\d|[ ]?[가-힣]|[-,.:/~]\d)"
    r"|(?<![\d.,:/₱$+-])\d{3,5}"
    r"(?=번?(?:으로|로|에)[ ]?(?:바로 |먼저 |즉시 )?(?:전화|신고|연락|문의|물어|알리|알려))"
)


# More than the longest match of `_CALLED` or `_BARE_START` with all that it looks ahead at.
_REACH = 64


def find_short_codes(line: Line, start: int, end: int) -> Iterator[Number]:
    """Known short codes that running text tells the reader to call, beginning in line.plain[start:end]."""
    for match in _CALLED.finditer(line.plain, start, end + _REACH):
        if match.start() >= end:
            return
        if match[0] in SHORT_CODES:
            yield Number(match.start(), match.end(), match[0])


_BARE_START = re.compile(
    r"[(\[]?\+[ ]?[1-9]|[(\[](?:0\d{1,3}|63|82)|(?<!\d)0\d|(?<!\d)(?:63[ -]?\(?[29]|82[ -]?\(?[12]|1[ -]?800[ -]?1)"
    r"|(?<!\d)1[568]\d\d-\d{4}|(?<!\d)[3-8]\d{3}[- ]\d{4}(?!\d)"
)


def find_numbers(line: Line, start: int, end: int) -> Iterator[Number]:
    """Numbers without a label that begin in line.plain[start:end]: valid ones, and no amount, date or identifier.
    What stands after `end` is seen: a unit or a date there decides whether it is one.
    """
    text = line.plain
    position = start
    while (match := _BARE_START.search(text, position, end + _REACH)) is not None:
        begin = match.start()
        position = begin + 1
        if begin >= end:
            return
        before = text[max(0, begin - 24) : begin]
        # Hangul may touch a number ("전화02-..."); Latin letters and digits may not.
        bold = re.sub(r"(?<![\d*_])[*_]{1,3}$", " ", before)
        if _BEFORE_NOT.search(re.sub(r"[가-힣]$", " ", bold)) or _IDENTIFIER.search(before):
            continue
        if re.search(r"\d,$", before) and re.match(r"\d{3}(?!\d)", text[begin : begin + 4]):
            continue
        answered = text[begin] in "345678" and _ANSWERED.search(before) is not None
        number = _bare_service(line, begin, before) or read_number(line, begin, labelled=answered)
        if number is not None:
            yield number
            position = number.end


def _bare_service(line: Line, position: int, before: str) -> Number | None:
    """A Korean service number: after a word for those who answer it, or where it cannot be a pair of years."""
    match = re.compile(r"1[568]\d\d-\d{4}(?!\d)").match(line.plain, position)
    if match is None or _continued(line, position, match.end()):
        return None
    if _BARE_SERVICE.match(match[0]) is None and _SERVICE_DESK.search(before) is None:
        return None
    return Number(position, match.end(), match[0])
