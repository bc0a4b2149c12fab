"""What is rehearsed: LAION's catalog at a share of its rows, and what goes wrong with which of its files. All drawn from one seed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from laion_rehearsal.geometry import Geometry
from paired_index_assets.landing.catalog import LAION_HEADER_BYTES, Catalog, CatalogFile
from paired_index_assets.nlist import flat_lists

LATE, TRUNCATED, UNUSABLE = 6, 4, 12  # files
MEMBERS = 16  # training pairs a list
HELD_OUT = 1_000  # test captions, for which truth is kept
SAMPLE_SHARE = 20e6 / 2_170_337_258  # of the rows, that the paper trains on
TAKEN_DOWN, LISTED_SHARDS = 1e-4, 3  # of the rows, by id and once more by md5


def scaled(share: float, files: int | None = None) -> Catalog:
    """LAION-2B's catalog with rows x `share` in every file (at least one), of its first `files` files."""
    start, found = 0, []
    for file in Catalog.laion2b().all_files[:files]:
        rows = max(1, round(file.rows * share))
        found.append(replace(file, rows=rows, start_row=start, bytes=LAION_HEADER_BYTES + rows * file.row_bytes))
        start += rows
    return Catalog.of(found)


@dataclass(frozen=True)
class Plan:
    """The whole rehearsal. Folders: `work` holds img_emb, metadata (as they land), sample, published, root."""

    work: Path
    share: float
    seed: int
    files: int | None = None
    nlist: int | None = None
    sample_rows: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SystemExit(f"SHARE={self.share}: expected a share of LAION's rows above 0, at most 1")

    @cached_property
    def mischief(self) -> Mischief:
        known = [file.file_id for file in self.catalog if file.known_missing] or [len(self.catalog) // 2]
        rng = np.random.default_rng([self.seed, 4])
        others = [int(number) for number in rng.permutation(len(self.catalog)) if number not in known]
        some = max(1, len(self.catalog) // 400)  # fewer of each where there are fewer files
        cuts = np.cumsum([min(most, some) for most in (LATE, TRUNCATED, UNUSABLE)])
        late, truncated, unusable = (part.tolist() for part in np.split(np.asarray(others[: cuts[-1]]), cuts[:-1]))
        return Mischief(tuple(known), tuple(late), tuple(truncated), tuple(unusable))

    @cached_property
    def catalog(self) -> Catalog:
        return scaled(self.share, self.files)

    @cached_property
    def geometry(self) -> Geometry:
        return Geometry(self.seed)

    @property
    def landing(self) -> Path:
        return self.work / "img_emb"

    @property
    def metadata(self) -> Path:
        return self.work / "metadata"

    @property
    def sample(self) -> Path:
        return self.work / "sample"

    @property
    def published(self) -> Path:
        """A made index as LAION published one (OPQ, IVF, PQ128, global ids), of the missing files and some others."""
        return self.work / "published"

    @property
    def root(self) -> Path:
        return self.work / "root"

    @property
    def lists(self) -> int:
        return self.nlist or flat_lists(self.catalog.total_rows)

    @cached_property
    def held_out(self) -> int:
        """Captions to choose by, and as many to report on."""
        return min(HELD_OUT, max(20, sum(file.rows for file in self.sampled()) // 20))

    def sampled(self) -> list[CatalogFile]:
        """Whole files to train on: the paper's share of the rows, or MEMBERS pairs a list if those are more."""
        catalog = self.catalog
        wanted = self.sample_rows or max(int(SAMPLE_SHARE * catalog.total_rows), MEMBERS * self.lists)
        chosen, rows = [], 0
        for number in np.random.default_rng([self.seed, 5]).permutation(len(catalog)):
            file = catalog.all_files[int(number)]
            if rows < wanted and file.file_id not in (*self.mischief.missing, *self.mischief.unusable):
                chosen.append(file)
                rows += file.rows
        return sorted(chosen, key=lambda file: file.file_id)

    def arrival(self) -> list[CatalogFile]:
        """The files of the first download, in random order: all but those that are missing or late."""
        kept_back = {*self.mischief.missing, *self.mischief.late}
        order = np.random.default_rng([self.seed, 6]).permutation(len(self.catalog))
        return [self.catalog.all_files[int(number)] for number in order if number not in kept_back]

    def to_take_down(self) -> tuple[list[int], list[int]]:
        """Ids to take down by id, from anywhere, and by md5, from LISTED_SHARDS shards."""
        rng, catalog = np.random.default_rng([self.seed, 7]), self.catalog
        count = max(2, round(TAKEN_DOWN * catalog.total_rows))
        chosen = rng.choice(catalog.shards, min(LISTED_SHARDS, catalog.shards), replace=False)
        inside = np.concatenate([np.arange(*catalog.shard_range(int(shard))) for shard in chosen])
        drawn = rng.choice(catalog.total_rows, count, replace=False), rng.choice(inside, count, replace=False)
        by_id, by_md5 = (sorted(ids.tolist()) for ids in drawn)
        return by_id, by_md5


@dataclass(frozen=True)
class Mischief:
    """File ids: `missing` never land, `late` land last, `truncated` land cut and are repaired, `unusable` hold a zero row
    and one of NaN."""

    missing: tuple[int, ...]
    late: tuple[int, ...]
    truncated: tuple[int, ...]
    unusable: tuple[int, ...]

    def unusable_rows(self, file: CatalogFile) -> dict[str, int]:
        """kind -> row of the file that cannot be searched."""
        if file.file_id not in self.unusable or file.rows < 20:  # more than a tenth of a file is a damaged file
            return {}
        return {"zero": file.rows // 3, "not_finite": file.rows // 2}
