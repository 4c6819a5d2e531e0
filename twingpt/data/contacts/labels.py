"""The words that announce a contact, and the shapes of the values that must follow them."""

import re
from typing import Literal

Kind = Literal["TEL", "FAX", "KAKAO", "ADDR", "WEB", "EMAIL"]
KINDS: tuple[Kind, ...] = ("TEL", "FAX", "KAKAO", "ADDR", "WEB", "EMAIL")

BLANK = r"[ \t\u00a0\u2000-\u200a\u202f\u3000]"

# Longer spellings stand before their beginnings. GENERIC announces any kind: the value decides.
_SPELLINGS: dict[str, str] = {
    "FAX": (
        r"팩스(?:{b}?번호)?|팩시밀리|(?<![A-Za-z])(?:[Ff]ax|FAX)(?:{b}?[Nn]os?\.)?|(?<![A-Za-z0-9])F(?=[.:)]{b}?[\d(+０])"
    ),
    "KAKAO": (
        r"(?:카카오톡|카카오|카톡|(?<![A-Za-z])(?:[Kk]akao{b}?[Tt]alk|KAKAO{b}?TALK|[Kk]akao|KAKAO))"
        r"(?:{b}?(?:채널|플러스친구|플친|오픈채팅|상담))?(?:{b}?(?:[Ii][Dd](?![A-Za-z])|아이디))?"
    ),
    "WEB": (
        r"홈{b}?페이지|누리집|웹{b}?사이트|웹{b}?페이지|(?<![가-힣])사이트|(?<![가-힣])웹|🌐"
        r"|(?<![A-Za-z])(?:[Hh]omepage|HOMEPAGE|[Ww]eb{b}?-?[Ss]ite|WEBSITE|[Ww]eb|WEB|URL)"
    ),
    "EMAIL": (r"이{b}?-?메일|전자{b}?우편|(?<![가-힣])메일|✉️?|📧|(?<![A-Za-z-])(?:[Ee]-?{b}?[Mm]ail|E-?MAIL|[Mm]ail)"),
    "ADDR": r"주소|소재지|(?<![가-힣])위치|📍|(?<![A-Za-z])(?:[Aa]ddress|ADDRESS|[Aa]ddr|ADDR|[Ll]ocation)",
    "TEL": (
        r"(?:휴대{b}?|손)?전화{b}?번호|(?:휴대{b}?|손)?전화|휴대폰(?:{b}?번호)?|핸드폰(?:{b}?번호)?|대표{b}?번호|직통(?:{b}?번호)?"
        r"|핫라인|(?<![가-힣])(?:유선|모바일|일반전화)|☎️?|☏|📞|📱|✆|℡"
        r"|(?<![A-Za-z])(?:[Tt]elefax|TELEFAX|[Tt]elephone|TELEPHONE|[Tt]el|TEL|[Hh]otline|HOTLINE|[Mm]obile|MOBILE"
        r"|[Ll]andline|LANDLINE|[Tt]runk{b}?[Ll]ine|TRUNK{b}?LINE|[Dd]irect{b}[Ll]ine"
        r"|[Cc]ell(?:phone)?|[Pp]hone|PHONE|H\.{b}?P|HP|T(?=[.:)]))(?:\.?{b}?(?:[Nn][Oo]s?(?:\.|(?={b}?:))|[Nn]umbers?|#))?"
    ),
    "GENERIC": (
        r"연락처|(?<![가-힣])문의처?"
        r"|(?<![A-Za-z])(?:[Cc]ontact|CONTACT)(?:{b}?(?:[Nn][Oo]s?(?:\.|(?={b}?:))|[Nn]umbers?|#|[Uu]s(?={b}?:)))?"
    ),
}
_ONE = "|".join(f"(?P<{kind}>{pattern.replace('{b}', BLANK)})" for kind, pattern in _SPELLINGS.items())
_ANY = re.sub(r"\(\?P<\w+>", "(?:", _ONE)

LABEL = re.compile(_ONE)
# A run such as "문의 전화", "전화/카톡", "연락처(전화)", "이메일 주소".
RUN = re.compile(rf"(?:{_ANY})(?:{BLANK}?[/·&+(]?{BLANK}?(?:{_ANY}))*")
# What may stand between a label and its value: a closing bracket, a note in brackets, a colon of any kind.
LINK = re.compile(
    rf"(?P<dot>[.．]?){BLANK}{{0,3}}(?P<close>[)\]】〕>）])?{BLANK}{{0,3}}"
    rf"(?:[(（](?P<note>[^()（）\d\n]{{1,12}})[)）]{BLANK}{{0,3}})?"
    rf"(?P<colon>(?:[:：;=▶►→☞]|[-–—~](?!\d{{1,2}}(?!\d))){{0,2}}){BLANK}{{0,10}}"
)

EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
_DOMAIN = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+(?:com|net|org|info|edu|gov|biz|shop|app|dev|io|me|kr|ph)"
_IN_PATH = r"A-Za-z0-9\-._~:/?#@!$&*+,;='%\u00c0-\u024f\u3131-\u318e\u4e00-\u9fff가-힣"
# Brackets belong to a path in pairs; where the address really ends is the question of `addresses.web_end`.
_BRACKETS = rf"(?<!\.pdf)\([!-'*-~]{{0,80}}\)|(?<=[_/])\([{_IN_PATH}]{{0,80}}\)"
_PATH = rf"(?::\d{{1,5}}(?!\d))?(?:[/?#](?:[{_IN_PATH}]|{_BRACKETS})*)?"
_HOST = r"https?://(?:(?:[A-Za-z0-9가-힣-]{1,63}\.){1,8}(?:한국|[A-Za-z]{2,24})(?![A-Za-z0-9.-])|[A-Za-z0-9.-]*[A-Za-z0-9])|www\.[A-Za-z0-9.-]*[A-Za-z0-9]"
URL = re.compile(rf"(?:{_HOST}|(?:[가-힣A-Za-z0-9-]+\.)+한국|{_DOMAIN}(?![A-Za-z0-9@]|-[A-Za-z]|\.[A-Za-z])){_PATH}")
# Without a label a domain of two parts is more often a brand (booking.com) than an address.
BARE_URL = re.compile(
    rf"(?<![A-Za-z0-9@._/-])(?:{_HOST}"
    rf"|(?:[a-z0-9-]+\.){{2,}}(?:com|net|org|edu|kr|ph)(?![A-Za-z0-9@.-])|[a-z0-9-]+\.(?:com|net|org|kr|ph)(?=/[A-Za-z0-9])){_PATH}"
)
BARE_EMAIL = re.compile(rf"(?<![A-Za-z0-9._%+-]){EMAIL.pattern}")
KIND_LABEL = re.compile(r"\b(?:TEL|FAX|KAKAO|ADDR|WEB|EMAIL)(?:/[A-Z]+)*: ")
"""What stands before each contact of a standardised text."""

PLACEHOLDER = re.compile(r"\[(TEL|FAX|KAKAO|ADDR|WEB|EMAIL)_(\d+)\]")

KAKAO_ID = re.compile(r"@?[A-Za-z0-9][A-Za-z0-9._-]*[A-Za-z0-9_]")
KAKAO_CHANNEL = re.compile(
    rf"@?[가-힣A-Za-z0-9][가-힣A-Za-z0-9_.-]*(?:{BLANK}[가-힣A-Za-z0-9_.-]+){{0,3}}(?={BLANK}*(?:$|[,/|(·]))"
)

_LATIN_PLACE = (
    r"St\.|Street|Ave\b|Avenue|Rd\b|Road|Blvd|Boulevard|Drive|Dr\.|Lane|Hwy|Highway|City|Brgy|Barangay|Bldg|Building|Tower"
    r"|Plaza|Village|Subd|Floor|Unit|Condo|Mall|Manila|Makati|Taguig|Pasay|Pasig|Quezon|Cebu|Davao|Clark|Pampanga|Angeles"
    r"|Baguio|Laguna|Cavite|Batangas|Mandaluyong|Paranaque|Parañaque|Muntinlupa|Intramuros|Malate|Ermita|BGC|Ortigas|Philippines"
    r"|Seoul|-gu\b|-ro\b|-gil\b|-dong\b"
)
_KOREAN_PLACE = (
    r"[가-힣]{1,6}(?:시|구|군|동|읍|면|로|길|가|번길|번지|층|호|빌딩|타워|시티|애비뉴|스트리트|로드|블러바드|드라이브|빌리지|콘도|몰|플라자|바랑가이)(?![가-힣])"
    r"|마닐라|마카티|타귁|타기그|파사이|파식|퀘존|케손|세부|다바오|클락|앙헬레스|바기오|올티가스|오르티가스|말라떼|에르미타|알라방|서울|부산"
)
ADDRESS_WORD = re.compile(f"{_LATIN_PLACE}|{_KOREAN_PLACE}")
ADDRESS_END = re.compile(
    rf"{BLANK}*(?:$|\t|{BLANK}{{2,}}|[|;]|{BLANK}/{BLANK}|[(（](?=[^)）]*[가-힣])"
    rf"|[,./·]?{BLANK}*(?={_ANY})|(?<=[가-힣]){BLANK}?(?:입니다|이에요|예요|이며|에서|에{BLANK}|으로{BLANK}|로{BLANK}(?:오|가))|\.(?={BLANK}[가-힣]|$))"
)

# One cheap scan decides whether a text can hold a contact at all.
TRIGGER = re.compile(
    r"[\d０-９]{3}|[@☎☏]|://|[wW]{3}\.|카톡|카카오|[Kk]akao|KAKAO|주소|위치|소재지|[Aa]ddr|ADDR|[Ll]ocation|_\d+\]|[A-Za-z0-9]\.(?:com|net|org|gov|go|co|or|ph|kr)\b|\.한국"
)
