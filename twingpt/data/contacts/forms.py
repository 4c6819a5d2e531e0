"""Contacts in a text: found, put into one form, or replaced by placeholders. Pure functions, no files."""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile

from twingpt.data.contacts import labels as L
from twingpt.data.contacts.addresses import find_links
from twingpt.data.contacts.labels import Kind
from twingpt.data.contacts.numbers import (
    DEFAULT_COUNTRY,
    Line,
    digits,
    find_numbers,
    find_short_codes,
    plain_of,
    read_further,
    read_number,
    read_short_code,
)
from twingpt.data.contacts.places import PlaceFinder
from twingpt.data.contacts.signs import Signs
from twingpt.data.contacts.values import Value, kind_of, read_kakao, read_value


@dataclass(frozen=True, slots=True)
class Contact:
    """One contact of a document.

    value: the one written form. original: as the raw text had it.
    start, end: characters of `value` in the standardised document; of the number as written in a link that dials it.
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
class _Edit:
    """line[start:end] becomes `prefix` + the value's written form + `suffix`."""

    start: int
    end: int
    prefix: str
    value: Value
    suffix: str = ""


def standardise(document: str, country: str = DEFAULT_COUNTRY) -> tuple[str, list[Contact]]:
    """The document with every contact in one form, and the contacts in order.

    country: whose numbers are meant where no sign in the document says otherwise (a region that `phonenumbers` knows).
    A label becomes TEL:, FAX:, KAKAO:, ADDR:, WEB: or EMAIL: only where a value of that kind follows it on its line, or
    on the next line where the label fills its own (the two lines are joined then). Telephone numbers get the written
    form of `numbers`, KakaoTalk channels that of @name; other values keep theirs. Applying it twice changes nothing
    more.
    """
    if L.TRIGGER.search(document) is None:
        return document, []
    lines = _joined_labels(_joined_numbers(document.split("\n"), country), country)
    plain = [plain_of(line) for line in lines]
    signs = Signs(lines, plain)
    out: list[str] = []
    found: list[tuple[int, Contact]] = []
    offset = 0
    for index, text in enumerate(lines):
        if L.TRIGGER.search(text) is not None:
            line = Line(text, plain[index], country, partial(signs.at, index))
            text, contacts = _standardise_line(line)
            found += [(index, dataclasses.replace(c, start=c.start + offset, end=c.end + offset)) for c in contacts]
        out.append(text)
        offset += len(text) + 1
    return "\n".join(out), _completed(out, found)


# Digits in groups, as somebody may write a number again without its label or its area code.
_AGAIN = re.compile(r"(?<![0-9A-Za-z_/\[])(?:\(\d{2,4}\)|\+?\d)(?:[ .\-]{0,2}\d){6,14}(?![0-9A-Za-z_])")


def mask(document: str, contacts: Iterable[Contact]) -> str:
    """Strategy B: the standardised document with each contact's value replaced by its placeholder, such as [TEL_1].

    A number that is found stands masked wherever the document has its digits, in whatever way they are written.
    """
    ordered = sorted(contacts, key=lambda c: c.start)
    known: dict[str, str] = {}
    for contact in ordered:
        for form in _digit_forms(contact):
            known.setdefault(form, contact.placeholder)

    def again(match: re.Match[str]) -> str:
        return known.get(digits(match[0]), match[0])

    pieces, position = [], 0
    for contact in ordered:
        pieces += [document[position : contact.start], contact.placeholder]
        position = contact.end
    first = "".join([*pieces, document[position:]])
    masked = _AGAIN.sub(again, first) if known else first
    # A label that announced nothing before announces a placeholder now.
    return masked if masked == first else standardise(masked)[0]


def _digit_forms(contact: Contact) -> Iterator[str]:
    """The digits of a number as it can be dialled: with its country, with the trunk 0, and within its town."""
    value = contact.value.split(" 내선")[0]
    if contact.kind not in ("TEL", "FAX", "KAKAO") or not value.startswith("+"):
        return
    groups = value.removeprefix("+").split(" ")
    national = "".join(groups[1:])
    yield from (groups[0] + national, "0" + national, national)
    if len(local := "".join(groups[2:])) >= 7:
        yield local


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


