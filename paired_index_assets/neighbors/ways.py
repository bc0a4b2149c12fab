"""The ways there are to assign rows, and which of them costs least: measured, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import process_time

from paired_index_assets.neighbors.bounds import int8_levels

OUT_OF_REACH = 1.4  # times the least cost, once: a way that is not timed again
ROUNDS = 3  # of timing the others, in turn; the least of each counts
CLOSE, MORE_ROUNDS = 1.06, 2  # so near the best, a way is timed again
WIDTHS = (1 / 4, 1 / 6, 1 / 3, 1 / 8, 1 / 2)  # of the dimensions, likely ones first; benchmarks/assignment.py
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Way:
    """How rows are assigned: densely, or by bounds from `width` dimensions in int8 (`levels` > 0) or float32."""

    width: int = 0
    levels: int = 0

    @property
    def dense(self) -> bool:
        return not self.width

    def __str__(self) -> str:
        return "dense" if self.dense else f"bounds of {self.width} dimensions in {'int8' if self.levels else 'float32'}"


DENSE = Way()


def ways(d: int) -> list[Way]:
    """The pruned ways for vectors of `d` dimensions on this machine."""
    rounded = dict.fromkeys(max(WIDTH_MULTIPLE, int(d * share) // WIDTH_MULTIPLE * WIDTH_MULTIPLE) for share in WIDTHS)
    widths = [width for width in rounded if width < d]
    levels = int8_levels()  # where there is int8, it beat float32 in every width worth having: benchmarks/assignment.py
    return [Way(width, levels) for width in widths]


def quickest(contenders: Iterable[tuple[Way, Callable[[], float]]]) -> tuple[Way, dict[Way, float]]:
    """The way that costs least, and what each cost: `contenders` say it anew at each call. One measurement shuts out only what is far
    behind; the others take turns, and those that are close to the best for longer, so that a moment's disturbance decides nothing.
    """
    costs: dict[Way, float] = {}
    left: dict[Way, Callable[[], float]] = {}
    for way, cost in contenders:
        costs[way], left[way] = cost(), cost
        left = within(OUT_OF_REACH, left, costs)  # and a loser's table is let go
    for number in range(1, ROUNDS + MORE_ROUNDS):
        if number >= ROUNDS:
            left = within(CLOSE, left, costs)
        if len(left) > 1:
            for way, cost in left.items():
                costs[way] = min(costs[way], cost())
    return min(left, key=lambda way: costs[way]), costs


def within(reach: float, left: dict[Way, Callable[[], float]], costs: dict[Way, float]) -> dict[Way, Callable[[], float]]:
    """Those of `left` that cost at most `reach` times the least of them."""
    most = reach * min(costs[way] for way in left)
    return {way: cost for way, cost in left.items() if costs[way] <= most}


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process, so that what else the machine does decides nothing."""
    began = process_time()
    work()
    return process_time() - began
