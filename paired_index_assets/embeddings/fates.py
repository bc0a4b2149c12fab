"""What became of samples: rows by outcome, and what a source held that is part of no sample; counted, and the first of each named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from paired_index_assets.readers.captions import OK
from paired_index_assets.readers.sample import KEY_TWICE, name_of

NAMED = 10  # of the refused rows, and of what was skipped


@dataclass
class Fates:
    """`outcomes` counts rows by name ("ok" among them), `skipped` by kind; `refused` and `left` name the first."""

    outcomes: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def add_rows(self, keys: Iterable[str], outcomes: Iterable[str]) -> None:
        for key, outcome in zip(keys, outcomes, strict=True):
            self.outcomes[name_of(outcome)] += 1
            if outcome != OK and len(self.refused) < NAMED:
                self.refused.append(f"{key}: {outcome}")

    def add_skipped(self, names: Iterable[str]) -> None:
        for name in names:
            self.skipped[kind_of_skipped(name)] += 1
            if len(self.left) < NAMED:
                self.left.append(name)

    def add(self, other: Fates) -> None:
        self.outcomes += other.outcomes
        self.skipped += other.skipped
        self.refused = (self.refused + other.refused)[:NAMED]
        self.left = (self.left + other.left)[:NAMED]

    @property
    def rows(self) -> int:
        return self.outcomes.total()

    @property
    def bad(self) -> dict[str, int]:
        """Rows that cannot be used, by reason, the most frequent first."""
        return {name: count for name, count in self.outcomes.most_common() if name != OK}

    def in_words(self) -> list[str]:
        """A line for the rows that were refused, and one for what was skipped; none where there is nothing to say."""
        lines = []
        if bad := self.bad:
            lines.append(f"{sum(bad.values()):,} of {self.rows:,} rows refused: {_counted(bad)}; the first: {self.refused[0]}")
        if self.skipped:
            kinds = dict(self.skipped.most_common())
            lines.append(f"{sum(kinds.values()):,} files or members are of no sample: {_counted(kinds)}; the first: {self.left[0]}")
        if KEY_TWICE in bad:
            lines.append("keys come twice where a tar is not sorted by name: sort it, so that the members of a sample follow each other")
        return lines


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def kind_of_skipped(name: str) -> str:
    """``a link`` of ``1.png (a link)``, else ``.cls`` of ``1.cls``."""
    if name.endswith(")") and " (" in name:
        return name.rpartition(" (")[2][:-1]
    return PurePosixPath(name).suffix.lower() or "no suffix"
