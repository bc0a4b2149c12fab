"""What the shards on disk find, measured through the reader users have, against the exact neighbours over everything indexed.

Unlike `recall.measure`, which compares candidates in memory, nothing here knows what the files should hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.candidates import Probe
from paired_index_assets.quality.intervals import Interval, mean_intervals
from paired_index_assets.quality.recall import KS, NPROBES, Relevant
from paired_index_assets.quality.truth import GroundTruth
from paired_index_assets.rows import Float32, Int64

MOST_SCANNED = 2_000_000_000  # vectors, of all captions together, that are scanned with every list probed: some 10 s on two cores
FEWEST_QUERIES = 50  # of fewer a mean says nothing, and that point is left out
SAME_SCORE = 1e-5  # of inner products summed in another order


class Searchable(Protocol):
    """The part of `search.sharded.ShardedIndex` that is measured."""

    ntotal: int
    nlist: int

    def search(self, queries: Float32, k: int, *, nprobe: int) -> tuple[Float32, Int64]: ...
    def list_sizes(self) -> Int64: ...


@dataclass(frozen=True)
class ServedPoint:
    """recall: k -> recall@k. scanned: mean share of the indexed vectors that was scanned. queries: captions, None for all of them."""

    nprobe: int
    scanned: float
    recall: dict[int, Interval]
    queries: int | None = None


@dataclass(frozen=True)
class Served:
    """queries: captions measured; unproven: captions left out because, rows being taken down, their neighbours are not known deep enough.

    indexed: vectors in the shards, of them `lossy_rows` rebuilt from another index. stock_nprobe, stock_differs: at that nprobe, the
    results (query and rank) that stock faiss gives otherwise over the same files, ties aside.
    """

    queries: int
    unproven: int
    indexed: int
    shards: int
    missing_shards: list[int]
    lossy_rows: int
    fingerprint: str  # of the trained index
    captions: str  # digest of the test captions
    points: list[ServedPoint]
    stock_nprobe: int
    stock_queries: int
    stock_differs: int

    def at(self, nprobe: int) -> ServedPoint | None:
        return next((point for point in self.points if point.nprobe == nprobe), None)


def measure_served(
    index: Searchable,
    probe: Probe,
    queries: Float32,
    truth: GroundTruth,
    *,
    nprobes: Sequence[int] = NPROBES,
    ks: Sequence[int] = KS,
    seed: int,
    progress: Progress = silent,
) -> list[ServedPoint]:
    """Recall@k at each nprobe (cut to nlist) and with every list probed, with intervals over the queries (nq, d) float32 of `truth`.

    probe: the lists that a search looks in, for the share scanned. With every list probed only the first queries are asked where all
    would scan more than MOST_SCANNED vectors: else the report of a hundred times the rows would take a hundred times as long.
    """
    amounts = sorted({min(nprobe, index.nlist) for nprobe in (*nprobes, index.nlist)})
    sizes, points = index.list_sizes(), []
    for done, nprobe in enumerate(amounts, start=1):
        most = len(queries) if nprobe < index.nlist else min(len(queries), MOST_SCANNED // max(index.ntotal, 1))
        if most < min(FEWEST_QUERIES, len(queries)):
            continue
        asked, relevant = queries[:most], Relevant(truth, slice(0, most), tuple(sorted(ks)))
        _, found = index.search(asked, max(ks), nprobe=nprobe)
        lists = probe(asked, nprobe)[1]
        scanned = np.where(lists < 0, 0, sizes[lists]).sum(1).mean() / max(index.ntotal, 1)
        intervals = mean_intervals(relevant.recall_of_returned(found), seed=seed)
        recall = dict(zip(relevant.ks, intervals, strict=True))
        points.append(ServedPoint(nprobe, float(scanned), recall, most if most < len(queries) else None))
        progress("measuring the shards", done, len(amounts))
    return points


def differing(scores: Float32, ids: Int64, other_scores: Float32, other_ids: Int64) -> int:
    """How many results (nq, k) of two searches differ: in score, or in id where the score is not tied with a neighbour's in rank."""
    with np.errstate(invalid="ignore"):
        close = (np.abs(scores - other_scores) <= SAME_SCORE * np.maximum(1, np.abs(scores))) | (scores == other_scores)
        steps = np.abs(np.diff(scores, axis=1)) <= SAME_SCORE
    tied = np.zeros(scores.shape, np.bool_)
    tied[:, :-1] |= steps
    tied[:, 1:] |= steps
    tied[:, -1] = True  # who else has the last score is not seen
    return int((~close | ((ids != other_ids) & ~tied)).sum())
