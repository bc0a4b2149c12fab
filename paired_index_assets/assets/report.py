"""What the finished index finds, beside everything else that was built, on captions that training never saw."""

from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.automation import follow_when_quiet
from paired_index_assets.assets.facts import Stopwatch, failing_in_one_line, path, picture
from paired_index_assets.assets.resources import ProgressLog, SettingsResource
from paired_index_assets.assets.shards import index_manifest
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.quality.report import RecallReport


@dg.asset(
    group_name="quality",
    kinds={"faiss", "matplotlib"},
    code_version="1",
    pool="accelerator",
    deps=[index_manifest],
    automation_condition=follow_when_quiet,
)
@failing_in_one_line()
def recall_report(
    context: dg.AssetExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]
) -> dg.MaterializeResult:
    """Recall by lists probed and by share of vectors scanned, for every method built and for stock faiss codes, on test captions.

    The loss of the lists (coverage) and the loss of the codes are told apart. report/ has it as JSON, Markdown and a picture.
    """
    from paired_index_assets.quality.publish import publish_report
    from paired_index_assets.quality.tables import markdown

    build, watch = settings.open(), Stopwatch()
    read, root = build.settings, build.root
    report = _report(build, progress.of(context))
    publish_report(report, root.report)
    ours = report.candidate(report.promoted or report.candidates[0].name)
    at = ours.at(nprobe=min(read.nprobe or build.promoted.nprobe, ours.nlist))
    return dg.MaterializeResult(
        metadata={
            "recall": picture((root.report / "recall.png").read_bytes(), "recall against vectors scanned"),
            "tables": dg.MetadataValue.md(markdown(report)),
            "promoted": ours.name,
            **({f"recall_at_{k}": interval.mean for k, interval in at.best.items()} if at else {}),
            "queries": report.queries,
            "images": report.images,
            "seconds": round(watch.seconds, 2),
            "path": path(root.report),
        }
    )


@dg.asset_check(asset=recall_report)
@failing_in_one_line()
def the_shards_find_what_was_measured(settings: SettingsResource) -> dg.AssetCheckResult:
    """Searching the shard files themselves gives the recall that the report measured in memory (where the same images are in both)."""
    said, passed = _served(settings.open())
    return dg.AssetCheckResult(passed=passed, description=said, severity=dg.AssetCheckSeverity.WARN)


def _report(build: "OpenBuild", progress: Progress) -> "RecallReport":
    from paired_index_assets.contest.evidence import measure_build
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.trained.promotion import candidates_of

    settings, root, promoted = build.settings, build.root, build.promoted
    images, captions = build.pairs
    return measure_build(
        images,
        captions,
        Split.load(root.split).test,
        images.valid(),
        candidates_of(root),
        promoted,
        facts={
            "images": images.source.name,
            "encoder": images.model or "not named",
            "nlist": promoted.nlist,
            "normalized": ", ".join(build.normalized) or "none",
        },
        seed=settings.seed,
        device=settings.device,
        progress=progress,
    )


SERVED_QUERIES = 200


def _served(build: "OpenBuild") -> tuple[str, bool]:
    """Recall@10 of the shard files, and of the same search in memory, on some test captions."""
    import numpy as np

    from paired_index_assets.neighbors.exact import exact_neighbors
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.search.sharded import ShardedIndex

    (images, captions), promoted = build.pairs, build.promoted
    with ShardedIndex.open(build.root, partial=True) as index:
        if index.ntotal != int(images.valid().sum()):
            return f"the shards hold {index.ntotal:,} rows, the image embeddings {len(images):,}: other images, not compared", True
        queries = captions[Split.load(build.root.split).test[:SERVED_QUERIES]].astype(np.float32)
        truth = exact_neighbors(queries, images, 10, device=build.settings.device)[1]
        every = index.search(queries, 10, nprobe=promoted.nlist)[1]
    decoded = promoted.codec.decode(promoted.encode(images[:])[1])
    in_memory = exact_neighbors(queries, decoded, 10)[1]
    served, measured = (
        float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, found, strict=True)])) for found in (every, in_memory)
    )
    return f"recall@10 with every list probed: {served:.4f} from the shards, {measured:.4f} in memory", abs(served - measured) < 0.005
