"""What the finished index finds, beside everything else that was built, on captions that training never saw."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.automation import follow_when_quiet
from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.facts import Stopwatch, path, picture
from paired_index_assets.assets.shards import index_manifest
from paired_index_assets.assets.training import evaluation_data
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.quality.report import RecallReport
    from paired_index_assets.quality.served import Served


@built_asset(
    *("nprobe", "nlist", "seed"),
    group_name="quality",
    kinds={"faiss", "matplotlib"},
    code_version="1",
    pool="accelerator",
    deps=[index_manifest.key],
    automation_condition=follow_when_quiet,
)
def recall_report(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """What the shards on disk find for test captions, against their exact neighbours over everything indexed; and, compared in memory,
    recall by lists probed and by share of vectors scanned for every method built and for stock faiss codes.

    The loss of the lists (coverage) and the loss of the codes are told apart. report/ has it as JSON, Markdown and a picture.
    """
    from paired_index_assets.quality import glance
    from paired_index_assets.quality.publish import publish_report
    from paired_index_assets.quality.tables import markdown

    watch = Stopwatch()
    settings, root = build.settings, build.root
    report = _report(build, progress)
    publish_report(report, root.report)
    ours = report.candidate(report.promoted or report.candidates[0].name)
    nprobe = min(settings.nprobe or build.promoted.nprobe, ours.nlist)
    return dg.MaterializeResult(
        metadata={
            "at_a_glance": dg.MetadataValue.md(glance.picture(report)),
            "around_nprobe": dg.MetadataValue.md(glance.table(report, nprobe)),
            "recall": picture((root.report / "recall.png").read_bytes(), "recall against vectors scanned"),
            "tables": dg.MetadataValue.md(markdown(report)),
            "promoted": ours.name,
            "nprobe": nprobe,
            **glance.numbers(report, nprobe),
            "queries": report.queries,
            "images": report.images,
            "seconds": round(watch.seconds, 2),
            "path": path(root.report),
        }
    )


@built_check(asset=recall_report.key)
def the_shards_find_what_was_promised(build: "OpenBuild") -> dg.AssetCheckResult:
    """The shards on disk find what their trained index found in memory, where both hold the same rows and were asked the same captions."""
    from paired_index_assets.evidence.measuring import kept_its_promise
    from paired_index_assets.trained.promotion import read_promotion

    promoted = read_promotion(build.root).fingerprint
    return _of_served(build.root, lambda served, report: kept_its_promise(served, report, promoted))


@built_check(asset=recall_report.key)
def stock_faiss_finds_the_same(build: "OpenBuild") -> dg.AssetCheckResult:
    """faiss alone, reading the same shard files, gives the results that the report measured, ties aside."""

    def judge(served: "Served", _: "RecallReport") -> tuple[str, bool]:
        asked = f"{served.stock_queries} captions at nprobe {served.stock_nprobe}"
        return f"{served.stock_differs} results differ, of {asked}", not served.stock_differs

    return _of_served(build.root, judge)


def _of_served(root: BuildRoot, judge: Callable[["Served", "RecallReport"], tuple[str, bool]]) -> dg.AssetCheckResult:
    """What `judge` says of the shards as they were reported; a warning where they could not be measured."""
    from paired_index_assets.quality.report import RecallReport

    report = RecallReport.read(root.report)
    if report.served is None:
        return dg.AssetCheckResult(passed=False, severity=dg.AssetCheckSeverity.WARN, description=" ".join(report.notes))
    finding, passed = judge(report.served, report)
    return dg.AssetCheckResult(passed=passed, description=finding)


def _report(build: "OpenBuild", progress: Progress) -> "RecallReport":
    from paired_index_assets.contest.evidence import measure_build
    from paired_index_assets.evidence.measuring import with_served
    from paired_index_assets.pairing.split import Split
    from paired_index_assets.trained.promotion import candidates_of, read_promotion

    root, promoted, images = build.root, build.promoted, build.pairs[0]
    report = measure_build(
        evaluation_data(build, progress),
        Split.load(root.split).test,
        candidates_of(root),
        promoted,
        promotion=read_promotion(root),
        facts={
            "images": images.source.name,
            "encoder": images.model or "not named",
            "nlist": promoted.nlist,
            "normalized": ", ".join(build.normalized) or "none",
        },
    )
    return with_served(build, report, progress=progress)
