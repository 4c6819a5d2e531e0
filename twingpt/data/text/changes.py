"""What preparing changed in the text: counts and a few examples, merged in the order of the text."""

from dataclasses import dataclass, field
from typing import Any

MAX_EXAMPLES = 3


@dataclass
class Changes:
    """counts: how often each kind of change was made; examples: its first few, before and after.

    dropped: UTF-8 bytes of the text that a kind of change took away, for the kinds that take text away.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def drop(self, kind: str, size: int, number: int = 1) -> None:
        """Count a change that took `size` bytes of text away, so that a report can say which share of it is gone."""
        self.count(kind, number)
        self.dropped[kind] = self.dropped.get(kind, 0) + size

    def wants_example(self, kind: str) -> bool:
        return len(self.examples.get(kind, ())) < MAX_EXAMPLES

    def example(self, kind: str, before: str, after: str) -> None:
        if self.wants_example(kind):
            self.examples.setdefault(kind, []).append((before, after))

    def merge(self, other: "Changes") -> None:
        """Add the changes of the text that follows."""
        for kind, number in other.counts.items():
            self.count(kind, number)
        for kind, size in other.dropped.items():
            self.dropped[kind] = self.dropped.get(kind, 0) + size
        for kind, pairs in other.examples.items():
            for before, after in pairs:
                self.example(kind, before, after)

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> "Changes":
        """What `to_json` gave."""
        return cls(
            {kind: change["count"] for kind, change in raw.items()},
            {kind: [(before, after) for before, after in change["examples"]] for kind, change in raw.items()},
            {kind: change["dropped_bytes"] for kind, change in raw.items() if "dropped_bytes" in change},
        )

    def to_json(self) -> dict[str, Any]:
        return {
            kind: {"count": number, "examples": [list(pair) for pair in self.examples.get(kind, [])]}
            | ({"dropped_bytes": self.dropped[kind]} if kind in self.dropped else {})
            for kind, number in sorted(self.counts.items())
        }
