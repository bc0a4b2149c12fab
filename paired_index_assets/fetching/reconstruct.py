"""Files that no source has any more, rebuilt from a published kNN index of the same rows. Lossy, and marked as such.

LAION's `laion2B-en-imagePQ128/knn.index00..54` are faiss OPQ + IVF + PQ files whose ids are global rows. A file's rows may lie in two of
them. Nothing is assumed about which index holds which rows: the ids in their lists say so. The lists are mapped, not loaded, and no
DirectMap is made (16 bytes for each of 2.2e9 rows): ids are compared list by list, and the codes of wanted rows are decoded together.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput, OutOfDisk
from paired_index_assets.fetching.partial import give_name, turn_to_write
from paired_index_assets.files.listing import natural_order
from paired_index_assets.files.storage import FULL_DISK, as_path, is_local
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile, check_file, landed_file
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Float32, Int64, UInt8

Float16 = npt.NDArray[np.float16]

DECODE_ROWS = 1 << 15  # 100 MB of float32 at d=768
SAMPLED_LISTS = 256


def index_files(place: UPath | Path | str) -> list[Path]:
    """The faiss index files of a local folder in natural order, or the one file. Raises MissingInput if there are none."""
    path = as_path(place)
    if not is_local(path):
        raise BadInput(f"{place}: expected a local or mounted folder; faiss maps index files, it does not download them")
    local = Path(path.path)
    found = [local] if local.is_file() else sorted(local.glob("*index*"), key=lambda file: natural_order(file.name))
    found = [file for file in found if file.suffix not in (".json", ".npz", ".parquet")]
    if not found:
        raise MissingInput(f"{place}: no faiss index files (knn.index00 ...)")
    return found


def reconstruct_rows(index_paths: Sequence[Path], start_row: int, rows: int, *, progress: Progress = silent) -> Float16:
    """Vectors (rows, d) float16 of unit norm, of global ids start_row .. start_row + rows - 1, decoded from IVF index files.

    The files are plain or pre-transformed (OPQ, PCA) faiss IVF indices of any code; every wanted id must occur in them exactly once.
    Raises BadInput naming the file that is not such an index, or the ids that are missing or double.
    """
    vectors: Float16 | None = None
    found: Bool = np.zeros(rows, dtype=np.bool_)
    for at, path in enumerate(index_paths):
        index = _mapped(path)
        if found.all():
            _expect_none_of(index, path, start_row, rows)
            continue
        if vectors is None:
            vectors = np.zeros((rows, index.d), dtype=np.float16)
        elif vectors.shape[1] != index.d:
            raise BadInput(f"{path}: {index.d} dimensions; {index_paths[0]} has {vectors.shape[1]}")
        for positions, decoded in _decoded(index, path, start_row, rows):
            if found[positions].any() or len(np.unique(positions)) < len(positions):
                double = positions[found[positions]] if found[positions].any() else positions
                raise _twice(path, start_row + int(double[0]))
            found[positions] = True
            vectors[positions] = decoded
        progress("reconstruct", at + 1, len(index_paths), rows=int(found.sum()))
    if vectors is not None and found.all():
        return vectors
    gaps = np.flatnonzero(~found)
    first, last = (int(gaps[0]) + start_row, int(gaps[-1]) + start_row) if rows else (0, 0)
    raise BadInput(f"{len(gaps)} of {rows} rows ({first} .. {last}) are in none of the {len(index_paths)} index files; get the others too")


def rebuild_file(file: CatalogFile, indices: UPath | Path | str, folder: UPath | Path | str, *, progress: Progress = silent) -> LandedFile:
    """Write the catalogued `file` into the cache `folder` from published index files, with a record that says it is lossy.

    Raises what reconstruct_rows does, and BadInput for a slice of a file or a file that is already there.
    """
    place = as_path(folder)
    target = Path(place.path) / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with turn_to_write(target):
        if target.exists():
            raise BadInput(f"{target}: exists already; move it away to have it rebuilt")
        vectors = reconstruct_rows(index_files(indices), file.start_row, file.rows, progress=progress).astype(file.dtype, copy=False)
        if vectors.shape[1] != file.dimensions:
            raise BadInput(f"{indices}: {vectors.shape[1]} dimensions; the catalog expects {file.dimensions} for {file.name}")
        unfinished = target.with_name(f".{target.name}.rebuilt")
        try:
            with unfinished.open("wb") as stream:
                np.lib.format.write_array(stream, vectors, version=(1, 0), allow_pickle=False)
                stream.flush()
                os.fsync(stream.fileno())
            check_file(file, unfinished)
            give_name(unfinished, target, str(indices), lossy=True)
        except FileExistsError as error:
            raise BadInput(f"{target}: was put there while it was rebuilt; that one is kept") from error
        except OSError as error:
            if error.errno in FULL_DISK:
                raise OutOfDisk(f"{target}: no space left on the disk for {file.bytes} bytes; free some and start again") from error
            raise
        finally:
            unfinished.unlink(missing_ok=True)
    return landed_file(target)


def _mapped(path: Path) -> Any:
    if not path.is_file():
        raise MissingInput(f"{path}: no such index file")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR)
    except RuntimeError as error:
        raise BadInput(f"{path}: not a faiss index ({str(error).splitlines()[0][:200]})") from error


def _decoded(index: Any, path: Path, start_row: int, rows: int) -> Iterator[tuple[Int64, Float32]]:
    """(positions (n,), unit vectors (n, d)) of the wanted rows in one index, a few lists at a time."""
    ivf = _ivf_of(index, path)
    waiting: list[tuple[Int64, Int64, UInt8]] = []
    held = 0
    for number in range(ivf.nlist):
        size = ivf.invlists.list_size(number)
        if size == 0:
            continue
        ids, codes = _list_of(ivf, number, size)
        wanted = np.flatnonzero((ids >= start_row) & (ids < start_row + rows))
        if len(wanted):
            waiting.append((ids[wanted] - start_row, np.full(len(wanted), number, dtype=np.int64), codes[wanted]))
            held += len(wanted)
        if held >= DECODE_ROWS:
            yield _decode(index, ivf, waiting)
            waiting, held = [], 0
    if held:
        yield _decode(index, ivf, waiting)


def _expect_none_of(index: Any, path: Path, start_row: int, rows: int) -> None:
    """Look for wanted ids in a sample of the lists: enough to tell an index whose ids are positions in its own file."""
    ivf = _ivf_of(index, path)
    for number in np.unique(np.linspace(0, ivf.nlist - 1, SAMPLED_LISTS).astype(np.int64)):
        if size := ivf.invlists.list_size(int(number)):
            ids, _ = _list_of(ivf, int(number), size)
            double = ids[(ids >= start_row) & (ids < start_row + rows)]
            if len(double):
                raise _twice(path, int(double[0]))


def _twice(path: Path, row: int) -> BadInput:
    return BadInput(f"{path}: id {row} occurs twice; ids must be global rows, not positions in one file")


def _ivf_of(index: Any, path: Path) -> Any:
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError as error:
        raise BadInput(f"{path}: {type(index).__name__} is not an IVF index") from error


def _list_of(ivf: Any, number: int, size: int) -> tuple[Int64, UInt8]:
    """Views of one mapped list; they live as long as the index."""
    lists = ivf.invlists
    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * ivf.code_size).reshape(size, ivf.code_size)
    return ids, codes


def _decode(index: Any, ivf: Any, waiting: list[tuple[Int64, Int64, UInt8]]) -> tuple[Int64, Float32]:
    positions, numbers, codes = (np.ascontiguousarray(np.concatenate(parts)) for parts in zip(*waiting, strict=True))
    vectors = np.empty((len(positions), ivf.d), dtype=np.float32)
    ivf.decode_vectors(len(positions), faiss.swig_ptr(codes), faiss.swig_ptr(numbers), faiss.swig_ptr(vectors))
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        for at in reversed(range(chain.size())):
            vectors = chain.at(at).reverse_transform(vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return positions, (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
