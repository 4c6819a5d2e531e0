"""What text is indexed by: pairs of syllables, which need no dictionary and see through particles and endings."""

import re
import unicodedata
from operator import add

_RUN = re.compile(r"[가-힣]+|[一-鿿]+|[0-9a-z]+")


def terms(text: str) -> list[str]:
    """The terms of a text in its order, repeats included.

    A Korean word becomes its pairs of neighbouring syllables, so that 대사관에서 and 대사관은 share 대사, 사관; a word
    of one syllable stays as it is. Latin words and numbers stay whole, in lower case.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        if len(run) == 1 or run.isascii():
            found.append(run)
        else:
            found += map(add, run, run[1:])
    return found


# Words by which people ask, whatever about: they would be looked for in the text, and are rare there.
_ASKING = re.compile(
    r"(?:(?:정리|요약|설명|안내|추천)(?:을|를)?(?:좀)?(?:해)?|알려|가르쳐|말해|말씀해|부탁해?)"
    r"(?:줘|줘요|주세요|주십시오|줄래|줄래요|드려요|드립니다|봐)?"
    r"|(?:무엇|무얼|뭐|뭘|뭔|무슨|어떤|어느|어떻게|어디|언제|누구|누가|왜|얼마|얼마나|몇)"
    r"(?:을|를|이|가|은|는|에|에서|서|으로|로|부터|까지|의|인지|야|예요|이에요|가요|인가요|입니까|이야|일까|일까요|이나|나|든|죠|지|지요)*"
    r"|(?:하|되|있|없|이|인|해야|나|가)?"
    r"(?:나요|까요|는가|는지|은가|은가요|인가|인가요|을까|을까요|습니까|입니까|합니까|됩니까)"
    r"|(?:전화 ?번호|연락처|홈페이지)(?:를|을|가|는|은|도|와|좀)?"
    r"|(?:하고)?싶(?:어|어요|습니다|은데|은데요|다|고|으면)|궁금(?:해|해요|합니다|한데|한데요)|하죠|하지요"
    r"|[하나오가]면|되는|되|될|된|돼|돼요|되나|되나요|해야|해요|해|할|하는|한|일|것|거|게|수|때|좀|꼭|대해|대한|대해서|관해|관한|관련"
)

# What follows the two syllables or more that carry a word's sense: particles, and endings of verbs. The pair that they
# make with its last syllable says nothing, but is rare.
_ENDING = re.compile(
    r"(?<=[가-힣]{2})(?:에서는|에서도|으로는|에게서|이라는|이라고|이란|에서|에게|한테|으로|부터|까지|처럼|보다|하고|이나|라는|라고"
    r"|은|는|이|가|을|를|에|의|로|와|과|도|만"
    r"|하려면|하려고|하면|려면|으면|나면|해야|해서|해도|하는데|하는|했을|했는데|한다면|합니다|해요|했다|하다|해"
    r"|어요|아요|니까|세요|지만"
    r"|었을|았을|되면|되는|돼|된|한|할|면)$"
)


# What a question's last word ends in, after one syllable or more: 몇 월이에요, 써도 되는지요, 먹여도 될까요.
_QUESTION_ENDING = re.compile(
    r"(?<=[가-힣])(?:이에요|예요|이야|이죠|이지|인지|인가요?|입니까|일까요?|까요?|나요|는지요?|은지요?|지요|죠|니까|던가요?)$"
)


def question_terms(question: str) -> list[str]:
    """The terms of a question without endings and the words that only ask; all of them if nothing else is left."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", question))
    stems = (_stem(word) for word in words if not _ASKING.fullmatch(word))
    kept = " ".join(stem for stem in stems if not _ASKING.fullmatch(stem))
    return terms(kept) or terms(question)


def only_asks(text: str) -> bool:
    """Whether a text has nothing but the words by which people ask, whatever about."""
    words = re.findall(r"\w+", text)
    return all(_ASKING.fullmatch(word) or _ASKING.fullmatch(_stem(word)) for word in words)


def _stem(word: str) -> str:
    return _ENDING.sub("", _QUESTION_ENDING.sub("", word))
