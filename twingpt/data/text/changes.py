"""What preparing changed in the text: counts and a few examples, merged in the order of the text."""

from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 3


@dataclass
class Changes:
    """counts: how often each kind of change was made; examples: its first few, before and after."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def wants_example(self, kind: str) -> bool:
        return len(self.examples.get(kind, ())) < MAX_EXAMPLES

    def example(self, kind: str, before: str, after: str) -> None:
        if self.wants_example(kind):
            self.examples.setdefault(kind, []).append((before, after))

    def merge(self, other: "Changes") -> None:
        """Add the changes of the text that follows."""
        for kind, number in other.counts.items():
            self.count(kind, number)
        for kind, pairs in other.examples.items():
            for before, after in pairs:
                self.example(kind, before, after)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Changes":
        """What `to_json` gave."""
        return cls(
            {kind: change["count"] for kind, change in raw.items()},
            {kind: [(before, after) for before, after in change["examples"]] for kind, change in raw.items()},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            kind: {"count": number, "examples": [list(pair) for pair in self.examples.get(kind, [])]}
            for kind, number in sorted(self.counts.items())
        }
