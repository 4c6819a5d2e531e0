"""Contacts in a text: found, put into one form, or replaced by placeholders. Pure functions, no files."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, takewhile

from twingpt.data.contacts import labels as L
from twingpt.data.contacts.labels import Kind
from twingpt.data.contacts.numbers import (
    Number,
    find_numbers,
    find_short_codes,
    korea_is_meant,
    read_number,
    read_short_code,
)
from twingpt.data.contacts.places import PlaceFinder


@dataclass(frozen=True, slots=True)
class Contact:
    """One contact of a document.

    value: the one written form. original: as the raw text had it.
    start, end: characters of `value` in the standardised document.
    entity: the name of the place it belongs to, "" where the document names none.
    ordinal: n of the placeholder [KIND_n]; equal values of a document share it.
    topic: the title of its document, "" where it has none.
    """

    kind: Kind
    value: str
    original: str
    start: int
    end: int
    entity: str = ""
    ordinal: int = 0
    topic: str = ""

    @property
    def placeholder(self) -> str:
        return f"[{self.kind}_{self.ordinal}]"


@dataclass(frozen=True, slots=True)
class _Value:
    """line[start:end] holds a value whose written form is `written`."""

    kind: Kind
    start: int
    end: int
    written: str


@dataclass(frozen=True, slots=True)
class _Edit:
    """line[start:end] becomes `prefix` + the value's written form + `suffix`."""

    start: int
    end: int
    prefix: str
    value: _Value


def standardise(document: str) -> tuple[str, list[Contact]]:
    """The document with every contact in one form, and the contacts in order.

    A label becomes TEL:, FAX:, KAKAO:, ADDR:, WEB: or EMAIL: only where a value of that kind follows it on its line, or
    on the next line where the label fills its own (the two lines are joined then). Telephone numbers get the written
    form of `numbers`, KakaoTalk channels that of @name; other values keep theirs. Applying it twice changes nothing
    more.
    """
    if L.TRIGGER.search(document) is None:
        return document, []
    lines = _joined_labels(document.split("\n"))
    out: list[str] = []
    found: list[tuple[int, Contact]] = []
    offset = 0
    for index, line in enumerate(lines):
        if L.TRIGGER.search(line) is not None:
            line, contacts = _standardise_line(line)
            found += [(index, dataclasses.replace(c, start=c.start + offset, end=c.end + offset)) for c in contacts]
        out.append(line)
        offset += len(line) + 1
    return "\n".join(out), _completed(out, found)


def mask(document: str, contacts: Iterable[Contact]) -> str:
    """Strategy B: the standardised document with each contact's value replaced by its placeholder, such as [TEL_1]."""
    pieces, position = [], 0
    for contact in sorted(contacts, key=lambda c: c.start):
        pieces += [document[position : contact.start], contact.placeholder]
        position = contact.end
    return "".join([*pieces, document[position:]])


def _completed(lines: list[str], found: list[tuple[int, Contact]]) -> list[Contact]:
    """Adds the entity and the placeholder's number, which need the whole document."""
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    places = PlaceFinder(lines)
    ordinals: dict[tuple[Kind, str], int] = {}
    used: dict[Kind, int] = {}
    contacts = []
    for index, contact in found:
        entity = places.name(index, contact.start - starts[index], contact.end - starts[index])
        key = (contact.kind, contact.value)
        if key not in ordinals:
            given = L.PLACEHOLDER.fullmatch(contact.value)
            used[contact.kind] = used.get(contact.kind, 0) + 1
            ordinals[key] = int(given[2]) if given else used[contact.kind]
        contacts.append(dataclasses.replace(contact, entity=entity, ordinal=ordinals[key], topic=places.title))
    return contacts


_LABEL_LINE = re.compile(rf"[{L.BLANK[1:-1]}\-•*·▶■□◆○●]*[\[(【<]?(?:{L.RUN.pattern}){L.LINK.pattern}")


