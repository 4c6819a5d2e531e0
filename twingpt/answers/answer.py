"""An answer from the user's own text: its sections, each line with the number of the passage that it stands in."""

from dataclasses import asdict, dataclass, field
from typing import Any

SECTIONS = ("요약", "체크리스트", "연락처", "상세 설명")
NOT_FOUND = "글에서 찾지 못했습니다."
ABSENT = "- (글에 없음)"


@dataclass(frozen=True, slots=True)
class Source:
    """A passage that the answer cites.

    number: as the lines cite it, from 1 in the order of rank. file: as it was named to `prepare`, "" if unknown.
    passage: its whole text. score: larger fits better.
    """

    number: int
    title: str
    file: str
    passage: str
    score: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found for a question.

    sections: by the names in SECTIONS, lists of lines "- sentence [1]"; in the checklist they stand under the names of
    their groups, "- 준비물:". Empty where nothing was found: then suggestions has titles near the question.
    """

    question: str
    found: bool
    sections: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in SECTIONS})
    sources: list[Source] = field(default_factory=list)
    suggestions: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer for a person to read."""
        if not self.found:
            near = ["", "비슷한 제목:", *(f"- {title}" for title in self.suggestions)] if self.suggestions else []
            return "\n".join([NOT_FOUND, *near])
        parts = ["\n".join([name, *(lines or [ABSENT])]) for name, lines in self.sections.items()]
        named = [_named(source) for source in self.sources]
        return "\n\n".join([*parts, "\n".join(["출처", *named])])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "text": self.text}


def _named(source: Source) -> str:
    named = f"[{source.number}] {source.title or _first_words(source.passage)}"
    return f"{named} ({source.file})" if source.file else named


def _first_words(text: str, length: int = 40) -> str:
    line = text.split("\n", 1)[0]
    return line if len(line) <= length else line[: length - 1] + "…"
