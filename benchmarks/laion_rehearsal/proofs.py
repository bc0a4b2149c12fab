"""What a rehearsal has to prove of the files it ends with. Each proof returns what it counted in one line, or raises NotProven.

They look at files, with stock faiss and numpy, and at what the plan knows that it made: not at what the build says of itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from laion_rehearsal.geometry import Float32, Int64
from laion_rehearsal.landing import rows_of
from laion_rehearsal.plan import Plan
from paired_index_assets.fetching.reconstruct import rebuild_file
from paired_index_assets.files.storage import digest_of
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import Listing, list_folder, read_blocks
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import squared_norms, usable_squares
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.manifest import read_manifest
from paired_index_assets.shards.record import finished_shards
from paired_index_assets.shards.truth import TestCaptions
from paired_index_assets.shards.truths import whole_truth
from paired_index_assets.trained.artifact import TrainedIndex

READ_ONLY = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
BATCH_ROWS = 1 << 16
NEAR_TIE = 4e-6  # of float32 sums in another order, at 768 dimensions and unit norm


class NotProven(Exception):
    """A proof that does not hold: which file or id, what was expected, what was found."""


def every_id_once(plan: Plan, catalog: Catalog, removed: Int64) -> str:
    """Each id of the catalog is in one list of one shard file, once, or is one that was to be left out: taken down, zero or not finite."""
    expected = np.ones(catalog.total_rows, np.bool_)
    expected[removed] = False
    unusable = {file.name: plan.mischief.unusable_rows(file) for file in catalog}
    for file in catalog:
        for row in unusable[file.name].values():
            expected[file.start_row + row] = False
    found = np.zeros(catalog.total_rows, np.uint8)
    shards = Path(plan.root) / "shards"
    for shard in range(catalog.shards):
        first, stop = catalog.shard_range(shard)
        path = next(shards.glob(f"knn.*.index{shard}"), None)
        if path is None:
            raise NotProven(f"{shards}: no file of shard {shard}; expected one of each of {catalog.shards}")
        ids = _ids_of(path)
        if len(ids) and not first <= ids.min() <= ids.max() < stop:
            raise NotProven(f"{path}: ids {ids.min()} to {ids.max()}; expected {first} to {stop - 1}")
        found[first:stop] = np.bincount(ids - first, minlength=stop - first)
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        row = int(wrong[0])
        raise NotProven(f"{shards}: id {row} is {found[row]} times in a list, expected {int(expected[row])} times; {len(wrong)} ids are so")
    left = {kind: sum(kind in rows for rows in unusable.values()) for kind in ("zero", "not_finite")}
    left["taken_down"] = int((~expected).sum()) - sum(left.values())  # what cannot be searched is counted as that
    manifest = read_manifest(BuildRoot.at(plan.root))
    named = {kind: sum(manifest[kind].to_pylist()) for kind in left}
    if named != left:
        raise NotProven(f"{plan.root}/manifest.parquet: rows left out {named}, expected {left}")
    said = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in named.items())
    return f"{int(found.sum()):,} of {catalog.total_rows:,} ids are in one list each; the others are left out by name: {said}"


def _ids_of(path: Path) -> Int64:
    """The ids in all lists of a shard file, as stock faiss maps it."""
    index = faiss.read_index(str(path), READ_ONLY)
    lists = faiss.extract_index_ivf(index).invlists
    found = [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist) if lists.list_size(n)]
    return np.concatenate([np.empty(0, np.int64), *found])


def build_undisturbed(
    plan: Plan, catalog: Catalog, trained: TrainedIndex, removed: Int64, folder: Path, captions: TestCaptions | None = None
) -> Listing:
    """All shards once more in `folder`/root, and the truth of `captions`, from the same files, in one process without Dagster and without a
    kill; what they were made from, the missing files rebuilt anew among them."""
    rebuilt = folder / "rebuilt"
    rebuilt.mkdir(parents=True, exist_ok=True)
    for file in catalog:
        if file.file_id in plan.mischief.missing and not (rebuilt / file.name).exists():
            rebuild_file(file, plan.published, rebuilt)
    listing = list_folder(plan.landing) | list_folder(rebuilt)
    for shard in range(catalog.shards):
        build_shard(BuildRoot.at(folder / "root"), trained, catalog, shard, listing, removed=removed, captions=captions)
    return listing


def same_bytes(plan: Plan, catalog: Catalog, folder: Path) -> str:
    """The shards that were killed for, retrained, taken down from and served are those of the undisturbed build, byte for byte."""
    mine, theirs = Path(plan.root) / "shards", folder / "root" / "shards"
    total = 0
    for shard in range(catalog.shards):
        pair = [next(iter(place.glob(f"knn.*.index{shard}")), None) for place in (mine, theirs)]
        if None in pair:
            raise NotProven(f"shard {shard}: found {pair}, expected a file in {mine} and in {theirs}")
        sums = [digest_of(path) for path in pair if path is not None]
        if sums[0] != sums[1]:
            raise NotProven(f"{pair[0]}: sha256 {sums[0]}, expected {sums[1]} of {pair[1]}")
        total += 0 if pair[0] is None else pair[0].stat().st_size
    return f"{catalog.shards} of {catalog.shards} shards, {total / 1e6:,.0f} MB, are byte for byte those of an undisturbed build"


def replaced_is_served(plan: Plan, file: CatalogFile, version: int = 1) -> str:
    """The rows that `file` got when its shard was finished are those that the served shard was made of."""
    generation = served_generation(BuildRoot.at(plan.root))
    record = finished_shards(generation).get(file.shard) if generation is not None else None
    if record is None:
        raise NotProven(f"{plan.root}: no record of shard {file.shard}; expected one made of the rows that {file.name} got")
    found = next(one.content for one in record.files if one.file_id == file.file_id)
    expected = hashlib.sha256(rows_of(plan, file, version).tobytes()).hexdigest()
    if found != expected:
        raise NotProven(f"shard {file.shard}: made of {file.name} with sha256 {found}; expected {expected}, of the rows that replaced them")
    return f"{file.name}, replaced when its shard {file.shard} was finished, is served with its new rows"


@dataclass(frozen=True)
class Exact:
    """scores (m, k) float32 descending and ids (m, k): the best rows for each caption, by multiplying all of them."""

    scores: Float32
    ids: Int64


def by_brute_force(queries: Float32, catalog: Catalog, listing: Listing, removed: Int64, k: int) -> Exact:
    """faiss.knn over every row that can be searched, file after file."""
    scores, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    for rows, numbers in _batches(catalog, listing, removed):
        found, places = faiss.knn(queries, rows, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        both = np.concatenate([scores, found], 1), np.concatenate([ids, numbers[places]], 1)
        order = np.argsort(-both[0], axis=1, kind="stable")[:, :k]
        scores, ids = (np.take_along_axis(values, order, 1) for values in both)
    return Exact(scores, ids)


def _batches(catalog: Catalog, listing: Listing, removed: Int64) -> Iterator[tuple[Float32, Int64]]:
    waiting: list[tuple[Float32, Int64]] = []
    for file in catalog:
        for block in read_blocks(file, listing[file.name].path, block_rows=BATCH_ROWS):
            numbers = np.arange(block.start_row, block.start_row + len(block.vectors))
            kept = usable_squares(squared_norms(block.vectors)) & ~np.isin(numbers, removed)
            waiting.append((block.vectors[kept].astype(np.float32), numbers[kept]))
        if sum(len(rows) for rows, _ in waiting) >= BATCH_ROWS or file.file_id == len(catalog) - 1:
            yield np.concatenate([rows for rows, _ in waiting]), np.concatenate([numbers for _, numbers in waiting])
            waiting = []


def truth_is_exact(plan: Plan, catalog: Catalog, captions: TestCaptions, removed: Int64, exact: Exact) -> str:
    """What was kept while files were encoded, merged, is what brute force finds; in another order only among near ties."""
    root = BuildRoot.at(plan.root)
    generation = served_generation(root)
    records = finished_shards(generation) if generation is not None else {}
    contents = [(catalog.all_files[file.file_id], file.content) for record in records.values() for file in record.files]
    whole = whole_truth(root, captions, contents, removed, total_rows=catalog.total_rows)
    if not whole.proven.all():
        raise NotProven(f"{root.truth(captions.digest)}: {int((~whole.proven).sum())} of {len(captions)} captions are not proven")
    k = min(exact.ids.shape[1], whole.truth.ids.shape[1])
    apart = np.abs(whole.truth.scores[:, :k] - exact.scores[:, :k])
    if apart.max() > NEAR_TIE:
        caption, place = divmod(int(apart.argmax()), apart.shape[1])
        raise NotProven(
            f"caption {caption}: its neighbour {place} scores {whole.truth.scores[caption, place]:.7f} "
            f"(id {whole.truth.ids[caption, place]}) in the truth, {exact.scores[caption, place]:.7f} (id {exact.ids[caption, place]}) by brute force"
        )
    other = 0
    for caption in range(len(captions)):
        end = exact.scores[caption, k - 1] + NEAR_TIE
        clear = exact.ids[caption, :k][exact.scores[caption, :k] > end]
        lost = np.setdiff1d(clear, whole.truth.ids[caption, :k])
        if len(lost):
            raise NotProven(f"caption {caption}: id {lost[0]} is among its best {k} by brute force and not in the truth")
        other += int((whole.truth.ids[caption, :k] != exact.ids[caption, :k]).sum())
    return f"{len(captions):,} captions x {k} exact neighbours over {whole.truth.searchable:,} rows; {other} near ties in another order"


def recall_over_all(plan: Plan, queries: Float32, exact: Exact, nprobes: Sequence[int], k: int = 10) -> list[tuple[int, float, float]]:
    """(nprobe, recall@k against brute force over all rows, share of vectors scanned) of the shards as they are served."""
    found = []
    with ShardedIndex.open(plan.root, packed=False) as index:
        sizes = index.list_sizes()
        for nprobe in sorted({*nprobes, index.nprobe}):
            if nprobe <= index.nlist:
                _, ids = index.search(queries, k, nprobe=nprobe)
                hits = [len(np.intersect1d(mine, theirs)) for mine, theirs in zip(ids, exact.ids[:, :k], strict=True)]
                found.append((nprobe, float(np.mean(hits) / k), _scanned(plan, queries, nprobe, sizes)))
    return found


def _scanned(plan: Plan, queries: Float32, nprobe: int, sizes: Int64) -> float:
    generation = served_generation(BuildRoot.at(plan.root))
    if generation is None:
        raise NotProven(f"{plan.root}: no generation is served")
    lists = TrainedIndex.load(generation.trained).probe(queries, nprobe)[1]
    return float(sizes[np.maximum(lists, 0)].sum(1).mean() / max(1, sizes.sum()))