def _alone(text: str, country: str) -> Line:
    """A line read without what stands around it."""
    return Line(text, plain_of(text), country, lambda start, end: "")


def _joined_labels(lines: list[str], country: str) -> list[str]:
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
            if match is not None and (edit := _labelled(_alone(candidate, country), match)) is not None:
                rest = candidate[edit.end :].strip()
                if edit.value.start >= len(previous.rstrip()) and (not rest or rest[0] in "(/,·"):
                    joined[-1] = candidate
                    continue
        joined.append(line)
    return joined


# The beginning of a number at a line's end, and the rest of one at the next line's start.
_CUT_HEAD = re.compile(
    r"(?<![\w.,:/*-])(?:[(\[]?\+?[ ]?(?:0\d{1,3}|63|82)[)\]]?(?:[ .-]{0,3}\d{1,4})?|[(\[]\+?\d{1,4}[)\]])[ ]?-?$"
)
_CUT_TAIL = re.compile(r"-?[ ]?\d{3,4}(?:[ ]?[-.]?[ ]?\d{3,4})*(?!\d)")


_CUT_ENDS = frozenset("0123456789-)]")


def _joined_numbers(lines: list[str], country: str) -> list[str]:
    """A number that the end of a line cuts is joined, where both of its parts are nothing without the other."""
    joined: list[str] = []
    for line in lines:
        previous = joined[-1] if joined else ""
        head = _CUT_HEAD.search(plain_of(previous[-24:])) if plain_of(previous[-1:]) in _CUT_ENDS else None
        if head is not None and _CUT_TAIL.match(plain_of(line[:24])):
            at = max(0, len(previous) - 24) + head.start()
            glue = "" if plain_of(previous[-1]) == "-" else " "
            candidate = _alone(f"{previous}{glue}{line}", country)
            number = read_number(candidate, at, labelled=False)
            starts = read_number(_alone(line, country), 0, labelled=False)
            if number is not None and number.end > len(previous) and starts is None:
                joined[-1] = candidate.text
                continue
        joined.append(line)
    return joined


def _standardise_line(line: Line) -> tuple[str, list[Contact]]:
    pieces: list[str] = []
    contacts: list[Contact] = []
    position = length = 0
    text = line.text
    for edit in _edits(line):
        head = text[position : edit.start] + edit.prefix
        value = edit.value
        original = text[value.start : value.end]
        shown = original if value.kept else value.written
        start = length + len(head)
        pieces += [head, shown, edit.suffix]
        contacts.append(Contact(value.kind, value.written, original, start, start + len(shown)))
        length = start + len(shown) + len(edit.suffix)
        position = edit.end
    return "".join([*pieces, text[position:]]), contacts


def _edits(line: Line) -> Iterator[_Edit]:
    """Contacts of a line from left to right: labelled ones, then the bare ones between them."""
    position = 0
    search_from = 0
    links = iter(find_links(line.text))
    link = next(links, None)
    while (match := L.RUN.search(line.text, search_from)) is not None:
        if match.start() < position:
            search_from = position
            continue
        while link is not None and link.end <= match.start():
            link = next(links, None)
        if link is not None and link.start <= match.start():
            search_from = link.end  # "kakao" in open.kakao.com is no label
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
    yield from _bare(line, position, len(line.text))


def _labelled(at: Line, run: re.Match[str]) -> _Edit | None:
    """The edit for a run of labels that a value follows."""
    line = at.text
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
        value = read_value(at, link.end(), kind, strong, "채널" in run[0] or "친" in run[0] or "오픈" in run[0], run[0])
        if value is not None:
            break
    else:
        return None
    if value.kind == "KAKAO" and "TEL" in kinds and value.written.startswith("+"):
        value = dataclasses.replace(value, kind="TEL")  # "카톡/전화": whoever calls finds it too
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
    end = _closing(line, value)
    # What the bracket kept from the address must not become a part of it.
    suffix = (
        " "
        if end > value.end and value.kind == "WEB" and line[end : end + 1].isalnum() and "/" in value.written
        else ""
    )
    return _Edit(start, end, f"{glue}{note}{'/'.join(shown)}: ", value, suffix)


