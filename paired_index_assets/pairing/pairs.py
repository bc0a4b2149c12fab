"""The pairs table: for every caption its nearest image, one Parquet file a block of captions.

A block depends on its own captions and on the images alone, so blocks can be written by different processes or machines, in any
order. A file gets its name when it is complete, and says in its metadata what it was made from: a run that was killed goes on at
the first block that is missing, and a block of other inputs is made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.storage import as_path, digest_of_parts
from paired_index_assets.files.tables import digest_of_table, read_table, write_table
from paired_index_assets.neighbors.blocks import check_matrix, check_same_width
from paired_index_assets.neighbors.bounded import BoundedNeighbors
from paired_index_assets.neighbors.fingerprint import fingerprint_of
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Int64, Rows, Selected

PAIRS_SCHEMA = pa.schema(
    [
        pa.field("caption_id", pa.int64(), nullable=False),
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("similarity", pa.float32(), nullable=False),
    ]
)
BLOCK_ROWS = 1 << 16  # half a minute against 200,000 images at d=128 on two cores: what a kill can cost
FORMAT = "pairs-1"
CURE = "materialise caption_image_pairs again: only that block is made again"
INPUTS, BLOCKS = b"paired_index.inputs", b"paired_index.blocks"


@dataclass(frozen=True)
class PairsSummary:
    """What write_pairs left in the folder: `reused` of the `blocks` were already there; `images` is the number of different ones.

    content: digest of the whole table."""

    pairs: int
    images: int
    mean_similarity: float
    blocks: int
    reused: int
    content: str


@dataclass(frozen=True)
class MatchedImages:
    """The images (n, d), float16 or float32, that may be matched, and the digest of them that every block records.

    The table's image_id is the row among all images; those that are not `valid` are never matched.
    """

    rows: Rows
    ids: Int64 | None
    fingerprint: str

    @classmethod
    def of(cls, images: Rows, valid: Bool | None = None, fingerprint: str | None = None) -> MatchedImages:
        """The images (n, d) that are `valid` (n,), or all. Reads them once where no `fingerprint` names their content.

        Raises BadInput if `valid` has another length or allows none.
        """
        check_matrix(images, "images")
        if valid is None:
            return cls(images, None, digest_of_parts(FORMAT, fingerprint or fingerprint_of(images)))
        if valid.shape != (len(images),) or valid.dtype != np.bool_:
            raise BadInput(f"image_valid: expected ({len(images)},) bool, found {valid.shape} {valid.dtype}")
        ids = np.flatnonzero(valid).astype(np.int64)
        if not len(ids):
            raise BadInput(f"image_valid: none of {len(images)} images is valid; there is nothing to match captions to")
        return cls(Selected(images, ids), ids, digest_of_parts(FORMAT, fingerprint or fingerprint_of(images), valid.tobytes()))


@dataclass(frozen=True)
class Sides:
    """The two sides of a table of pairs. captions (m, d), float16 or float32, of the width of the images; caption_ids (m,) int64 is what
    the table calls each caption. Raises BadInput where shapes differ.
    """

    captions: Rows
    caption_ids: Int64
    images: MatchedImages
    block_rows: int = BLOCK_ROWS

    def __post_init__(self) -> None:
        rows, ids = len(self.captions), self.caption_ids
        check_matrix(self.captions, "captions")
        check_same_width(self.captions, "captions", self.images.rows, "images")
        if ids.shape != (rows,) or ids.dtype.kind not in "iu":
            raise BadInput(f"caption_ids: expected ({rows},) integers, one a caption; found {ids.shape} {ids.dtype}")
        if self.block_rows < 1:
            raise BadInput(f"block_rows: expected at least 1, found {self.block_rows}")

    @property
    def blocks(self) -> int:
        return -(-len(self.captions) // self.block_rows)

    def span(self, number: int) -> slice:
        """The captions of block `number`. Raises BadInput if there is no such block."""
        if not 0 <= number < self.blocks:
            found = f"({len(self.captions)} captions in blocks of {self.block_rows}), found {number}"
            raise BadInput(f"block: expected 0 .. {self.blocks - 1} {found}")
        return slice(number * self.block_rows, min((number + 1) * self.block_rows, len(self.captions)))


def write_pairs(folder: UPath, sides: Sides, *, device: str | None = None, progress: Progress = silent) -> PairsSummary:
    """Match every caption to the image with the largest inner product, into `folder`/pairs-00000.parquet and so on.

    Files of an earlier table that has no place in this one are removed. Raises BadInput for a caption or valid image that is not finite.
    """
    folder = as_path(folder)
    for number, path in _files(folder).items():
        if number >= sides.blocks:
            path.unlink()
    reused = sides.blocks - write_blocks(folder, range(sides.blocks), sides, device=device, progress=progress)
    table = read_pairs(folder)
    similarity = table["similarity"].to_numpy()
    images, mean = len(table["image_id"].unique()), float(similarity.mean(dtype=np.float64))
    return PairsSummary(len(table), images, mean, sides.blocks, reused, digest_of_table(table))


def write_blocks(folder: UPath, numbers: Sequence[int], sides: Sides, *, device: str | None = None, progress: Progress = silent) -> int:
    """Write some blocks of the table, such as every eighth where eight runs share them; returns how many were not there already."""
    written, done = 0, 0
    spans, search = [sides.span(number) for number in numbers], search_of(sides, len(numbers))
    total = sum(span.stop - span.start for span in spans)
    for number, span in zip(numbers, spans, strict=True):
        written += write_block(folder, number, sides, search, device=device, progress=_shifted(progress, done, total))
        done += span.stop - span.start
        progress("pairing", done, total, written=written)
    return written


def search_of(sides: Sides, blocks: int = 1) -> BoundedNeighbors:
    """Of the images, for so many blocks of captions."""
    return BoundedNeighbors(sides.images.rows, names=("captions", "images"), calls=blocks)


def write_block(
    folder: UPath,
    number: int,
    sides: Sides,
    search: BoundedNeighbors | None = None,
    *,
    device: str | None = None,
    progress: Progress = silent,
) -> bool:
    """Write block `number` of the table, or leave the file that is there if it was made from the same. True if written.

    Needs nothing of the other blocks. Its captions (block_rows, d) are in memory while it runs. `search`: of the images, for one block after another.
    """
    span, images = sides.span(number), sides.images
    block, ids = sides.captions[span], np.ascontiguousarray(sides.caption_ids[span], dtype=np.int64)
    metadata = {
        INPUTS: digest_of_parts(images.fingerprint, fingerprint_of(block), ids.tobytes()).encode(),
        BLOCKS: str(sides.blocks).encode(),
    }
    path = as_path(folder) / f"pairs-{number:05d}.parquet"
    if _is_whole(path, metadata):
        return False
    similarity, image = (search or search_of(sides)).nearest(block, device=device, progress=progress)
    image = image if images.ids is None else images.ids[image]
    table = pa.table([ids, image, similarity], schema=PAIRS_SCHEMA.with_metadata(metadata))
    write_table(path, table)
    return True


def read_pairs(folder: UPath) -> pa.Table:
    """The whole table, in the order of captions. Raises MissingInput if there is none, DamagedArtifact if a block is missing or damaged."""
    files = _files(as_path(folder))
    if not files:
        raise MissingInput(f"{folder}: no pairs-*.parquet; write the pairs first (materialise caption_image_pairs)")
    tables = []
    for number, path in sorted(files.items()):
        table = _block(path)
        blocks = int(table.schema.metadata[BLOCKS])
        if blocks != len(files) or number >= len(files):
            raise DamagedArtifact(f"{path}: block {number} of {blocks} beside {len(files)} files, expected a complete table; {CURE}")
        tables.append(table.replace_schema_metadata(None))
    return pa.concat_tables(tables)


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    """What a block reports, as part of the whole."""

    def shifted(step: str, done: int, of: int, /, **facts: float | int | str) -> None:
        progress("pairing", before + done, total, **facts)

    return shifted


def _files(folder: UPath) -> dict[int, UPath]:
    """Blocks in the folder by number."""
    return {int(path.stem.removeprefix("pairs-")): path for path in folder.glob("pairs-*.parquet")} if folder.exists() else {}


def _block(path: UPath) -> pa.Table:
    """A block, every value of it held against its digest. Raises MissingInput, DamagedArtifact."""
    try:
        table = read_table(path, CURE)
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such block; {CURE}") from error
    if not table.schema.remove_metadata().equals(PAIRS_SCHEMA) or not {INPUTS, BLOCKS} <= (table.schema.metadata or {}).keys():
        raise DamagedArtifact(f"{path}: not a block of pairs; {CURE}")
    return table


def _is_whole(path: UPath, metadata: dict[bytes, bytes]) -> bool:
    """Whether the block is there, undamaged, and made from what `metadata` says."""
    try:
        found = _block(path).schema.metadata
    except (MissingInput, DamagedArtifact):
        return False
    return {key: found[key] for key in (INPUTS, BLOCKS)} == metadata
