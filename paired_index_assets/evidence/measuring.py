"""What the shards on disk find for the test captions, against their exact neighbours over all that is indexed."""

from __future__ import annotations

from dataclasses import replace

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.evidence.captions import captions_reported_on
from paired_index_assets.evidence.conservation import served_catalog
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import LandedFile
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.recall import NPROBES
from paired_index_assets.quality.report import NOT_MEASURED, RecallReport
from paired_index_assets.quality.served import Served, differing, measure_served
from paired_index_assets.quality.truth import DEEPEST_K
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.stock import stock_search
from paired_index_assets.shards.generations import trained_of
from paired_index_assets.shards.record import FileRecord, finished_record
from paired_index_assets.shards.removals import read_removed
from paired_index_assets.shards.truths import IndexedFile, keep_truths, sweep_truths, whole_truth

STOCK_QUERIES = 200  # also asked of stock faiss
PROMISED_K = 10
SAME_RECALL = 0.005  # float32 sums in another order, ties, and codes made by another processor


def measure_shards(build: OpenBuild, *, progress: Progress = silent) -> Served:
    """Search the shards that are on disk for the test captions, as users do, and hold the results against the exact truth.

    Truths that are missing are made where the files still are. Raises MissingInput where there is nothing to measure (no captions, no
    shards, files without truth that are gone); DamagedArtifact.
    """
    root, settings, catalog, captions = build.root, build.settings, served_catalog(build), captions_reported_on(build)
    if captions is None:
        raise BadInput(f"{root.split}: no test captions, or their embeddings are gone; build again, or ask for some with --test-captions")
    with ShardedIndex.open(root, partial=True, packed=False) as index:
        if not index.ntotal:
            raise MissingInput(
                f"{root.shards}: no vector in {len(index.shards)} shards; build them first. {' '.join(index.missing.values())}"
            )
        removed = read_removed(root, catalog.data_set)
        indexed = indexed_files(build, catalog, index)
        keep_truths(
            root, captions, [IndexedFile(file, record.content, there) for file, record, there in indexed], removed, progress=progress
        )
        contents = [(file, record.content) for file, record, _ in indexed]
        whole = whole_truth(root, captions, contents, removed, total_rows=catalog.total_rows)
        queries = captions.vectors[whole.proven]
        if not index.missing:
            sweep_truths(root, keep=captions.digest)
        asked, nprobe = queries[:STOCK_QUERIES], min(settings.nprobe or index.nprobe, index.nlist)
        ours = index.search(asked, DEEPEST_K, nprobe=nprobe)
        theirs = stock_search(index.files, asked, DEEPEST_K, nprobe=nprobe, removed=removed)
        return Served(
            queries=len(queries),
            unproven=int((~whole.proven).sum()),
            indexed=index.ntotal,
            shards=len(index.shards),
            missing_shards=sorted(index.missing),
            lossy_rows=sum(record.indexed for _, record, _ in indexed if record.lossy),
            fingerprint=index.fingerprint,
            captions=captions.digest,
            points=measure_served(
                index,
                trained_of(root.generation(index.fingerprint)).probe,
                queries,
                whole.truth,
                nprobes=(*NPROBES, nprobe),
                seed=settings.seed,
                progress=progress,
            ),
            stock_nprobe=nprobe,
            stock_queries=len(asked),
            stock_differs=differing(*ours, *theirs),
        )


def indexed_files(build: OpenBuild, catalog: Catalog, index: ShardedIndex) -> list[tuple[CatalogFile, FileRecord, LandedFile | None]]:
    """The files of the shards that are searched, what their records say of each, and where its rows still are."""
    generation, listing, found = build.root.generation(index.fingerprint), build.listing_of(catalog), []
    for shard in index.shards:
        record = finished_record(generation.shard(index.codec, shard))
        for mine in record.files if record else ():
            file = catalog.all_files[mine.file_id]
            found.append((file, mine, listing.get(file.name)))
    return found


def with_served(build: OpenBuild, report: RecallReport, *, progress: Progress = silent) -> RecallReport:
    """`report` with what the shards on disk find now, or with a note that says why that could not be measured.

    Raises nothing that speaks of shards or truths: a candidate's numbers are not lost for them.
    """
    try:
        served = measure_shards(build, progress=progress)
    except (BadInput, DamagedArtifact) as error:  # the candidates are still measured
        return replace(report, served=None, notes=[*_others(report.notes), f"{NOT_MEASURED} {error}"])
    return replace(report, served=served, notes=_others(report.notes))


def kept_its_promise(served: Served, report: RecallReport, promoted: str) -> tuple[str, bool]:
    """What the shards find beside what their trained index found in memory, and whether that is the same: they hold the same codes.

    promoted: fingerprint of the trained index that the report compared in memory.
    """
    if served.fingerprint != promoted:
        return f"the shards of {served.fingerprint} are served until those of {promoted} are whole: not compared", True
    point = served.at(served.stock_nprobe)
    promised = report.candidate(report.promoted or report.candidates[0].name).at(nprobe=served.stock_nprobe)
    if point is None or promised is None or (served.indexed, served.queries) != (report.images, report.queries):
        return f"the shards hold {served.indexed:,} rows and {report.images:,} images were compared in memory: not the same", True
    k = PROMISED_K if PROMISED_K in point.recall else next(iter(point.recall))
    found, expected = point.recall[k].mean, promised.best[k].mean
    same = abs(found - expected) <= SAME_RECALL
    return f"recall@{k} at nprobe {point.nprobe}: {found:.4f} from the shards, {expected:.4f} in memory", same


def _others(notes: list[str]) -> list[str]:
    return [note for note in notes if not note.startswith(NOT_MEASURED)]
