"""The catalogue of Korean: what the code can say, brought together from its calls and from the help of its commands.

`python -m tests.catalogue` brings the .po up to date with the code, keeping what is translated, and compiles the .mo.
Both are committed: a clone speaks Korean without a step of building, and nothing that only developers have is needed.
"""

import io
import re
import string

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from typer.main import get_command

from twingpt.cli import app
from twingpt.commands.language import help_texts
from twingpt.core.language import DOMAIN, FOLDER

PACKAGE = FOLDER.parent
PO = FOLDER / "ko" / "LC_MESSAGES" / f"{DOMAIN}.po"
MO = PO.with_suffix(".mo")
KEYWORDS = {"tr": None, "mark": None}
UNSAID = re.compile(r"[^A-Za-z]*")
"""A text without a letter, such as a default of 0, is the same in every language."""


def said() -> Catalog:
    """Every message that the code can say, without translations."""
    template = Catalog(domain=DOMAIN, project=DOMAIN)
    for file, _, message, _, _ in extract_from_dir(PACKAGE, [("**.py", "python")], keywords=KEYWORDS):
        template.add(message, locations=[(file, 0)])
    for part, attribute in help_texts(get_command(app)):
        text = getattr(part, attribute)
        if not UNSAID.fullmatch(text):
            template.add(text, locations=[("--help", 0)])
    return template


def translated() -> Catalog:
    with PO.open("rb") as file:
        return read_po(file, locale="ko", domain=DOMAIN)


def compiled(catalogue: Catalog) -> bytes:
    out = io.BytesIO()
    write_mo(out, catalogue)
    return out.getvalue()


def placeholders(message: str) -> set[str]:
    """The names in {braces}, without how their values are written."""
    return {name for _, name, _, _ in string.Formatter().parse(message) if name is not None}


def untranslated(template: Catalog, catalogue: Catalog) -> list[str]:
    return [str(message.id) for message in template if message.id and not _in_korean(catalogue.get(message.id))]


def _in_korean(message: Message | None) -> bool:
    return message is not None and bool(message.string) and not message.fuzzy


def main() -> None:
    template = said()
    catalogue = translated() if PO.exists() else Catalog(locale="ko", domain=DOMAIN, project=DOMAIN)
    catalogue.update(template, no_fuzzy_matching=True)
    catalogue.obsolete.clear()
    PO.parent.mkdir(parents=True, exist_ok=True)
    with PO.open("wb") as file:
        write_po(file, catalogue, width=110, sort_output=True, omit_header=False, include_lineno=False)
    MO.write_bytes(compiled(catalogue))
    print(f"{len(untranslated(template, catalogue))} of {len(template)} messages are not translated")  # noqa: T201


if __name__ == "__main__":
    main()
