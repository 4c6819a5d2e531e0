"""The sections of an answer, read from its text."""

from collections.abc import Sequence
from itertools import pairwise

from twingpt.data.samples.summary import CHECKLIST_HEAD, CONTACTS_HEAD, DETAIL_HEAD, SUMMARY_HEAD

SECTION_HEADS = (SUMMARY_HEAD, CHECKLIST_HEAD, CONTACTS_HEAD, DETAIL_HEAD)
REQUIRED_HEADS = (SUMMARY_HEAD,)


def split_sections(answer: str) -> list[tuple[str, str]]:
    """(head, body) of each section in the order of the text; what stands before the first has head ""."""
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in answer.split("\n"):
        head = next((h for h in SECTION_HEADS if line == h or line.startswith(h + " ")), None)
        if head is None:
            found[-1][1].append(line)
        else:
            found.append((head, [line[len(head) :].strip()]))
    sections = [(head, "\n".join(lines).strip()) for head, lines in found]
    return sections if sections[0][1] else sections[1:]


def section(answer: str, head: str) -> str | None:
    """The body of a section; None if the answer has none."""
    return next((body for found, body in split_sections(answer) if found == head), None)


def in_order(answer: str, required: Sequence[str] = REQUIRED_HEADS) -> bool:
    """Whether the sections stand in their order, none twice, each with content, nothing before, and none missing.

    required: the default is what every training answer has; SECTION_HEADS asks for all four.
    """
    sections = split_sections(answer)
    heads = [head for head, _ in sections]
    places = [SECTION_HEADS.index(head) if head else -1 for head in heads]
    return (
        all(0 <= before < after for before, after in pairwise(places))
        and places[:1] == [0]
        and set(required) <= set(heads)
        and all(any(c.isalnum() for c in body) for _, body in sections)
    )
