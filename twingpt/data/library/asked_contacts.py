"""Questions that ask for a contact ("대사관 전화번호"): of which kind, and under which name it stands in the text."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from twingpt.data.contacts.labels import KINDS, LABEL, RUN
from twingpt.data.library.contact_store import is_no_name, name_key
from twingpt.data.library.search import FoundContact, Library, Passage
from twingpt.data.library.terms import only_asks, terms

IN_TITLE, IN_TEXT = 0.9, 0.75
"""What a term of the question counts that does not stand in the contact's name, but in the title or text around it. The
text counts only where the name is the one that is asked for, or none: what a passage says of an embassy does not make
the number of a translator there the embassy's."""
OTHER_KIND = 0.8
"""Factor of a contact of another kind than the one asked for: a website is better than nothing, where a number is not
known."""
EXACT = 0.1
"""What is added for a name that has nothing besides the words of the question."""
NAMED = 0.7
"""Least share of a question that has to stand with a contact, so that another country's embassy is not taken for it."""
ALIKE = 0.9
"""A contact is meant as well if its score is at least this part of the best one's."""
CANDIDATES = 200
LONGEST_NAME = 6
"""Words of a question that can be a name together."""

# A label with the particle or verb after it: 연락처를, 전화하려면.
_AFTER = (
    r"(?:(?:이|가|은|는|을|를|로|으로|도|랑|와|과|좀|라도|[하할걸거드]\w*|이?(?:야|에요|예요|죠|지요?|냐|니|고요?))?(?![가-힣])"
    r"|(?=있|없|알|뭐|뭔|어))"
)
_LABELS = re.compile(rf"(?:{RUN.pattern}){_AFTER}")
# Besides the labels of a text, people ask in these words.
_ALSO = re.compile(
    r"(?<![가-힣])(?:(?P<TEL>번호|몇 ?번|긴급 ?번호)|(?P<KAKAO>아이디|[Ii][Dd](?![A-Za-z]))|(?P<WEB>홈피)"
    rf"|(?P<GENERIC>연락)){_AFTER}"
)
# Whoever names one of these wants it, and not something that is said about it: "모르는 전화가 오면" asks for no number.
_PLAIN = re.compile(
    r"(?:전화 ?번호|연락처|홈 ?페이지|웹 ?사이트|누리집|이메일|팩스|카톡|카카오톡)"
    rf"(?: ?(?:번호|주소|아이디|[Ii][Dd]))?{_AFTER}"
)


@dataclass(frozen=True, slots=True)
class AskedContact:
    """kinds: those that are asked for. about: the question without the words that only ask for a contact.

    plain: whether it is named as such ("전화번호", where "번호" may be of anything). only: whether nothing else is
    asked for, so that what is said about the thing itself is no answer. last: whether the words for the contact are the
    last that say something ("영사콜센터 번호 알려줘"): if there is such a contact, nothing else is asked for.
    """

    kinds: frozenset[str]
    about: str
    plain: bool
    only: bool
    last: bool


def asked_contact(question: str) -> AskedContact | None:
    """What contact a question asks for; None if it asks for none, or does not say whose."""
    kinds: set[str] = set()
    about = question
    last = False
    for words, kind in ((_LABELS, LABEL), (_ALSO, _ALSO)):
        for match in words.finditer(about):
            last = only_asks(about[match.end() :])
            kinds |= {found.lastgroup or "" for found in kind.finditer(match[0])}
        about = words.sub(" ", about)
    if not kinds or not re.search(r"\w", about):
        return None
    if "GENERIC" in kinds:
        kinds = set(KINDS)
    if kinds & {"WEB", "EMAIL"}:
        # "홈페이지 주소" is no place.
        kinds.discard("ADDR")
    plain = list(_PLAIN.finditer(question))
    only = bool(plain) and only_asks(question[plain[-1].end() :])
    return AskedContact(frozenset(kinds), about, bool(plain), only, last)


def named_contacts(library: Library, asked: AskedContact) -> list[tuple[FoundContact, Passage]]:
    """The contacts that the question names, with their passages, the best first; none if it names none of the text's.

    A contact fits by the share of the question's terms, weighted by their rarity in the text, that stand in its name,
    in the title above it or in the text around it.
    """
    weights = library.weights(asked.about)
    if not sum(weights.values()):
        return []
    passages = {passage.number: passage for passage in library.search(asked.about, CANDIDATES)}
    exact = [contact for name in _spans(asked.about) for contact in library.contacts_named(name)]
    found: list[tuple[float, FoundContact, Passage]] = []
    near = [contact for passage in passages.values() for contact in library.contacts(passage)]
    for contact in dict.fromkeys([*exact, *near]):
        passage = passages.get(contact.passage) or library.passage(contact.passage)
        share, score = _fit(contact, passage, asked, weights)
        if share >= NAMED:
            found.append((score, contact, passage))
    best = max((score for score, _, _ in found), default=0.0)
    meant = [one for one in found if one[0] >= ALIKE * best]
    meant.sort(key=lambda one: (-one[0], one[1].passage))
    return [(contact, passage) for _, contact, passage in meant]


def _fit(
    contact: FoundContact, passage: Passage, asked: AskedContact, weights: dict[str, float]
) -> tuple[float, float]:
    """(what share of the question stands with the contact, how well the contact fits)."""
    name, title, text = (set(terms(part)) for part in (contact.name, passage.title, passage.text))
    if not asked.plain:
        title = text = set()
    elif not is_no_name(contact.name) and not name & weights.keys():
        text = set()
    # What stands before a name says which one is meant; what follows it says only what is wanted of it.
    until = set(terms(_until(contact.name, asked.about)))
    weights = {term: weight for term, weight in weights.items() if term in until}
    total = sum(weights.values())
    covered = sum(
        weight * (1.0 if term in name else IN_TITLE if term in title else IN_TEXT if term in text else 0.0)
        for term, weight in weights.items()
    )
    score = share = covered / total if total else 0.0
    if name:
        score += EXACT * sum(term in weights for term in name) / len(name)
    return share, score * (1.0 if contact.kind in asked.kinds else OTHER_KIND)


def _until(name: str, about: str) -> str:
    """The question up to the end of the name, if it stands there; else all of it."""
    plain = unicodedata.normalize("NFKC", about).lower()
    key = name_key(name)
    found = re.search(r"[\W_]*".join(map(re.escape, key)), plain) if key else None
    return plain[: found.end()] if found else plain


def _spans(about: str) -> Sequence[str]:
    """What may be a name in the question: its words in a row, as they stand and without what follows their sense."""
    words = re.findall(r"\w+", about)
    spans = [words[i:j] for i in range(len(words)) for j in range(i + 1, min(len(words), i + LONGEST_NAME) + 1)]
    return list(dict.fromkeys(name_key("".join(span)) for span in spans))
