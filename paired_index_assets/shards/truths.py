"""The truths of many landed files: kept up to date beside their segments, and merged into the exact neighbours over all that is indexed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile, read_blocks
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.nearest import NO_ID, Listed, merge
from paired_index_assets.quality.truth import DEEPEST_K, GroundTruth
from paired_index_assets.rows import Bool, Int64
from paired_index_assets.shards.truth import DEPTH, TestCaptions, TruthInTheMaking, kept_truth, read_truth

BLOCK_ROWS = 1 << 15
DIGEST = re.compile("[0-9a-f]{16}")  # of test captions, as a folder's name


@dataclass(frozen=True)
class IndexedFile:
    """A file that is in a shard: the sha256 of the rows that were encoded, and where they can still be read."""

    file: CatalogFile
    content: str
    landed: LandedFile | None


def keep_truths(
    root: BuildRoot, captions: TestCaptions, files: Sequence[IndexedFile], removed: Int64, *, progress: Progress = silent
) -> list[IndexedFile]:
    """Make the truths that are missing, damaged, or too shallow now that the ids `removed` (sorted) are struck off.

    Too shallow: not all rows are listed, and fewer than DEEPEST_K of some caption's are left. Then the list is made twice as deep, until
    it is deep enough: how deep depends on the rows and on what is removed, not on when. Returns the files that have none because their
    rows are no longer there; a truth that is too shallow stays (`whole_truth` proves how far it goes).
    """
    without = []
    for done, indexed in enumerate(files, start=1):
        depth = _needed_depth(root, captions, indexed, removed)
        while depth is not None and _make(root, captions, indexed, depth):
            depth = _needed_depth(root, captions, indexed, removed)
        if depth == DEPTH:
            without.append(indexed)
        progress("truth", done, len(files), file=indexed.file.name)
    return without


@dataclass(frozen=True)
class WholeTruth:
    """The exact neighbours of test captions among everything that is indexed.

    `proven` (m,) which captions they are known of as deep as DEEPEST_K (fewer where fewer rows are indexed); `truth` is of those alone.
    """

    proven: Bool
    truth: GroundTruth


def whole_truth(
    root: BuildRoot, captions: TestCaptions, files: Sequence[tuple[CatalogFile, str]], removed: Int64, *, total_rows: int
) -> WholeTruth:
    """Merge the truths of `files` (each with the sha256 of its rows) without the ids `removed` (sorted).

    total_rows: ids are below it. Raises MissingInput naming the files that have no truth of these rows, DamagedArtifact.
    """
    missing = [file for file, content in files if kept_truth(root, captions.digest, file, content) is None]
    if missing:
        names = ", ".join(file.name for file in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise MissingInput(
            f"{root.truth(captions.digest)}: {len(missing)} of {len(files)} indexed files have no truth of these test captions ({names}); "
            "build again while the files are there"
        )
    searchable = 0

    def lists() -> Iterator[Listed]:
        nonlocal searchable
        for file, _ in files:
            header, listed = read_truth(root, captions.digest, file)
            searchable += header.usable - _struck_off(file, listed, removed)
            yield listed

    scores, ids = merge(lists(), len(captions), DEPTH, removed)
    width = min(DEPTH, searchable)
    if width < 1:
        raise BadInput(f"{root.truth(captions.digest)}: nothing is indexed; every row is left out or taken down")
    proven = (ids[:, : min(DEEPEST_K, width)] != NO_ID).all(1)
    chosen = np.ascontiguousarray(ids[proven, :width]), np.ascontiguousarray(scores[proven, :width])
    return WholeTruth(proven, GroundTruth(*chosen, total_rows, searchable, DEEPEST_K))


def sweep_truths(root: BuildRoot, keep: str) -> None:
    """Delete the truths of every set of captions but the one of that digest. Only once its own are whole: files may be gone by now."""
    folder = root.truth(keep).parent
    for place in folder.iterdir() if folder.exists() else ():
        if place.is_dir() and place.name != keep and DIGEST.fullmatch(place.name):
            place.fs.rm(place.path, recursive=True)


def _struck_off(file: CatalogFile, listed: Listed, removed: Int64) -> int:
    """How many of a file's usable rows are taken down; where not all rows are listed, how many rows are."""
    first, stop = np.searchsorted(removed, [file.start_row, file.stop_row])
    return len(np.intersect1d(listed.ids[0], removed[first:stop])) if listed.whole else int(stop - first)


def _needed_depth(root: BuildRoot, captions: TestCaptions, indexed: IndexedFile, removed: Int64) -> int | None:
    """How deep the truth of a file has to be made, None if it is there; DEPTH where there is none, or one that was altered."""
    header = kept_truth(root, captions.digest, indexed.file, indexed.content)
    if header is None:
        return DEPTH
    try:
        _, listed = read_truth(root, captions.digest, indexed.file)
    except DamagedArtifact:
        return DEPTH
    shallow = not listed.whole and int(listed.left(removed).min()) < DEEPEST_K
    return 2 * header.depth if shallow else None


def _make(root: BuildRoot, captions: TestCaptions, indexed: IndexedFile, depth: int) -> bool:
    """Read the rows again and write their truth; False where they are gone, or are others now (their shard is stale then)."""
    if indexed.landed is None:
        return False
    truth, content, usable = TruthInTheMaking(captions, depth), hashlib.sha256(), []
    try:
        for block in read_blocks(indexed.file, indexed.landed.path, block_rows=BLOCK_ROWS):
            content.update(np.ascontiguousarray(block.vectors).data.cast("B"))
            usable.append(block.start_row - indexed.file.start_row + np.flatnonzero(block.valid))
            truth.add(block.vectors[block.valid].astype(np.float32))
    except (BadInput, MissingInput):
        return False
    if content.hexdigest() != indexed.content:
        return False
    truth.write(root, indexed.file, indexed.content, np.concatenate(usable))
    return True
