"""From centroids to the index the shards use: codes for all, lists in one level or two, routing by centroids or learned, one contest."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.contest.measuring import Contest, EvaluationData, Verdict, choose, fair_share
from paired_index_assets.contest.probing import default_nprobe, with_fewest_groups
from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.pairing.split import Split
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.recall import Measurement
from paired_index_assets.routing.training import Lesson, train_routing
from paired_index_assets.rows import Int64, Rows, Selected
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists
from paired_index_assets.trained.promotion import Standing

BASELINE = "kmeans"
CODEC_IMAGES = 65_536  # second moments of 768 dimensions are steady well before
CODEC_CAPTIONS = 200_000
ROUTING_CAPTIONS = 100_000  # ten labels each; all 196,000 of the icons cost twice the time
ROUTING_NEIGHBORS = 10


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
    """`measurements` are those of all `candidates`, in their order, on validation captions."""

    candidates: list[Entry]
    measurements: list[Measurement]
    verdict: Verdict

    @property
    def winner(self) -> Entry:
        return next(entry for entry in self.candidates if entry.name == self.verdict.winner.name)

    @property
    def standings(self) -> list[Standing]:
        k, share = self.verdict.k, self.verdict.share
        return [
            Standing(
                m.name,
                float(m.recall(k, share=share, of="coverage").mean()),
                float(m.recall(k, share=share).mean()),
                m.bytes_per_vector,
                m.coarse_dots,
                m.nprobe,
                m.imbalance,
            )
            for m in self.measurements
        ]

    @property
    def compared(self) -> list[Entry]:
        """What reports compare: the winner, what differs from it in one piece, and every method with flat lists and today's code."""
        won, today = self.winner.trained, self.candidates[0].trained.codec

        def wanted(trained: TrainedIndex) -> bool:
            plain = trained.groups is None and not trained.learned and trained.codec.axes == today.axes
            return plain or len(pieces_apart(won, trained)) <= 1

        return [entry for entry in self.candidates if wanted(entry.trained)]


def pieces_apart(one: TrainedIndex, other: TrainedIndex) -> list[str]:
    """In which pieces two candidates differ."""
    differ = {
        "codes": other.codec.axes != one.codec.axes,
        "lists": (other.nlist, other.levels) != (one.nlist, one.levels),
        "centroids": other.method != one.method,
        "routing": other.learned != one.learned,
    }
    return [piece for piece, differs in differ.items() if differs]


def make_and_judge(
    data: EvaluationData, split: Split, contestants: Sequence[Contestant], codes: CodeChoice, *, routing: bool = True, model: str | None
) -> Judged:
    """Train codes and routing on training captions, measure every candidate on validation captions, choose.

    `contestants` have BASELINE with one level among them; every one competes with each of the `codes` and, where `routing` allows it and it
    may win, with learned routing too; `model` is recorded. Deterministic in its arguments, on one device and number of threads. Raises
    BadInput for bytes that no code can have.
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
    lesson = _lesson(data, some(split.train, ROUTING_CAPTIONS, seed)) if routing else None
    judges = Lesson(contest.queries, contest.truth.ids[:, : min(ROUTING_NEIGHBORS, len(contest.images))])
    entries, measurements, may_win = [], [], []
    for contestant in contestants:
        clustering, seconds = contestant.clustering, codec_seconds + sum(step.seconds for step in contestant.clustering.history)
        nlist, d = clustering.centroids.shape
        groups = group_lists(clustering.centroids, seed=seed) if contestant.levels == 2 else None
        evidence = {"build_seconds": round(seconds, 2)}
        plain = TrainedIndex(contestant.method, nlist, d, clustering.centroids, codecs[0], model, evidence, groups)
        lists = contest.lists_of(contestant.method, clustering.centroids)
        fewest = partial(with_fewest_groups, list_of_image=lists, queries=contest.queries, truth=contest.truth, share=share)
        plain, taught = fewest(plain), None
        if lesson is not None and contestant.may_win:
            taught = with_routing(plain, lists, lesson, judges, seed=seed, device=data.device, progress=data.progress)
            taught = taught if taught is None else fewest(taught)
        for routed in (plain, taught) if taught is not None else (plain,):
            for code in codecs:
                trained = replace(routed, codec=code)
                trained = replace(trained, nprobe=default_nprobe(trained, lists, contest.queries))
                found = contest.measured(trained, nprobes=(trained.nprobe,), shares=(share,))
                entries.append(Entry(found.name, file_method(trained), trained))
                measurements.append(found)
                if contestant.may_win:
                    may_win.append(found)
    baseline = next(m for m in measurements if (m.method, m.levels, m.learned) == (BASELINE, 1, False))
    return Judged(entries, measurements, choose(may_win, baseline, share=share, seed=seed))


def with_routing(
    trained: TrainedIndex,
    list_of_image: Int64,
    lesson: Lesson,
    judges: Lesson,
    *,
    seed: int,
    device: str | None = None,
    progress: Progress = silent,
) -> TrainedIndex | None:
    """`trained` with places of its lists, and of their groups, that captions taught; None where they taught nothing.

    Lists and groups keep their members. `judges` choose the epoch.
    """
    began = time.perf_counter()
    learn = partial(train_routing, lesson=lesson, judges=judges, seed=seed, device=device, progress=progress)
    routing, groups = learn(trained.centroids, list_of_image), trained.groups
    if np.array_equal(routing, trained.centroids):
        return None
    if groups is not None:
        groups = replace(groups, centroids=learn(groups.centroids, np.where(list_of_image >= 0, groups.of_list[list_of_image], -1)))
    evidence = {"build_seconds": round(trained.evidence.get("build_seconds", 0.0) + time.perf_counter() - began, 2)}
    return replace(trained, routing=routing, groups=groups, evidence=evidence)


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
    parts = [trained.method, "two_level" if trained.groups else "", "learned" if trained.learned else ""]
    parts.append("transformed" if trained.codec.transform else "")
    return ".".join(part for part in parts if part)


def some(ids: Int64, most: int, seed: int) -> Int64:
    """At most `most` of `ids`, drawn with `seed`, ascending."""
    return ids if len(ids) <= most else np.sort(np.random.default_rng(seed).choice(ids, most, replace=False))


def _lesson(data: EvaluationData, captions: Int64) -> Lesson:
    """What routing is to find: for each of these captions the best of the images that candidates are measured on."""
    asked, shown = data.queries(captions), Selected(data.images, data.image_ids())
    best = exact_neighbors(asked, shown, min(ROUTING_NEIGHBORS, len(shown)), device=data.device, progress=data.progress)[1]
    return Lesson(asked, best)
