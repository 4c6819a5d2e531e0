"""Which country a text means by a number that two countries have: the places that it names near the number."""

import re

BOTH = "both"
"""Signs of two countries: which one is meant cannot be told."""

_KOREAN_CITIES = (
    "서울|부산|대구|인천|대전|울산|제주|서귀포|해운대|판교|여의도|수원|창원|청주|천안|전주|포항|춘천|강릉|김해|광주"
    "|경기도|강원도|충청북도|충청남도|전라북도|전라남도|경상북도|경상남도|제주도|충북|충남|전북|전남|경북|경남"
)
# Names that are words of another meaning too: only what is said of a town makes them one.
_KOREAN_TOWNS = (
    "세종|성남|용인|고양|구미|안산|안양|부천|평택|파주|김포|여수|순천|안동|경주|진주|목포|군산|익산|아산|속초|거제|통영|양산|원주"
    "|강남|종로|강서|송파|영등포|서초|마포"
)
_PHILIPPINE_CITIES = (
    "마닐라|마카티|타귁|타기그|파사이|파식|퀘존|케손|세부|다바오|클락|앙헬레스|바기오|올티가스|오르티가스|말라떼|말라테|에르미타"
    "|알라방|보라카이|팔라완|보홀|일로일로|수빅|바탕가스|카비테|라구나|팜팡가|만달루용|파라냐케|문틴루파|인트라무로스|보니파시오"
    "|두마게테|막탄|민다나오|루손|비사야|타가이타이|따가이따이|잠보앙가|푸에르토 ?프린세사|필리핀"
)
# What makes a word with a town's name in it that town's, and what makes it the name of a business anywhere.
_OFFICE = (
    "특별자치|특별시|광역시|시청|시립|시민|시|도청|구청|구|군청|군|역|공항|지점|지사|지부|지국|지회|본사|본점|본부|사무소|사무실|영업소|출장소"
    "|분원|분점|분교|캠퍼스|센터|경찰|소방|교육청|세관|출입국|대학교|총영사관|영사관|현지"
)
_PARTICLE = "에서는|에서|에는|에|의|은|는|이|가|과|와|으로|로|까지|부터|점|행|발|쪽|측"
_TOWN_ENDS = rf"(?=$|[^가-힣]|(?:{_PARTICLE})(?![가-힣])|(?:{_OFFICE}))"
_BUSINESS = (
    "식당|횟집|갈비|국밥|반점|분식|미용실|마트|치킨|가든|회관|숯불|냉면|순대|족발|포차|곰탕|해장국|설렁탕|뷔페|바비큐|떡집|빵집|카페|슈퍼|정육|반찬"
    "|노래방|찜질방|사우나|비빔밥|칼국수|떡볶이|막국수|밀면|아구찜|보쌈|김밥|밥상|부엌|주점|호프|이발소|세탁소"
)
_NO_BUSINESS = rf"(?![ ]?[가-힣]{{0,4}}(?:{_BUSINESS}))"
_KOREA = re.compile(
    rf"(?<![가-힣])(?:{_KOREAN_CITIES}){_NO_BUSINESS}{_TOWN_ENDS}"
    rf"|(?<![가-힣])(?:{_KOREAN_TOWNS})(?:시|군|구)(?:청|[ ]|$)"
    rf"|주한|한국(?: 본사| 사무소| 지사)|대한민국 본사"
    r"|\b(?:Seoul|Busan|Incheon|Daegu|Daejeon|Gwangju|Ulsan|Jeju|Suwon|South Korea|Republic of Korea)\b"
)
_PHILIPPINES = re.compile(
    rf"(?<![가-힣])(?<!주한 )(?:주|재|메트로)?(?:{_PHILIPPINE_CITIES})"
    r"(?! ?(?:사항|내용|적|일정|규정|정보|안내|지침|항목|계획))"
    rf"{_NO_BUSINESS}{_TOWN_ENDS}"
    r"|\b(?:Manila|Makati|Taguig|Pasay|Pasig|Quezon|Cebu|Davao|Clark|Pampanga|Angeles|Baguio|Mandaluyong|Para[nñ]aque"
    r"|Muntinlupa|Intramuros|Malate|Ermita|BGC|Ortigas|Alabang|Boracay|Palawan|Bohol|Iloilo|Subic|Batangas|Cavite|Laguna"
    r"|Mactan|Luzon|Mindanao|Philippines)\b"
)
# Words that lead to one number, and say nothing of the others in the document.
_TO_KOREA = re.compile(r"외교부|영사콜|한국(?:에서| 번호)|국내(?:에서| 번호)")
_TO_PHILIPPINES = re.compile(r"(?:현지|필리핀)(?:에서| 번호)")
_SENTENCE = re.compile(r"[.!?…]['\"”’)]?$|[다요죠]$")
_ADDRESS = re.compile(r"주소|소재지|위치|ADDR|[Aa]ddr")
_ADDRESS_LINE = re.compile(rf"\W{{0,4}}(?:{_ADDRESS.pattern})")
_NUMBER = re.compile(r"\d(?:[ ().-]{0,3}\d){6,}")
# How far the words around a number are looked through, so that a long line takes no more than its length.
_NEAR = 120
_LINES_ABOVE = 12
_HEADING = 50


