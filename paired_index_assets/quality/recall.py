"""What an index finds, measured: the one implementation of recall in this project.

For a query q let s_k be the k-th best exact inner product over all images. The *relevant* images of q at k are those that score at least
s_k - TIE (so the images of an exact tie are equally right), and every recall below is hits / k with at most k hits.

- coverage recall@k: relevant images whose list is probed: what exact scores inside the probed lists would return. 1 - coverage is the loss
  of lists and probing.
- product recall@k: relevant images among the k that the index returns with its stored codes. coverage - product is the loss of the codes.
- re-ranked recall@k: the top `RERANK` x k by the codes, put in exact order, k kept. Exact order puts relevant images first, so that this is
  min(k, relevant images among the RERANK x k) / k, without computing a score.
- code recall@k: product recall with every list probed. 1 - code recall is the loss of the codes alone.

Two scales make candidates comparable. *nprobe*: every query probes as many lists. *Share of vectors scanned*: every query probes its lists
in order while the vectors of all lists so far stay within share x images, and at least one list. Uneven lists look better than they are at
equal nprobe, because their best lists are long. The mean share that was really scanned is kept beside either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.candidates import Candidate
from paired_index_assets.quality.truth import DEEPEST_K, GroundTruth
from paired_index_assets.rows import Bool, Float32, Int32, Int64

NPROBES = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.0025, 0.005, 0.01, 0.02, 0.04)
KS = (1, 10, DEEPEST_K)
RERANK = 10
BLOCK_BYTES = 512 << 20


Kind = Literal["coverage", "product", "reranked", "best"]


@dataclass(frozen=True)
class Setting:
    """How much is probed: `nprobe` lists, or a `share` of the vectors."""

    by: Literal["nprobe", "share", "all"]
    amount: float

    def __str__(self) -> str:
        return "every list" if self.by == "all" else f"nprobe {self.amount:.0f}" if self.by == "nprobe" else f"{self.amount:.2%} scanned"


@dataclass(frozen=True)
class Subject:
    """What is measured. imbalance: faiss's factor nlist sum(size^2) / (sum size)^2, 1 is even. levels: of the coarse quantizer, which
    compares a query with coarse_dots centroids, or (learned) with what captions taught in their place. nprobe: what the index takes where a
    search does not say, None where it has none."""

    name: str
    method: str
    codec: str
    nlist: int
    levels: int
    learned: bool
    coarse_dots: int
    nprobe: int | None
    bytes_per_vector: int
    build_seconds: float
    images: int
    in_lists: int
    imbalance: float
    empty_lists: int
    longest_list: int


@dataclass(frozen=True)
class Measurement(Subject):
    """What was found, a value a query, so that intervals and paired differences come from the queries themselves.

    coverage, product, reranked: (settings, ks, queries) float32 recall; product and reranked None where there was no scan. scanned:
    (settings, queries) vectors; probed: (settings, queries) lists.
    """

    ks: tuple[int, ...]
    settings: tuple[Setting, ...]
    scanned: Int64
    probed: Int64
    coverage: Float32
    product: Float32 | None = field(default=None)
    reranked: Float32 | None = field(default=None)

    def recall(
        self,
        k: int = 10,
        *,
        nprobe: int | None = None,
        share: float | None = None,
        of: Kind = "best",
    ) -> Float32:
        """(queries,) recall@k at one setting; with neither nprobe nor share, of every list. "best": product if measured, else coverage."""
        values = self.values(of)
        setting = Setting("nprobe", nprobe) if nprobe is not None else Setting("share", share) if share is not None else Setting("all", 1)
        if values is None or setting not in self.settings or k not in self.ks:
            raise BadInput(
                f"{self.name}: no {of} recall@{k} at {setting} was measured; "
                f"there is k in {self.ks} at {', '.join(map(str, self.settings))}{'' if self.product is not None else ', coverage only'}"
            )
        found: Float32 = values[self.settings.index(setting), self.ks.index(k)]
        return found

    def values(self, of: Kind) -> Float32 | None:
        """(settings, ks, queries), or None where it was not measured."""
        if of == "best":
            return self.coverage if self.product is None else self.product
        return {"coverage": self.coverage, "product": self.product, "reranked": self.reranked}[of]


def measure(
    candidate: Candidate,
    queries: Float32,
    truth: GroundTruth,
    *,
    nprobes: Sequence[int] = NPROBES,
    shares: Sequence[float] = SHARES,
    ks: Sequence[int] = KS,
    exhaustive: bool = False,
    rerank: bool = False,
    progress: Progress = silent,
) -> Measurement:
    """Coverage and, where the candidate can scan, product recall at each setting.

    queries: (nq, d) float32, finite, in the order of `truth`. nprobes above nlist are cut to nlist. exhaustive adds the setting that probes
    every list (code loss alone); rerank scans for RERANK x k and adds `reranked`. Cost: a probe of every query, then a scan a setting.
    Deterministic. Raises BadInput when candidate, queries and truth do not belong together.
    """
    _check(candidate, queries, truth, nprobes, shares, ks)
    settings = [Setting("nprobe", p) for p in sorted({min(p, candidate.nlist) for p in nprobes})]
    settings += [Setting("share", s) for s in sorted(set(shares))]
    settings += [Setting("all", 1)] if exhaustive else []
    ks = tuple(sorted(set(ks)))
    sizes = candidate.list_sizes()
    budgets = [int(s.amount * truth.searchable) for s in settings if s.by == "share"]
    at_least = max([1, *(int(s.amount) for s in settings if s.by == "nprobe")])
    shape = (len(settings), len(ks), len(queries))
    found = {"coverage": np.zeros(shape, np.float32)}
    if candidate.scan is not None:
        found |= {name: np.zeros(shape, np.float32) for name in (("product", "reranked") if rerank else ("product",))}
    scanned, probed = np.zeros((len(settings), len(queries)), np.int64), np.zeros((len(settings), len(queries)), np.int64)
    for block in _blocks(len(queries), candidate.nlist):
        asked = queries[block]
        relevant = Relevant(truth, block, ks)
        coarse, lists, cumulated = _probe_order(candidate, asked, sizes, at_least, max(budgets, default=0), exhaustive)
        rank = _rank_of_lists(lists, candidate.nlist)
        home = candidate.list_of_image[relevant.ids]
        reached_at = np.where(home >= 0, np.take_along_axis(rank, np.maximum(home, 0), 1), _NEVER)
        for row, setting in enumerate(settings):
            width = _lists_within(setting, cumulated, truth.searchable)
            probed[row, block] = width
            scanned[row, block] = np.take_along_axis(cumulated, width[:, None] - 1, 1)[:, 0]
            found["coverage"][row, :, block] = relevant.recall(reached_at < width[:, None])
            if candidate.scan is not None:
                most = int(width.max())
                chosen = np.where(np.arange(most) < width[:, None], lists[:, :most], -1)
                depth = min(ks[-1] * (RERANK if rerank else 1), truth.searchable)
                returned = candidate.scan(asked, depth, chosen, np.ascontiguousarray(coarse[:, :most]))
                found["product"][row, :, block] = relevant.recall_of_returned(returned)
                if rerank:
                    found["reranked"][row, :, block] = relevant.recall_of_returned(returned, RERANK)
            done = block.start * len(settings) + (block.stop - block.start) * (row + 1)
            progress(f"measuring {candidate.name}", done, len(settings) * len(queries))
    total = int(sizes.sum())
    return Measurement(
        name=candidate.name,
        method=candidate.method,
        codec=candidate.codec,
        nlist=candidate.nlist,
        levels=candidate.levels,
        learned=candidate.learned,
        coarse_dots=candidate.coarse_dots or candidate.nlist,
        nprobe=candidate.nprobe,
        bytes_per_vector=candidate.bytes_per_vector,
        build_seconds=candidate.build_seconds,
        images=truth.searchable,
        in_lists=total,
        imbalance=float(candidate.nlist * np.square(sizes, dtype=np.float64).sum() / max(total, 1) ** 2),
        empty_lists=int((sizes == 0).sum()),
        longest_list=int(sizes.max()),
        ks=ks,
        settings=tuple(settings),
        scanned=scanned,
        probed=probed,
        **found,
    )


_NEVER = np.iinfo(np.int32).max


class Relevant:
    """The relevant images of a block of queries at each k, and the counting of hits."""

    def __init__(self, truth: GroundTruth, block: slice, ks: tuple[int, ...]) -> None:
        part = replace(truth, ids=truth.ids[block], scores=truth.scores[block])
        self.ids, self.ks, self.stride = part.ids, ks, truth.images
        self.counts = [part.relevant(k) for k in ks]
        self.divisors = [part.at_most(k) for k in ks]
        keys = self._keys(part.ids)
        self.by_key = np.argsort(keys, axis=None)
        self.keys = keys.ravel()[self.by_key]

    def recall(self, reached: Bool) -> Float32:
        """(ks, queries) for reached (queries, depth): whether each true neighbour was."""
        position = np.arange(reached.shape[1])
        rows = [
            np.minimum((reached & (position < count[:, None])).sum(1), divisor) / divisor
            for count, divisor in zip(self.counts, self.divisors, strict=True)
        ]
        return np.stack(rows).astype(np.float32)

    def recall_of_returned(self, returned: Int64, factor: int = 1) -> Float32:
        """(ks, queries) for returned (queries, n) ids, best first: hits among the first factor x k."""
        position = self._positions(returned)
        rows = [
            np.minimum((position[:, : factor * k] < count[:, None]).sum(1), divisor) / divisor
            for k, count, divisor in zip(self.ks, self.counts, self.divisors, strict=True)
        ]
        return np.stack(rows).astype(np.float32)

    def _keys(self, ids: Int64) -> Int64:
        keys: Int64 = np.where(ids >= 0, ids + np.arange(len(ids))[:, None] * self.stride, -1)
        return keys

    def _positions(self, returned: Int64) -> Int64:
        """Where each returned id stands among the true neighbours of its query; _NEVER where it does not."""
        keys = self._keys(returned)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        position: Int64 = np.where((keys >= 0) & (self.keys[at] == keys), self.by_key[at] % self.ids.shape[1], _NEVER)
        return position


def _probe_order(
    candidate: Candidate, queries: Float32, sizes: Int64, at_least: int, budget: int, every: bool
) -> tuple[Float32, Int64, Int64]:
    """(coarse, lists, vectors in the lists up to each): as many lists as the largest setting of any query needs."""
    width = candidate.nlist if every else min(candidate.nlist, max(at_least, int(2 * budget * candidate.nlist / max(sizes.sum(), 1)) + 1))
    while True:
        coarse, lists = candidate.probe(queries, width)
        if lists.shape != (len(queries), width) or lists.max(initial=-1) >= candidate.nlist:
            raise BadInput(
                f"{candidate.name}: probe gave lists {lists.shape}, greatest {lists.max(initial=-1)}; expected "
                f"({len(queries)}, {width}) of lists below {candidate.nlist}"
            )
        cumulated = np.cumsum(np.where(lists >= 0, sizes[lists], 0), 1)
        if width == candidate.nlist or ((cumulated[:, -1] > budget) | (lists[:, -1] < 0)).all():
            return coarse, lists, cumulated
        width = min(candidate.nlist, 2 * width)


def _lists_within(setting: Setting, cumulated: Int64, searchable: int) -> Int64:
    """(queries,) how many lists are probed."""
    if setting.by == "share":
        within: Int64 = np.maximum((cumulated <= int(setting.amount * searchable)).sum(1), 1)
        return within
    return np.full(len(cumulated), cumulated.shape[1] if setting.by == "all" else int(setting.amount))


def _rank_of_lists(lists: Int64, nlist: int) -> Int32:
    """(queries, nlist): when each list is probed, from 0; _NEVER if it is not."""
    rank = np.full((len(lists), nlist + 1), _NEVER, np.int32)
    np.put_along_axis(rank, np.where(lists >= 0, lists, nlist), np.arange(lists.shape[1], dtype=np.int32)[None], 1)
    return rank[:, :nlist]


def _blocks(queries: int, nlist: int) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // (4 * 8 * nlist))  # order, ranks, coarse and cumulated sizes of one query
    for start in range(0, queries, rows):
        yield slice(start, min(queries, start + rows))


def _check(
    candidate: Candidate, queries: Float32, truth: GroundTruth, nprobes: Sequence[int], shares: Sequence[float], ks: Sequence[int]
) -> None:
    lists = candidate.list_of_image
    if len(queries) != len(truth):
        raise BadInput(f"{candidate.name}: {len(queries)} queries, the truth of {len(truth)}; expected the same captions in the same order")
    if not np.isfinite(queries).all():
        raise BadInput(f"{candidate.name}: {int((~np.isfinite(queries)).any(1).sum())} queries are not finite; leave them out")
    if lists.shape != (truth.images,) or lists.max(initial=-1) >= candidate.nlist or lists.min(initial=-1) < -1:
        raise BadInput(
            f"{candidate.name}: list_of_image {lists.shape} of lists {lists.min(initial=-1)} to {lists.max(initial=-1)}; "
            f"expected ({truth.images},) of -1 to {candidate.nlist - 1}"
        )
    if any(p < 1 for p in nprobes) or any(not 0 < s <= 1 for s in shares) or not ks or min(ks) < 1:
        raise BadInput(
            f"{candidate.name}: nprobes {tuple(nprobes)}, shares {tuple(shares)}, ks {tuple(ks)}; "
            "expected nprobe >= 1, 0 < share <= 1, k >= 1"
        )
