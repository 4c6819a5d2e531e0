"""The answer to a document, made of its own sentences: summary, checklist, contacts, detailed explanation."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from twingpt.data.contacts import Contact
from twingpt.data.text.documents import Unit

SUMMARY_HEAD = "요약:"
CHECKLIST_HEAD = "체크리스트:"
TODO_HEAD = "- 해야 할 일:"
BRING_HEAD = "- 준비물:"
CAUTION_HEAD = "- 주의사항:"
CONTACTS_HEAD = "연락처(공공정보):"
DETAIL_HEAD = "상세 설명:"
HEADS = (SUMMARY_HEAD, CHECKLIST_HEAD, TODO_HEAD, BRING_HEAD, CAUTION_HEAD, CONTACTS_HEAD, DETAIL_HEAD)
ABSENT = "(문서에 없음)"

MIN_POINTS, MAX_POINTS = 3, 7

Group = Literal["todo", "bring", "caution"]
_GROUP_HEADS: tuple[tuple[Group, str], ...] = (
    ("todo", TODO_HEAD),
    ("bring", BRING_HEAD),
    ("caution", CAUTION_HEAD),
)

_CAUTION = re.compile(
    r"주의|조심|금지|위험|삼가|유의|벌금|절대|사기(?:예|입|이|를|꾼| )"
    r"|(?:지|은|는) ?(?:마세요|마십시오|말고|말아|말 것|맙시다|마라|말라)|말아야|말 것"
    r"|(?:면|선|서는) 안 ?(?:됩|돼|되|된|됨)|안 ?돼요|안 됩니다|불가(?:$|[. 능])"
    r"|피하(?:세요|고|는|기|십)|않도록|없도록|않는 것이|않기|믿지"
)
_BRING_HEADING = re.compile(r"준비물|챙길|챙긴|가져갈|가져올|넣어 둘|서류|구비|지참|필요한 것|준비할 것")
_TODO_HEADING = re.compile(r"할 일|순서|절차|방법|확인하세요|체크|단계|이렇게")
_CAUTION_HEADING = re.compile(r"주의|조심|금지|하지 말|유의")
_THING = re.compile(
    r"서류|사본|원본|사진|여권|신분증|증명서|영수증|신청서|현금|카드|진단서|처방전|계약서|항공권|고지서|보험증|도장|수첩|준비물|물건|옷|물|약|봉투|면허증"
)
_BRING = re.compile(
    r"준비물|지참|구비|챙기|챙겨|챙길|챙긴|가져가|가져오|가져갈|들고 가|들고 오"
    r"|(?:서류|사본|사진|증명서|신분증|여권|현금|영수증)[가-힣]*[^.!?]{0,12}(?:필요|준비|요구)"
    r"|^서류\s?:|^준비\s?:|넣어 두|준비하(?:세요|면|고|십)|준비해|필요한 (?:서류|것)"
)
_TODO = re.compile(
    r"[가-힣]야 (?:한다|하며|하고|하므로|합니다|해요|해|됩니다|돼요|된다|할|하지요|하는)"
    r"|[가-힣]세요|십시오|시오[.!]|바랍니다|바람[.]|필수|권합니다|권해요|권하|반드시|꼭 "
    r"|(?:신청|신고|제출|방문|연락|예약|확인|작성|등록|납부|접수|문의|요청|기록|보관|대조)"
    r"(?:한다|합니다|하기|할 것|하고|해요|해 두|을 해|를 해)?(?:[.!]|$| 두)"
    r"|(?:는|은) (?:것이|게|편이) (?:좋|안전|낫|중요|무난|빠르)"
    r"|[합읍]시다|필요(?:합니다|해요|하다|하며|하고|함|$|[.])"
    r"|[가-힣](?:는다|쓴다|낸다|간다|본다|고른다|보낸다|둔다|한다|연다|올린다)[.]$"
)
_LEAD_LABEL = re.compile(r"^(?:준비물|주의(?:사항|할 점)?|해야 할 일|할 일|준비|서류|금지|확인)\s?[:：]\s*(?=\S)")
OWN_LABEL: dict[Group, re.Pattern[str]] = {
    "bring": re.compile(r"^준비물\s?[:：]\s*(?=\S)"),
    "caution": re.compile(r"^주의(?:사항)?\s?[:：]\s*(?=\S)"),
    "todo": re.compile(r"^(?:해야 )?할 일\s?[:：]\s*(?=\S)"),
}


def rank(units: Sequence[Unit], title_nouns: Iterable[str]) -> list[float]:
    """Centrality of each unit: TextRank over the cosine of TF-IDF vectors of nouns, raised by likeness to the title.

    Mihalcea & Tarau 2004 (damping 0.85), with Kiwi's nouns as words. Scores are rounded, so that the order does not
    hang on the last bit of a BLAS.
    """
    vocabulary = {noun: i for i, noun in enumerate(dict.fromkeys(noun for unit in units for noun in unit.nouns))}
    n = len(units)
    if not vocabulary:
        return [0.0] * n
    counts = np.zeros((n, len(vocabulary)))
    for row, unit in enumerate(units):
        for noun in unit.nouns:
            counts[row, vocabulary[noun]] += 1
    weights = np.log1p(counts) * np.log1p(n / np.count_nonzero(counts, axis=0))
    norms = np.linalg.norm(weights, axis=1, keepdims=True)
    vectors = weights / np.where(norms > 0, norms, 1)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, 0)
    out = similarity.sum(axis=1, keepdims=True)
    transition = np.divide(similarity, out, out=np.full_like(similarity, 1 / n), where=out > 0)
    scores = np.full(n, 1 / n)
    for _ in range(30):
        scores = 0.15 / n + 0.85 * (transition.T @ scores)
    title = np.zeros(len(vocabulary))
    for noun in title_nouns:
        if noun in vocabulary:
            title[vocabulary[noun]] = 1
    likeness = vectors @ (title / max(float(np.linalg.norm(title)), 1.0))
    return [round(float(score), 9) for score in scores * (1 + likeness)]


def group_of(unit: Unit, heading: str) -> Group | None:
    """Which checklist a unit belongs to, from what it says or, for a list line, from the heading over its list."""
    if unit.role not in ("sentence", "item"):
        return None
    first, then = _told(unit.plain)
    if first is not None:
        return first
    if unit.role == "item" and heading:
        for pattern, group in _HEADINGS:
            if pattern.search(heading):
                return group
    return then


@lru_cache(maxsize=2048)
def _told(text: str) -> tuple[Group | None, Group | None]:
    """The group by what the text says: one that no heading overrules, and one that a heading does.

    A unit stands in several samples, one soon after the other.
    """
    label = _LEAD_LABEL.match(text)
    if label is not None:
        bring, caution = re.match("준비|서류", label[0]), re.match("주의|금지", label[0])
        return "bring" if bring else "caution" if caution else "todo", None
    if _CAUTION.search(text):
        return "caution", None
    if _BRING.search(text) and _THING.search(text):
        return None, "bring"
    return None, "todo" if _TODO.search(text) else None


_HEADINGS: tuple[tuple[re.Pattern[str], Group], ...] = (
    (_CAUTION_HEADING, "caution"),
    (_BRING_HEADING, "bring"),
    (_TODO_HEADING, "todo"),
)


def groups(units: Sequence[Unit]) -> list[Group | None]:
    """`group_of` every unit, the heading being the last heading or sentence before its list."""
    found: list[Group | None] = []
    heading = ""
    for unit in units:
        found.append(group_of(unit, heading))
        if unit.role != "item":
            heading = unit.text
    return found


def points(number: int) -> int:
    """How many sentences the summary of `number` sentences has: about a third, 3-7, and never all of them."""
    return max(1, min(max(MIN_POINTS, round(number / 3)), MAX_POINTS, number - 1))


@dataclass(slots=True)
class SampleAnswer:
    """The parts of an answer, each a list of whole sentences in the order of the document.

    contacts: lines "place TEL: ..."; None = the section is left out, since there are contacts that did not fit.
    says_absent: whether a checklist or contacts that the document has none of say so, or are left out.
    """

    summary: list[Unit]
    checklist: dict[Group, list[Unit]]
    contacts: list[str] | None
    detail: list[Unit]
    says_absent: bool = True

    def render(self) -> str:
        """The text.

        Absent parts: the summary of a mere list of contacts says ABSENT, and with says_absent so do a checklist and
        contacts that the document has none of; a group of the checklist and the detailed explanation are left out.
        """
        lines = [SUMMARY_HEAD, *(f"- {unit.plain}" for unit in self.summary)]
        if not self.summary:
            lines = [f"{SUMMARY_HEAD} {ABSENT}"]
        checklist = [
            f"{head} {_flow(self.checklist[group], OWN_LABEL[group])}"
            for group, head in _GROUP_HEADS
            if self.checklist.get(group)
        ]
        if checklist:
            lines += [CHECKLIST_HEAD, *checklist]
        elif self.says_absent:
            lines.append(f"{CHECKLIST_HEAD} {ABSENT}")
        if self.contacts:
            lines += [CONTACTS_HEAD, *(f"- {line}" for line in self.contacts)]
        elif self.contacts is not None and self.says_absent:
            lines.append(f"{CONTACTS_HEAD} {ABSENT}")
        if self.detail:
            lines += [DETAIL_HEAD, _flow(self.detail)]
        return "\n".join(lines)


_CLOSED = re.compile(r"[.!?…~][\"'”’)\]]*$|[ㅠㅜㅋㅎ^]+;?$")
# The pattern is looked for from each place on, so that a long text before it would only take time.
_CLOSED_CHARS = 40


def _flow(units: Sequence[Unit], label: re.Pattern[str] | None = None) -> str:
    """Units one after another: a blank after a closed sentence, "; " after a list line without a mark."""
    text = ""
    for unit in units:
        plain = label.sub("", unit.plain) if label else unit.plain
        if text:
            text += " " if _CLOSED.search(text[-_CLOSED_CHARS:]) else "; "
        text += plain
    return text


def contact_lines(contacts: Iterable[Contact]) -> list[str]:
    """ "place TEL: value, WEB: value": one line a place, each value once, in the order of the document."""
    places: dict[str, list[str]] = {}
    for contact in contacts:
        shown = f"{contact.kind}: {contact.value}"
        values = places.setdefault(contact.entity, [])
        if shown not in values:
            values.append(shown)
    return [f"{place} {', '.join(values)}".strip() for place, values in places.items()]


def make_answer(units: Sequence[Unit], scores: Sequence[float], contacts: Iterable[Contact] | None) -> SampleAnswer:
    """The whole answer for `units`; scores are those of `rank`, one a unit."""
    body = [i for i, unit in enumerate(units) if unit.role in ("sentence", "item")]
    if not body:
        body = [i for i, unit in enumerate(units) if unit.role == "heading"]
    # Equal scores: the earlier sentence.
    best = sorted(body, key=lambda i: (-scores[i], i))[: points(len(body))]
    chosen = set(best)
    kinds = groups(units)
    checklist: dict[Group, list[Unit]] = {"todo": [], "bring": [], "caution": []}
    for i in body:
        kind = kinds[i]
        if kind is not None:
            checklist[kind].append(units[i])
    detail = [units[i] for i in body if i not in chosen and kinds[i] is None]
    summary = [units[i] for i in sorted(chosen)]
    return SampleAnswer(summary, checklist, contact_lines(contacts) if contacts is not None else None, detail)
