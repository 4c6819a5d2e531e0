"""What a label announces: a number, an address, a KakaoTalk name, read where the label ends."""

import re
from dataclasses import dataclass

from twingpt.data.contacts import labels as L
from twingpt.data.contacts.addresses import find_links, web_at
from twingpt.data.contacts.labels import Kind
from twingpt.data.contacts.numbers import Line, Number, read_number, read_short_code


@dataclass(frozen=True, slots=True)
class Value:
    """line[start:end] holds a value whose written form is `written`; kept: the text keeps it as it stands."""

    kind: Kind
    start: int
    end: int
    written: str
    kept: bool = False


def read_value(at: Line, position: int, kind: str, strong: bool, channel: bool, label: str) -> Value | None:
    """The value of `kind` that starts at `position`, or None.

    strong: a colon, a bracket or a sign makes the label one. channel: the label is that of a KakaoTalk channel.
    """
    line = at.text
    placeholder = L.PLACEHOLDER.match(line, position)
    if placeholder is not None and kind in (placeholder[1], "GENERIC"):
        return Value(kind_of(placeholder[1]), position, placeholder.end(), placeholder[0])
    if any(link.number and link.start == position for link in find_links(line)):
        return None  # "전화: tel:..." is a link that stays as it is
    if kind in ("TEL", "FAX", "GENERIC") and (value := _read_tel(at, position, kind, strong)) is not None:
        return value
    if kind in ("EMAIL", "GENERIC", "ADDR") and (match := L.EMAIL.match(line, position)) is not None:
        return Value("EMAIL", position, match.end(), match[0]) if kind != "ADDR" or "@" in match[0] else None
    if kind in ("WEB", "GENERIC", "ADDR") and (end := web_at(line, position)) is not None:
        return Value("WEB", position, end, line[position:end])
    if kind == "KAKAO":
        return read_kakao(at, position, strong, channel, label)
    if kind == "ADDR":
        return _read_address(line, position, strong)
    if kind in ("WEB", "EMAIL") and line[position : position + 1] in ("(", "（"):
        return read_value(at, position + 1, kind, strong, channel, label)
    return None


def kind_of(name: str) -> Kind:
    return next(kind for kind in L.KINDS if kind == name)


def _read_tel(at: Line, position: int, kind: str, strong: bool) -> Value | None:
    start = position
    # "문의: 2024" counts inquiries, or names a year: only a word for a telephone makes a short number one.
    number = _number_at(at, start, strong and kind != "GENERIC")
    if number is None and at.plain[position : position + 1] == "(":
        start += 1
        number = _number_at(at, start, True)
        if number is not None and at.plain[number.end : number.end + 1] != ")":
            number = None
    if number is None:
        return None
    return Value("FAX" if kind == "FAX" else "TEL", start, number.end, number.written)


def _number_at(at: Line, position: int, strong: bool) -> Number | None:
    return read_number(at, position, labelled=True) or read_short_code(at, position, known_only=not strong)


_PARTICLE = re.compile(r"(?:으로|로|을|를|은|는|이|가|에|와|과|입니다|이에요|예요|번)")


def read_kakao(at: Line, position: int, strong: bool, channel: bool, label: str) -> Value | None:
    line = at.text
    number = read_number(at, position, labelled=True)
    if number is not None:
        return Value("KAKAO", position, number.end, number.written)
    if L.URL.match(line, position):
        return None
    # A channel is written @name, as KakaoTalk does: the standard label alone would not tell it from a remark.
    if strong and (match := L.KAKAO_CHANNEL.match(line, position)) is not None and (channel or match[0][0] == "@"):
        return Value("KAKAO", position, match.end(), f"@{match[0].removeprefix('@')}")
    match = L.KAKAO_ID.match(line, position)
    if match is None or len(match[0]) < 3 or not re.search("[A-Za-z]", match[0]):
        return None
    telling = re.search(r"[\d_.@-]", match[0]) is not None and re.match("@?[A-Za-z]{2}", match[0]) is not None
    named = strong or re.search("[Ii][Dd]$|아이디$", label) is not None
    after = line[match.end() :]
    ends = not after or re.match(rf"{L.BLANK}{{2}}|{L.BLANK}*(?:$|[,/|()·;.~\]])", after) is not None
    if after.startswith("@"):
        return None
    if (named and (ends or telling or _PARTICLE.match(after))) or (telling and len(match[0]) >= 4):
        return Value("KAKAO", position, match.end(), match[0])
    return None


def _read_address(line: str, position: int, strong: bool) -> Value | None:
    end = L.ADDRESS_END.search(line, position)
    assert end is not None  # it matches at the end of the line
    text = line[position : end.start()].rstrip(" ,.·/")
    if len(text) < 6 or not (L.ADDRESS_WORD.search(text) and (re.search(r"\d", text) or "," in text or strong)):
        return None
    if re.search(r"[가-힣](?:다|요|까|죠|음|함|것|기)$|[!?]", text) or (
        not strong and not re.match(r"[\dA-Z#(]|[가-힣]+ ?시", text)
    ):
        return None
    if not strong and not re.search(r"\d", text):
        return None
    if not re.search(r"\d|,", text) and len(L.ADDRESS_WORD.findall(text)) < 2:
        return None
    return Value("ADDR", position, position + len(text), text)