def _joined_labels(lines: list[str]) -> list[str]:
    """A label alone on its line is joined with the value that the next line starts with."""
    joined: list[str] = []
    for line in lines:
        previous = joined[-1] if joined else ""
        if 0 < len(previous) < 30 and line.strip() and _LABEL_LINE.fullmatch(previous):
            value = re.sub(rf"^{L.BLANK}*(?:[-•*·]{L.BLANK}+)?", "", line)
            candidate = (
                f"{previous.rstrip()} {value}" if previous.rstrip()[-1] in ":：" else f"{previous.rstrip()}: {value}"
            )
            match = L.RUN.search(candidate)
            if match is not None and (edit := _labelled(candidate, match)) is not None:
                rest = candidate[edit.end :].strip()
                if edit.value.start >= len(previous.rstrip()) and (not rest or rest[0] in "(/,·"):
                    joined[-1] = candidate
                    continue
        joined.append(line)
    return joined


def _standardise_line(line: str) -> tuple[str, list[Contact]]:
    pieces: list[str] = []
    contacts: list[Contact] = []
    position = length = 0
    for edit in _edits(line):
        head = line[position : edit.start] + edit.prefix
        value = edit.value
        start = length + len(head)
        pieces += [head, value.written]
        contacts.append(
            Contact(value.kind, value.written, line[value.start : value.end], start, start + len(value.written))
        )
        length = start + len(value.written)
        position = edit.end
    return "".join([*pieces, line[position:]]), contacts


def _edits(line: str) -> Iterator[_Edit]:
    """Contacts of a line from left to right: labelled ones, then the bare ones between them."""
    position = 0
    search_from = 0
    while (match := L.RUN.search(line, search_from)) is not None:
        if match.start() < position:
            search_from = position
            continue
        edit = _labelled(line, match) or _announced(line, match)
        if edit is None:
            search_from = match.end()
            continue
        yield from _bare(line, position, edit.start)
        yield edit
        position = edit.end
        for more in _further_numbers(line, edit):
            yield more
            position = more.end
        search_from = position
    yield from _bare(line, position, len(line))


def _labelled(line: str, run: re.Match[str]) -> _Edit | None:
    """The edit for a run of labels that a value follows."""
    found = [(m.start(), m.lastgroup or "") for m in _labels_in(run)]
    link = L.LINK.match(line, run.end())
    assert link is not None  # every part of LINK may be empty
    start = run.start()
    closed = link["close"] is not None
    opener = start > 0 and line[start - 1] in "[(【〔<（" and closed
    if closed and not opener and "(" in line[run.start() : run.end()]:
        opener = False  # "연락처(전화)": the bracket opened inside the run
    strong = bool(link["colon"] or link["dot"]) or closed or not line[start].isalnum()
    if closed and not opener and link["close"] in "]】〕>":
        return None
    words = [kind for _, kind in found]
    kinds = [kind for kind in words if kind != "GENERIC"] or ["GENERIC"]
    for kind in dict.fromkeys(kinds):
        value = _read_value(
            line, link.end(), kind, strong, "채널" in run[0] or "친" in run[0] or "오픈" in run[0], run[0]
        )
        if value is not None:
            break
    else:
        return None
    if not strong and start > 0 and "가" <= line[start - 1] <= "힣" and kinds[0] in ("ADDR", "GENERIC"):
        return None
    shown = [k for k in dict.fromkeys(kinds) if k != "GENERIC"] or [value.kind]
    if value.kind not in shown or "ADDR" in shown:  # "이메일 주소", "홈페이지 주소"
        shown = [value.kind]
    if words[0] == "GENERIC" and len(found) > 1 and shown[0] != "TEL":
        start = found[1][0]
    start -= opener
    before = line[start - 1] if start > 0 else " "
    glue = " " if before.isalnum() or before in ")]" else ""
    note = f"({link['note']}) " if link["note"] else ""
    return _Edit(start, _closing(line, value), f"{glue}{note}{'/'.join(shown)}: ", value)