def _labels_in(run: re.Match[str]) -> list[re.Match[str]]:
    # The whole string is given, since a label may have to see what follows it.
    return list(takewhile(lambda m: m.end() <= run.end(), L.LABEL.finditer(run.string, run.start())))


def _closing(line: str, value: Value) -> int:
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


_ANNOUNCED = re.compile(rf"(?:은|는|이|가|로는|도){L.BLANK}{{1,2}}")


def _announced(at: Line, run: re.Match[str]) -> _Edit | None:
    """ "전화번호는 02-...입니다", "카톡 ID는 ...": the sentence stays, the value is taken."""
    particle = _ANNOUNCED.match(at.text, run.end())
    kinds = {m.lastgroup for m in _labels_in(run)}
    if particle is None:
        return None
    position = particle.end()
    if kinds & {"TEL", "GENERIC", "FAX"}:
        number = read_number(at, position, labelled=True) or read_short_code(at, position, known_only=True)
        if number is not None:
            kind: Kind = "FAX" if kinds == {"FAX"} else "TEL"
            return _Edit(position, number.end, "", Value(kind, position, number.end, number.written))
    if "KAKAO" in kinds and re.search("[Ii][Dd]$|아이디$", run[0]):
        value = read_kakao(at, position, True, False, run[0])
        if value is not None:
            return _Edit(position, value.end, "", value)
    return None


_AND = re.compile(rf"{L.BLANK}*(?:[/,·;|&]|또는|혹은|및|(?:or|and)\b|[와과](?= )){L.BLANK}*")


def _further_numbers(line: Line, edit: _Edit) -> Iterator[_Edit]:
    """ "02-8555-0123 / 0917-555-0188": the numbers after the first that one label announces."""
    if edit.value.kind not in ("TEL", "FAX"):
        return
    position = edit.end
    before = edit.value.written
    while (link := _AND.match(line.text, position)) is not None:
        position = link.end()
        placeholder = L.PLACEHOLDER.match(line.text, position)
        if placeholder is not None and placeholder[1] == edit.value.kind:
            value = Value(edit.value.kind, position, placeholder.end(), placeholder[0])
        else:
            number = (
                read_further(line, position, before)
                or read_number(line, position, labelled=True)
                or read_short_code(line, position, known_only=True)
            )
            if number is None:
                return
            value = Value(edit.value.kind, position, number.end, number.written)
            before = number.written
        position = value.end
        yield _Edit(value.start, value.end, "", value)


def _bare(line: Line, start: int, end: int) -> Iterator[_Edit]:
    """Contacts without a label: the text around them stays as it is."""
    text = line.text
    values = [Value("EMAIL", m.start(), m.end(), m[0]) for m in L.BARE_EMAIL.finditer(text, start, end)]
    values += _in_links(line, start, end)
    values += [Value(kind_of(m[1]), m.start(), m.end(), m[0]) for m in L.PLACEHOLDER.finditer(text, start, end)]
    taken = [(v.start, v.end) for v in values] + [(link.start, link.end) for link in find_links(text)]
    for number in chain(find_numbers(line, start, end), find_short_codes(line, start, end)):
        if number.end <= end and not any(s < number.end and number.start < e for s, e in taken):
            values.append(Value("TEL", number.start, number.end, number.written))
    position = start
    for value in sorted(values, key=lambda v: v.start):
        if value.start >= position:
            yield _Edit(value.start, value.end, "", value)
            position = value.end


def _in_links(line: Line, start: int, end: int) -> Iterator[Value]:
    """Web addresses, and the numbers that links dial, which the text keeps as they stand."""
    for link in find_links(line.text):
        if link.start < start or link.end > end:
            continue
        if link.number is None:
            yield Value("WEB", link.start, link.end, line.text[link.start : link.end])
            continue
        first, last = link.number
        shown = line.text[first:last]
        if shown.startswith("["):
            yield Value("TEL", first, last, shown)
            continue
        number = read_number(_alone(f"+{shown}" if link.plus else shown, line.country), 0, labelled=not link.plus)
        if number is not None and number.end == len(shown) + link.plus:
            yield Value("TEL", first, last, number.written, kept=True)
