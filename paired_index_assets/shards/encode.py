"""One landed file -> one segment: validated block -> list number -> code; and the segments of all files of a shard.

Blocks have a fixed number of rows counted from the file's first, so that a segment does not depend on when or how often a build was
interrupted: the same matrix products run on the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedBlock, LandedFile, Listing, read_blocks
from paired_index_assets.landing.obtain import Obtained
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Int64, UInt8
from paired_index_assets.shards.record import write_failure
from paired_index_assets.shards.segment import (
    NOT_FINITE,
    ZERO,
    Segment,
    SegmentHeader,
    open_segment,
    read_header,
    segment_name,
    write_segment,
)
from paired_index_assets.storage import is_local
from paired_index_assets.trained.artifact import TrainedIndex

Supply = Callable[[Sequence[CatalogFile]], Iterator[Obtained]]

ENCODE_ROWS = 1 << 15  # rows a block: 100 MB of float32 at 768 dimensions
MOST_ROWS = (1 << 31) - 1  # row numbers in a segment are int32
# A few unusable rows are normal in a crawl and are counted; a file with more than this share of them was damaged or made otherwise.
MOST_UNUSABLE = 0.1


def segment_path(root: BuildRoot, trained: str, file: CatalogFile) -> Path:
    """Where the segment of a catalogued file lies for the trained index of that fingerprint."""
    return Path(root.segments(trained).path) / segment_name(file.file_id)


def kept_segment(root: BuildRoot, trained: str, file: CatalogFile, landed: LandedFile | None) -> SegmentHeader | None:
    """The header of a segment that still stands for `file`, else None. Without a source (`landed` None) a finished segment stands."""
    try:
        header = read_header(segment_path(root, trained, file))
    except (DamagedArtifact, FileNotFoundError):
        return None
    same = (header.trained, header.name, header.offset, header.rows) == (trained, file.name, file.offset, file.rows)
    if landed is not None:
        same = same and (header.size, header.stamp, header.lossy) == (landed.size, landed.stamp, landed.lossy)
    return header if same else None


def encode_file(
    root: BuildRoot,
    trained: TrainedIndex,
    file: CatalogFile,
    landed: LandedFile,
    *,
    block_rows: int = ENCODE_ROWS,
    progress: Progress = silent,
) -> SegmentHeader:
    """Read, validate, assign and encode every row of `file` once and write its segment (replacing any other).

    Memory: the file's codes plus two blocks. Raises BadInput naming the file if it is not what the catalog says, if more than
    `MOST_UNUSABLE` of its rows are NaN, infinite, zero or not of unit norm, or if it changed while it was read; OutOfDisk.
    """
    if file.dimensions != trained.d:
        raise BadInput(f"{landed.path}: {file.dimensions} dimensions; the trained index has {trained.d}. Train one on these embeddings")
    if file.rows > MOST_ROWS:
        raise BadInput(f"{landed.path}: {file.rows} rows in one slice; expected at most {MOST_ROWS}. Scan a catalog of more shards")
    code_size = trained.codec.code_size
    lists = np.zeros(file.rows, dtype=np.int64)
    codes = np.zeros((file.rows, code_size), dtype=np.uint8)
    why = np.zeros(file.rows, dtype=np.uint8)
    content = hashlib.sha256()
    unusable, row = 0, 0
    for block in _one_ahead(_hashed(read_blocks(file, landed.path, block_rows=block_rows), content)):
        here = slice(row, row + len(block.vectors))
        why[here] = _reasons(block)
        unusable += block.not_finite + block.zero + block.off_norm
        if block.valid.any():
            lists[here][block.valid], codes[here][block.valid] = _encoded(trained, block)
        row = here.stop
        progress("encode", row, file.rows, file=file.name)
    if unusable > MOST_UNUSABLE * file.rows:
        raise BadInput(
            f"{landed.path}: {unusable} of {file.rows} rows are NaN, infinite, zero or not of unit norm; expected at most "
            f"{MOST_UNUSABLE:.0%}. Normalise the vectors or get the file again"
        )
    if is_local(landed.path) and str(Path(landed.path.path).stat().st_mtime_ns) != landed.stamp:
        raise BadInput(f"{landed.path}: changed while it was read; build its shard again when it is complete")
    header = SegmentHeader(
        trained=trained.fingerprint,
        name=file.name,
        offset=file.offset,
        rows=file.rows,
        size=landed.size,
        stamp=landed.stamp,
        content=content.hexdigest(),
        lossy=landed.lossy,
        code_size=code_size,
        kept=0,
        left=0,
    )
    return write_segment(segment_path(root, trained.fingerprint, file), header, lists, codes, why)


@dataclass
class ShardEncoder:
    """Gives the files of one shard segments that stand; `encoded` are the names of those it had to encode.

    `segments_of` raises BadInput naming every bad file, MissingInput naming those not to be had, after all others are saved.
    """

    root: BuildRoot
    trained: TrainedIndex
    shard_file: Path
    rows: int
    supply: Supply
    block_rows: int
    progress: Progress
    encoded: list[str] = field(default_factory=list)
    done: int = 0

    def segments_of(self, files: Sequence[CatalogFile], landed: Sequence[LandedFile | None]) -> list[Segment]:
        """One a file, every byte checked; those that do not stand for their file, or were altered, are made (again)."""
        fingerprint = self.trained.fingerprint
        wanted = [file for file, there in zip(files, landed, strict=True) if kept_segment(self.root, fingerprint, file, there) is None]
        self.done = self.rows - sum(file.rows for file in wanted)
        self._encode(wanted)
        segments: dict[int, Segment] = {}
        damaged = []
        for file in files:
            try:
                segments[file.file_id] = open_segment(self._path(file))
            except DamagedArtifact:
                self._path(file).unlink()
                damaged.append(file)
        self.done = self.rows - sum(file.rows for file in damaged)
        self._encode(damaged)
        segments |= {file.file_id: open_segment(self._path(file)) for file in damaged}
        return [segments[file.file_id] for file in files]

    def _encode(self, files: Sequence[CatalogFile]) -> None:
        if not files:
            return
        missing: list[tuple[CatalogFile, str]] = []
        faults: list[tuple[CatalogFile, str]] = []
        for got in self.supply(files):
            if got.landed is None:
                missing.append((got.file, got.reason or "has not landed"))
            else:
                try:
                    encode_file(self.root, self.trained, got.file, got.landed, block_rows=self.block_rows, progress=self._of_the_shard)
                    self.encoded.append(got.file.name)
                except BadInput as fault:
                    faults.append((got.file, str(fault)))
            self.done += got.file.rows
            self.progress("encode", self.done, self.rows, file=got.file.name)
        if faults or missing:
            write_failure(self.shard_file, [*faults, *missing])
        waits = f"{self.shard_file}: waits for {len(missing)} files: " + "; ".join(f"{file.name} {why}" for file, why in missing)
        if faults:
            raise BadInput("\n".join([*(text for _, text in faults), *([waits] if missing else [])]))
        if missing:
            raise MissingInput(waits)

    def _of_the_shard(self, step: str, done: int, _: int, /, **facts: float | int | str) -> None:
        """Report a file's rows as rows of its shard."""
        self.progress(step, self.done + done, self.rows, **facts)

    def _path(self, file: CatalogFile) -> Path:
        return segment_path(self.root, self.trained.fingerprint, file)


