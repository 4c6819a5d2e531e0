"""Words of the glossary become links to it, where a page uses them first."""

import posixpath
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

from markdown import Markdown
from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.config.defaults import MkDocsConfig
from pymdownx.slugs import slugify

PAGE = "glossary.md"
# A link inside of a link is none, and a heading is a link already.
_CLOSED = {"a", "pre", "script", "h1", "h2", "h3", "h4", "h5", "h6"}
# Words that pages also use in another sense: a preset is called seed, and a tutorial has steps.
_NOT_LINKED = {"head", "mask", "seed", "step", "update"}
_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)


class Term(NamedTuple):
    """A heading of the glossary: its anchor, and the ways in which pages write the word."""

    anchor: str
    forms: tuple[str, ...]


def terms_of(glossary: str) -> list[Term]:
    """A heading "손실 (loss)" is met as 손실 and as loss, "bf16, bfloat16" as either."""
    slug = slugify(case="lower")
    headings = [heading.replace("`", "").strip() for heading in _HEADING.findall(glossary)]
    return [Term(slug(text, "-"), tuple(filter(None, re.split(r"\s*[(),]\s*", text)))) for text in headings]


class Linker:
    """Turns the first use of each word of one page into a link."""

    def __init__(self, terms: list[Term], href: str) -> None:
        forms = {form.lower(): term.anchor for term in terms for form in term.forms}
        self._anchors = {form: anchor for form, anchor in forms.items() if form not in _NOT_LINKED}
        self._href = href
        # Particles follow a Korean word at once; an English one may have its plural.
        either = "|".join(
            re.escape(form) if re.search("[가-힣]", form) else rf"{re.escape(form)}(?:s(?![A-Za-z]))?(?![A-Za-z0-9_-])"
            for form in sorted(self._anchors, key=len, reverse=True)
        )
        self._word = re.compile(rf"(?<![\w가-힣-])(?:{either})", re.IGNORECASE)
        self._linked: set[str] = set()

    def link(self, element: ET.Element) -> None:
        """In the order in which it is read: the text, then each child with what follows it."""
        if element.tag in _CLOSED:
            return
        children = list(element)
        element.text, links = self._split(element.text or "")
        self._insert(element, 0, links)
        for child in children:
            place = child
            if child.tag == "code":
                if anchor := self._new(child.text or ""):
                    place = self._wrap(element, child, anchor)
            else:
                self.link(child)
            place.tail, links = self._split(place.tail or "")
            self._insert(element, list(element).index(place) + 1, links)

    @staticmethod
    def _insert(element: ET.Element, position: int, links: list[ET.Element]) -> None:
        for offset, link in enumerate(links):
            element.insert(position + offset, link)

    def _split(self, text: str) -> tuple[str, list[ET.Element]]:
        """(what stands before the first link, links with what follows each)"""
        links: list[ET.Element] = []
        before, end = text, 0
        for match in self._word.finditer(text):
            anchor = self._new(match[0])
            if anchor is None:
                continue
            between = text[end : match.start()]
            if links:
                links[-1].tail = between
            else:
                before = between
            links.append(self._element(anchor))
            links[-1].text = match[0]
            end = match.end()
        if links:
            links[-1].tail = text[end:]
        return before, links

    def _new(self, word: str) -> str | None:
        """The anchor of a word that this page has not linked yet."""
        word = word.strip().lower()
        anchor = self._anchors.get(word) or self._anchors.get(word.removesuffix("s"))
        if anchor is None or anchor in self._linked:
            return None
        self._linked.add(anchor)
        return anchor

    def _wrap(self, parent: ET.Element, child: ET.Element, anchor: str) -> ET.Element:
        link = self._element(anchor)
        position = list(parent).index(child)
        link.tail, child.tail = child.tail, None
        parent.remove(child)
        link.append(child)
        parent.insert(position, link)
        return link

    def _element(self, anchor: str) -> ET.Element:
        return ET.Element("a", href=f"{self._href}#{anchor}")


class _Treeprocessor(Treeprocessor):  # type: ignore[misc]
    linker: Linker | None = None

    def run(self, root: ET.Element) -> None:
        if self.linker is not None:
            self.linker.link(root)


class Glossary(Extension):  # type: ignore[misc]
    """Knows which page is being made: the processors are made anew for each."""

    def __init__(self) -> None:
        super().__init__()
        self.linker: Linker | None = None

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (the name that Markdown calls)
        processor = _Treeprocessor(md)
        processor.linker = self.linker
        # After the inline patterns (20) made links and code, and before MkDocs (0) resolves links to pages.
        md.treeprocessors.register(processor, "glossary", 10)


_EXTENSION = Glossary()


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    if _EXTENSION not in config.markdown_extensions:
        config.markdown_extensions.append(_EXTENSION)
    return config


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, **_: Any) -> str:
    _EXTENSION.linker = linker_of(Path(config.docs_dir), page.file.src_uri)
    return markdown


def linker_of(docs: Path, page: str) -> Linker | None:
    """None for the glossary itself, and for the reference, which is made of docstrings."""
    language, *folders = page.split("/")
    glossary = docs / language / PAGE
    if folders == [PAGE] or "reference" in folders or not glossary.is_file():
        return None
    href = posixpath.relpath(f"{language}/{PAGE}", posixpath.dirname(page))
    return Linker(terms_of(glossary.read_text(encoding="utf-8")), href)
