"""The recall report as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from paired_index_assets.nlist import NPROBE
from paired_index_assets.quality.report import CandidateReport, Point, RecallReport
from paired_index_assets.quality.served import Served
from paired_index_assets.quality.truth import DEEPEST_K

SUMMARY_K = 10
SUMMARY_SHARE = 0.01
NEARLY_ALL = 0.999  # of the vectors: what every list holds, but for rounding

Cells = Iterable[str]


def markdown(report: RecallReport) -> str:
    """The whole report: summary, recall by share scanned and by nprobe at each k, losses, codes, peers."""
    parts = [
        "# Recall",
        f"{report.queries:,} held-out captions against {report.images:,} images; exact neighbours by brute force. "
        "Brackets: 95 % bootstrap intervals over captions. "
        "*Coverage*: true neighbours whose list is probed. *Product*: true neighbours found with the stored codes.",
        *([table(("fact", "value"), ([name, _plain(value)] for name, value in report.facts.items()))] if report.facts else []),
        *report.notes,
        *([served_section(report.served)] if report.served else []),
        "## Candidates compared in memory",
        summary_table(report),
    ]
    if report.codes:
        parts += ["## Codes alone", "Every list probed, so that only the code loses.", codes_table(report)]
    parts += [f"## Where recall@{_k(report)} is lost", losses_table(report)]
    for k in report.ks:
        parts.append(f"## recall@{k}")
        parts += _curves(report.candidates, k)
    if report.peers:
        parts += ["## Beside stock faiss codes", peers_table(report)]
    return "\n\n".join(parts) + "\n"


def served_section(served: Served) -> str:
    """What the shards on disk find."""
    ks = list(served.points[0].recall)
    rows = ([f"{point.nprobe:,}", f"{point.scanned:.2%}", *(str(point.recall[k]) for k in ks)] for point in served.points)
    head = f"{served.shards:,} shards of {served.indexed:,} vectors, searched as `paired-index search` does for {served.queries:,} test captions; "
    head += "their exact neighbours are over everything indexed, without what was taken down."
    numbers = table(["lists probed", "scanned", *(f"recall@{k}" for k in ks)], rows)
    return "\n\n".join(["## What is served", " ".join([head, *said_of_served(served)]), numbers])


def said_of_served(served: Served) -> list[str]:
    """What has to be known beside the numbers, a sentence each."""
    lines = []
    if served.missing_shards:
        lines.append(f"Not there, and not measured: shards {', '.join(map(str, served.missing_shards))}.")
    if (few := next((point.queries for point in served.points if point.queries is not None), None)) is not None:
        lines.append(f"With every list probed the first {few:,} captions were asked, since all of them would scan too much.")
    elif len(served.points) and served.points[-1].scanned < NEARLY_ALL:
        lines.append("With every list probed nothing was measured: of so many vectors a few captions alone would scan too much.")
    if served.unproven:
        lines.append(
            f"{served.unproven:,} captions are left out: after takedowns their neighbours are not known {DEEPEST_K} deep, and files are gone."
        )
    if served.lossy_rows:
        lines.append(f"{served.lossy_rows:,} vectors were rebuilt from another index, and the truth of their files is of the rebuilt rows.")
    same = "gives the same results" if not served.stock_differs else f"differs in {served.stock_differs:,} results, ties aside"
    return [*lines, f"Stock faiss over the same files {same} (nprobe {served.stock_nprobe}, {served.stock_queries:,} captions)."]


def summary_table(report: RecallReport) -> str:
    """One row a candidate, at the nprobe it asks for and at one percent scanned, with the difference to the baseline."""
    k = _k(report)
    differences = {(d.name, d.by, d.amount): d for d in report.differences if d.k == k}
    head = [
        "candidate",
        f"recall@{k} at its own nprobe",
        "nprobe",
        "scanned",
        f"recall@{k} at {SUMMARY_SHARE:.0%} scanned",
        f"to {report.baseline or 'baseline'}",
        "bytes a vector",
        "centroids compared",
        "list imbalance",
        "build s",
    ]

    def row(candidate: CandidateReport) -> Cells:
        nprobe = min(candidate.nprobe or NPROBE, candidate.nlist)
        by_lists, by_share = candidate.at(nprobe=nprobe), candidate.at(share=SUMMARY_SHARE)
        difference = differences.get((candidate.name, "share", SUMMARY_SHARE))
        yield f"**{candidate.name}** (promoted)" if candidate.name == report.promoted else candidate.name
        yield str(by_lists.best[k]) if by_lists else "-"
        yield str(nprobe)
        yield f"{by_lists.scanned:.2%}" if by_lists else "-"
        yield str(by_share.best[k]) if by_share else "-"
        yield difference.difference.signed() if difference else "-"
        yield str(candidate.bytes_per_vector or "-")
        yield f"{candidate.coarse_dots:,}"
        yield f"{candidate.imbalance:.2f}"
        yield f"{candidate.build_seconds:.1f}"

    return table(head, map(row, report.candidates))


def losses_table(report: RecallReport) -> str:
    """Coverage loss (lists not probed) and code loss (scores by codes) apart, at one percent scanned, else where most was."""
    k = _k(report)
    head = ["candidate", "at", "coverage", "product", "coverage loss", "code loss"]

    def row(candidate: CandidateReport) -> Cells:
        point = candidate.at(share=SUMMARY_SHARE) or candidate.points[-1]
        coverage, product = point.coverage[k], point.product[k] if point.product else None
        lost = [f"{1 - coverage.mean:.3f}", "-" if product is None else f"{coverage.mean - product.mean:.3f}"]
        return [candidate.name, _setting(point), str(coverage), "-" if product is None else str(product), *lost]

    return table(head, map(row, report.candidates))


def codes_table(report: RecallReport) -> str:
    again = any(code.reranked for code in report.codes)
    head = ["codec", "bytes a vector", *(f"recall@{k}" for k in report.ks), *(f"@{k}, top {10 * k} re-ranked" for k in report.ks if again)]
    return table(
        head,
        (
            [
                code.codec,
                str(code.bytes_per_vector),
                *(str(code.recall[k]) for k in report.ks),
                *(str(code.reranked[k]) if code.reranked else "-" for k in report.ks if again),
            ]
            for code in report.codes
        ),
    )


def peers_table(report: RecallReport) -> str:
    """The promoted index and its peers side by side, by codes and re-ranked: at one percent scanned, and with every list where measured."""
    k = _k(report)
    share = f"at {SUMMARY_SHARE:.0%} scanned"
    head = [
        "codec",
        "lists",
        "bytes a vector",
        f"recall@{k} {share}",
        f"top {10 * k} re-ranked {share}",
    ]
    exhaustive = any(peer.at() for peer in report.peers)
    head += ["every list", "every list, re-ranked"] if exhaustive else []

    def row(candidate: CandidateReport) -> Cells:
        yield candidate.codec
        yield f"{candidate.method}, {candidate.nlist:,}"
        yield str(candidate.bytes_per_vector)
        for point in (candidate.at(share=SUMMARY_SHARE), candidate.at())[: 2 if exhaustive else 1]:
            yield str(point.product[k]) if point and point.product else "-"
            yield str(point.reranked[k]) if point and point.reranked else "-"

    return table(head, map(row, report.peers))


def table(head: Sequence[str], rows: Iterable[Cells]) -> str:
    """A Markdown table; every column but the first is right-aligned."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _curves(candidates: Sequence[CandidateReport], k: int) -> Iterable[str]:
    scales: tuple[tuple[Literal["share", "nprobe"], str], ...] = (
        ("share", "share of the images scanned, at most"),
        ("nprobe", "lists probed"),
    )
    for by, scale in scales:
        amounts = sorted({p.amount for c in candidates for p in c.curve(by)})
        if not amounts:
            continue
        for kind, found, get in (("Product", any(c.points[0].product for c in candidates), _product), ("Coverage", True, _coverage)):
            if found:
                yield f"{kind} recall@{k} by {scale} (in brackets what was really scanned):"
                head = ["candidate", *(f"{a:.2%}" if by == "share" else f"{a:.0f}" for a in amounts)]
                yield table(head, (_curve_row(c, by, amounts, k, get) for c in candidates))


def _curve_row(
    candidate: CandidateReport,
    by: Literal["share", "nprobe"],
    amounts: Sequence[float],
    k: int,
    get: Callable[[Point, int], float | None],
) -> Cells:
    points = {p.amount: p for p in candidate.curve(by)}
    yield candidate.name
    for amount in amounts:
        value = get(points[amount], k) if amount in points else None
        yield "-" if value is None else f"{value:.3f} ({points[amount].scanned:.2%})"


def _product(point: Point, k: int) -> float | None:
    return point.product[k].mean if point.product else None


def _coverage(point: Point, k: int) -> float | None:
    return point.coverage[k].mean


def _k(report: RecallReport) -> int:
    return SUMMARY_K if SUMMARY_K in report.ks else report.ks[0]


def _setting(point: Point) -> str:
    return "every list" if point.by == "all" else f"nprobe {point.amount:.0f}" if point.by == "nprobe" else f"{point.amount:.2%} scanned"


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
