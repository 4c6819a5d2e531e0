"""The name of the place that a contact belongs to: on its line, on the lines above, or the document's title."""

import re

from twingpt.data.contacts import labels as L
from twingpt.data.contacts.signs import countries_in

# Endings of names of institutions, businesses and people who answer a call.
_ORGANISATION = re.compile(
    r"(?:[가-힣A-Za-z0-9&'’.()-]+ ){0,3}[가-힣A-Za-z0-9&'’.()-]*"
    r"(?:대사관|영사관|영사과|영사콜센터|콜센터|센터|병원|의원|클리닉|약국|치과|경찰서|파출소|소방서|이민국|이민청|은행|지점|학교|학원|어학원|대학교|대학|교회"
    r"|성당|한인회|협회|공항|사무소|사무실|관리실|호텔|리조트|식당|마트|여행사|시청|구청|노동부|외교부|국세청|병무청|은퇴청|세관|공단|공사|항공|보험사"
    r"|업체|상담소|보호소|상담원|담당자|Hospital|Embassy|Clinic|Center|Bank|Police|Hotel|School|Office|Bureau|University|Station)"
    r"(?![가-힣]{3,})"
)
_BULLET = re.compile(r"^[\s\u3000\-•*·▶▷■□◆◇※○●★☆✓✔→#>]*(?:\(?\d{1,2}[.)]\s+|[①-⑳]\s*)?")
_NOTE = re.compile(
    r"\s*[(（\[](?:예|예시|가상|연습용|가짜|임시|샘플|대표|무료|유료|\d+시간|연중무휴|한국어|영어)[^()（）]{0,8}[)）\]]\s*$"
)
_SENTENCE_END = re.compile(r"(?<=[가-힣ㅠㅎㅋ)\d])[.!?…~]+\s+|[.!?]['\"”’]\s+")
_TAIL = re.compile(r"(?:\.{2,}|…|·{2,}|[\s=:：\-–—(（\[【/,·|;~→▶]|\((?=\s*$))+$")
_PARTICLE = re.compile(r"(?<=[가-힣]{2})(?:에서는|에서|으로는|으로|에게|까지|부터|에는|의|을|를|은|는)$")
_CLAUSE_END = re.compile(
    r"^때(?:는|에는|에)?$|(?<!신)(?<!광)(?<!사)(?<!창)(?<!금)(?<!중)(?<!재)고$|[가-힣](?:을|를|에서|에서는|으로|에게|까지|부터|면|거나|해서|니까|며|는데|므로|지만|아서|어서|다|요|은|는|에)$|(?<=[가-힣])\.$|[,!?]$"
)
_VERB_END = re.compile(
    r"^(?:말고|않고)$|[가-힣](?:면|말고|하고|되고|지고|며|아서|어서|해서|니까|지만|거나|려고|도록|는데)$"
)
_NO_NAMES = "대표 문의 안내 기타 또는 및 그리고 자세한 공식 아래 다음 관련 위 긴급시 급할 때"
_NOT_A_NAME = frozenset(_NO_NAMES.split())
_SENTENCE = re.compile(r"[.!?]$|[다요]$")
_NUMBER = re.compile(r"\d(?:[ ().-]{0,3}\d){6,}")
_STANDARD = re.compile(rf"\b(?:{'|'.join(L.KINDS)}): ")
# Headings that say what follows, and not whose it is.
_KIND_OF_LINES = re.compile(
    r"(?:연락처|전화(?:번호)?|문의(?:처)?|주소|영업시간|대표|Contacts?|Phone|Tel)(?: ?(?:안내|목록|정보|번호|및 주소))?"
)
_NAME_LABEL = re.compile(
    r"(?:상호명?|업체명?|업소명?|가게|이름|성명|기관명?|명칭|지점명?|병원명?|학교명?|회사명?|식당명?|매장명?|담당)"
    r"[ ]?[:：][ ]*"
)
_NAME_COLUMN = re.compile(
    r"상호명?|업체명?|업소명?|가게|이름|기관명?|명칭|지점명?|지점|병원명?|학교명?|회사명?|식당명?|매장명?|곳|Name|name"
)
_SEPARATOR = re.compile(r"[\s=\-–—─━*_~#·•.+※◇◆○●■□☆★]{3,}")
_CELLS = re.compile(r"[ ]*\|[ ]*|[ ]+/[ ]+|\t+|(?<=[가-힣A-Za-z)\d\"]),(?=[가-힣A-Za-z\d(+\"]|$)")
# "주소: ...", "영업시간: ...": a line of the entry, and no name of it.
_FIELD = re.compile(r"[가-힣A-Za-z ]{1,8}[ ]?[:：][ ]?\S")
_DECORATED = re.compile(r"([*=~\-#_]+)[ ]*([가-힣A-Za-z].*?)[ ]*\1")
_HEADING_MARK = re.compile(r"[\s\u3000]*(?:[#■□◆◇▶▷※●○★☆①-⑳]|(\(?\d))")
_LOOK_BACK = 12


