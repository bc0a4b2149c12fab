"""The recall report of a build: its candidates, the paper's plain index, and stock faiss codes, on test captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from paired_index_assets.codes.codec import train_codec
from paired_index_assets.contest.contestants import BASELINE, CODEC_IMAGES, some
from paired_index_assets.contest.measuring import Contest, judged_images
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.peers import NPROBES, SHARES, Lists, measure_peers
from paired_index_assets.quality.report import RecallReport, build_report
from paired_index_assets.quality.truth import ground_truth
from paired_index_assets.rows import Bool, Int64, Rows, Selected
from paired_index_assets.trained.artifact import TrainedIndex

LEAST_FOR_PRODUCT_CODES = 65_536  # 256 points a centroid: with fewer faiss warns, and its training is slower, not faster


def measure_build(
    images: Rows,
    captions: Rows,
    test: Int64,
    valid: Bool,
    candidates: Sequence[TrainedIndex],
    promoted: TrainedIndex,
    *,
    peers: Sequence[str] | None = None,
    facts: dict[str, str | int | float | bool] | None = None,
    seed: int,
    device: str | None = None,
    progress: Progress = silent,
) -> RecallReport:
    """Every candidate, each method with the codes faiss trains by itself, and `peers` (names of PEERS) in the lists of the baseline.

    images, captions (n, d), aligned; `test` the captions to report on, which neither training nor choosing has seen. By default the
    peers closest in bytes that train quickly (benchmarks/peers.py measures all), and none that needs more images than there are.
    """
    if peers is None:
        peers = ["faiss QT_6bit", "faiss QT_8bit", "faiss RaBitQ 4-bit"]
        peers += ["faiss PQ, d/2 bytes"] if len(images) >= LEAST_FOR_PRODUCT_CODES else []
    ids = judged_images(valid, seed)
    shown, queries = Selected(images, ids), captions[test].astype(np.float32)
    contest = Contest(shown, queries, ground_truth(queries, shown, device=device, progress=progress), device, progress)
    found = {trained.fingerprint: contest.measured(trained) for trained in candidates}
    baseline = next(trained for trained in candidates if trained.method == BASELINE and trained.routing is None)
    codecs = [baseline.codec]
    if baseline.codec.rounding != "faiss":
        plain = train_codec(baseline.codec.name, "faiss", images[some(ids, CODEC_IMAGES, seed)].astype(np.float32), queries)
        for trained in [candidate for candidate in candidates if candidate.routing is None]:
            variant = replace(trained, codec=plain)
            found[variant.fingerprint] = contest.measured(variant)
        codecs.append(plain)
    lists = Lists(BASELINE, baseline.centroids, contest.lists_of(BASELINE, baseline.centroids))
    ours = contest.measured(promoted, nprobes=NPROBES, shares=SHARES, rerank=True)
    others = [
        replace(ours, name=f"{ours.name}, re-ranked"),
        *measure_peers(lists, shown, queries, contest.truth, names=peers, progress=progress),
    ]
    return build_report(
        list(found.values()),
        peers=others,
        baseline=found[baseline.fingerprint].name,
        promoted=found[promoted.fingerprint].name,
        codes=[contest.codes_alone(codec) for codec in codecs],
        facts={"captions": "test captions: never trained on, never chosen by, one a concept", **(facts or {})},
        seed=seed,
    )
