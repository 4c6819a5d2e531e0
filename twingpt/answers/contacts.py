"""The contacts of an answer: those of the passages it cites, and whatever else the text gives under the same name."""

import re
from collections.abc import Iterator, Sequence

from twingpt.answers.answer import Source
from twingpt.data.library.contact_store import is_no_name
from twingpt.data.library.search import FoundContact, Library, Passage

DIFFERENT = "서로 다름"
MOST_VALUES = 8
"""A name with more values of one kind than this is no name of one place."""


def contact_section(
    library: Library,
    passages: Sequence[Passage],
    sources: list[Source],
    *,
    asked: Sequence[FoundContact] = (),
    alone: bool = False,
) -> Iterator[str]:
    """The lines of the section: "- name TEL: value, WEB: value [1]", each value once a passage.

    sources: those of the passages, in the same order. Where the text gives other values of a kind under the same name,
    all of them are listed, the newest first, with their dates and how often they stand there; the passages that they
    come from are added to the sources. asked: contacts that stand before the others of their passage. alone: without
    the others.
    """
    told: set[tuple[str, str]] = set()
    for passage, source in zip(passages, list(sources), strict=True):
        places: dict[str, list[str]] = {}
        for contact in sorted(library.contacts(passage), key=lambda contact: contact not in asked):
            if (contact.name, contact.kind) in told or (alone and contact not in asked):
                continue
            differing = _differing(library, contact)
            if differing:
                told.add((contact.name, contact.kind))
                yield from _all_values(library, differing, sources)
            elif (value := f"{contact.kind}: {contact.value}") not in places.setdefault(contact.name, []):
                places[contact.name].append(value)
        for name, values in places.items():
            if values:
                yield f"- {' '.join(filter(None, [name, ', '.join(values)]))} [{source.number}]"


def _differing(library: Library, contact: FoundContact) -> list[FoundContact]:
    """All contacts under this one's name and kind, if their values are not the same; else none."""
    if is_no_name(contact.name):
        return []
    known = library.contacts_named(contact.name, contact.kind)
    values = {same_form(one.value) for one in known}
    return known if 1 < len(values) <= MOST_VALUES else []


def _all_values(library: Library, known: Sequence[FoundContact], sources: list[Source]) -> Iterator[str]:
    """A line for each value; of several places of one value the newest is cited."""
    groups: dict[str, list[FoundContact]] = {}
    for contact in known:
        groups.setdefault(same_form(contact.value), []).append(contact)
    newest = [max(group, key=lambda contact: contact.date) for group in groups.values()]
    counts = [len(group) for group in groups.values()]
    for contact, count in sorted(zip(newest, counts, strict=True), key=lambda one: (one[0].date, one[1]), reverse=True):
        facts = ", ".join([contact.date or "날짜 없음", f"{count}번 나옴", DIFFERENT])
        number = _source_number(library, contact.passage, sources)
        yield f"- {contact.name} {contact.kind}: {contact.value} ({facts}) [{number}]"


def _source_number(library: Library, passage: int, sources: list[Source]) -> int:
    found = library.passage(passage)
    for source in sources:
        if source.passage == found.text:
            return source.number
    sources.append(Source(len(sources) + 1, found.title, found.file, found.text, 0.0))
    return len(sources)


def same_form(value: str) -> str:
    """A link with and without https:// is the same."""
    return re.sub(r"^https?://(?:www\.)?|/$", "", value)
