"""Centroids from pairs, and the trained index that every shard shares: chosen by evidence, on captions kept aside."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.embeddings import embedding_parts
from paired_index_assets.assets.facts import Stopwatch, markdown_table, path, picture
from paired_index_assets.assets.pairing import caption_image_pairs, pair_blocks
from paired_index_assets.files.storage import read_json, write_json
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.assets.dagster_internals import UnresolvedAssetJobDefinition
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.clustering.clusters import Clustering
    from paired_index_assets.contest.contestants import Contestant
    from paired_index_assets.contest.measuring import EvaluationData

ALL_METHODS = ("kmeans", "paired_kmeans")
FINE = ".fine"  # in the name of a clustering for two levels


@built_asset(
    *("method", "coarse", "nlist", "niter", "rounding", "seed"),
    group_name="training",
    kinds={"torch"},
    code_version="1",
    pool="accelerator",
    deps=[caption_image_pairs.key],
)
def paired_centroids(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """Unit centroids: lists of images with their centroids in caption space (paired k-means), beside plain image k-means, the baseline.

    The iteration that covers most of the validation captions is kept: the objective is not monotone. A checkpoint after every iteration:
    a killed run goes on to the identical result.
    """
    from paired_index_assets.clustering.course import course_png
    from paired_index_assets.files.tables import digest_of_arrays

    watch = Stopwatch()
    made = _clusterings(build, progress)
    rows = [
        [method, number, f"{step.objective:.4f}", f"{step.recall:.4f}", f"{step.imbalance:.2f}", step.split, f"{step.seconds:.1f}"]
        for method, clustering in made.items()
        for number, step in enumerate(clustering.history)
    ]
    nlist = len(next(iter(made.values())).centroids)
    return dg.MaterializeResult(
        metadata={
            "nlist": nlist,
            "seconds": round(watch.seconds, 2),
            "methods": ", ".join(made),
            "best_iteration": ", ".join(f"{method} {clustering.best_iteration}" for method, clustering in made.items()),
            "course": picture(course_png({method: c.history for method, c in made.items()}), "objective and imbalance by iteration"),
            "iterations": markdown_table(["method", "iteration", "objective", "coverage", "imbalance", "lists split", "seconds"], rows),
            "path": path(build.root.clusters("*")),
        },
        data_version=dg.DataVersion(digest_of_arrays({name: clustering.centroids for name, clustering in made.items()})),
    )


@built_check(asset=paired_centroids.key, blocking=True)
def centroids_are_unit_and_distinct(build: "OpenBuild") -> dg.AssetCheckResult:
    """Every centroid is a finite unit vector, and no two are equal."""
    from paired_index_assets.clustering.clusters import Clustering

    faults = {name: Clustering.load(build.root.clusters(name)).faults for name, _ in Competing.made(build).lists}
    found = "; ".join(f"{name}: {', '.join(words)}" for name, words in faults.items() if words)
    return dg.AssetCheckResult(
        passed=not found,
        description=f"{found}. Train with fewer lists (nlist) or another seed" if found else "every centroid is a unit vector of its own",
        metadata={f"{name}_sound": not words for name, words in faults.items()},
    )


@built_asset(
    *("codec", "rounding", "routing", "transform", "bytes_per_vector", "seed"),
    group_name="training",
    kinds={"faiss"},
    code_version="1",
    pool="accelerator",
    deps=[paired_centroids.key],
)
def trained_index(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """Empty, trained faiss indices: lists in one level or two, routing, codes rounded for captions. The best on validation captions is promoted.

    Every candidate is measured on the same captions at an equal share of vectors scanned; what won, and by how much, is recorded with it,
    and so is the nprobe that a search takes which does not say.
    """
    from paired_index_assets.contest.contestants import CodeChoice, make_and_judge
    from paired_index_assets.contest.evidence import standings_table
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.trained.promotion import Promotion, promote

    watch = Stopwatch()
    settings, root = build.settings, build.root
    codes = CodeChoice(
        settings.codec, settings.rounding, transform=settings.transform == "auto", bytes_per_vector=settings.bytes_per_vector
    )
    data = evaluation_data(build, progress)
    routing = settings.routing == "auto" and settings.rounding == "query"
    judged = make_and_judge(data, Split.load(root.split), _contestants(build), codes, routing=routing, model=build.pairs[0].model)
    names = {}
    for entry in judged.compared:
        names[entry.name] = root.trained_index(entry.trained.nlist, settings.codec, entry.file_method, entry.trained.fingerprint)
        entry.trained.save(names[entry.name])
    winner = judged.winner
    verdict = judged.verdict
    promotion = Promotion(
        index=names[winner.name].name,
        fingerprint=winner.trained.fingerprint,
        nprobe=winner.trained.nprobe,
        candidates=sorted(file.name for file in names.values()),
        name=winner.name,
        baseline=verdict.baseline.name,
        gain=verdict.gain.mean,
        gain_low=verdict.gain.low,
        gain_high=verdict.gain.high,
        regression=verdict.regression,
        why=str(verdict),
        share=verdict.share,
        standings=judged.standings,
    )
    promote(root, promotion)
    return dg.MaterializeResult(
        metadata={
            "promoted": winner.name,
            "why": str(verdict),
            "gain_over_baseline": verdict.gain.mean,
            "candidates": dg.MetadataValue.md(standings_table(promotion)),
            "nlist": winner.trained.nlist,
            "nprobe": winner.trained.nprobe,
            "bytes_per_vector": winner.trained.codec.code_size,
            "fingerprint": winner.trained.fingerprint,
            "seconds": round(watch.seconds, 2),
            "path": path(names[winner.name]),
        },
        data_version=dg.DataVersion(winner.trained.fingerprint),
    )


@built_check("allow_regression", asset=trained_index.key, blocking=True)
def trained_index_is_no_worse_than_image_kmeans(build: "OpenBuild") -> dg.AssetCheckResult:
    """The promoted index is not worse than image k-means with the same codes by more than the interval (`allow_regression` lets it pass)."""
    from paired_index_assets.trained.promotion import read_promotion

    promoted = read_promotion(build.root)
    return dg.AssetCheckResult(
        passed=build.settings.allow_regression or not promoted.regression,
        description=promoted.why + ("; set allow_regression to use it anyway" if promoted.regression else ""),
        metadata={"gain": promoted.gain, "gain_low": promoted.gain_low, "gain_high": promoted.gain_high},
    )


def train(shared_out: bool) -> "UnresolvedAssetJobDefinition":
    """The job that trains, in one run: what is `shared_out` to runs of its own is not in it, and what of it is missing is made all the same."""
    everything = dg.AssetSelection.assets(trained_index.key).upstream().materializable()
    return dg.define_asset_job(
        "train",
        selection=everything - dg.AssetSelection.assets(embedding_parts.key, pair_blocks.key) if shared_out else everything,
        description="From pictures and captions to the trained index. The shards follow by themselves when it comes out different.",
    )


def evaluation_data(build: "OpenBuild", progress: Progress) -> "EvaluationData":
    """What the candidates of a build are chosen by and reported on."""
    from paired_index_assets.contest.measuring import EvaluationData

    images, captions = build.pairs
    return EvaluationData(images, captions, images.valid(), build.settings.seed, build.settings.device, progress)


@dataclass(frozen=True)
class Competing:
    """What competes: asked for where centroids are trained, recorded with them, and so the same wherever they are used.

    flat: lists in one level; fine: in two, None where two levels do not compete.
    """

    method: str
    coarse: str
    flat: int
    fine: int | None

    @classmethod
    def asked(cls, build: "OpenBuild") -> "Competing":
        settings, rows = build.settings, build.catalog.total_rows
        return cls(settings.method, settings.coarse, settings.lists_for(rows), settings.fine_lists_for(rows, len(build.pairs[0])))

    @classmethod
    def made(cls, build: "OpenBuild") -> "Competing":
        """As recorded; what the settings ask for where nothing is, as in earlier builds."""
        file = build.root.competing
        return cls(**read_json(file, cure="materialise paired_centroids again")) if file.exists() else cls.asked(build)

    @property
    def methods(self) -> tuple[str, ...]:
        """The baseline is always built: every report compares with it."""
        from paired_index_assets.contest.contestants import BASELINE

        return ALL_METHODS if self.method == "auto" else tuple(dict.fromkeys((BASELINE, self.method)))

    @property
    def lists(self) -> list[tuple[str, int]]:
        """The name of each clustering and its lists: every method in one level, as reports compare with it, and in two where those compete."""
        counts = [("", self.flat)] + ([] if self.fine in (None, self.flat) else [(FINE, self.fine)])
        return [(f"{method}{suffix}", nlist) for suffix, nlist in counts if nlist for method in self.methods]


def _contestants(build: "OpenBuild") -> list["Contestant"]:
    """The lists that compete; what the settings rule out is still measured where reports compare with it."""
    from paired_index_assets.clustering.clusters import Clustering
    from paired_index_assets.contest.contestants import Contestant

    competing = Competing.made(build)
    fine = competing.fine if build.settings.rounding == "query" else None  # the others are flat, see the setting `coarse`
    found = []
    for method in competing.methods:
        asked = competing.method in ("auto", method)
        plain = Clustering.load(build.root.clusters(method))
        found.append(Contestant(method, 1, plain, may_win=asked and (competing.coarse != "two_level" or fine is None)))
        if fine is not None and asked:
            found.append(
                Contestant(method, 2, plain if fine == competing.flat else Clustering.load(build.root.clusters(f"{method}{FINE}")))
            )
    return found


def _clusterings(build: "OpenBuild", progress: Progress) -> dict[str, "Clustering"]:
    """name -> its centroids, saved."""
    import numpy as np

    from paired_index_assets.clustering.kmeans import Training, train_kmeans, train_paired_kmeans
    from paired_index_assets.contest.contestants import BASELINE
    from paired_index_assets.contest.measuring import fair_share, validation_of
    from paired_index_assets.pairing.pairs import read_pairs
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.rows import Selected

    settings, root, data, competing = build.settings, build.root, evaluation_data(build, progress), Competing.asked(build)
    validation = validation_of(data, Split.load(root.split).validation, fair_share(competing.flat))
    pairs = read_pairs(root.pairs)
    made: dict[str, Clustering] = {}
    for name, nlist in competing.lists:
        training = Training(
            settings.niter,
            settings.seed,
            validation=validation,
            checkpoint=root.checkpoint(name),
            device=settings.device,
            progress=partial(_named, progress, name),
        )
        if name.startswith(BASELINE):
            made[name] = train_kmeans(Selected(data.images, np.flatnonzero(data.valid).astype(np.int64)), nlist, training)
        else:
            matched = Selected(data.images, pairs["image_id"].to_numpy())
            made[name] = train_paired_kmeans(matched, Selected(data.captions, pairs["caption_id"].to_numpy()), nlist, training)
        made[name].save(root.clusters(name))
    write_json(root.competing, asdict(competing))
    return made


def _named(progress: Progress, method: str, step: str, done: int, total: int, /, **facts: float | int | str) -> None:
    progress(f"{step} {method}", done, total, **facts)