def _labels_in(run: re.Match[str]) -> list[re.Match[str]]:
    # The whole string is given, since a label may have to see what follows it.
    return list(takewhile(lambda m: m.end() <= run.end(), L.LABEL.finditer(run.string, run.start())))


def _closing(line: str, value: _Value) -> int:
    """Where the value ends, with the bracket of "전화(02-...)" that belonged to the label."""
    before = line[value.start - 1] if value.start else ""
    return value.end + (
        before in "(（"
        and before != ""
        and line[value.end : value.end + 1] in (")", "）")
        and _opened_by_label(line, value.start - 1)
    )


def _opened_by_label(line: str, bracket: int) -> bool:
    return any(m.end() == bracket for m in L.LABEL.finditer(line, max(0, bracket - 16), bracket))


def _read_value(line: str, position: int, kind: str, strong: bool, channel: bool, label: str) -> _Value | None:
    placeholder = L.PLACEHOLDER.match(line, position)
    if placeholder is not None and kind in (placeholder[1], "GENERIC"):
        return _Value(_kind(placeholder[1]), position, placeholder.end(), placeholder[0])
    if kind in ("TEL", "FAX", "GENERIC") and (value := _read_tel(line, position, kind, strong)) is not None:
        return value
    if kind in ("EMAIL", "GENERIC", "ADDR") and (match := L.EMAIL.match(line, position)) is not None:
        return _Value("EMAIL", position, match.end(), match[0]) if kind != "ADDR" or "@" in match[0] else None
    if kind in ("WEB", "GENERIC", "ADDR") and (match := L.URL.match(line, position)) is not None:
        return _Value("WEB", position, match.end(), match[0])
    if kind == "KAKAO":
        return _read_kakao(line, position, strong, channel, label)
    if kind == "ADDR":
        return _read_address(line, position, strong)
    if kind in ("WEB", "EMAIL") and line[position : position + 1] in ("(", "（"):
        return _read_value(line, position + 1, kind, strong, channel, label)
    return None


def _kind(name: str) -> Kind:
    return next(kind for kind in L.KINDS if kind == name)


def _read_tel(line: str, position: int, kind: str, strong: bool) -> _Value | None:
    start = position
    number = _number_at(line, start, strong)
    if number is None and line[position : position + 1] in ("(", "（"):
        start += 1
        number = _number_at(line, start, True)
        if number is not None and line[number.end : number.end + 1] not in (")", "）"):
            number = None
    if number is None:
        return None
    return _Value("FAX" if kind == "FAX" else "TEL", start, number.end, number.written)


_KOREA_FOLLOWS = re.compile(r"[\d\s().+-]{7,24}[(（](?:서울|한국)")


def _number_at(line: str, position: int, strong: bool) -> Number | None:
    korea = korea_is_meant(line, position) or _KOREA_FOLLOWS.match(line, position) is not None
    number = read_number(line, position, labelled=True, korea=korea)
    return number or read_short_code(line, position, known_only=not strong)


_PARTICLE = re.compile(r"(?:으로|로|을|를|은|는|이|가|에|와|과|입니다|이에요|예요|번)")


def _read_kakao(line: str, position: int, strong: bool, channel: bool, label: str) -> _Value | None:
    number = read_number(line, position, labelled=True)
    if number is not None:
        return _Value("KAKAO", position, number.end, number.written)
    # A channel is written @name, as KakaoTalk does: the standard label alone would not tell it from a remark.
    if strong and (match := L.KAKAO_CHANNEL.match(line, position)) is not None and (channel or match[0][0] == "@"):
        return _Value("KAKAO", position, match.end(), f"@{match[0].removeprefix('@')}")
    match = L.KAKAO_ID.match(line, position)
    if match is None or len(match[0]) < 3 or not re.search("[A-Za-z]", match[0]):
        return None
    telling = re.search(r"[\d_.@-]", match[0]) is not None and re.match("@?[A-Za-z]{2}", match[0]) is not None
    named = strong or re.search("[Ii][Dd]$|아이디$", label) is not None
    after = line[match.end() :]
    ends = not after or re.match(rf"{L.BLANK}{{2}}|{L.BLANK}*(?:$|[,/|()·;.~\]])", after) is not None
    if L.URL.match(line, position) or after.startswith("@"):
        return None
    if (named and (ends or telling or _PARTICLE.match(after))) or (telling and len(match[0]) >= 4):
        return _Value("KAKAO", position, match.end(), match[0])
    return None


