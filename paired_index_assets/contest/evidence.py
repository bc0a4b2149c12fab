"""The recall report of a build: its candidates, the paper's plain index, and stock faiss codes, on test captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from paired_index_assets.codes.codec import train_codec
from paired_index_assets.contest.contestants import BASELINE, CODEC_IMAGES, pieces_apart, some
from paired_index_assets.contest.measuring import Contest, EvaluationData, fair_share
from paired_index_assets.quality.intervals import difference_interval
from paired_index_assets.quality.peers import NPROBES as PEER_NPROBES
from paired_index_assets.quality.peers import SHARES as PEER_SHARES
from paired_index_assets.quality.peers import Lists, measure_peers
from paired_index_assets.quality.recall import NPROBES, SHARES, Measurement
from paired_index_assets.quality.report import RecallReport, build_report
from paired_index_assets.quality.tables import table
from paired_index_assets.rows import Int64
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.promotion import Promotion

LEAST_FOR_PRODUCT_CODES = 65_536  # 256 points a centroid: with fewer faiss warns, and its training is slower, not faster


def measure_build(
    data: EvaluationData,
    test: Int64,
    candidates: Sequence[TrainedIndex],
    promoted: TrainedIndex,
    *,
    promotion: Promotion | None = None,
    facts: Mapping[str, str | int | float | bool] | None = None,
) -> RecallReport:
    """Every candidate, each method with the codes faiss trains by itself, and stock faiss codes (PEERS) in the lists of the baseline.

    `test` are the captions to report on, which neither training nor choosing has seen. The peers are those closest in bytes that train
    quickly (benchmarks/peers.py measures all), and none that needs more images than there are. `promotion` adds how all that competed stood.
    """
    peers = ["faiss QT_6bit", "faiss QT_8bit", "faiss RaBitQ 4-bit"]
    peers += ["faiss PQ, d/2 bytes"] if len(data.images) >= LEAST_FOR_PRODUCT_CODES else []
    seed, contest = data.seed, Contest.of(data, test)
    nprobes = sorted({*NPROBES, *(trained.nprobe for trained in candidates)})
    share = fair_share(min(trained.nlist for trained in candidates))
    shares = sorted({*SHARES, share})

    def measured(trained: TrainedIndex) -> Measurement:
        return contest.measured(trained, nprobes=nprobes, shares=shares)

    found = {trained.fingerprint: measured(trained) for trained in candidates}
    baseline = next(trained for trained in candidates if trained.method == BASELINE and trained.groups is None and not trained.learned)
    codecs = list({trained.codec.axes: trained.codec for trained in candidates}.values())
    if baseline.codec.rounding != "faiss":
        sample = data.images[some(data.image_ids(), CODEC_IMAGES, seed)].astype(np.float32)
        plain = train_codec(baseline.codec.name, "faiss", sample, contest.queries)
        for trained in [c for c in candidates if c.groups is None and not c.learned and c.codec.axes == baseline.codec.axes]:
            variant = replace(trained, codec=plain)
            found[variant.fingerprint] = measured(variant)
        codecs.append(plain)
    lists = Lists(BASELINE, baseline.centroids, contest.lists_of(BASELINE, baseline.centroids))
    ours = contest.measured(promoted, nprobes=PEER_NPROBES, shares=PEER_SHARES, rerank=True)
    others = [
        replace(ours, name=f"{ours.name}, re-ranked"),
        *measure_peers(lists, contest.images, contest.queries, contest.truth, names=peers, progress=data.progress),
    ]
    return build_report(
        list(found.values()),
        peers=others,
        baseline=found[baseline.fingerprint].name,
        promoted=found[promoted.fingerprint].name,
        codes=[contest.codes_alone(codec) for codec in codecs],
        notes=[*pieces(promoted, candidates, found, share=share, seed=seed), *_standings(promotion)],
        facts={"captions": "test captions: never trained on, never chosen by, one a concept", **(facts or {})},
        seed=seed,
    )


def pieces(
    promoted: TrainedIndex, candidates: Sequence[TrainedIndex], found: Mapping[str, Measurement], *, share: float, seed: int, k: int = 10
) -> list[str]:
    """What each piece of the promoted index adds: a heading and a table of the candidates that differ from it in one piece.

    At an equal share of the vectors scanned; bytes and coarse cost, the centroids that a query is compared with, stand beside each.
    """
    ours = found[promoted.fingerprint]
    rows = []
    for other in candidates:
        differ = pieces_apart(promoted, other)
        if len(differ) == 1:
            theirs = found[other.fingerprint]
            gain = difference_interval(ours.recall(k, share=share), theirs.recall(k, share=share), seed=seed)
            rows.append([differ[0], theirs.name, gain.signed(), _pair(ours.bytes_per_vector, theirs.bytes_per_vector)])
            rows[-1].append(_pair(ours.coarse_dots, theirs.coarse_dots))
    if not rows:
        return []
    head = ["piece", "instead of", f"adds to recall@{k} at {share:.2%} scanned", "bytes a vector", "centroids compared"]
    return [f"## What each piece of {ours.name} adds", table(head, rows)]


def _standings(promotion: Promotion | None) -> list[str]:
    if promotion is None or not promotion.standings:
        return []
    return [f"## All {len(promotion.standings)} candidates, on the validation captions they were chosen by", standings_table(promotion)]


def standings_table(promotion: Promotion) -> str:
    """All that competed, best first, as the validation captions judged them."""
    head = ["candidate", f"coverage at {promotion.share:.2%} scanned", "recall@10", "bytes", "centroids compared", "nprobe", "imbalance"]
    rows = [
        [
            standing.name,
            f"{standing.coverage:.4f}",
            f"{standing.recall:.4f}",
            str(standing.bytes_per_vector),
            f"{standing.coarse_dots:,}",
            str(standing.nprobe),
            f"{standing.imbalance:.2f}",
        ]
        for standing in sorted(promotion.standings, key=lambda standing: -standing.recall)
    ]
    return table(head, rows)


def _pair(ours: int, theirs: int) -> str:
    return f"{ours:,}" if ours == theirs else f"{ours:,} for {theirs:,}"
