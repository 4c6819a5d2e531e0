"""Questions made from a document's title and content: a bank of patterns, chosen by the seed and the text alone."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from twingpt.data.text.korean import particle

# {t} is the topic; {을}, {이}, {은}, {과}, {으로} after it take the form that fits its last sound.
NOUN_PATTERNS: tuple[str, ...] = (
    "{t}{을} 정리해줘.",
    "{t}{을} 요약해줘.",
    "{t}에 대해 알려줘.",
    "{t}에 대해 정리해줘.",
    "{t}에 대해 자세히 설명해줘.",
    "{t} 핵심만 정리해줘.",
    "{t} 요점을 알려줘.",
    "{t} 관련 정보를 정리해줘.",
    "{t}{이} 궁금해요. 정리해 주세요.",
    "{t}{을} 쉽게 설명해줘.",
    "{t}에서 꼭 기억할 점은 뭐야?",
    "{t}에 대해 무엇을 알 수 있어?",
    "{t}에 대한 글에서 중요한 것만 알려줘.",
)
# Only for a text that tells what to do, to bring or to avoid: of a person or a film nobody asks in such words.
GUIDE_NOUN_PATTERNS: tuple[str, ...] = (
    "{t} 관련 체크리스트를 만들어줘.",
    "{t} 관련 주의사항을 알려줘.",
    "{t} 관련 준비물과 주의사항을 정리해줘.",
    "{t} 관련 연락처도 함께 알려줘.",
    "{t}, 무엇을 알아야 해?",
    "{t}, 어떻게 하면 돼?",
    "{t}, 순서대로 알려줘.",
    "{t}, 처음인데 뭐부터 해야 해?",
    "{t}{을} 체크리스트로 정리해줘.",
    "{t}{을} 안내문처럼 정리해줘.",
    "{t}{을} 처음 겪는 교민에게 설명해줘.",
    "{t}에 필요한 것과 조심할 점을 알려줘.",
    "{t}에 대한 글을 요약과 체크리스트로 바꿔줘.",
    "{t}{은} 어떻게 해야 하나요?",
    "{t}{과} 관련해서 해야 할 일 정리해줘.",
)
WHEN_PATTERNS: tuple[str, ...] = (
    "{t} 해야 할 일 정리해줘.",
    "{t} 어떻게 해야 해?",
    "{t} 주의할 점 알려줘.",
    "{t} 필요한 것과 순서를 알려줘.",
    "{t} 무엇부터 하면 돼?",
    "{t} 연락할 곳과 할 일을 정리해줘.",
)
QUOTED_PATTERNS: tuple[str, ...] = (
    "'{t}' 내용을 정리해줘.",
    "'{t}' 글을 요약해줘.",
    "'{t}' 글의 핵심을 알려줘.",
    "'{t}' 글을 자세히 설명해줘.",
)
GUIDE_QUOTED_PATTERNS: tuple[str, ...] = (
    "'{t}' 내용을 체크리스트로 정리해줘.",
    "'{t}' 내용에서 조심할 점을 알려줘.",
)
# (what the topic is, patterns): {o} is the object in front of the matched word, {v} the word itself.
SHAPED_PATTERNS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (
        re.compile(r"(?P<o>.+?) ?(?:분실|분실 신고|분실 대처|분실 시)$"),
        (
            "{o}{을} 잃어버렸을 때 해야 할 일 정리해줘.",
            "{o}{을} 잃어버리면 어떻게 해야 해?",
            "{o} 분실 절차와 준비물을 알려줘.",
        ),
    ),
    (
        re.compile(r"(?P<o>.+?) ?(?:도난|도난 신고)$"),
        ("{o}{을} 도난당했을 때 해야 할 일 정리해줘.", "{o}{을} 도둑맞으면 어디에 신고해?"),
    ),
    (
        re.compile(
            r"(?P<o>\S.*?) (?P<v>신청|발급|연장|갱신|등록|개설|예약|가입|계약|구매|설치|해지|취소|재발급|변경|수리|납부"
            r"|임대|준비|환불)(?: 방법| 절차)?$"
        ),
        (
            "{o}{을} {v}할 때 필요한 것 알려줘.",
            "{o}{을} {v}하려면 어떻게 해야 해?",
            "{o} {v} 절차와 준비물을 정리해줘.",
            "{o} {v}할 때 주의할 점 알려줘.",
        ),
    ),
    (
        re.compile(r"(?P<o>.*(?:사고|지진|화재|정전|고장)|(?:.* )?불)$"),
        ("{o}{이} 났을 때 해야 할 일 정리해줘.", "{o}{이} 나면 무엇부터 해야 해?"),
    ),
    (
        re.compile(r"(?P<o>.*(?:태풍|홍수))$"),
        ("{o}{이} 올 때 해야 할 일 정리해줘.", "{o}{이} 오기 전에 무엇을 준비해?"),
    ),
    (
        re.compile(r"(?P<o>.*(?:병원|경찰서|대사관|은행|이민국|치과|약국|학교|공항|응급실|시장))$"),
        ("{o}에 갈 때 알아야 할 것 정리해줘.", "{o}에 가기 전에 무엇을 준비해?"),
    ),
)

_CLAUSE = re.compile(r"[가-힣](?:을|를|면|며|서|고|는|은|이|가) ")

TopicForm = Literal["noun", "when", "quoted"]
_BULLET = re.compile(r"^[\s#■□◆◇●○▶▷★☆※*·•\-\[\]【】<>]+|^\(?\d{1,2}[.)]\s*")
_MARKS = re.compile(r"[\s.!?~…:：\-—=*#\]】>)ㅠㅜㅋㅎ^]+$")
_OPEN = re.compile(
    r"(?:이렇게|그렇게|처럼|까지|에게|께|에서|면서|해서|어서|아서|가서|에|부터|며|하고|다고|모두|대비|다|요|까|죠|하자|보자|가자|(?<!마)을|를|은|는|[하르]게|쉽게"
    r"|으로|대로|니까|던|네)$"
)
_WHEN = re.compile(r"(.{3,}(?:때|경우)) (?:꼭 )?(?:할 일|해야 할 일|하는 일|대처|대처법|대처 방법|행동 요령)$")
_SUBJECT = re.compile(r"[가-힣](?:은|는|이|가|을|를|만|도|로|다|요|면)$")


@dataclass(frozen=True, slots=True)
class Topic:
    """What a question asks about. form: how the patterns can use it."""

    text: str
    form: TopicForm


def title_topic(title: str) -> Topic:
    """The topic in a title: without bullets and marks, and only its head where a comment follows a comma."""
    text = re.sub(
        r"\s+",
        " ",
        _MARKS.sub("", _BULLET.sub("", title)) if not title.rstrip().endswith(")") else _BULLET.sub("", title),
    )
    head = re.split(r"[,:：]\s", text)[0].strip()
    if head != text and len(head) >= 2 and not any(_SUBJECT.search(word) for word in head.split()):
        text = head
    if (when := _WHEN.match(text)) is not None:
        return Topic(when[1], "when")
    if re.search(r"(?:때|때에|때는)$|[가-힣]면$", text) and not re.search(r"(?:화면|서면|측면)$", text):
        return Topic(text, "when")
    if _OPEN.search(text) or re.search(r"[\"']", text):
        return Topic(text.replace("'", '"'), "quoted")
    return Topic(text, "noun")


def noun_topic(nouns: Iterable[str]) -> Topic | None:
    """A topic from one or two nouns of a document without a title."""
    first, *others = [*nouns][:2] or [""]
    if not first:
        return None
    return Topic(f"{first}{particle(first, '과')} {others[0]}" if others else first, "noun")


def focused(topic: Topic, nouns: Iterable[str]) -> Topic:
    """The topic narrowed to a part of the document, named by that part's own nouns."""
    words = [noun for noun in nouns if noun not in topic.text][:2]
    if not words:
        return topic
    whole = f"{topic.text} 중" if topic.form == "noun" else f"'{topic.text}' 글의"
    return Topic(f"{whole} {'·'.join(words)} 부분", "noun")


