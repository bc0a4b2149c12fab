"""`paired-index report`: the recall report of a build."""

from typing import TYPE_CHECKING, Annotated

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, say, table
from paired_index_assets.errors import MissingInput
from paired_index_assets.settings import Settings

if TYPE_CHECKING:
    from paired_index_assets.quality.report import CandidateReport, RecallReport

K = 10


@takes_settings()
def report(
    settings: Settings,
    measure: Annotated[bool, typer.Option("--measure", help="Search the shards that are on disk now, and write what they find.")] = False,
) -> None:
    """Print what a finished build finds on captions it never saw; report/ has all of it, with intervals and a picture."""
    from paired_index_assets.quality.report import RecallReport

    folder = settings.build_root.report
    if not (folder / "recall.json").exists():
        raise MissingInput(f"{folder / 'recall.json'}: no report yet; run `paired-index build --root {settings.root}` first")
    found = RecallReport.read(folder)
    if measure:
        found = _measured_again(settings, found)
    _show_served(found)
    ours = {candidate.codec for candidate in found.candidates}
    everything = [*found.candidates, *(peer for peer in found.peers if peer.codec not in ours)]
    shares = [point.amount for point in found.candidates[0].curve("share")]
    nprobes = [point.amount for point in found.candidates[0].curve("nprobe")][::3]  # 1, 8, 64: recall.md has all
    table(
        f"Candidates compared in memory: recall@{K} by share of vectors scanned ({found.queries:,} captions never trained on, {found.images:,} images)",
        ["index", "bytes", *(f"{share:g}" if share >= 1 else f"{100 * share:g} %" for share in shares)],
        [[_name(found, c), c.bytes_per_vector, *(_cell(c, share=share) for share in shares)] for c in everything],
    )
    table(
        f"recall@{K} by lists probed, and the share of vectors that scans",
        ["index", *(f"nprobe {nprobe:g}" for nprobe in nprobes)],
        [[_name(found, c), *(_cell(c, nprobe=int(nprobe)) for nprobe in nprobes)] for c in found.candidates],
    )
    say(f"The whole report: {folder / 'recall.md'} .json .png")


def _measured_again(settings: Settings, found: "RecallReport") -> "RecallReport":
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.evidence.measuring import with_served
    from paired_index_assets.quality.publish import publish_report

    with bars() as progress:
        again = with_served(OpenBuild(settings), found, progress=progress)
    publish_report(again, settings.build_root.report)
    return again


def _show_served(found: "RecallReport") -> None:
    from paired_index_assets.quality.report import NOT_MEASURED
    from paired_index_assets.quality.tables import said_of_served

    served = found.served
    for note in found.notes:  # the others are Markdown
        if note.startswith(NOT_MEASURED):
            say(note)
    if served is None:
        return
    table(
        f"What the {served.shards} shards on disk find ({served.queries:,} captions never trained on, {served.indexed:,} vectors indexed)",
        ["lists probed", "scanned", *(f"recall@{k}" for k in served.points[0].recall)],
        [
            [point.nprobe, f"{point.scanned:.2%}", *(f"{interval.mean:.3f}" for interval in point.recall.values())]
            for point in served.points
        ],
    )
    say(" ".join(said_of_served(served)))


def _name(found: "RecallReport", candidate: "CandidateReport") -> str:
    marks = {found.promoted: " (promoted)", found.baseline: " (baseline)"}
    return candidate.name + marks.get(candidate.name, "")


def _cell(candidate: "CandidateReport", *, nprobe: int | None = None, share: float | None = None) -> str:
    point = candidate.at(nprobe=nprobe, share=share)
    if point is None:
        return "-"
    return f"{point.best[K].mean:.3f}" + (f" ({point.scanned:.1%})" if nprobe is not None else "")