def countries_in(text: str, *, leading: bool = False) -> str:
    """The country whose places `text` names: "PH", "KR", BOTH or "" for none.

    leading: `text` stands right before a number, so words such as "in Korea" are about it.
    """
    korea, philippines = _KOREA.search(text) is not None, _PHILIPPINES.search(text) is not None
    if leading:
        korea = korea or _TO_KOREA.search(text) is not None
        philippines = philippines or _TO_PHILIPPINES.search(text) is not None
    return BOTH if korea and philippines else "KR" if korea else "PH" if philippines else ""


class Signs:
    """Asked for the numbers of one document. Nearer places come first: those in the words that lead to the number,
    then in the lines of its entry, then in the headings and addresses of the document.
    """

    def __init__(self, lines: list[str], plain: list[str]) -> None:
        self._lines = lines
        self._plain = plain
        self._document: str | None = None

    def at(self, index: int, start: int, end: int) -> str:
        """The country named for plain[index][start:end], "" for none, or BOTH."""
        line = self._plain[index]
        left = max(0, start - _NEAR)
        before = line[left:start]
        runs = list(_NUMBER.finditer(before))
        if runs:
            # "02-... (서울), 02-... (마닐라)": a bracket belongs to the number before it.
            before = re.sub(r"^[ ]?\([^()]*\)", "", before[runs[-1].end() :])
        right = line[end : end + _NEAR]
        next_run = _NUMBER.search(right)
        after = right[: next_run.start()] if next_run else right
        first = not runs and not re.search(r"[가-힣A-Za-z]{2}", before)
        own = countries_in(before, leading=True)
        if not own and (first or re.match(r"[ ]?[(（]", after) or _ADDRESS.search(after)):
            own = countries_in(after, leading=True)
        return own or self._of_entry(index) or self._of_document()

    def _of_entry(self, index: int) -> str:
        found = set()
        for above in range(index - 1, max(-1, index - 1 - _LINES_ABOVE), -1):
            line = self._lines[above]
            if not line.strip() or _NUMBER.search(self._plain[above]):
                break
            found |= self._told(above, sentences=True)
        for below in range(index + 1, min(len(self._lines), index + 4)):
            if not self._lines[below].strip() or not _ADDRESS.search(self._lines[below]):
                break
            found |= self._told(below)
        found.discard("")
        return "" if not found else found.pop() if len(found) == 1 else BOTH

    def _of_document(self) -> str:
        if self._document is None:
            found = set().union(*(self._told(index) for index in range(len(self._lines)))) - {""}
            self._document = "" if not found else found.pop() if len(found) == 1 else BOTH
        return self._document

    def _told(self, index: int, *, sentences: bool = False) -> set[str]:
        """What a heading or an address names; a sentence speaks of other places too, if not as near as its entry."""
        line = self._lines[index].strip()
        address = _ADDRESS_LINE.match(line) is not None
        if _NUMBER.search(self._plain[index]) and not address:
            return set()
        heading = len(line) <= _HEADING and (sentences or _SENTENCE.search(line) is None)
        return {countries_in(line[:200])} if heading or address else set()