_WORD = re.compile(r"\{(\w)\}(?:\{(\w+)\})?")


@lru_cache(maxsize=1024)
def _pieces(pattern: str) -> tuple[str, ...]:
    """A pattern as text, word, particle, text, word, particle, ..., text; "" where no particle follows."""
    return tuple(piece or "" for piece in _WORD.split(pattern))


@lru_cache(maxsize=4096)
def _with_particle(word: str, kind: str) -> str:
    return word + (particle(word, kind) if kind else "")


def _inflected(pattern: str, **words: str) -> str:
    text, *rest = _pieces(pattern)
    for i in range(0, len(rest), 3):
        text += _with_particle(words[rest[i]], rest[i + 1]) + rest[i + 2]
    return text


def questions(topic: Topic, seed: int, text: str, number: int, *, guide: bool = True) -> list[str]:
    """`number` questions, all different as long as the bank lasts; the same for the same topic, seed and text.

    guide: the text tells what to do, to bring or to avoid, so that it can be asked for that.
    """
    shaped: list[str] = []
    if topic.form == "noun" and guide:
        for shape, patterns in SHAPED_PATTERNS:
            if (match := shape.match(topic.text)) is not None and not _CLAUSE.search(match["o"]):
                shaped += [_inflected(pattern, **match.groupdict("")) for pattern in patterns]
                break
    bank = {"noun": NOUN_PATTERNS, "when": WHEN_PATTERNS, "quoted": QUOTED_PATTERNS}[topic.form]
    if guide:
        bank += {"noun": GUIDE_NOUN_PATTERNS, "when": (), "quoted": GUIDE_QUOTED_PATTERNS}[topic.form]
    general = [_inflected(pattern, t=topic.text) for pattern in bank]
    shaped, general = _shuffled(shaped, seed, text), _shuffled(general, seed, text)
    # A question that fits the subject comes first, then both kinds in turn.
    ordered = [question for pair in zip(shaped, general, strict=False) for question in pair]
    ordered += shaped[len(general) :] + general[len(shaped) :]
    return [ordered[i % len(ordered)] for i in range(number)]


