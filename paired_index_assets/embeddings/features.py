"""Features somebody computed already: .npy used where it lies, other formats streamed into .npy parts in bounded memory.

| input | taken over as |
|---|---|
| ``.npy``, one, many, a folder or a glob; LAION's ``img_emb/`` and ``text_emb/`` | the files themselves (copied, where they or the build are remote) |
| ``.npy`` of float64, bfloat16, other byte or row order | parts |
| a tensor saved by torch (``.tensor``, ``.pt``, ``.pth``), or a dictionary of them | parts; memory-mapped, ``weights_only=True`` |
| ``.safetensors`` | parts |
| ``.parquet`` with a column of lists (of float16, 32 or 64; in a struct of one field), or one column a dimension | parts |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from upath import UPath

from paired_index_assets.embeddings.matrices import OPENERS, open_matrix
from paired_index_assets.embeddings.modality import folder_of
from paired_index_assets.embeddings.sets import EmbeddingSet, SetPart, part_of, write_set
from paired_index_assets.errors import BadInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.listing import ListedFile, is_folder, list_files
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.npy import EMBEDDING_DTYPES, StreamedNpy, described, read_header
from paired_index_assets.files.storage import as_path, atomic_file, digest_of_parts, is_local
from paired_index_assets.progress import Progress, silent
from paired_index_assets.readers.sample import ModalityName
from paired_index_assets.rows import squared_norms, usable_squares

Normalize = Literal["auto", "always", "never"]
CONVERTED_PART_ROWS = 1_000_000  # 1.5 GB of float16 at d=768
BLOCK_BYTES = 64 << 20  # held in memory while copying


def adopt_features(
    json_path: str | Path | UPath,
    inputs: str | Sequence[str],
    *,
    modality: ModalityName,
    part_rows: int = CONVERTED_PART_ROWS,
    normalize: Normalize = "never",
    cache: Cache | None = None,
    progress: Progress = silent,
) -> EmbeddingSet:
    """Make existing features the set `json_path` describes.

    `inputs`: files, folders or patterns (local or fsspec URLs), taken in the order given, each expanded in order of its numbers. A folder
    that holds ``img_emb`` or ``text_emb`` stands for the one of `modality`.
    Copies and conversions go to ``imported/`` beside the JSON, a folder for each modality, named in their order; what is there from a
    broken run is used.

    ``file::name`` takes one tensor of a file, or one column (of those with a number, by their prefix) of a Parquet.

    `normalize`: divide rows by their norms, never, always, or where all of them are off (``auto``); the set says that it was done.

    Raises MissingInput or BadInput naming the file and what it is not: a complete matrix of float16, bfloat16, float32 or float64 (the
    last two become float32), one width, one dtype.
    """
    path, cache = as_path(json_path), cache or Cache()
    files = [
        (file, member)
        for one in ([inputs] if isinstance(inputs, str) else inputs)
        for spec, member in [with_member(one)]
        for file in _feature_files(spec, modality)
    ]
    with only_writer(path.parent / f".{modality}.lock"):
        parts: list[SetPart] = []
        folder = path.parent / "imported" / folder_of(modality)
        for number, (file, member) in enumerate(files):
            job = _Job(folder, file, modality, len(parts), member, part_rows, cache, progress)
            parts += (_npy if file.suffix == ".npy" else _converted)(job)
            progress(f"importing {modality}", number + 1, len(files))
        if not parts:
            raise BadInput(f"{files[0][0].url}: expected embeddings, found 0 rows{f' in {len(files)} files' if len(files) > 1 else ''}")
        found = write_set(path, parts, model=None, modality=modality, cache=cache)
        made = {part.path for part in parts}
        if _to_normalize(found, normalize, progress):
            parts = _normalized(found, folder, progress)
            found = write_set(path, parts, model=None, modality=modality, cache=cache, normalized=True)
            made |= {part.path for part in parts}
        older = folder.parent.glob(f"{folder.name}-*.npy")  # one folder for both modalities, before November 2026
        for stale in (*folder.glob(f"{folder.name}_*.npy"), *older):
            if stale not in made:
                stale.unlink()
        return found


def _to_normalize(found: EmbeddingSet, normalize: Normalize, progress: Progress) -> bool:
    """Whether some rows, or with ``auto`` all rows that can be used, are not of unit norm: then a model wrote them as they came."""
    if normalize == "never":
        return False
    facts = found.facts(progress=progress)
    return facts.off_norm > 0 and (normalize == "always" or facts.off_norm == facts.rows - facts.invalid)


def _normalized(found: EmbeddingSet, folder: UPath, progress: Progress) -> list[SetPart]:
    """The parts with every usable row divided by its norm, in float32; rows that cannot be used stay as they are."""
    parts = []
    for number, part in enumerate(found.parts):
        stamp = digest_of_parts("unit norm", part.stamp, str(part.path))[:16]
        made = SetPart(folder / f"{folder.name}_{number:04d}-{stamp}.npy", part.rows, stamp, part.metadata)
        if not made.path.exists():
            rows = found.part(number)
            step = max(1, BLOCK_BYTES // (4 * found.dimensions))
            with atomic_file(made.path) as temporary, StreamedNpy(temporary, found.dimensions, found.dtype) as npy:
                for start in range(0, part.rows, step):
                    block = rows[start : start + step].astype(np.float32)
                    squares = squared_norms(block)
                    usable = usable_squares(squares)
                    block[usable] /= np.sqrt(squares[usable])[:, None]
                    npy.append(block)
                    progress(f"normalising {found.modality}", int(found.starts[number]) + npy.rows, len(found))
        parts.append(made)
    return parts


@dataclass(frozen=True)
class _Job:
    folder: UPath
    file: ListedFile
    modality: ModalityName
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


def with_member(spec: str) -> tuple[str, str | None]:
    """(``file.safetensors``, ``name``) of ``file.safetensors::name``: the tensor or column to take of a file that holds several."""
    path, separator, member = spec.rpartition("::")
    if not separator or "/" in member or Path(path).suffix.lower() not in OPENERS or is_folder(spec) or Path(spec).exists():
        return spec, None
    return path, member


def _feature_files(spec: str, modality: ModalityName) -> list[ListedFile]:
    inner = as_path(spec) / folder_of(modality) if is_folder(spec) else None
    files = list_files(str(inner) if inner is not None and inner.is_dir() else spec)
    if len(files) > 1:
        known = [f for f in files if f.suffix in OPENERS]
        kinds = sorted({f.suffix for f in known})
        if len(kinds) > 1:
            raise BadInput(f"{spec}: expected features of one format, found {' and '.join(kinds)}; give a pattern such as '*{kinds[0]}'")
        files = known or files
    if files[0].suffix not in OPENERS:
        raise BadInput(f"{spec}: expected features as {', '.join(OPENERS)}, found {files[0].name}")
    return files


def _npy(job: _Job) -> Iterator[SetPart]:
    url = as_path(job.file.url)
    with url.open("rb") as stream:
        _, fortran, dtype, _ = described(stream, job.file.url)
    if dtype not in EMBEDDING_DTYPES or fortran:
        yield from _converted(job)
        return
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


def _converted(job: _Job) -> Iterator[SetPart]:
    """The file's matrix, written as parts."""
    with_member = job.file.url if job.column is None else f"{job.file.url}::{job.column}"
    local = job.cache.local(job.file.url, progress=job.progress)  # torch and safetensors map a file
    matrix = open_matrix(local.path, job.file.url, job.modality, job.column)
    if matrix.rows and matrix.dimensions < 1:
        raise BadInput(f"{with_member}: expected rows of at least one dimension, found {matrix.dimensions}")
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
                if npy.rows != rows:
                    raise BadInput(f"{with_member}: expected {rows} rows from row {start} on, found {npy.rows}; copy the file again")
        yield part
