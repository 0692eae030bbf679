"""Remarks of a reader of annotations: what it skipped or corrected, by reason, with examples."""

from collections import Counter
from dataclasses import dataclass, field

MAX_EXAMPLES = 3  # that the summary names for each reason


@dataclass
class Remarks:
    """Number of things that were skipped or corrected, by reason, and the first few of each."""

    skipped: Counter[str] = field(default_factory=Counter, kw_only=True)
    corrected: Counter[str] = field(default_factory=Counter, kw_only=True)
    examples: dict[str, list[str]] = field(default_factory=dict, kw_only=True)

    def skip(self, reason: str, example: str) -> None:
        """Count something that is skipped. `example` names it."""
        self.skipped[reason] += 1
        self._keep_example(reason, example)

    def correct(self, reason: str, example: str) -> None:
        """Count something that is corrected. `example` names it."""
        self.corrected[reason] += 1
        self._keep_example(reason, example)

    def _keep_example(self, reason: str, example: str) -> None:
        examples = self.examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES:
            examples.append(example)

    def merge(self, other: "Remarks") -> None:
        """Add the remarks on another part of the same annotations."""
        self.skipped.update(other.skipped)
        self.corrected.update(other.corrected)
        for reason, examples in other.examples.items():
            for example in examples:
                self._keep_example(reason, example)

    def remarks(self) -> list[str]:
        """Return a line for each reason why something was skipped or corrected, with the number and examples."""
        return [
            f"{title}: {count} {reason} ({self._describe_examples(reason, count)})"
            for title, counts in (("skipped", self.skipped), ("corrected", self.corrected))
            for reason, count in counts.items()
        ]

    def _describe_examples(self, reason: str, count: int) -> str:
        examples = self.examples.get(reason, [])
        return ", ".join(examples) + ", ..." * (count > len(examples))