def landed_alone(listing: Listing) -> Supply:
    """What has landed, complete or not, and nothing else."""
    return lambda files: (Obtained(file, listing.get(file.name)) for file in files)


def _encoded(trained: TrainedIndex, block: LandedBlock) -> tuple[Int64, UInt8]:
    lists, codes = trained.encode(block.vectors[block.valid].astype(np.float32))
    if lists.min() < 0 or lists.max() >= trained.nlist:
        raise DamagedArtifact(f"trained index {trained.fingerprint}: list numbers {lists.min()} to {lists.max()}; it has {trained.nlist}")
    return lists, codes


def _reasons(block: LandedBlock) -> UInt8:
    finite: Bool = np.isfinite(block.vectors[~block.valid]).all(axis=1)
    why = np.zeros(len(block.vectors), dtype=np.uint8)
    why[~block.valid] = np.where(finite, ZERO, NOT_FINITE)
    return why


def _hashed(blocks: Iterator[LandedBlock], sha: hashlib._Hash) -> Iterator[LandedBlock]:
    for block in blocks:
        sha.update(np.ascontiguousarray(block.vectors).data.cast("B"))
        yield block


def _one_ahead(blocks: Iterator[LandedBlock]) -> Iterator[LandedBlock]:
    """The same blocks, the next one read by a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        following = reader.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = reader.submit(next, blocks, None)
            yield block