def _read_address(line: str, position: int, strong: bool) -> _Value | None:
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
    return _Value("ADDR", position, position + len(text), text)


_ANNOUNCED = re.compile(rf"(?:은|는|이|가|로는|도){L.BLANK}{{1,2}}")


def _announced(line: str, run: re.Match[str]) -> _Edit | None:
    """ "전화번호는 02-...입니다", "카톡 ID는 ...": the sentence stays, the value is taken."""
    particle = _ANNOUNCED.match(line, run.end())
    kinds = {m.lastgroup for m in _labels_in(run)}
    if particle is None:
        return None
    position = particle.end()
    if kinds & {"TEL", "GENERIC", "FAX"}:
        korea = korea_is_meant(line, position)
        number = read_number(line, position, labelled=True, korea=korea) or read_short_code(
            line, position, known_only=True
        )
        if number is not None:
            kind: Kind = "FAX" if kinds == {"FAX"} else "TEL"
            return _Edit(position, number.end, "", _Value(kind, position, number.end, number.written))
    if "KAKAO" in kinds and re.search("[Ii][Dd]$|아이디$", run[0]):
        value = _read_kakao(line, position, True, False, run[0])
        if value is not None:
            return _Edit(position, value.end, "", value)
    return None


_AND = re.compile(rf"{L.BLANK}*(?:[/,·;|]|또는|혹은|및|or\b){L.BLANK}*")


def _further_numbers(line: str, edit: _Edit) -> Iterator[_Edit]:
    """ "02-8555-0123 / 0917-555-0188": the numbers after the first that one label announces."""
    if edit.value.kind not in ("TEL", "FAX"):
        return
    position = edit.end
    while (link := _AND.match(line, position)) is not None:
        position = link.end()
        placeholder = L.PLACEHOLDER.match(line, position)
        if placeholder is not None and placeholder[1] == edit.value.kind:
            value = _Value(edit.value.kind, position, placeholder.end(), placeholder[0])
        else:
            number = read_number(line, position, labelled=True, korea=korea_is_meant(line, position))
            if number is None:
                return
            value = _Value(edit.value.kind, position, number.end, number.written)
        position = value.end
        yield _Edit(value.start, value.end, "", value)


def _bare(line: str, start: int, end: int) -> Iterator[_Edit]:
    """Contacts without a label: the text around them stays as it is."""
    values = [
        _Value(kind, m.start(), m.end(), m[0])
        for kind, pattern in _BARE_PATTERNS
        for m in pattern.finditer(line, start, end)
    ]
    values += [_Value(_kind(m[1]), m.start(), m.end(), m[0]) for m in L.PLACEHOLDER.finditer(line, start, end)]
    taken = [(v.start, v.end) for v in values]
    for number in chain(find_numbers(line, start, end), find_short_codes(line, start, end)):
        if number.end <= end and not any(s < number.end and number.start < e for s, e in taken):
            values.append(_Value("TEL", number.start, number.end, number.written))
    position = start
    for value in sorted(values, key=lambda v: v.start):
        if value.start >= position:
            yield _Edit(value.start, value.end, "", value)
            position = value.end


_BARE_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (("EMAIL", L.BARE_EMAIL), ("WEB", L.BARE_URL))
