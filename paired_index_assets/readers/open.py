"""Samples: a key, a picture, a caption, in a fixed order and in numbered parts, from whatever a person has.

Row i of the picture embeddings, of the caption embeddings and of the metadata is sample i of its source: a sample that turns out bad
keeps its row. `open_source` picks the reader by what the input is:

| input | pictures | captions |
|---|---|---|
| folder, glob | picture files | the ``.txt`` beside each picture |
| ``.tar`` (a folder or pattern of them) | webdataset, as img2dataset writes it | ``.txt``, or ``caption`` of ``.json``, by key |
| ``.parquet`` | a bytes column, or a column of paths | a text column |
| ``.txt`` | a path a line | a caption a line |
| ``.pt``, ``.pth`` | - | a list of strings saved by torch |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile, is_folder, list_files
from paired_index_assets.files.storage import digest_of_parts
from paired_index_assets.readers.folders import FolderSource, PathListSource
from paired_index_assets.readers.parquet import ParquetSource
from paired_index_assets.readers.sample import IMAGE_SUFFIXES, Modality, Sample, Source, SourcePart
from paired_index_assets.readers.text import SavedListSource, TextSource
from paired_index_assets.readers.webdataset import WebdatasetSource

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
    def has(self) -> frozenset[Modality]:
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
    """The suffix that says how a file is read: ``.tar`` also for one that is compressed."""
    return ".tar" if file.name.lower().endswith(COMPRESSED_TARS) else file.suffix


def open_source(spec: str, modality: Modality) -> Source:
    """The reader for `spec`, which must hold `modality` ("images" or "captions").

    Raises MissingInput if nothing is there, BadInput if it is of no known kind or holds no such thing.
    """
    Reader = Callable[[str, list[ListedFile]], Source]
    # In this order: img2dataset leaves a .parquet beside each .tar or folder of pictures, and a .txt beside each picture.
    kinds: tuple[tuple[frozenset[str], Mapping[Modality, Reader]], ...] = (
        (frozenset({".tar"}), {"images": WebdatasetSource, "captions": WebdatasetSource}),
        (IMAGE_SUFFIXES, {"images": FolderSource, "captions": FolderSource}),
        (frozenset({".parquet"}), {"images": ParquetSource, "captions": ParquetSource}),
        (frozenset({".pt", ".pth"}), {"captions": SavedListSource}),
        (frozenset({".txt"}), {"images": PathListSource, "captions": TextSource}),
    )
    files = list_files(spec)
    suffixes = {kind_of(file) for file in files}
    for known, readers in kinds:
        if known & suffixes:
            mine = files if known is IMAGE_SUFFIXES and is_folder(spec) else [f for f in files if kind_of(f) in known]
            if modality not in readers:
                break
            source = readers[modality](spec, mine)
            if modality in source.has:
                return source
            raise BadInput(f"{spec}: expected {modality}, found {' and '.join(sorted(source.has)) or 'neither images nor captions'}")
    raise BadInput(
        f"{spec}: expected {modality} as .tar (webdataset), pictures, .parquet, .txt"
        f"{' or .pt (a list saved by torch)' if modality == 'captions' else ' (paths)'}, "
        f"found {', '.join(sorted(s or 'no suffix' for s in suffixes)[:8])}"
    )
