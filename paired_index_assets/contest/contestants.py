"""From centroids to the index the shards use: codes for all, routing for each, one contest on validation captions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.codes.codec import train_codec
from paired_index_assets.contest.measuring import Contest, Verdict, choose, judged_images
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.pairing.split import Split
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.recall import Measurement
from paired_index_assets.quality.truth import ground_truth
from paired_index_assets.routing.training import train_routing
from paired_index_assets.rows import Bool, Float32, Int64, Rows, Selected
from paired_index_assets.trained.artifact import TrainedIndex

BASELINE = "kmeans"
CODEC_IMAGES = 65_536  # second moments of 768 dimensions are steady well before
CODEC_CAPTIONS = 200_000
ROUTING_CAPTIONS = 100_000  # labels: ten lists each; benchmarks/routing.py shows what more would bring
ROUTING_NEIGHBORS = 10


@dataclass(frozen=True)
class Entry:
    """One candidate: the artifact, and the name of its file between codec and suffix."""

    name: str
    file_method: str
    trained: TrainedIndex


@dataclass(frozen=True)
class Judged:
    candidates: list[Entry]
    measurements: list[Measurement]
    verdict: Verdict

    @property
    def winner(self) -> Entry:
        return next(entry for entry in self.candidates if entry.name == self.verdict.winner.name)


def make_and_judge(
    images: Rows,
    captions: Rows,
    split: Split,
    clusters: Mapping[str, Clustering],
    valid: Bool,
    *,
    codec: str,
    rounding: str,
    routings: Mapping[str, Sequence[str]],
    model: str | None,
    seed: int,
    device: str | None = None,
    progress: Progress = silent,
) -> Judged:
    """Train codes and routing on training captions, measure every candidate on validation captions, choose.

    images, captions (n, d), aligned; `clusters` method -> centroids, with BASELINE among them; `routings` method -> the routings
    ("centroids", "learned") that may win for it: the baseline is measured also when none of its may. Deterministic in its arguments.
    """
    ids = judged_images(valid, seed)
    shown = Selected(images, ids)
    queries = captions[split.validation].astype(np.float32)
    contest = Contest(shown, queries, ground_truth(queries, shown, device=device, progress=progress), device, progress)
    began = time.perf_counter()
    coded = train_codec(
        codec,
        rounding,
        images[some(ids, CODEC_IMAGES, seed)].astype(np.float32),
        captions[some(split.train, CODEC_CAPTIONS, seed)].astype(np.float32),
        progress=progress,
    )
    codec_seconds = time.perf_counter() - began
    learning = any("learned" in chosen for chosen in routings.values())
    asked = captions[some(split.train, ROUTING_CAPTIONS, seed)].astype(np.float32) if learning else queries[:0]
    tops = _tops(asked, shown, device, progress) if learning else np.empty((0, ROUTING_NEIGHBORS), np.int64)
    candidates, measurements, may_win = [], [], []
    for method, clustering in clusters.items():
        lists = contest.lists_of(method, clustering.centroids)
        for routing in dict.fromkeys(("centroids", *routings.get(method, ()))):
            began = time.perf_counter()
            table = None
            if routing == "learned":
                table = train_routing(
                    clustering.centroids,
                    lists,
                    asked,
                    tops,
                    validation_captions=queries,
                    validation_top_images=contest.truth.ids[:, :10],
                    seed=seed,
                    progress=progress,
                )
            nlist, d = clustering.centroids.shape
            seconds = sum(step.seconds for step in clustering.history) + codec_seconds + time.perf_counter() - began
            evidence = {"build_seconds": round(seconds, 2)}
            trained = TrainedIndex(method, nlist, d, clustering.centroids, coded, table, model, evidence)
            found = contest.measured(trained)
            measurements.append(found)
            candidates.append(Entry(found.name, method if routing == "centroids" else f"{method}.{routing}", trained))
            if routing in routings.get(method, ()):
                may_win.append(found)
    baseline = next(m for m in measurements if (m.method, m.routing) == (BASELINE, "centroids"))
    return Judged(candidates, measurements, choose(may_win, baseline, seed=seed))


def some(ids: Int64, most: int, seed: int) -> Int64:
    """At most `most` of `ids`, drawn with `seed`, ascending."""
    return ids if len(ids) <= most else np.sort(np.random.default_rng(seed).choice(ids, most, replace=False))


def _tops(captions: Float32, images: Rows, device: str | None, progress: Progress) -> Int64:
    """(m, 10) the images, by place among `images`, that each caption is closest to: what its routing is to find."""
    return exact_neighbors(captions, images, min(ROUTING_NEIGHBORS, len(images)), device=device, progress=progress)[1]