def _shuffled(items: list[str], seed: int, text: str) -> list[str]:
    """A permutation keyed by (seed, text), the same on every machine and Python version."""
    start = hashlib.sha256(f"{seed}\0{text}\0".encode())

    def place(item: str) -> bytes:
        hashed = start.copy()
        hashed.update(item.encode())
        return hashed.digest()

    return sorted(items, key=place)


def ways_to_ask(title: str) -> list[str]:
    """What questions about a document of this title say of it: its topic, and the sentences that fit the topic."""
    topic = title_topic(title)
    shaped: list[str] = []
    if topic.form == "noun":
        for shape, patterns in SHAPED_PATTERNS:
            if (match := shape.match(topic.text)) is not None:
                shaped += [_inflected(pattern, **match.groupdict("")) for pattern in patterns]
    return [topic.text, *shaped]


def general_patterns() -> list[str]:
    """The patterns that fit any topic of their form."""
    noun, quoted = NOUN_PATTERNS + GUIDE_NOUN_PATTERNS, QUOTED_PATTERNS + GUIDE_QUOTED_PATTERNS
    return [*noun, *WHEN_PATTERNS, *quoted]


def pattern_texts() -> list[str]:
    """The constant words of all patterns."""
    patterns = [*general_patterns(), *(p for _, group in SHAPED_PATTERNS for p in group)]
    return [re.sub(r"\{\w+\}", "", pattern).strip() for pattern in patterns]
