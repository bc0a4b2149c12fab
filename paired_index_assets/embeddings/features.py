"""Features somebody computed already: .npy used where it lies, other formats streamed into .npy parts in bounded memory.

| input | taken over as |
|---|---|
| ``.npy``, one, many, a folder or a glob; LAION's ``img_emb/`` and ``text_emb/`` | the files themselves (copied, where they or the build are remote) |
| a tensor saved by torch (``.tensor``, ``.pt``, ``.pth``) | parts; memory-mapped, ``weights_only=True`` |
| ``.safetensors`` | parts |
| ``.parquet`` with a list or fixed_size_list column | parts |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from upath import UPath

from paired_index_assets.embeddings.run import NAMES
from paired_index_assets.embeddings.sets import EmbeddingSet, SetPart, part_of, write_set
from paired_index_assets.errors import BadInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.listing import ListedFile, is_folder, list_files
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.npy import StreamedNpy, read_header
from paired_index_assets.files.storage import as_path, atomic_file, digest_of_parts, is_local
from paired_index_assets.progress import Progress, silent
from paired_index_assets.readers.sample import Modality

CONVERTED_PART_ROWS = 1_000_000  # 1.5 GB of float16 at d=768
BLOCK_BYTES = 64 << 20  # held in memory while converting
KNOWN_COLUMNS: dict[Modality, tuple[str, ...]] = {
    "images": ("image_embedding", "img_emb", "image_features", "embedding", "embeddings", "vector", "features"),
    "captions": ("text_embedding", "text_emb", "caption_embedding", "caption_features", "embedding", "embeddings", "vector", "features"),
}
EXACT_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.bfloat16: np.float32}  # bfloat16 fits into float32 without loss
ARROW_TYPES = {pa.float16(): np.float16, pa.float32(): np.float32}


@dataclass(frozen=True)
class FeatureFile:
    """One matrix in a foreign format. ``blocks(start)`` yields its rows from `start` on."""

    rows: int
    dimensions: int
    dtype: npt.DTypeLike
    blocks: Callable[[int], Iterator[npt.NDArray[Any]]]


def adopt_features(
    json_path: str | Path | UPath,
    inputs: str | Sequence[str],
    *,
    modality: Modality,
    model: str = "unknown",
    column: str | None = None,
    expected_rows: int | None = None,
    part_rows: int = CONVERTED_PART_ROWS,
    cache: Cache | None = None,
    progress: Progress = silent,
) -> EmbeddingSet:
    """Make existing features the set `json_path` describes.

    `inputs`: files, folders or patterns (local or fsspec URLs), taken in the order given, each expanded in order of its numbers. A folder
    that holds ``img_emb`` or ``text_emb`` stands for the one of `modality`. `column` names the Parquet column or the safetensors tensor.
    Copies and conversions go to ``imported/`` beside the JSON, a folder for each modality, named in their order; what is there from a
    broken run is used.

    Raises MissingInput or BadInput naming the file and what it is not: a complete C-ordered matrix of float16 or float32, one width, one
    dtype, `expected_rows` rows in all. `model` is what the features were made with, where somebody says it.
    """
    path, cache = as_path(json_path), cache or Cache()
    files = [file for one in ([inputs] if isinstance(inputs, str) else inputs) for file in _feature_files(one, modality)]
    with only_writer(path.parent / f".{modality}.lock"):
        parts: list[SetPart] = []
        folder = path.parent / "imported" / NAMES[modality].vectors
        for number, file in enumerate(files):
            parts += _FORMATS[file.suffix](_Job(folder, file, modality, len(parts), column, part_rows, cache, progress))
            progress(f"importing {modality}", number + 1, len(files))
        found = write_set(path, parts, model=model, modality=modality, expected_rows=expected_rows, cache=cache)
        made = {part.path for part in parts}
        older = folder.parent.glob(f"{folder.name}-*.npy")  # one folder for both modalities, before November 2026
        for stale in (*folder.glob(f"{folder.name}_*.npy"), *older):
            if stale not in made:
                stale.unlink()
        return found


@dataclass(frozen=True)
class _Job:
    folder: UPath
    file: ListedFile
    modality: Modality
    before: int  # parts of the files before this one
    column: str | None
    part_rows: int
    cache: Cache
    progress: Progress

    def made(self, number: int, rows: int, *settings: str) -> SetPart:
        """Part `number` of this file as a copy or conversion. Its name says its place in the set and what it was made from: if it is
        there, it is right."""
        stamp = digest_of_parts(self.file.url, self.file.stamp, str(number), *settings)[:16]
        return SetPart(self.folder / f"{self.folder.name}_{self.before + number:04d}-{stamp}.npy", rows, stamp)


def _feature_files(spec: str, modality: Modality) -> list[ListedFile]:
    inner = as_path(spec) / NAMES[modality].vectors if is_folder(spec) else None
    files = list_files(str(inner) if inner is not None and inner.is_dir() else spec)
    if len(files) > 1:
        known = [f for f in files if f.suffix in _FORMATS]
        kinds = sorted({f.suffix for f in known})
        if len(kinds) > 1:
            raise BadInput(f"{spec}: expected features of one format, found {' and '.join(kinds)}; give a pattern such as '*{kinds[0]}'")
        files = known or files
    if files[0].suffix not in _FORMATS:
        raise BadInput(f"{spec}: expected features as {', '.join(_FORMATS)}, found {files[0].name}")
    return files


def _npy(job: _Job) -> Iterator[SetPart]:
    url = as_path(job.file.url)
    if is_local(url) and is_local(job.folder):
        yield part_of(Path(url.path))
        return
    header = read_header(job.file.url)
    part = job.made(0, header.rows)
    if not part.path.exists():
        with atomic_file(part.path) as temporary:
            _download(job, temporary)
            read_header_as(temporary, job.file.url, header.rows)
    yield part


def read_header_as(path: Path, url: str, rows: int) -> None:
    found = read_header(path).rows
    if found != rows:
        raise BadInput(f"{url}: expected {rows} rows, found {found}; the file changed while it was copied, start again")


def _download(job: _Job, target: Path) -> None:
    total = as_path(job.file.url).stat().st_size
    with as_path(job.file.url).open("rb") as source, target.open("wb") as out:
        while block := source.read(BLOCK_BYTES):
            out.write(block)
            job.progress(f"copying {job.file.name}", out.tell(), total)


def _converted(open_file: Callable[[_Job, Path], FeatureFile]) -> Callable[[_Job], Iterator[SetPart]]:
    """An importer that reads the file through `open_file` and writes it as parts."""

    def parts(job: _Job) -> Iterator[SetPart]:
        local = job.cache.local(job.file.url, progress=job.progress)  # torch and safetensors map a file
        yield from _parts(job, open_file(job, local.path))

    return parts


def _parts(job: _Job, matrix: FeatureFile) -> Iterator[SetPart]:
    if matrix.dimensions < 1:
        raise BadInput(f"{job.file.url}: expected rows of at least one dimension, found {matrix.dimensions}")
    for number in range(math.ceil(matrix.rows / job.part_rows)):
        start = number * job.part_rows
        rows = min(job.part_rows, matrix.rows - start)
        part = job.made(number, rows, str(job.column), str(job.part_rows))
        if not part.path.exists():
            with atomic_file(part.path) as temporary, StreamedNpy(temporary, matrix.dimensions, matrix.dtype) as npy:
                for block in matrix.blocks(start):
                    npy.append(block[: rows - npy.rows])
                    job.progress(f"converting {job.file.name}", start + npy.rows, matrix.rows)
                    if npy.rows == rows:
                        break
        yield part


def _tensor_file(name: str, tensor: torch.Tensor) -> FeatureFile:
    if tensor.ndim != 2 or tensor.dtype not in EXACT_TYPES:
        raise BadInput(
            f"{name}: expected a matrix (rows, dimensions) of float16, bfloat16 or float32, "
            f"found shape {tuple(tensor.shape)} of {tensor.dtype}"
        )
    dtype = np.dtype(EXACT_TYPES[tensor.dtype])
    step = _block_rows(tensor.shape[1], dtype.itemsize)

    def blocks(start: int) -> Iterator[npt.NDArray[Any]]:
        for a in range(start, len(tensor), step):
            block = tensor[a : a + step]
            yield (block.float() if tensor.dtype == torch.bfloat16 else block).numpy()

    return FeatureFile(int(tensor.shape[0]), int(tensor.shape[1]), dtype, blocks)


def _torch(job: _Job, path: Path) -> FeatureFile:
    name = job.file.url
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by what is wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise BadInput(
            f"{name}: expected one tensor saved by torch.save (torch 1.6 or newer), found a file that can not be mapped as plain data "
            f"({reason}); save the tensor again, or as .npy"
        ) from error
    if not isinstance(content, torch.Tensor):
        raise BadInput(f"{name}: expected one tensor saved by torch.save, found {type(content).__name__}; save the tensor alone")
    return _tensor_file(name, content.detach())


def _safetensors(job: _Job, path: Path) -> FeatureFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            names = sorted(content.keys())
            if (job.column is None and len(names) != 1) or (job.column is not None and job.column not in names):
                wanted = "one tensor" if job.column is None else f"a tensor {job.column!r}"
                raise BadInput(f"{job.file.url}: expected {wanted}, found {', '.join(names) or 'none'}; name the tensor to take")
            return _tensor_file(f"{job.file.url}:{job.column or names[0]}", content.get_tensor(job.column or names[0]))
    except SafetensorError as error:
        raise BadInput(f"{job.file.url}: expected a safetensors file, found one that can not be read ({error})") from error


def _parquet(job: _Job, path: Path) -> FeatureFile:
    try:
        with pq.ParquetFile(path) as parquet:
            schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
            groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
            name = _vector_column(job, schema)
            kind = schema.field(name).type
            first = next(parquet.iter_batches(1, columns=[name]), None)
    except pa.ArrowException as error:
        raise BadInput(f"{job.file.url}: expected a Parquet file, found one that can not be read ({str(error).strip()[:160]})") from error
    dimensions = kind.list_size if pa.types.is_fixed_size_list(kind) else len(first.column(0)[0].as_py() or []) if first is not None else 0
    if rows == 0:
        raise BadInput(f"{job.file.url}: expected embeddings, found 0 rows")
    dtype = np.dtype(ARROW_TYPES[kind.value_type])
    step = _block_rows(dimensions, dtype.itemsize)

    def blocks(start: int) -> Iterator[npt.NDArray[Any]]:
        before = 0
        with pq.ParquetFile(path) as parquet:
            for group, count in enumerate(groups):
                at = before
                before += count
                if before <= start:
                    continue
                for batch in parquet.iter_batches(step, row_groups=[group], columns=[name]):
                    yield _matrix(job.file.url, name, batch.column(0), dimensions, at)[max(start - at, 0) :]
                    at += batch.num_rows

    return FeatureFile(rows, dimensions, dtype, blocks)


def _vector_column(job: _Job, schema: pa.Schema) -> str:
    fitting = [f.name for f in schema if _is_vector(f.type)]
    known = [job.column] if job.column is not None else [n for n in KNOWN_COLUMNS[job.modality] if n in fitting]
    name = known[0] if known else fitting[0] if len(fitting) == 1 else None
    if name is None or name not in fitting:
        wanted = f"a column {job.column!r}" if job.column else f"a column of {job.modality} embeddings"
        found = ", ".join(f"{f.name}: {f.type}" for f in schema)
        raise BadInput(f"{job.file.url}: expected {wanted} as a list of float16 or float32, found {found}")
    return name


def _is_vector(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and kind.value_type in ARROW_TYPES


def _matrix(url: str, name: str, column: pa.Array, dimensions: int, first: int) -> npt.NDArray[Any]:
    """(rows, dimensions) of a list column; a null row becomes zeros, which is left out of pairing and lists."""
    values = column.flatten()  # of the rows that are not null
    missing = column.is_null().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().fill_null(dimensions).to_numpy(zero_copy_only=False)
    if (lengths != dimensions).any():
        row = int(np.flatnonzero(lengths != dimensions)[0])
        raise BadInput(f"{url}: column {name!r}: expected {dimensions} values in every row, found {int(lengths[row])} in row {first + row}")
    block = np.zeros((len(column), dimensions), values.type.to_pandas_dtype())
    block[~missing] = values.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return block


def _block_rows(dimensions: int, itemsize: int) -> int:
    return max(1, BLOCK_BYTES // max(1, dimensions * itemsize))


_FORMATS: dict[str, Callable[[_Job], Iterator[SetPart]]] = {
    ".npy": _npy,
    ".tensor": _converted(_torch),
    ".pt": _converted(_torch),
    ".pth": _converted(_torch),
    ".safetensors": _converted(_safetensors),
    ".parquet": _converted(_parquet),
}
