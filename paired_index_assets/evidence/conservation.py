"""Rows counted across the stages of a build: none is lost, none is there twice, and what lies under an id is that row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.files.storage import is_local
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import read_rows
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import usable_rows
from paired_index_assets.shards.accounting import SAMPLED_ROWS, Account, account_of_shard
from paired_index_assets.shards.generations import served_if_any
from paired_index_assets.shards.manifest import read_manifest
from paired_index_assets.shards.removals import read_removed
from paired_index_assets.trained.artifact import TrainedIndex

COUNTS = ("indexed", "not_finite", "zero", "taken_down")


def served_catalog(build: OpenBuild) -> Catalog:
    """The catalog whose rows are the ids of what is served: a generation keeps its own."""
    served = served_if_any(build.root)
    return Catalog.load(served.catalog) if served is not None and served.catalog.exists() else build.catalog


def rows_are_conserved(build: OpenBuild) -> str:
    """What was counted, in one line: rows of the image set = rows of the catalog (where the set is what is indexed), and of every file in
    a finished shard, rows of the catalog = rows of the manifest = in lists + left out by reason + taken down. Raises DamagedArtifact."""
    root, catalog, settings = build.root, build.catalog, build.settings
    terms = []
    if not settings.landing and not settings.catalog:
        images = build.images
        if len(images) != catalog.total_rows:
            raise DamagedArtifact(f"{root.catalog}: {catalog.total_rows:,} rows; the image embeddings have {len(images):,}. Build again")
        _ids_are_rows(build)
        terms.append(f"{len(images):,} image embeddings")
    terms.append(f"{catalog.total_rows:,} rows of the catalog")
    table = read_manifest(root).to_pylist()
    done = [row for row in table if row["indexed"] is not None]
    catalog = served_catalog(build)
    for row in done:
        file = catalog.all_files[row["file_id"]] if row["file_id"] < len(catalog) else None
        if file is None or (file.name, file.start_row, file.rows) != (row["name"], row["start_row"], row["rows"]):
            raise DamagedArtifact(f"{root.manifest}: {row['name']} is not row {row['file_id']} of the catalog; build again")
        if row["rows"] != sum(row[count] for count in COUNTS):
            counts = " + ".join(f"{row[count]:,} {count}" for count in COUNTS)
            raise DamagedArtifact(f"{root.manifest}: {row['name']} has {row['rows']:,} rows, expected {counts}; build its shard again")
    totals = {count: sum(row[count] for row in done) for count in COUNTS}
    waiting = catalog.total_rows - sum(totals.values())
    terms.append(" + ".join(f"{total:,} {count.replace('_', ' ')}" for count, total in totals.items()))
    return " = ".join(terms) + (f" + {waiting:,} in shards that are not finished" if waiting else "")


def _ids_are_rows(build: OpenBuild) -> None:
    """A seeded sample of ids: what the catalog says lies under an id is that row of the set, where both are on this machine."""
    images, catalog, listing, rng = build.images, build.catalog, build.listing, np.random.default_rng(build.settings.seed)
    asked = np.sort(rng.choice(catalog.total_rows, min(SAMPLED_ROWS, catalog.total_rows), replace=False))
    part_of = np.searchsorted(images.starts, asked, side="right") - 1
    file_of = np.searchsorted(catalog.start_rows, asked, side="right") - 1
    for number in np.unique(file_of):
        file = catalog.all_files[number]
        there = listing.get(file.name)
        here = file_of == number
        if there is None or not all(is_local(images.parts[part].path) for part in part_of[here]):
            continue
        rows = asked[here]
        wrong = np.flatnonzero((read_rows(file, there.path, rows - file.start_row) != images[rows]).any(1) & usable_rows(images[rows]))
        if len(wrong):
            raise DamagedArtifact(
                f"{build.root.catalog}: id {rows[wrong[0]]} is row {rows[wrong[0]] - file.start_row} of {file.name}, which is not row "
                f"{rows[wrong[0]]} of the image embeddings; delete the catalog and build again"
            )


def account_of_build(
    build: OpenBuild, catalog: Catalog, trained: TrainedIndex, shards: Sequence[int], *, progress: Progress = silent
) -> list[Account]:
    """`account_of_shard` of each of these shards of the generation of `trained`, whose ids are rows of `catalog`. Raises MissingInput, DamagedArtifact."""
    removed, listing, found = read_removed(build.root, catalog.data_set), build.listing_of(catalog), []
    for done, shard in enumerate(shards, start=1):
        of_shard = account_of_shard(build.root, trained, catalog, shard, listing, removed=removed, seed=build.settings.seed)
        found.append(of_shard)
        progress("accounting for rows", done, len(shards))
    return found