class PlaceFinder:
    """Names for the contacts of one document, asked for in the order of the text.

    title: the document's first line where it is short enough to be one, else "".
    """

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._last_line = -1
        self._last_end = 0
        self._last_name = ""
        self._last_follows = False
        # Whether the names of this line stand after their numbers; the last line that named the contact above it.
        self._names_follow = False
        self._claimed = -1
        self.title = _title(lines)

    def name(self, index: int, start: int, end: int) -> str:
        """The place of the contact whose value is lines[index][start:end]."""
        line = self._lines[index]
        same_line = index == self._last_line
        before = line[self._last_end if same_line else 0 : start]
        leads = self._names_follow if same_line else not re.search(r"[가-힣A-Za-z]", before)
        name = _name_after(line[end:]) if leads else ""
        self._names_follow = name != ""
        if not name:
            name = self._name_of_row(index, before) or _name_before(before)
        if not name:
            # A run of contact lines belongs to the name that stands over or before it.
            adjoining = index == self._last_line + 1 and self._last_line >= 0
            name = self._last_name if same_line or adjoining else ""
            if not name or (adjoining and self._last_follows):
                name = self._name_above(index) or self._name_below(index, line[end:]) or self.title
        self._last_line, self._last_end, self._last_name = index, end, name
        self._last_follows = self._names_follow or self._claimed >= index
        return name

    def _name_below(self, index: int, rest: str) -> str:
        """The name after a number that its line, or its entry, begins with."""
        if name := _name_after(rest, bracket=False):
            self._names_follow = True
            return name
        below = self._lines[index + 1].strip() if index + 1 < len(self._lines) else ""
        begins = index == 0 or not self._lines[index - 1].strip() or self._claimed == index - 1
        if not begins or rest.strip() or not below or len(below) > 40:
            return ""
        if _SENTENCE.search(below) or _STANDARD.search(below) or _NUMBER.search(below) or _FIELD.match(below):
            return ""
        self._claimed = index + 1
        return _clean(_BULLET.sub("", below))

    def _name_of_row(self, index: int, before: str) -> str:
        """The name in a row of cells whose last one holds the contact and nothing else."""
        cells = _CELLS.split(before)
        if len(cells) < 2 or cells[-1].strip('" '):
            return ""
        named = [number for number, cell in enumerate(cells) if re.search(r"[가-힣A-Za-z]{2}", cell)]
        for above in range(index - 1, max(-1, index - 1 - _LOOK_BACK), -1):
            header = _CELLS.split(self._lines[above])
            column = next(
                (n for n, cell in enumerate(header[: len(cells)]) if _NAME_COLUMN.fullmatch(cell.strip())), -1
            )
            if len(header) >= len(cells) and column in named:
                return _clean(_BULLET.sub("", cells[column]))
        for number in named:
            cell = _clean(_BULLET.sub("", cells[number]))
            # A town of its own is where the place stands; a sentence is no name.
            if not (len(cell) <= 6 and countries_in(cell)) and len(cell) <= 40 and not _SENTENCE.search(cell):
                return "" if L.LABEL.fullmatch(cell) else cell
        return ""

    def _name_above(self, index: int) -> str:
        """The heading of the entry: over it, sentences and blank lines may stand between the two."""
        mentioned = ""
        for above in range(index - 1, max(-1, index - 1 - _LOOK_BACK), -1):
            text = self._lines[above].strip()
            if above <= self._claimed:
                break
            if not text:
                continue
            if _STANDARD.search(text) or _SEPARATOR.fullmatch(text) or _NUMBER.search(text):
                break
            if (decorated := _DECORATED.fullmatch(text)) is not None and len(text) <= 40:
                return _clean(decorated[2])
            bullet = _BULLET.match(text)
            body = text[bullet.end() :] if bullet else text
            marked = bullet is not None and bullet[0].strip() != ""
            if _KIND_OF_LINES.fullmatch(_clean(body)):
                continue
            if _FIELD.match(body) and not _NAME_LABEL.match(body) and not _ORGANISATION.match(body):
                continue
            if len(body) <= 40 and not _SENTENCE.search(body):
                if not marked or self._is_heading(above, index, body):
                    return _clean(body)
                break
            if above == index - 1 and len(text) <= 60:
                mentioned = _last_organisation(text)
            if mentioned or marked:
                break
        return mentioned

    def _is_heading(self, above: int, index: int, body: str) -> bool:
        """Whether a line with a mark before it begins the entry, and is no item of a list that ends there."""
        mark = _HEADING_MARK.match(self._lines[above])
        if mark is not None and mark[1] is None:
            return True
        before = self._lines[above - 1] if above else ""
        listed = mark is not None and _HEADING_MARK.match(before) is not None and not _ORGANISATION.search(body)
        if all(not line.strip() for line in self._lines[above + 1 : index]) and not listed:
            return mark is not None or _ORGANISATION.search(body) is not None
        return mark is not None and _HEADING_MARK.match(before) is None


