"""Every row of a shard accounted for, by what its file holds and not by what its record says.

The law: of every landed file, rows = vectors in lists + left out by reason + taken down; every id of a usable row that is not taken down
is in exactly one list, once, and no other id is. And the code stored under an id is that row's: a seeded sample of rows is read from the
landed files and coded again, and what stock faiss decodes of the stored code lies no further from what it decodes of the new code than
that lies from the row itself: the codec's own error. (Mostly it is the same code; another processor may round near ties otherwise.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import LandedFile, Listing, digest_of_rows, read_rows
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Bool, Float32, Int64, UInt8, usable_rows
from paired_index_assets.shards.assemble import FaissFile, list_ids
from paired_index_assets.shards.record import FileRecord, ShardRecord, finished_record, shard_file
from paired_index_assets.shards.removals import read_removed, removed_version
from paired_index_assets.trained.artifact import TrainedIndex

SAMPLED_ROWS = 100  # of a shard
READ_ONLY = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY
ROUNDOFF = 1e-3  # of decoded vectors, for codes that lose nothing
CURE = "delete it and build the shard again"


@dataclass(frozen=True)
class Account:
    """Where the rows of a shard are: rows = in_lists + not_finite + zero + taken_down. compared: rows held against their source;
    gone: files whose rows are no longer there to compare with, or are others now."""

    shard: int
    rows: int
    in_lists: int
    not_finite: int
    zero: int
    taken_down: int
    compared: int
    gone: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.rows:,} rows = {self.in_lists:,} in lists + {self.not_finite:,} not finite + {self.zero:,} zero + "
        text += f"{self.taken_down:,} taken down; {self.compared:,} compared with their source"
        return text + (f", the source of {len(self.gone)} files is gone or another now" if self.gone else "")


def account_of_shard(
    root: BuildRoot, trained: TrainedIndex, catalog: Catalog, shard: int, listing: Listing, *, removed: Int64 | None = None, seed: int
) -> Account:
    """Hold a finished shard of the generation of `trained` against the catalog and the landed files.

    Raises MissingInput, or DamagedArtifact naming what is wrong.

    Reads the ids of every list, one byte a row in memory, and SAMPLED_ROWS rows of the sources.
    """
    place, files = root.generation(trained.fingerprint).shard(trained.codec.name, shard), catalog.files(shard)
    record = finished_record(place)
    if record is None:
        raise MissingInput(f"{place.file}: no finished shard; build it")
    files = files[: len(record.files)]  # what was appended since is not in it yet
    local = root.cache.local(shard_file(place, record), sha256=record.sha256)
    index = faiss.read_index(str(local.path), READ_ONLY)
    landed = [listing.get(file.name) for file in files]
    removed = read_removed(root, catalog.data_set) if removed is None else removed
    return account(index, trained, record, files, landed, removed, name=str(place.file), seed=seed)


def account(
    index: FaissFile,
    trained: TrainedIndex,
    record: ShardRecord,
    files: Sequence[CatalogFile],
    landed: Sequence[LandedFile | None],
    removed: Int64,
    *,
    name: str,
    seed: int,
) -> Account:
    """The same for an open index. `removed` (n,) ascending ids; `landed` is where the rows of `files` are, None where they are gone."""
    first, stop = files[0].start_row, files[-1].stop_row
    if not record.is_of(files):
        raise DamagedArtifact(f"{name}: made of other files or rows than the {len(files)} of the catalog; build it again")
    asked = np.sort(np.random.default_rng([seed, record.shard]).choice(stop - first, min(SAMPLED_ROWS, stop - first), replace=False))
    present, codes = _ids_and_codes(index, stop - first, first, asked, name)
    for file, mine in zip(files, record.files, strict=True):
        there = int(present[file.start_row - first : file.stop_row - first].sum())
        if there != mine.indexed or mine.rows != mine.indexed + mine.not_finite + mine.zero + mine.taken_down:
            raise DamagedArtifact(
                f"{name}: of {file.name} {there} rows are in lists; its record says {mine.rows} rows = {mine.indexed} in lists + "
                f"{mine.not_finite} not finite + {mine.zero} zero + {mine.taken_down} taken down; {CURE}"
            )
    gone = removed[slice(*np.searchsorted(removed, [first, stop]))] - first
    if record.removed == removed_version(removed, first, stop) and present[gone].any():
        raise DamagedArtifact(f"{name}: row {first + int(gone[present[gone]][0])} was taken down and is in a list; {CURE}")
    compared, lost, read = 0, [], list[tuple[FileRecord, CatalogFile, LandedFile, Int64, npt.NDArray[Any]]]()
    for file, mine, source in zip(files, record.files, landed, strict=True):
        rows = asked[(asked >= file.start_row - first) & (asked < file.stop_row - first)]
        vectors = _source_rows(file, source, rows - (file.start_row - first)) if len(rows) else None
        if source is not None and vectors is not None:
            read.append((mine, file, source, rows, vectors))
        elif len(rows):
            lost.append(file.name)
    fresh = _coded_again(index, trained, [vectors for *_, vectors in read])
    for (mine, file, source, rows, vectors), again in zip(read, fresh, strict=True):
        fault = _fault(index, vectors, again, present[rows], np.isin(rows, gone), [codes.get(int(row)) for row in rows])
        if fault is not None and digest_of_rows(file, source.path) != mine.content:
            lost.append(file.name)  # other rows landed since: the shard is stale, not wrong
            continue
        if fault is not None:
            raise DamagedArtifact(f"{name}: row {first + int(rows[fault[0]])}, of {file.name}: {fault[1]}; {CURE}")
        compared += len(rows)
    counts = {kind: sum(getattr(mine, kind) for mine in record.files) for kind in ("not_finite", "zero", "taken_down")}
    return Account(record.shard, stop - first, int(present.sum()), **counts, compared=compared, gone=tuple(lost))


def _ids_and_codes(index: FaissFile, rows: int, first: int, asked: Int64, name: str) -> tuple[Bool, dict[int, UInt8]]:
    """(rows,) which rows of the shard are in a list, and the codes of those of `asked` that are. Raises DamagedArtifact for an id that is
    there twice, or of another shard."""
    ivf = ivf_of(index)
    present, wanted, codes, total = np.zeros(rows, np.bool_), np.zeros(rows, np.bool_), {}, 0
    wanted[asked] = True
    for number in range(ivf.nlist):
        ids = list_ids(ivf, number) - first
        if not len(ids):
            continue
        if ids.min() < 0 or ids.max() >= rows:
            raise DamagedArtifact(f"{name}: list {number} holds ids {first + ids.min()} to {first + ids.max()}; expected {first} to "
                                  f"{first + rows - 1}; {CURE}")  # fmt: skip
        total += len(ids)
        present[ids] = True
        for place in np.flatnonzero(wanted[ids]):
            stored: UInt8 = faiss.rev_swig_ptr(ivf.invlists.get_codes(number), len(ids) * ivf.code_size).reshape(len(ids), -1)
            codes[int(ids[place])] = stored[place].copy()
    if total != present.sum() or total != ivf.ntotal:
        raise DamagedArtifact(f"{name}: {total} ids in its lists, {present.sum()} of them different, {ivf.ntotal} vectors; {CURE}")
    return present, codes


def _source_rows(file: CatalogFile, source: LandedFile | None, rows: Int64) -> npt.NDArray[Any] | None:
    """Rows of a landed file, None where it is gone or no longer complete."""
    if source is None or source.size != file.bytes:
        return None
    try:
        return read_rows(file, source.path, rows)
    except (BadInput, MissingInput):
        return None


def _coded_again(index: FaissFile, trained: TrainedIndex, files: Sequence[npt.NDArray[Any]]) -> list[Float32]:
    """The rows (n, d) of each file coded and decoded; of those that cannot be searched, zeros. All at once."""
    if not files:
        return []
    vectors = np.concatenate(files)
    usable = np.flatnonzero(usable_rows(vectors))
    decoded = np.zeros(vectors.shape, np.float32)
    if len(usable):
        decoded[usable] = _decoded(index, trained.codec.encode(vectors[usable].astype(np.float32)))
    return np.split(decoded, np.cumsum([len(rows) for rows in files])[:-1])


def _fault(
    index: FaissFile, vectors: npt.NDArray[Any], again: Float32, present: Bool, gone: Bool, stored: list[UInt8 | None]
) -> tuple[int, str] | None:
    """The first of the rows (n, d) that is where it should not be, or under which another vector's code is stored; and what is wrong.

    `again` (n, d): the rows coded anew, and decoded.
    """
    usable = usable_rows(vectors)
    for row in np.flatnonzero(~gone & (present != usable)):
        return int(row), "in a list, but it cannot be searched" if present[row] else "in no list, and nothing says why"
    rows = np.flatnonzero(usable & present)
    if not len(rows):
        return None
    exact, fresh = vectors[rows].astype(np.float32), again[rows]
    mine = _decoded(index, np.stack([code for code in (stored[row] for row in rows) if code is not None]))
    away, error = np.linalg.norm(mine - fresh, axis=1), np.linalg.norm(fresh - exact, axis=1)
    for wrong in np.flatnonzero(away > error + ROUNDOFF * np.linalg.norm(exact, axis=1)):
        return int(rows[wrong]), f"its code decodes {away[wrong]:.3f} from where it belongs, and the codec's error is {error[wrong]:.3f}"
    return None


def _decoded(index: FaissFile, codes: UInt8) -> Float32:
    """(n, code_size) codes as stock faiss reads them, (n, d) float32 in the space of the embeddings: <q, decoded> is the score of q."""
    columns: Float32 = ivf_of(index).sq.decode(np.ascontiguousarray(codes))
    if not isinstance(index, faiss.IndexPreTransform):
        return columns
    linear = faiss.downcast_VectorTransform(index.chain.at(0))
    return np.asarray(columns @ faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in), np.float32)
