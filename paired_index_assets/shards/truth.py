"""The truth of one landed file: its best rows for each test caption, exactly. This module alone knows its bytes.

A framed file (files.framed) of magic b"PIXTRU01" whose header is a `TruthHeader` and whose body is

    scores   float32 (captions, width)        inner products, descending
    rows     uint8, 16 or 32 (captions, width) rows of the file, ascending among equal scores

It depends on the file's rows and on the captions, and on no trained index: a retraining makes it not again. Rows that cannot be
searched (NaN, infinite, zero) are not in it. Rows that are taken down are: they are struck off when truths are merged.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.framed import DIGEST_BYTES, HEAD_BYTES, pack_head, unpack_head
from paired_index_assets.files.storage import content_of, digest_of_parts, head_of, write_bytes
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.layout import BuildRoot
from paired_index_assets.quality.nearest import Listed
from paired_index_assets.quality.truth import DEEPEST_K, TIES_KEPT
from paired_index_assets.rows import Float32, Int64

MAGIC = b"PIXTRU01"
CURE = "delete it and build its shard again"
DEPTH = DEEPEST_K + TIES_KEPT  # rows listed; doubled where so many of them are taken down that fewer than DEEPEST_K are left
SMALL_BUILD = 1e12  # multiply-adds: some seconds on two cores
FEWER_CAPTIONS = 1_000
SHARE_OF_ASSIGNMENT = 0.01


@dataclass(frozen=True)
class TestCaptions:
    """The captions that truth is kept for: vectors (m, d) float32, finite."""

    __test__ = False  # for pytest, which takes every class of such a name for tests

    vectors: Float32

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or not len(self.vectors) or not np.isfinite(self.vectors).all():
            raise BadInput(f"test captions: {self.vectors.shape}; expected at least one finite vector. Pair the captions again")

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits: what truth is kept for."""
        return digest_of_parts(str(self.vectors.shape), np.ascontiguousarray(self.vectors, "<f4").tobytes())[:16]

    def __len__(self) -> int:
        return len(self.vectors)


def captions_to_judge(test: Int64, rows: int, dimensions: int, nlist: int, *, seed: int) -> Int64:
    """Those of the captions `test` (m,) that truth is kept for: all in a small build, and where they cost less than a hundredth of
    assignment (rows x nlist); else a seeded 1,000 of them, ascending."""
    small = float(rows) * len(test) * dimensions <= SMALL_BUILD
    if len(test) <= FEWER_CAPTIONS or small or len(test) <= SHARE_OF_ASSIGNMENT * nlist:
        return test
    return np.sort(np.random.default_rng(seed).choice(test, FEWER_CAPTIONS, replace=False))


@dataclass(frozen=True)
class TruthHeader:
    """What a truth was made from, and its shape."""

    captions: str  # digest of the test captions
    name: str  # of the landed file
    offset: int  # first row of the slice inside the file
    rows: int  # rows of the slice
    content: str  # sha256 of the slice's rows as they lie in the file
    usable: int  # rows that can be searched
    queries: int  # captions
    depth: int  # most rows listed for a caption

    @property
    def width(self) -> int:
        """Rows listed for each caption."""
        return min(self.depth, self.usable)

    @property
    def row_type(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(np.min_scalar_type(max(self.rows - 1, 0))).newbyteorder("<")

    @property
    def body_bytes(self) -> int:
        return self.queries * self.width * (4 + self.row_type.itemsize)


class TruthInTheMaking:
    """The best rows of a file that is read block by block; `add` takes its usable rows in order."""

    def __init__(self, captions: TestCaptions, depth: int = DEPTH, *, device: str | None = None) -> None:
        from paired_index_assets.neighbors.exact import RunningNeighbors  # brings torch, a third of what a run costs that encodes nothing

        self._captions, self._depth = captions, depth
        self._nearest = RunningNeighbors(captions.vectors, depth, device=device, names=("test captions", "rows"))

    def add(self, vectors: Float32) -> None:
        """vectors (n, d): the next usable rows."""
        if len(vectors):
            self._nearest.add(vectors)

    def write(self, root: BuildRoot, file: CatalogFile, content: str, usable: Int64) -> None:
        """Write it, replacing any other. usable (n,): the numbers, in the file, of the rows that were added."""
        scores, places = self._nearest.best()
        digest = self._captions.digest
        header = TruthHeader(digest, file.name, file.offset, file.rows, content, len(usable), len(self._captions), self._depth)
        rows = usable[places].astype(header.row_type)
        body = pack_head(MAGIC, asdict(header)) + scores.astype("<f4").tobytes() + rows.tobytes()
        write_bytes(truth_path(root, digest, file), body + hashlib.sha256(body).digest())


def truth_path(root: BuildRoot, captions: str, file: CatalogFile) -> UPath:
    return root.truth(captions) / f"{file.file_id:06d}.truth"


def kept_truth(root: BuildRoot, captions: str, file: CatalogFile, content: str) -> TruthHeader | None:
    """The header of the truth of `file` if it is of these rows (sha256 `content`), else None. Its bytes are not looked at."""
    path = truth_path(root, captions, file)
    try:
        head, length = head_of(path, HEAD_BYTES)
        header, start = _header(path, head)
    except (FileNotFoundError, DamagedArtifact):
        return None
    same = (header.captions, header.name, header.offset, header.rows, header.content)
    whole = length == start + header.body_bytes + DIGEST_BYTES
    return header if whole and same == (captions, file.name, file.offset, file.rows, content) else None


def read_truth(root: BuildRoot, captions: str, file: CatalogFile) -> tuple[TruthHeader, Listed]:
    """The truth of a file, ids global; every byte is held against its checksum. Raises MissingInput, DamagedArtifact."""
    path = truth_path(root, captions, file)
    try:
        content = content_of(path)
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no truth of {file.name}; build its shard while the file is there") from error
    header, start = _header(path, content)
    if len(content) != start + header.body_bytes + DIGEST_BYTES:
        raise DamagedArtifact(f"{path}: {len(content)} bytes, its header promises {start + header.body_bytes + DIGEST_BYTES}; {CURE}")
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise DamagedArtifact(f"{path}: its bytes do not match its checksum; {CURE}")
    shape = (header.queries, header.width)
    values = header.queries * header.width
    scores = np.frombuffer(content, "<f4", values, start).reshape(shape)
    rows: npt.NDArray[np.unsignedinteger] = np.frombuffer(content, header.row_type, values, start + 4 * values).reshape(shape)
    return header, Listed(scores, rows.astype(np.int64) + file.start_row, header.usable <= header.depth)


def _header(path: UPath | Path, head: bytes) -> tuple[TruthHeader, int]:
    fields, start = unpack_head(path, MAGIC, head, CURE)
    try:
        return TruthHeader(**fields), start
    except TypeError as error:
        raise DamagedArtifact(f"{path}: not a truth ({error}); {CURE}") from error
