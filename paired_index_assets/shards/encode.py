"""Landed files -> segments: validated block -> list number -> code; and beside them the truth of the same rows (shards.truth).

Rows are encoded in blocks of at least thousands, whatever the files: a large file is read in blocks, small ones are encoded together.
That is safe because a row's list and code depend on that row alone (neighbors.exact, codes.codec promise it), so a segment does not
depend on when or how often a build was interrupted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import is_local
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.contents import LandedContents
from paired_index_assets.landing.landed import LandedBlock, LandedFile, read_blocks
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Int64, UInt8, squared_norms
from paired_index_assets.shards.segment import NOT_FINITE, ZERO, SegmentHeader, read_header, segment_name, write_segment
from paired_index_assets.shards.truth import TestCaptions, TruthInTheMaking, kept_truth
from paired_index_assets.trained.artifact import TrainedIndex

ENCODE_ROWS = 1 << 15  # rows encoded at once: 100 MB of float32 at 768 dimensions
WAITING_ROWS = 1 << 13  # fewer rows than this wait for those of the next file; a crash loses no more than them and the file being read
MOST_ROWS = (1 << 31) - 1  # row numbers in a segment are int32
# A few unusable rows are normal in a crawl and are counted; a file with more than this share of them was damaged or made otherwise.
MOST_UNUSABLE = 0.1


def segment_path(root: BuildRoot, trained: str, file: CatalogFile) -> UPath:
    """Where the segment of a catalogued file lies for the trained index of that fingerprint."""
    return root.generation(trained).segments / segment_name(file.file_id)


def kept_segment(
    root: BuildRoot, trained: str, file: CatalogFile, landed: LandedFile | None, contents: LandedContents | None = None
) -> SegmentHeader | None:
    """The header of a segment that still stands for `file`, else None. Without a source (`landed` None) a finished segment stands.

    A source of another stamp is another file; with `contents` only if its rows are others too.
    """
    try:
        header = read_header(segment_path(root, trained, file))
    except (DamagedArtifact, FileNotFoundError):
        return None
    same = (header.trained, header.name, header.offset, header.rows) == (trained, file.name, file.offset, file.rows)
    if not same or landed is None:
        return header if same else None
    if (header.size, header.stamp, header.lossy) == (landed.size, landed.stamp, landed.lossy):
        return header
    equal = contents is not None and header.lossy == landed.lossy and contents.is_the_same(file, landed, header.content)
    return header if equal else None


@dataclass(frozen=True)
class _Draft:
    """A segment in the making."""

    file: CatalogFile
    landed: LandedFile
    content: hashlib._Hash
    lists: Int64  # (rows,)
    codes: UInt8  # (rows, code_size)
    why: UInt8  # (rows,) 0 where the row is kept
    truth: TruthInTheMaking | None

    @classmethod
    def of(cls, file: CatalogFile, landed: LandedFile, code_size: int, captions: TestCaptions | None) -> _Draft:
        codes = np.zeros((file.rows, code_size), np.uint8)
        truth = None if captions is None else TruthInTheMaking(captions)
        return cls(file, landed, hashlib.sha256(), np.zeros(file.rows, np.int64), codes, np.zeros(file.rows, np.uint8), truth)


@dataclass(frozen=True)
class _Waiting:
    """Usable rows of a block that are not encoded yet, and where they belong."""

    draft: _Draft
    rows: Int64  # (n,)
    vectors: npt.NDArray[Any]  # (n, d)


class SegmentEncoder:
    """Encodes files one after another. `written` are the names of those whose segments are on disk; call `flush` at the end.

    `captions`: their exact neighbours among each file's rows are found in passing, and kept before the segment is.
    """

    def __init__(
        self,
        root: BuildRoot,
        trained: TrainedIndex,
        *,
        captions: TestCaptions | None = None,
        block_rows: int = ENCODE_ROWS,
        progress: Progress = silent,
    ) -> None:
        self._root, self._trained, self._captions, self._block_rows, self._progress = root, trained, captions, block_rows, progress
        self._waiting: list[_Waiting] = []
        self._read: list[_Draft] = []  # files read to their end
        self.written: list[str] = []

    def add(self, file: CatalogFile, landed: LandedFile) -> None:
        """Read and validate every row of `file` once; the file may go away afterwards.

        Memory: the file's codes, two blocks, and what waits. Raises BadInput naming the file if it is not what the catalog says, if more
        than `MOST_UNUSABLE` of its rows are NaN, infinite, zero (unless that is their outcome) or not of unit norm, or if it changed while
        it was read; MissingInput if it is gone; OutOfDisk.
        """
        if file.dimensions != self._trained.d:
            raise BadInput(
                f"{landed.path}: {file.dimensions} dimensions; the trained index has {self._trained.d}. Train one on these embeddings"
            )
        if file.rows > MOST_ROWS:
            raise BadInput(f"{landed.path}: {file.rows} rows in one slice; expected at most {MOST_ROWS}. Scan a catalog of more shards")
        draft = _Draft.of(file, landed, self._trained.codec.code_size, self._captions)
        try:
            self._take(draft)
        except (BadInput, MissingInput):
            self._waiting = [rows for rows in self._waiting if rows.draft is not draft]
            raise
        self._read.append(draft)
        if self._waiting_rows >= WAITING_ROWS:
            self.flush()

    def flush(self) -> None:
        """Encode what waits and write the segment of every file that was added."""
        self._encode()
        for draft in self._read:
            self._write(draft)
        self._read.clear()

    @property
    def _waiting_rows(self) -> int:
        return sum(len(rows.rows) for rows in self._waiting)

    def _take(self, draft: _Draft) -> None:
        file, landed = draft.file, draft.landed
        bad, row = Counter[str](), 0
        for block in _one_ahead(_hashed(read_blocks(file, landed.path, block_rows=self._block_rows), draft.content)):
            draft.why[row : row + len(block.vectors)] = _reasons(block)
            bad.update({"NaN or infinite": block.not_finite, "not of unit norm": block.off_norm})
            bad["zero"] += 0 if landed.outcomes else block.zero
            self._waiting.append(_Waiting(draft, row + np.flatnonzero(block.valid), block.vectors[block.valid]))
            row += len(block.vectors)
            if self._waiting_rows >= self._block_rows:
                self._encode()
            self._progress("encode", row, file.rows, file=file.name)
        if bad.total() > MOST_UNUSABLE * file.rows:
            found = ", ".join(f"{count} {reason}" for reason, count in bad.items() if count)
            cure = "Normalise the vectors" if bad["not of unit norm"] > bad.total() / 2 else "Get the file again"
            raise BadInput(
                f"{landed.path}: {bad.total()} of {file.rows} rows cannot be used ({found}); expected at most {MOST_UNUSABLE:.0%}. {cure}"
            )
        stamp = stamp_of(landed.path) if is_local(landed.path) else landed.stamp
        if not stamp:
            raise MissingInput(f"{landed.path}: deleted while it was read; build its shard again when it is there")
        if stamp != landed.stamp:
            raise BadInput(f"{landed.path}: changed while it was read; build its shard again when it is complete")

    def _encode(self) -> None:
        waiting, self._waiting = [rows for rows in self._waiting if len(rows.rows)], []
        if not waiting:
            return
        vectors = np.concatenate([rows.vectors for rows in waiting]).astype(np.float32)
        lists, codes = self._trained.encode(vectors)
        if lists.min() < 0 or lists.max() >= self._trained.nlist:
            raise DamagedArtifact(
                f"trained index {self._trained.fingerprint}: lists {lists.min()} to {lists.max()}, expected 0 to {self._trained.nlist - 1}"
            )
        at = 0
        for rows in waiting:
            here = slice(at, at + len(rows.rows))
            rows.draft.lists[rows.rows], rows.draft.codes[rows.rows] = lists[here], codes[here]
            if rows.draft.truth is not None:
                rows.draft.truth.add(vectors[here])
            at = here.stop

    def _write(self, draft: _Draft) -> None:
        content = draft.content.hexdigest()
        captions, truth = self._captions, draft.truth
        if captions and truth and kept_truth(self._root, captions.digest, draft.file, content) is None:  # one that is there may be deeper
            truth.write(self._root, draft.file, content, np.flatnonzero(draft.why == 0))
        header = SegmentHeader(
            trained=self._trained.fingerprint,
            name=draft.file.name,
            offset=draft.file.offset,
            rows=draft.file.rows,
            size=draft.landed.size,
            stamp=draft.landed.stamp,
            content=content,
            lossy=draft.landed.lossy,
            code_size=self._trained.codec.code_size,
            kept=0,
            left=0,
        )
        write_segment(segment_path(self._root, self._trained.fingerprint, draft.file), header, draft.lists, draft.codes, draft.why)
        self.written.append(draft.file.name)


def _reasons(block: LandedBlock) -> UInt8:
    finite: Bool = squared_norms(block.vectors[~block.valid]) <= 1
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
