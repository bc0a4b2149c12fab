"""A set of embeddings: .npy parts in a fixed order, read as one matrix. This module owns the JSON that describes them.

    {"format": 1, "modality": "images", "model": "...", "dimensions": 768, "dtype": "float16", "rows": 70000,
     "parts": [{"path": "img_emb/img_emb_0000.npy", "rows": 50000, "stamp": "...", "metadata": "metadata/metadata_0000.parquet"}, ...]}

Paths are relative to the JSON's folder where the part lies under it, absolute (or URLs) otherwise. `stamp` names the part's content: what it was
made from, or size and time of change of a file taken over as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.embeddings.checking import CHECK, Checked, checked_rows
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache, LocalFile
from paired_index_assets.files.npy import map_rows, read_header
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, digest_of_parts, is_local, read_json, write_json
from paired_index_assets.progress import Progress, silent
from paired_index_assets.readers.sample import ModalityName
from paired_index_assets.rows import Bool, Int64

FORMAT = 1


@dataclass(frozen=True)
class SetPart:
    """One .npy file of a set, and the Parquet of its rows (same order) where there is one."""

    path: UPath
    rows: int
    stamp: str
    metadata: UPath | None = None


@dataclass(frozen=True)
class SetFacts:
    """What one pass over all rows found. Norms are those of the valid rows (0 where there is none), of which `off_norm` are not 1."""

    rows: int
    invalid: int
    first_invalid: int | None
    norm_min: float
    norm_max: float
    off_norm: int = 0


class EmbeddingSet:
    """`Rows` over the parts: (rows, dimensions) of float16 or float32, memory-mapped when first touched; remote parts in `cache`.

    A slice inside one part is a view of the map; one across parts, and any int64 selection, is a new array. Ids outside 0..rows-1 raise
    IndexError: a -1 never means the last row.
    """

    def __init__(
        self,
        source: UPath,
        parts: Sequence[SetPart],
        dimensions: int,
        dtype: np.dtype[Any],
        model: str | None,
        modality: ModalityName,
        cache: Cache | None = None,
        normalized: bool = False,
    ) -> None:
        self.source = source
        self.cache = cache or Cache()
        self.parts = tuple(parts)
        self.dimensions = dimensions
        self.dtype = dtype
        self.model = model
        self.modality = modality
        self.normalized = normalized  # by this project: the features given were not of unit norm
        self.starts: Int64 = np.concatenate([[0], np.cumsum([p.rows for p in parts], dtype=np.int64)]).astype(np.int64)
        self._maps: dict[int, tuple[LocalFile, npt.NDArray[Any]]] = {}

    @classmethod
    def open(cls, json_path: str | Path | UPath, cache: Cache | None = None) -> EmbeddingSet:
        """Raises MissingInput without the JSON or a part, DamagedArtifact if a part is not what the JSON says."""
        path = as_path(json_path)
        try:
            content = read_json(path)
        except MissingInput as error:
            asset = {"images": "image_embeddings", "captions": "caption_embeddings"}.get(path.stem, "the embeddings")
            raise MissingInput(
                f"{path}: no such file, no embeddings yet; materialise {asset} first, or run `paired-index build`"
            ) from error
        try:
            if content["format"] != FORMAT:
                raise DamagedArtifact(f"{path}: expected format {FORMAT}, found {content['format']}; build the embeddings again")
            parts = [
                SetPart(_at(path, p["path"]), p["rows"], p["stamp"], _at(path, p["metadata"]) if p.get("metadata") else None)
                for p in content["parts"]
            ]
            found = cls(path, parts, content["dimensions"], np.dtype(content["dtype"]), content["model"], content["modality"], cache)
            found.normalized = bool(content.get("normalized"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedArtifact(f"{path}: not the description of an embedding set ({error!r}); build the embeddings again") from error
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingSet.open, (str(self.source), self.cache)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each part by which a catalog knows it: its file's, with the part's number before it where two files have one name."""
        names = [part.path.name for part in self.parts]
        return tuple(names if len(set(names)) == len(names) else (f"{number:04d}-{name}" for number, name in enumerate(names)))

    @property
    def row_bytes(self) -> int:
        return self.dimensions * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, int]:
        return (int(self.starts[-1]), self.dimensions)

    @property
    def ndim(self) -> int:
        return 2

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def fingerprint(self) -> str:
        """Names the content of the set without reading it: model, shape and the stamp of every part."""
        return digest_of_parts(self.model or "", str(self.shape), str(self.dtype), *(f"{p.rows} {p.stamp}" for p in self.parts))[:16]

    def part(self, number: int) -> npt.NDArray[Any]:
        """Part `number` as a memory-mapped (rows, dimensions) array."""
        if number not in self._maps:
            part = self.parts[number]
            local = self.cache.local(part.path)
            rows = map_rows(local.path)
            if rows.shape != (part.rows, self.dimensions) or rows.dtype != self.dtype:
                raise DamagedArtifact(
                    f"{part.path}: expected {part.rows} rows of {self.dimensions} {self.dtype} as in {self.source}, "
                    f"found {rows.shape} {rows.dtype}; the file was replaced, run the embeddings again"
                )
            self._maps[number] = local, rows
        return self._maps[number][1]

    @overload
    def __getitem__(self, key: slice) -> npt.NDArray[Any]: ...

    @overload
    def __getitem__(self, key: Int64) -> npt.NDArray[Any]: ...

    def __getitem__(self, key: slice | Int64) -> npt.NDArray[Any]:
        if not isinstance(key, slice):
            return self._take(np.asarray(key))
        start, stop, step = key.indices(len(self))
        if step != 1:
            return self._take(np.arange(start, stop, step, dtype=np.int64))
        pieces = [self.part(number)[a:b] for number, a, b in self._pieces(start, stop)]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces) if pieces else np.empty((0, self.dimensions), self.dtype)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self[:], dtype=dtype, copy=copy)

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for number in range(first, len(self.parts)):
            offset = int(self.starts[number])
            if offset >= stop:
                return
            a, b = max(start - offset, 0), min(stop - offset, self.parts[number].rows)
            if a < b:
                yield number, a, b

    def _take(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if ids.dtype == np.bool_:
            if ids.shape != (len(self),):
                raise IndexError(f"expected a mask of {len(self)} rows, found shape {ids.shape}")
            ids = np.flatnonzero(ids)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise IndexError(f"expected a slice or a one-dimensional int64 array of rows, found {ids.dtype} of shape {ids.shape}")
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(f"expected rows in 0..{len(self) - 1}, found {int(ids.min())}..{int(ids.max())}")
        out = np.empty((ids.size, self.dimensions), self.dtype)
        order = np.argsort(ids, kind="stable")  # ascending reads: the disk is walked once
        ids = ids[order].astype(np.int64)
        cuts = np.searchsorted(ids, self.starts)
        for number in np.flatnonzero(np.diff(cuts)):
            a, b = cuts[number], cuts[number + 1]
            out[order[a:b]] = self.part(int(number))[ids[a:b] - self.starts[number]]
        return out

    def valid(self, *, progress: Progress = silent) -> Bool:
        """(rows,) whether each row is finite and not zero, the rows that may be paired and listed.

        The answer is kept part by part under ``valid/`` beside the JSON, so that only new parts are read the next time.
        """
        return np.concatenate([np.empty(0, np.bool_), *(bits for bits, _ in self._checked(progress))])

    def facts(self, *, progress: Progress = silent) -> SetFacts:
        """Counts and norms over all rows, from the same cached pass as `valid`."""
        invalid, first, low, high, off = 0, None, np.inf, 0.0, 0
        for number, (bits, norms) in enumerate(self._checked(progress)):
            off += int(norms[2])
            bad = np.flatnonzero(~bits)
            invalid += len(bad)
            if first is None and len(bad):
                first = int(self.starts[number] + bad[0])
            if len(bad) < len(bits):
                low, high = min(low, float(norms[0])), max(high, float(norms[1]))
        return SetFacts(len(self), invalid, first, 0.0 if low == np.inf else low, high, off)

    def _checked(self, progress: Progress) -> Iterator[Checked]:
        for number, part in enumerate(self.parts):
            name = digest_of_parts(CHECK, part.stamp, str(part.path), stamp_of(part.path))[:24]
            yield checked_rows(self.source.parent / "valid" / f"{name}.npz", part.rows, partial(self.part, number))
            progress(f"checking {self.modality}", int(self.starts[number + 1]), len(self))


def write_set(
    json_path: str | Path | UPath,
    parts: Sequence[SetPart],
    *,
    model: str | None,
    modality: ModalityName,
    cache: Cache | None = None,
    normalized: bool = False,
) -> EmbeddingSet:
    """Describe .npy parts as one set and open it.

    All parts must have one width and one dtype; a part without rows stays out. Raises BadInput naming the part that differs.
    """
    path = as_path(json_path)
    parts = [part for part in parts if part.rows] or parts
    if not parts:
        raise BadInput(f"{path}: expected at least one part for {modality}, found none")
    first = read_header(parts[0].path)
    for part in parts:
        found = read_header(part.path)
        if (found.dimensions, found.dtype) != (first.dimensions, first.dtype):
            raise BadInput(
                f"{part.path}: expected {first.dimensions} dimensions of {first.dtype} as in {parts[0].path}, "
                f"found {found.dimensions} of {found.dtype}; all parts of a set must agree"
            )
        if found.rows != part.rows:
            raise BadInput(f"{part.path}: expected {part.rows} rows, found {found.rows}")
    total = sum(p.rows for p in parts)
    if total == 0:
        raise BadInput(f"{parts[0].path}: expected embeddings of {modality}, found 0 rows in {len(parts)} file(s)")
    write_json(
        path,
        {
            "format": FORMAT,
            "modality": modality,
            "model": model,
            "normalized": normalized,
            "dimensions": first.dimensions,
            "dtype": str(first.dtype),
            "rows": total,
            "parts": [
                {"path": _relative(p.path, path), "rows": p.rows, "stamp": p.stamp}
                | ({"metadata": _relative(p.metadata, path)} if p.metadata else {})
                for p in parts
            ],
        },
    )
    return EmbeddingSet.open(path, cache)


def _relative(path: UPath, source: UPath) -> str:
    """`path` as the set at `source` names it."""
    absolute, folder = (os.path.abspath(p.path) if is_local(p) else str(p) for p in (path, source.parent))
    return absolute.removeprefix(f"{folder.rstrip('/')}/")


def _at(source: UPath, name: str) -> UPath:
    return as_path(name) if "://" in name or os.path.isabs(name) else source.parent / name


def part_of(path: Path) -> SetPart:
    """An existing local .npy file as a part, named by its size and time of change."""
    if not path.exists():
        raise MissingInput(f"{path}: no such file; expected a .npy file of embeddings")
    return SetPart(as_path(path), read_header(path).rows, stamp_of(path))
