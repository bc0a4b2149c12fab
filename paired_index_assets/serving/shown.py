"""What the ids of an open index stand for: metadata and pictures, of the version that was indexed.

The embeddings, their metadata and the pictures of a build may be replaced in place under a running server. So each landed file of the index has
its own version here: the digest of its rows, from the shard's record. Metadata is taken only if it is that of the embeddings with this
digest, and pictures only if these embeddings were made from them. What an index that is open already has of the same digest stays
with it where there is nothing newer, and files that are held (files.held) answer as they were.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pyarrow import ArrowException

from paired_index_assets.builds.metadata import Metadata, MetadataFile
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.metadata import FINGERPRINT
from paired_index_assets.embeddings.run import part_fingerprint
from paired_index_assets.embeddings.sets import EmbeddingSet, SetPart
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.held import HeldFile
from paired_index_assets.files.listing import list_files
from paired_index_assets.files.npy import map_rows
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, is_local, read_json
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import PairedSource, open_source
from paired_index_assets.readers.sample import Source
from paired_index_assets.readers.webdataset import WebdatasetSource
from paired_index_assets.serving.moved import are_the_embedded
from paired_index_assets.serving.pictures import Pictures, TarPictures
from paired_index_assets.shards.record import FileRecord

LOG = logging.getLogger(__name__)
BLOCK_ROWS = 1 << 16

Done = TypeVar("Done")
PicturesOf = Callable[[MetadataFile | None], Pictures | None]  # of the part with that metadata


@dataclass(frozen=True)
class ShownFile:
    """One landed file of the index, as the records of its slices (in order) have it."""

    slices: tuple[FileRecord, ...]
    metadata: MetadataFile | None = None
    pictures: Pictures | None = None

    @property
    def name(self) -> str:
        return self.slices[0].name

    @property
    def start(self) -> int:
        """The id of its row 0."""
        return self.slices[0].start_row - self.slices[0].offset

    @property
    def rows(self) -> int:
        """Up to the end of the last slice."""
        return self.slices[-1].offset + self.slices[-1].rows

    @property
    def version(self) -> tuple[str | int, ...]:
        return (self.name, self.start, *(part.content for part in self.slices))


class Shown:
    """Metadata and pictures by id. Safe to use from many threads. `warnings` say in one line each what there is none of, and why."""

    def __init__(self, files: Sequence[ShownFile] = (), texts: Metadata | None = None, warnings: Sequence[str] = ()) -> None:
        self.files, self.warnings = sorted(files, key=lambda file: file.start), list(warnings)
        self._texts = texts
        own = [file.metadata for file in self.files if file.metadata is not None]
        self.metadata = Metadata(own) if own else texts
        self._starts = np.array([file.start for file in self.files], np.int64)

    def pictures(self, ids: Sequence[int]) -> list[bytes | None]:
        """The encoded picture of each id, None where there is none."""
        found: dict[int, bytes | None] = {}
        at = np.searchsorted(self._starts, np.asarray(ids, np.int64), side="right") - 1
        for number in np.unique(at[at >= 0]):
            file = self.files[int(number)]
            mine = [row_id for row_id, where in zip(ids, at, strict=True) if where == number and row_id < file.start + file.rows]
            if file.pictures is not None:
                found.update(zip(mine, file.pictures.read(mine), strict=True))
        return [found.get(row_id) for row_id in ids]

    @property
    def has_pictures(self) -> bool:
        return any(file.pictures is not None for file in self.files)


@dataclass(frozen=True)
class Inputs:
    """What a build was made from, as a person named it; None: as its settings remember."""

    images: str | None = None
    texts: str | None = None


def shown_of(
    build: BuildRoot, records: Iterable[FileRecord], inputs: Inputs, before: Shown | None = None, encoder: Encoder | None = None
) -> Shown:
    """What belongs to the landed files of an open index. Nothing that is missing is an error: the index answers without it.

    encoder: says whether `inputs.images` are the pictures that were embedded, where their names, sizes and dates do not.
    """
    files = list(_by_name(records))
    warnings: list[str] = []
    settings = remembered(build)
    images = _tried(lambda: EmbeddingSet.open(build.image_set), warnings) if build.image_set.exists() else None
    made_here = images is not None and all(part.metadata is not None for part in images.parts)
    found = files
    if images is not None:
        pictures = _pictures(images, inputs, settings, encoder, warnings) if made_here else {}
        found = list(_of_set(files, images, build.cache, pictures, warnings))
    elsewhere = not made_here if images is not None else not settings.get("images")  # features, or what landed
    if inputs.images is not None and elsewhere:  # naming pictures for them says that row i is picture i
        given = _tried(lambda: Pictures.of(str(inputs.images), max((file.start + file.rows for file in files), default=0)), warnings)
        found = [replace(file, pictures=given) for file in found]
    earlier = {} if before is None else {file.version: file for file in before.files}
    kept = [file if file.metadata or file.pictures else earlier.get(file.version, file) for file in found]
    texts = inputs.texts or settings.get("caption_texts")
    if any(file.metadata for file in kept) or texts is None:
        return Shown(kept, None, warnings)
    return Shown(kept, _tried(lambda: _texts(build, str(texts), kept, warnings), warnings), warnings)


def _of_set(
    files: list[ShownFile], images: EmbeddingSet, cache: Cache, pictures: dict[str, PicturesOf], warnings: list[str]
) -> Iterator[ShownFile]:
    parts = dict(zip(images.names, images.parts, strict=True))
    other = []
    for file in files:
        part = parts.get(file.name)
        if part is None or part.rows != file.rows or not _is_indexed(part, file):
            other.append(file.name)
            yield file
            continue
        metadata = _metadata(part, file, cache, warnings)
        shows = pictures.get(part.stamp)
        yield replace(file, metadata=metadata, pictures=shows(metadata) if shows else None)
    if other:
        warnings.append(
            f"{images.source}: {len(other)} of {len(files)} files are not those that were indexed, the first: {other[0]}; build again"
        )


def _metadata(part: SetPart, file: ShownFile, cache: Cache, warnings: list[str]) -> MetadataFile | None:
    """The Parquet beside a part, if it is of these rows; of a remote one a copy is held."""
    if part.metadata is None:
        return None
    url, named = str(part.metadata), part.metadata

    def held() -> MetadataFile | None:
        found = MetadataFile(url, file.start, file.rows, HeldFile(cache.local(named).path))
        with found.open() as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
            mine = (parquet.schema_arrow.metadata or {}).get(FINGERPRINT) == part.stamp.encode() and parquet.metadata.num_rows == file.rows
        if not mine:
            warnings.append(f"{url}: not of the embeddings that were indexed; build again")
        return found if mine else None

    return _tried(held, warnings)


def _pictures(
    images: EmbeddingSet, inputs: Inputs, settings: dict[str, Any], encoder: Encoder | None, warnings: list[str]
) -> dict[str, PicturesOf]:
    """For the stamp of each part: the pictures it was made from, if they are there as they were, or elsewhere as they were."""
    spec, captions, part_rows = inputs.images or settings.get("images"), settings.get("captions"), settings.get("part_rows")
    if not isinstance(spec, str) or not spec:
        return {}

    def opened() -> dict[str, PicturesOf]:
        source: Source = open_source(spec, "images")
        if isinstance(captions, str) and captions and (inputs.images is None or encoder is None):
            source = PairedSource(source, open_source(captions, "captions"))
        made = [
            part_fingerprint(source, part, "images", images.model or "", images.dimensions)
            for part in source.parts(part_rows if isinstance(part_rows, int) else images.parts[0].rows)
        ]
        same = {part.stamp for part, now in zip(images.parts, made, strict=False) if part.stamp == now}
        every = {part.stamp for part in images.parts}
        shows = _shows(source, spec, images)
        moved = same < every and inputs.images is not None
        if moved and shows and encoder and are_the_embedded(images, _reader(images, shows), encoder):
            return dict.fromkeys(every, shows)
        if same < every:
            warnings.append(
                f"{spec}: the pictures of {len(every - same)} of {len(every)} parts are not those that were embedded; "
                "they are not shown. Build again, or say with --images where those are now"
            )
        return dict.fromkeys(same, shows) if shows else {}

    return _tried(opened, warnings) or {}


def _shows(source: Source, spec: str, images: EmbeddingSet) -> PicturesOf | None:
    if isinstance(getattr(source, "source", source), WebdatasetSource):  # maybe with files beside it that nothing reads
        tars = {file.name: file for file in list_files(spec)}
        return lambda metadata: TarPictures(tars, Metadata([metadata])) if metadata else None
    found = Pictures.of(spec, len(images))
    return None if found is None else lambda _: found


def _reader(images: EmbeddingSet, shows: PicturesOf) -> Callable[[Sequence[int]], list[bytes | None]]:
    """Pictures by row of the set."""
    starts = np.cumsum([0, *(part.rows for part in images.parts)]).tolist()
    beside = [
        MetadataFile(str(part.metadata), start, part.rows) if part.metadata is not None else None
        for part, start in zip(images.parts, starts[:-1], strict=True)
    ]

    def read(rows: Sequence[int]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for row in rows:
            pictures = shows(beside[int(np.searchsorted(starts, row, side="right")) - 1])
            found += pictures.read([row]) if pictures else [None]
        return found

    return read


def _is_indexed(part: SetPart, file: ShownFile) -> bool:
    """Whether the rows of a part are those that were indexed. They are read where its stamp does not say so."""
    if all(piece.stamp == stamp_of(part.path) for piece in file.slices):
        return True
    if not is_local(part.path):
        return False
    LOG.info("%s: comparing its rows with those that were indexed", part.path)
    try:
        rows = map_rows(Path(part.path.path))
        return all(_digest(rows[piece.offset : piece.offset + piece.rows]) == piece.content for piece in file.slices)
    except (PairedIndexError, OSError):
        return False


def _digest(rows: npt.NDArray[Any]) -> str:
    sha = hashlib.sha256()
    for first in range(0, len(rows), BLOCK_ROWS):
        sha.update(np.ascontiguousarray(rows[first : first + BLOCK_ROWS]).data.cast("B"))
    return sha.hexdigest()


def _texts(build: BuildRoot, texts: str, files: list[ShownFile], warnings: list[str]) -> Metadata | None:
    """A Parquet whose row i describes id i, or a folder of `metadata_NNNN.parquet` beside the catalogued files."""
    if as_path(texts).is_dir() and build.catalog.exists():
        return Metadata.beside(texts, Catalog.load(build.catalog), hold=True)
    found = Metadata.in_order([file.url for file in list_files(texts) if file.suffix == ".parquet"], hold=True)
    indexed = max((file.start + file.rows for file in files), default=0)
    if len(found) < indexed:
        warnings.append(f"{texts}: {len(found)} rows, but the index has {indexed}; they are not shown")
        return None
    return found


def _by_name(records: Iterable[FileRecord]) -> Iterator[ShownFile]:
    ordered = sorted(records, key=lambda record: (record.name, record.offset))
    for _, slices in groupby(ordered, key=lambda record: record.name):
        yield ShownFile(tuple(slices))


def remembered(build: BuildRoot) -> dict[str, Any]:
    """The settings of the last build, as they are now."""
    try:
        found = read_json(build.settings)
    except PairedIndexError:
        return {}
    return found if isinstance(found, dict) else {}


def _tried(work: Callable[[], Done | None], warnings: list[str]) -> Done | None:
    try:
        return work()
    except (PairedIndexError, OSError, ArrowException) as error:
        warnings.append(" ".join(str(error).split())[:500])
        return None
