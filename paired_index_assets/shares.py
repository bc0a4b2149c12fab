"""Work of numbered pieces shared out to several runs, on one machine or many."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """Of `of` shares those with these `numbers` (from 0), for one run: of a share is every `of`-th piece."""

    numbers: tuple[int, ...] = (0,)
    of: int = 1

    def pieces(self, count: int) -> list[int]:
        """Which of 0 .. count - 1, ascending; none where there are more shares than pieces."""
        return sorted(piece for number in self.numbers for piece in range(number, count, self.of))


WHOLE = Share()
