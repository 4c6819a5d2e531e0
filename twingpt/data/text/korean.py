"""Korean text: one Kiwi analysis a document (sentences and nouns), and particles that fit the word before them."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kiwipiepy import Kiwi

# Kiwi's time and memory grow with the length of its input; lines longer than this are cut before it sees them.
PIECE_CHARS = 1000

_NOUN_TAGS = frozenset(("NNG", "NNP", "SL"))
# Nouns that say nothing about the subject of a text.
_STOP = (
    "경우 정도 사람 생각 자신 우리 저희 여기 거기 이것 그것 무엇 하나 다음 이번 지금 오늘 내일 아래"
    " 예시 가상 연습 이유 필요 가능 사용 이용 확인 준비 문제 방법 부분 이상 이하 대부분 보통 정말 진짜 영화"
)
STOP_NOUNS = frozenset(_STOP.split())
_NUMBERING = re.compile(r"^(?:\(?\d{1,2}[.)]|[①-⑳]|[-•*·▶■□◆○●※])$")
_CLOSING = re.compile(r"[\s.!?…~\"'”’)\]」』>ㅋㅎㅠㅜ^;]+")
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
    """The analyser of this process. A forked process makes its own: Kiwi's threads do not survive a fork."""
    return _kiwi_of(os.getpid())


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


def sentences(lines: Sequence[str]) -> list[list[Sentence]]:
    """Per line its sentences, in one Kiwi pass. A sentence never crosses a line."""
    pieces = [(index, piece) for index, line in enumerate(lines) for piece in pre_split(line)]
    analysed = kiwi().tokenize([piece for _, piece in pieces], split_sents=True)
    found: list[list[Sentence]] = [[] for _ in lines]
    for (index, piece), parts in zip(pieces, analysed, strict=True):
        found[index] += _whole_sentences(piece, parts)
    return found


def _whole_sentences(piece: str, parts: Iterable[Iterable[object]]) -> list[Sentence]:
    tokens = [list(part) for part in parts]
    tokens = [part for part in tokens if part]
    starts = [part[0].start for part in tokens]  # type: ignore[attr-defined]
    texts: list[str] = []
    nouns: list[list[str]] = []
    for number, part in enumerate(tokens):
        end = starts[number + 1] if number + 1 < len(starts) else len(piece)
        text = piece[starts[number] if texts else 0 : end]
        words = [t.form for t in part if t.tag in _NOUN_TAGS]  # type: ignore[attr-defined]
        if texts and _continues(texts[-1], text):
            texts[-1] += text
            nouns[-1] += words
        else:
            texts.append(text)
            nouns.append(words)
    return [
        Sentence(text.strip(), tuple(n for n in words if len(n) > 1 and n not in STOP_NOUNS))
        for text, words in zip(texts, nouns, strict=True)
        if text.strip()
    ]


def _continues(before: str, after: str) -> bool:
    """Whether Kiwi cut inside a sentence: after a list number or a comma, inside brackets."""
    head = before.rstrip()
    if _NUMBERING.match(head.lstrip()):
        return True
    if before.count("(") > before.count(")") or before.count("“") > before.count("”") or before.count('"') % 2:
        return True
    return before == head or head[-1] in ",，、:：．" or _CLOSING.fullmatch(after) is not None


_FINAL_LETTERS = frozenset("LMNRlmnr")
_VOICED_END = re.compile(r"(?:[aeiou](?:[ptkbc]|ck|ng)|[lmn])$")


def final_consonant(word: str) -> str:
    """How `word` ends when read aloud in Korean: "" (a vowel), "ㄹ", or "other". Brackets at the end are not read."""
    word = re.sub(r"\s*[(\[（].*?[)\]）]\s*$", "", word.strip()) or word
    word = re.sub(r"[^0-9A-Za-z가-힣]+$", "", word)
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
