"""`twingpt ask`: the passages that a question asks for, and an answer made of their own sentences."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from twingpt.answers.answer import Answer, Source
from twingpt.answers.contacts import contact_section, same_form
from twingpt.core.errors import UsageError
from twingpt.core.language import tr
from twingpt.data.contacts import standardise
from twingpt.data.files import LIBRARY_FILE
from twingpt.data.library.asked_contacts import asked_contact, named_contacts
from twingpt.data.library.build import build_library, split_document
from twingpt.data.library.search import NEAR, FoundContact, Library, Passage
from twingpt.data.library.sentences import FoundSentence, best_sentences, sentences
from twingpt.data.samples.summary import OWN_LABEL, Group, group_of
from twingpt.data.text.characters import cleaned
from twingpt.data.text.code_lines import is_code
from twingpt.data.text.documents import BULLET, Unit, is_contact_line, is_title

PASSAGES = 5
SUMMARY_SENTENCES = 3
GROUP_SENTENCES = 4
DETAIL_SENTENCES = 6
SUGGESTIONS = 3

_GROUP_NAMES: dict[Group, str] = {"todo": "해야 할 일", "bring": "준비물", "caution": "주의사항"}


def ask_library(library: Library, question: str, *, least_fit: float | None = None) -> Answer:
    """Answer a question from a library, by retrieval alone: no model is asked.

    Every line is a sentence of a passage found, as it stands there. The summary has the sentences that fit the question
    best, the checklist what the best passage tells to do, to bring and to avoid, the detailed explanation what else it
    says. Contacts are those that stand in the passages cited. least_fit: below it nothing counts as found; by
    default what the library found out about its own text.

    Raises UsageError if the question is empty.
    """
    question = cleaned(question)
    if not question:
        raise UsageError(tr("the question is empty: ask something"))
    asked = asked_contact(question)
    if asked is not None and (named := named_contacts(library, asked)):
        return _contact_answer(library, question, named, alone=asked.last)
    found = library.search(question, PASSAGES)
    least_fit = library.least_fit if least_fit is None else least_fit
    # A contact that the text does not have is not made up for by what it says about the place.
    unknown = asked is not None and asked.only
    if unknown or not found or library.fit(question, found[0]) < least_fit:
        titles = list(dict.fromkeys(passage.title for passage in found if passage.title))
        return Answer(question, found=False, suggestions=titles[:SUGGESTIONS])
    ranked = best_sentences(question, found, limit=len(found) * SUMMARY_SENTENCES * 4)
    # Two passages may say the same sentence, and the better one is cited.
    telling: dict[str, FoundSentence] = {}
    for sentence in ranked:
        if _says_something(sentence.text):
            telling.setdefault(BULLET.sub("", sentence.text), sentence)
    summary = list(telling.values())[:SUMMARY_SENTENCES]
    cited = sorted({0, *(sentence.passage for sentence in summary), *_same_document(found)})
    numbers = {passage: number for number, passage in enumerate(cited, 1)}
    units = list(read_units(found[0].text))
    sources = [_source(found[i], numbers[i]) for i in cited]
    contacts = list(contact_section(library, [found[i] for i in cited], sources))
    sections = {
        "요약": [_line(sentence.text, numbers[sentence.passage]) for sentence in summary],
        "체크리스트": _checklist(units),
        "연락처": contacts,
        "상세 설명": _detail(units, summary),
    }
    return Answer(question, found=True, sections=sections, sources=sources)


def _contact_answer(
    library: Library, question: str, named: Sequence[tuple[FoundContact, Passage]], *, alone: bool
) -> Answer:
    """The summary is where the contacts that are asked for stand; the rest is what the first one's passage says.

    alone: only these contacts are asked for. What a guide to a lost passport tells to do is no answer to who wants the
    number that stands in it, and neither are the other numbers there.
    """
    if alone:
        once = {(contact.kind, same_form(contact.value)): (contact, passage) for contact, passage in reversed(named)}
        named = [one for one in named if one in once.values()]
    passages = list({passage.number: passage for _, passage in named}.values())[:PASSAGES]
    numbers = {passage.number: number for number, passage in enumerate(passages, 1)}
    lines = {
        _line(line, numbers[passage.number]): None
        for contact, passage in named
        if passage.number in numbers and (line := _line_of(contact, passage))
    }
    units = [] if alone else list(read_units(passages[0].text))
    sources = [_source(passage, numbers[passage.number]) for passage in passages]
    asked = [contact for contact, _ in named]
    sections = {
        "요약": list(lines)[:SUMMARY_SENTENCES],
        "체크리스트": _checklist(units),
        "연락처": list(contact_section(library, passages, sources, asked=asked, alone=alone)),
        "상세 설명": _detail(units, []),
    }
    return Answer(question, found=True, sections=sections, sources=sources)


def _line_of(contact: FoundContact, passage: Passage) -> str:
    """The line of a passage in which a contact stands."""
    lines = [line.strip() for line in passage.text.split("\n")]
    # Plain text has them as they were written.
    return next(
        (line for line in lines if contact.value in line),
        next((line for line in lines if contact.value in standardise(line)[0]), ""),
    )


def ask_document(text: str, question: str) -> Answer:
    """Answer from a text of any length instead of a library, however loosely it fits: whoever names it wants that.

    Raises TwinGPTError if the text is empty.
    """
    # As `prepare` does: contacts in their one form, documents between blank lines.
    documents = standardise(cleaned(text))[0].split("\n\n")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LIBRARY_FILE
        build_library(path, (split_document(document.split("\n")) for document in documents))
        with Library(path) as library:
            return ask_library(library, question, least_fit=0.0)


def read_units(passage: str) -> Iterator[Unit]:
    """The sentences, list lines, headings and lines of contacts of a passage, by their marks alone."""
    for number, line in enumerate(passage.split("\n")):
        if not line.strip():
            continue
        if is_code(line):
            yield Unit(line.strip(), (), number, "code")
        elif is_contact_line(line, standardise(line)[1]):
            yield Unit(line.strip(), (), number, "contact")
        elif BULLET.match(line) and not _announces(line):
            yield Unit(line.strip(), (), number, "item")
        elif is_title(line):
            yield Unit(line.strip(), (), number, "heading")
        else:
            for sentence in sentences(line):
                # A single word ("주의!") tells nothing by itself.
                told = " " in sentence and not _announces(sentence)
                yield Unit(sentence, (), number, "sentence" if told else "heading")


def _announces(sentence: str) -> bool:
    """Whether a line only says what comes after it: "다음을 참고하세요:"."""
    return sentence.rstrip().endswith((":", "："))


def _source(passage: Passage, number: int) -> Source:
    return Source(number, passage.title, passage.file, passage.text, round(passage.score, 3))


def _same_document(found: Sequence[Passage]) -> set[int]:
    best = found[0]
    return {i for i, one in enumerate(found) if one.document == best.document and one.score >= NEAR * best.score}


def _says_something(sentence: str) -> bool:
    """A heading or a line of contacts matches a question well and tells nothing about it."""
    return all(unit.role in ("sentence", "item") for unit in read_units(sentence))


def _checklist(units: Sequence[Unit]) -> list[str]:
    """What the best passage, whose number is 1, tells to do, to bring and to avoid, under these groups."""
    grouped: dict[Group, list[Unit]] = {}
    for unit, group in zip(units, _groups(units), strict=True):
        if group is not None:
            grouped.setdefault(group, []).append(unit)
    lines: list[str] = []
    for group, name in _GROUP_NAMES.items():
        chosen = grouped.get(group, [])[:GROUP_SENTENCES]
        # Under its own name a line need not say it again: "준비물: 여권".
        said = [OWN_LABEL[group].sub("", unit.plain) for unit in chosen]
        lines += [f"- {name}:", *(f"  {_line(text, 1)}" for text in said)] if said else []
    return lines


def _groups(units: Sequence[Unit]) -> list[Group | None]:
    """Which group of the checklist each unit belongs to, under the heading before it."""
    found: list[Group | None] = []
    heading = ""
    for unit in units:
        found.append(group_of(unit, heading))
        if unit.role == "heading":
            heading = unit.text
    return found


def _detail(units: Sequence[Unit], summary: Sequence[FoundSentence]) -> list[str]:
    """What else the best passage says, in its order: neither told in the summary nor part of the checklist."""
    told = {BULLET.sub("", sentence.text) for sentence in summary if sentence.passage == 0}
    rest = [
        unit
        for unit, group in zip(units, _groups(units), strict=True)
        if unit.role in ("sentence", "item") and unit.plain not in told and group is None
    ]
    return [_line(unit.plain, 1) for unit in rest[:DETAIL_SENTENCES]]


def _line(text: str, number: int) -> str:
    return f"- {BULLET.sub('', text)} [{number}]"
