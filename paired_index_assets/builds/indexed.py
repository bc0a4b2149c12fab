"""What is indexed where no landing folder is given: the parts of the image set, in its order. No folder is scanned for it."""

from __future__ import annotations

from dataclasses import replace

from upath import UPath

from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.npy import NpyHeader
from paired_index_assets.files.storage import is_local
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import Listing, landed_file, list_folder


def catalog_of_set(images: EmbeddingSet, shards: int) -> Catalog:
    """Part i of the set is file i of the catalog, so id i is row i of the set.

    Raises MissingInput naming a part that is gone, BadInput naming one that is shorter than the set says.
    """
    listing = listing_of_set(images)
    headers = []
    for name, part in zip(images.names, images.parts, strict=True):
        if name not in listing:
            raise MissingInput(f"{part.path}: no such file; {images.source} has {part.rows} rows in it. Make the embeddings again")
        before_rows = listing[name].size - part.rows * images.row_bytes
        if before_rows < 0:
            raise BadInput(
                f"{part.path}: {listing[name].size} bytes; {images.source} has {part.rows} rows in it. Make the embeddings again"
            )
        headers.append((name, NpyHeader(part.rows, images.dimensions, images.dtype, before_rows)))
    return Catalog.of_headers(headers, shards, str(images.source))


def listing_of_set(images: EmbeddingSet) -> Listing:
    """The parts that are there, under their catalog names. One request a folder where they are remote."""
    folders: dict[UPath, Listing] = {}
    found: Listing = {}
    for name, part in zip(images.names, images.parts, strict=True):
        if is_local(part.path):
            try:
                landed = landed_file(part.path)
            except FileNotFoundError:
                continue
        else:
            folder = part.path.parent
            if folder not in folders:
                folders[folder] = list_folder(folder)
            if part.path.name not in folders[folder]:
                continue
            landed = folders[folder][part.path.name]
        found[name] = replace(landed, name=name, outcomes=part.metadata is not None)
    return found