def _title(lines: list[str]) -> str:
    first = next((line for line in lines if line.strip()), "")
    return (
        _clean(_BULLET.sub("", first))
        if len(first) <= 60 and not _STANDARD.search(first) and not _NUMBER.search(first)
        else ""
    )


def _name_after(suffix: str, *, bracket: bool = True) -> str:
    """The name that follows a number, in brackets or not."""
    match = re.match(
        r"[ ]*(?:[-–—:：|/][ ]*)?"
        r"(?:[(（\[]([^()（）\[\]]{2,30})[)）\]]|([가-힣A-Za-z][^,;|/\t()]{1,30}?)(?=$|[,;|/\t(]))",
        suffix,
    )
    if match is None or (match[1] is not None and not bracket):
        return ""
    name = (match[1] or match[2]).strip()
    glued = match[1] is None and suffix[:1] not in (" ", "-", "–", "—", ":", "：", "|", "/")
    if glued or _SENTENCE.search(name) or L.LABEL.match(name) or re.search(_NO_NAME_AFTER, name):
        return ""
    return _clean(name)


_NO_NAME_AFTER = (
    r"^\d|시간|연중무휴|휴무|무료|한국어|영어|내선|^(?:번|로|으로|에|또는|및|to|or|local|loc|ext)(?![가-힣A-Za-z]{2})"
)


def _clean(text: str) -> str:
    text = _NAME_LABEL.sub("", _TAIL.sub("", text.strip()))
    text = _NOTE.sub("", text)
    text = re.sub(r" (?:지하 ?)?\d{1,2}층$", "", text)
    return _TAIL.sub("", re.sub(r"\s+", " ", text)).strip("\"'“”‘’[]<>【】※ ")


def _last_organisation(text: str) -> str:
    names = [m[0] for m in _ORGANISATION.finditer(text)]
    return _name_words(names[-1]) if names else ""


def _name_before(prefix: str) -> str:
    """The name that a label follows: the last words of `prefix` that can belong to a name."""
    # The label itself stands at the end of the prefix.
    labels = list(re.finditer(rf"(?:{L.RUN.pattern})(?:(?:은|는)[ ]|{L.LINK.pattern})$", prefix))
    if labels:
        prefix = prefix[: labels[-1].start()]
    prefix = _BULLET.sub("", prefix)
    pieces = [piece for piece in _SENTENCE_END.split(_TAIL.sub("", prefix)) if piece]
    text = _clean(re.split(r"\s[/|]\s|\s{2,}[,/]|,\s(?=[가-힣])|\S\t+(?=\S)", pieces[-1])[-1]) if pieces else ""
    text = re.sub(r"^[\s,/·|~:)]+", "", text)
    return _name_words(text)


def _name_words(text: str) -> str:
    words = text.split()
    if not words:
        return ""
    if _VERB_END.search(words[-1]) or re.search(r"[다요죠]\.$|^때(?:는|에는)?$", words[-1]):
        return ""
    last = _PARTICLE.sub("", words[-1])
    name = [last]
    for word in reversed(words[:-1]):
        # One syllable alone (곳, 분) is no name: it keeps the clause that describes it.
        if len("".join(name)) > 1 and _CLAUSE_END.search(word) and not _ORGANISATION.fullmatch(word):
            break
        name.insert(0, word)
        if len(name) == 6:
            break
    joined = _clean(" ".join(name))
    return "" if joined in _NOT_A_NAME or not re.search(r"[가-힣A-Za-z]{2}", joined) else joined
