"""How many lists an index has, and how many of them a search takes: the rules, without anything to run them on."""

from __future__ import annotations

import math

NPROBE = 8  # the paper's, of lists in one level
FINER = 4  # times as many lists in two levels as in one: about the same coarse cost
FEWEST_MEMBERS = 8  # training images a list
FEWEST_LISTS = 1024  # in two levels; below, comparing a query with every centroid costs less than groups save


def flat_lists(rows: int) -> int:
    """The power of two below 4 sqrt(rows): 256 for 12,000 rows, 131,072 for LAION-2B; a query is compared with every centroid."""
    return int(2 ** max(0, math.floor(math.log2(4 * math.sqrt(max(rows, 1))))))


def fine_lists(rows: int, training_rows: int) -> int | None:
    """FINER times as many, for a coarse quantizer of two levels; None where those would be too few to group, or too many to train."""
    nlist = FINER * flat_lists(rows)
    return nlist if nlist >= FEWEST_LISTS and training_rows >= FEWEST_MEMBERS * nlist else None
