"""The contacts that belong in an answer: those of the document it is made from, else those of the topic asked about."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from twingpt.data.contacts.labels import PLACEHOLDER
from twingpt.data.samples.summary import ABSENT, CONTACTS_HEAD, contact_lines
from twingpt.generation.answer_sections import SECTION_HEADS, split_sections

if TYPE_CHECKING:
    from twingpt.data.contacts import Contact
    from twingpt.data.library.contact_store import ContactStore


def known_contacts(question: str | None, doc: str | None, store: "ContactStore | None") -> "list[Contact] | None":
    """The contacts that an answer should give; None where it is not known whose.

    Those of the document, in its order. A placeholder in it becomes the store's value, and is left out without one.
    """
    from dataclasses import replace

    from twingpt.data.contacts import standardise
    from twingpt.data.library.contact_store import fill

    if doc is None:
        return (store.of_topic(question) or None) if store is not None and question is not None else None
    contacts = standardise(doc)[1]
    if not any(PLACEHOLDER.fullmatch(contact.value) for contact in contacts):
        return contacts
    if store is None:
        return [contact for contact in contacts if not PLACEHOLDER.fullmatch(contact.value)]
    values = {c.placeholder: c.value for c in store.of_document(contacts[0].topic)} if contacts[0].topic else {}
    found = []
    for contact in contacts:
        if PLACEHOLDER.fullmatch(contact.value):
            line = f"{contact.entity} {contact.kind}: {contact.placeholder}"
            by_name = standardise(fill(line, store))[1]
            value = values.get(contact.placeholder) or (by_name[0].value if by_name else None)
            if value is None:
                continue
            contact = replace(contact, value=value)
        found.append(contact)
    return found


def with_contact_section(answer: str, contacts: "Iterable[Contact]") -> str:
    """The answer with these contacts, and no others, in its section of contacts, which is made if it has none."""
    lines = contact_lines(contacts)
    body = "\n".join(f"- {line}" for line in lines) if lines else ABSENT
    place = SECTION_HEADS.index(CONTACTS_HEAD)
    sections = [(head, text) for head, text in split_sections(answer) if head != CONTACTS_HEAD]
    after = (i for i, (head, _) in enumerate(sections) if head and SECTION_HEADS.index(head) > place)
    sections.insert(next(after, len(sections)), (CONTACTS_HEAD, body))
    return "\n".join(_shown(head, text) for head, text in sections)


def _shown(head: str, text: str) -> str:
    if not head:
        return text
    return f"{head} {text}" if text == ABSENT else f"{head}\n{text}" if text else head
