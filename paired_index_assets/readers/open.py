"""Samples: a key, a picture, a caption, in a fixed order and in numbered parts, from whatever a person has.

Row i of the picture embeddings, of the caption embeddings and of the metadata is sample i of its source: a sample that turns out bad
keeps its row. `open_source` picks the reader by what the input is:

| input | pictures | captions |
|---|---|---|
| folder, glob | picture files | the ``.txt`` beside each picture |
| folder with ``metadata.jsonl`` or ``.csv`` | ``file_name`` | ``text`` or ``caption`` |
| ``.tar``, compressed or not (a folder or pattern of them) | webdataset, as img2dataset writes it | ``.txt``, or ``caption`` of ``.json``, by key |
| ``.parquet`` | a bytes column, or a column of paths | a text column |
| ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` | a column of paths | a text column |
| ``.txt`` | a path a line | a caption a line |
| ``.pt``, ``.pth`` | - | a list of strings saved by torch |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile, is_folder, list_files
from paired_index_assets.files.storage import as_path, digest_of_parts
from paired_index_assets.readers.folders import FolderSource, PathListSource
from paired_index_assets.readers.lists import LIST_SUFFIXES, ListSource
from paired_index_assets.readers.parquet import ParquetSource
from paired_index_assets.readers.sample import (
    DEFAULT_PART_ROWS,
    IMAGE_SUFFIXES,
    UNSUPPORTED_SUFFIXES,
    ModalityName,
    Sample,
    Source,
    SourcePart,
)
from paired_index_assets.readers.sidecar import record_names
from paired_index_assets.readers.text import SavedListSource, TextSource
from paired_index_assets.readers.webdataset import WebdatasetSource

HUGGING_FACE_LISTS = frozenset({"metadata.jsonl", "metadata.csv"})
CURES = (
    (frozenset({".zip", ".rar", ".7z"}), "unpack it into a folder first"),
    (frozenset({".gz", ".bz2", ".xz", ".zst"}), "decompress it first (only .tar, .csv, .tsv and .jsonl are read compressed)"),
    (frozenset({".pkl", ".pickle"}), "a pickle is never loaded: save the captions as a text file, one a line"),
    (frozenset({".arrow", ".feather"}), "save it as Parquet, for instance by datasets' to_parquet"),
    (frozenset({".npy", ".npz", ".safetensors"}), "embeddings go to --image-features and --caption-features"),
    (frozenset({".xlsx", ".xls", ".ods"}), "save the sheet as CSV"),
    (frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi"}), "take pictures out of the videos first"),
)
COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass(frozen=True)
class PairedSource:
    """Pictures of one source with the captions of another, line by line: sample i is picture i and caption i.

    Both must say how many rows they have (all but tars do); BadInput with both counts if they differ.
    """

    images: Source
    captions: Source

    @property
    def name(self) -> str:
        return f"{self.images.name} + {self.captions.name}"

    @property
    def has(self) -> frozenset[ModalityName]:
        return frozenset({"images", "captions"})

    @property
    def columns(self) -> pa.Schema:
        return self.images.columns

    def parts(self, part_rows: int) -> list[SourcePart]:
        pictures, captions = self.images.parts(part_rows), self.captions.parts(part_rows)
        counts = []
        for source, parts in ((self.images, pictures), (self.captions, captions)):
            if any(p.rows is None for p in parts):
                raise BadInput(f"{source.name}: expected an input with a known number of rows, found tars; tars carry their own captions")
            counts.append(sum(p.rows or 0 for p in parts))
        if counts[0] != counts[1]:
            raise BadInput(
                f"{self.captions.name}: expected {counts[0]} captions for the {counts[0]} images of {self.images.name}, found {counts[1]}"
            )
        return [SourcePart(p.rows, digest_of_parts(p.stamp, c.stamp), _Zip(p, c)) for p, c in zip(pictures, captions, strict=True)]


@dataclass(frozen=True)
class _Zip:
    images: SourcePart
    captions: SourcePart

    def __call__(self, images: bool) -> Iterator[Sample]:
        for picture, caption in zip(self.images.read(images), self.captions.read(False), strict=True):
            skipped = picture.skipped + caption.skipped
            yield Sample(picture.key, picture.image, caption.caption, picture.columns, picture.problem or caption.problem, skipped)


def kind_of(file: ListedFile) -> str:
    """The suffix that says how a file is read: ``.tar`` also for one that is compressed, ``.jsonl`` also for ``.jsonl.gz``."""
    if file.name.lower().endswith(COMPRESSED_TARS):
        return ".tar"
    inner = PurePosixPath(file.name.lower().removesuffix(".gz")).suffix
    return inner if file.suffix == ".gz" and inner in LIST_SUFFIXES else file.suffix


@dataclass(frozen=True)
class _WithUnread:
    """A source, and the files beside it that nothing reads, reported with its first sample."""

    source: Source
    unread: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def has(self) -> frozenset[ModalityName]:
        return self.source.has

    @property
    def columns(self) -> pa.Schema:
        return self.source.columns

    def parts(self, part_rows: int) -> list[SourcePart]:
        parts = self.source.parts(part_rows)
        return [replace(part, read=partial(self._read, part)) for part in parts[:1]] + parts[1:]

    def _read(self, part: SourcePart, images: bool) -> Iterator[Sample]:
        unread = self.unread
        for sample in part.read(images):
            yield replace(sample, skipped=unread + sample.skipped) if unread else sample
            unread = ()


Reader = Callable[[str, list[ListedFile]], Source]
# In this order: img2dataset leaves a .parquet beside each .tar or folder of pictures, and a .txt beside each picture.
_KINDS: tuple[tuple[frozenset[str], Mapping[ModalityName, Reader]], ...] = (
    (frozenset({".tar"}), {"images": WebdatasetSource, "captions": WebdatasetSource}),
    (IMAGE_SUFFIXES, {"images": FolderSource, "captions": FolderSource}),
    (frozenset({".parquet"}), {"images": ParquetSource, "captions": ParquetSource}),
    (frozenset({".pt", ".pth"}), {"captions": SavedListSource}),
    (LIST_SUFFIXES, {"images": ListSource, "captions": ListSource}),
    (frozenset({".txt"}), {"images": PathListSource, "captions": TextSource}),
)


def open_source(spec: str, modality: ModalityName) -> Source:
    """The reader for `spec`, which must hold `modality` ("images" or "captions").

    Raises MissingInput if nothing is there, BadInput if it is of no known kind or holds no such thing.
    """
    files = list_files(spec)
    kinds = {kind_of(file) for file in files}
    listed = [file for file in files if PurePosixPath(file.name).name.lower() in HUGGING_FACE_LISTS]
    if listed and kinds & IMAGE_SUFFIXES:  # a folder of pictures with a list of them, as Hugging Face's ImageFolder has it
        pictures = [file for file in files if file.suffix in IMAGE_SUFFIXES]
        return _opened(spec, modality, ListSource, listed, [f for f in files if f not in listed and f not in pictures])
    for known, readers in _KINDS:
        if known & kinds:
            folder = known is IMAGE_SUFFIXES and is_folder(spec)
            mine = files if folder else [file for file in files if kind_of(file) in known]
            if modality not in readers:
                break
            return _opened(spec, modality, readers[modality], mine, [file for file in files if file not in mine])
    if kinds & UNSUPPORTED_SUFFIXES:
        unsupported = ", ".join(sorted(kinds & UNSUPPORTED_SUFFIXES))
        raise BadInput(f"{spec}: expected pictures of a known format, found {unsupported}; convert them to JPEG, PNG, WebP or AVIF")
    raise BadInput(
        f"{spec}: expected {modality} as .tar (webdataset), pictures, .parquet, .csv, .tsv, .jsonl, .txt"
        f"{' or .pt (a list saved by torch)' if modality == 'captions' else ' (paths)'}, "
        f"found {', '.join(sorted(kind or 'no suffix' for kind in kinds)[:8])}{_cure(kinds)}"
    )


def captions_of(spec: str) -> list[str]:
    """Every caption of an input, in order; empty where a sample has none. Raises as `open_source`."""
    return [sample.caption or "" for part in open_source(spec, "captions").parts(DEFAULT_PART_ROWS) for sample in part.read(False)]


def _cure(kinds: set[str]) -> str:
    cures = [cure for suffixes, cure in CURES if suffixes & kinds]
    return f"; {cures[0]}" if cures else ""


def _opened(spec: str, modality: ModalityName, reader: Reader, mine: list[ListedFile], others: list[ListedFile]) -> Source:
    source = reader(spec, mine)
    if modality not in source.has:
        raise BadInput(f"{spec}: expected {modality}, found {' and '.join(sorted(source.has)) or 'neither images nor captions'}")
    recorded = {name for file in mine for name in record_names(file)}
    unread = [*getattr(source, "unread", []), *(file.name for file in others if as_path(file.url).name not in recorded)]
    return _WithUnread(source, tuple(unread)) if unread else source
