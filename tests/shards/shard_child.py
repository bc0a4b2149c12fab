"""What the crash tests run in a process of its own: build every shard of a saved world, one after another."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from paired_index_assets.errors import PairedIndexError
from paired_index_assets.fetching.fetch import FetchRules, release
from paired_index_assets.fetching.obtain import Obtained, obtain
from paired_index_assets.fetching.sources import Patience
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.sweeping import sweep
from paired_index_assets.shards.truth import TestCaptions
from paired_index_assets.trained.artifact import TrainedIndex

FAILED = 3
CAPTIONS = "captions.npy"  # beside the trained index: test captions whose truth is kept, where there are any


def build_everything(place: Path, root: Path) -> None:
    """Build in `root` from `place`/trained.index, `place`/catalog.parquet and `place`/landing."""
    trained = TrainedIndex.load(place / "trained.index")
    catalog = Catalog.load(place / "catalog.parquet")
    captions = TestCaptions(np.load(place / CAPTIONS)) if (place / CAPTIONS).exists() else None
    try:
        for shard in range(catalog.shards):
            build_shard(BuildRoot.at(root), trained, catalog, shard, place / "landing", captions=captions, block_rows=100)
    except PairedIndexError as error:
        (place / f"error-{os.getpid()}.txt").write_text(f"{type(error).__name__}: {error}")
        sys.exit(FAILED)


def build_everything_fetched(place: Path, root: Path, url: str) -> None:
    """The same from a server, each file deleted once it is encoded."""
    trained = TrainedIndex.load(place / "trained.index")
    catalog = Catalog.load(place / "catalog.parquet")
    rules = FetchRules(attempts=30, backoff_s=0.005, longest_backoff_s=0.05, patience=Patience(connect_s=2, stall_s=0.5))

    def supply(files: Sequence[CatalogFile]) -> Iterator[Obtained]:
        for obtained in obtain(files, {}, [url], root / "downloads", rules=rules):
            yield obtained
            if obtained.landed is not None:
                release(obtained.landed.path)

    for shard in range(catalog.shards):
        build_shard(BuildRoot.at(root), trained, catalog, shard, {}, supply=supply, block_rows=100)


def rebuild_and_sweep(place: Path, root: Path) -> None:
    """Build every shard of the trained index at `place`, and after each delete what is not needed any more."""
    trained = TrainedIndex.load(place / "trained.index")
    catalog = Catalog.load(place / "catalog.parquet")
    for shard in range(catalog.shards):
        build_shard(BuildRoot.at(root), trained, catalog, shard, place / "landing", block_rows=100)
        sweep(BuildRoot.at(root), trained.fingerprint, catalog)


def build_and_die_at(place: Path, root: Path, moment: int) -> None:
    """The same, but the process kills itself before its `moment`-th flush or rename."""
    left = moment

    def mortal(call):  # type: ignore[no-untyped-def]
        def called(*arguments, **options):  # type: ignore[no-untyped-def]
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return call(*arguments, **options)

        return called

    os.fsync, os.replace = mortal(os.fsync), mortal(os.replace)
    build_everything(place, root)


def build_with_small_files(place: Path, root: Path, largest: int) -> None:
    """The same where no file may grow beyond `largest` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    build_everything(place, root)


if __name__ == "__main__":
    build_everything(Path(sys.argv[1]), Path(sys.argv[2]))
