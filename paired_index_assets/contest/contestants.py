"""From centroids to the index the shards use: codes for all, one level of lists or two, one contest on validation captions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.contest.measuring import Contest, EvaluationData, Verdict, choose, fair_share
from paired_index_assets.contest.probing import default_nprobe
from paired_index_assets.errors import BadInput
from paired_index_assets.pairing.split import Split
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.recall import Measurement
from paired_index_assets.rows import Int64, Rows
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists

BASELINE = "kmeans"
CODEC_IMAGES = 65_536  # second moments of 768 dimensions are steady well before
CODEC_CAPTIONS = 200_000


@dataclass(frozen=True)
class Contestant:
    """Lists that compete: centroids of a method, compared with a query all at once (levels 1) or in groups (2)."""

    method: str
    levels: Literal[1, 2]
    clustering: Clustering
    may_win: bool = True


@dataclass(frozen=True)
class CodeChoice:
    """Which codes compete: today's (`codec`, `rounding`) and, where `transform` allows it, the transformed code of `bytes_per_vector`;
    with bytes that today's code does not have, that alone.
    """

    codec: str
    rounding: str
    transform: bool = True
    bytes_per_vector: int | None = None


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
    data: EvaluationData, split: Split, contestants: Sequence[Contestant], codes: CodeChoice, *, model: str | None
) -> Judged:
    """Train codes on training captions, measure every candidate on validation captions, choose.

    `contestants` have BASELINE with one level among them; every one competes with each of the `codes`; `model` is recorded.
    Deterministic in its arguments. Raises BadInput for bytes that no code can have.
    """
    seed, contest = data.seed, Contest.of(data, split.validation)
    began = time.perf_counter()
    codecs = codes_for(
        data.images[some(data.image_ids(), CODEC_IMAGES, seed)],
        data.captions[some(split.train, CODEC_CAPTIONS, seed)],
        codes,
        progress=data.progress,
    )
    codec_seconds = time.perf_counter() - began
    share = fair_share(min(len(contestant.clustering.centroids) for contestant in contestants))
    entries, measurements, may_win = [], [], []
    for contestant in contestants:
        clustering, seconds = contestant.clustering, codec_seconds + sum(step.seconds for step in contestant.clustering.history)
        nlist, d = clustering.centroids.shape
        groups = group_lists(clustering.centroids, seed=seed) if contestant.levels == 2 else None
        for code in codecs:
            evidence = {"build_seconds": round(seconds, 2)}
            trained = TrainedIndex(contestant.method, nlist, d, clustering.centroids, code, model, evidence, groups)
            lists = contest.lists_of(contestant.method, clustering.centroids)
            trained = replace(trained, nprobe=default_nprobe(trained, lists, contest.queries))
            found = contest.measured(trained, nprobes=(trained.nprobe,), shares=(share,))
            entries.append(Entry(found.name, file_method(trained), trained))
            measurements.append(found)
            if contestant.may_win:
                may_win.append(found)
    baseline = next(m for m in measurements if (m.method, m.levels) == (BASELINE, 1))
    return Judged(entries, measurements, choose(may_win, baseline, share=share, seed=seed))


def codes_for(images: Rows, captions: Rows, choice: CodeChoice, *, progress: Progress = silent) -> list[TrainedCodec]:
    """The codes that compete, today's first: at least one. Raises BadInput for bytes that none can have."""
    rows = np.asarray(images[:], np.float32), np.asarray(captions[:], np.float32)
    codec, size = choice.codec, choice.bytes_per_vector
    found: list[TrainedCodec] = []
    today = train_codec(codec, choice.rounding, *rows, progress=progress)
    if size in (None, today.code_size):
        found.append(today)
    if choice.transform and choice.rounding == "query" and codec == "QT_4bit" and today.rounding == "query":
        transformed = train_transformed(*rows, bytes_per_vector=size, progress=progress)
        found += [] if transformed is None else [transformed]
    if not found:
        raise BadInput(
            f"bytes_per_vector: {codec} has {today.code_size} bytes at {today.d} dimensions, found {size}; other sizes need "
            "codec QT_4bit, rounding query, transform auto, and at least as many captions and images as dimensions"
        )
    return found


def file_method(trained: TrainedIndex) -> str:
    """What names a candidate's file beside nlist and codec: the method alone for the plain index, as the paper's."""
    parts = [trained.method, "two_level" if trained.groups else "", "transformed" if trained.codec.transform else ""]
    return ".".join(part for part in parts if part)


def some(ids: Int64, most: int, seed: int) -> Int64:
    """At most `most` of `ids`, drawn with `seed`, ascending."""
    return ids if len(ids) <= most else np.sort(np.random.default_rng(seed).choice(ids, most, replace=False))
