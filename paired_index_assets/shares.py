"""Work of numbered pieces shared out to several runs, on one machine or many."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Of `of` runs the one with this `number` (from 0): it makes every `of`-th piece."""

    number: int = 0
    of: int = 1

    def pieces(self, count: int) -> range:
        """Which of 0 .. count - 1; none where there are more runs than pieces."""
        return range(self.number, count, self.of)


WHOLE = Share()
