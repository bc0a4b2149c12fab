"""What a search may need beside its shards: the metadata, to hold conditions against; the embeddings, to score by again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upath import UPath

from paired_index_assets.builds.metadata import metadata_of
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.errors import BadInput, MissingInput, PairedIndexError
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.search.filters import Filter, MetadataFile, make_filter, parse
from paired_index_assets.search.rerank import Originals
from paired_index_assets.settings import Settings, load_settings


def originals_of(root: str | Path | UPath | BuildRoot | Settings) -> Originals:
    """The embeddings of a build, which `ShardedIndex.search` takes to score by. Raises MissingInput, in one line, where any is gone."""
    build = OpenBuild(_settings(root))
    try:
        listing = build.listing
    except PairedIndexError as error:
        raise MissingInput(f"rerank: the embeddings are not at hand ({error}); search without rerank") from error
    found = Originals(build.catalog, listing, build.root.cache)
    found.require()
    return found


def filter_of(
    root: str | Path | UPath | BuildRoot | Settings,
    expression: str,
    progress: Progress = silent,
    *,
    files: Sequence[MetadataFile] | None = None,
) -> Filter:
    """The rows of a build whose metadata (or `files`) meet an expression: what `ShardedIndex.search` takes as `where`. Raises BadInput."""
    condition, settings = parse(expression), _settings(root)
    build = settings.build_root
    if files is None:
        metadata = metadata_of(build, settings.caption_texts, landing=settings.landing)
        files = metadata.files if metadata is not None else ()
    if not files:
        raise BadInput("where: this build has no metadata to filter by; name a Parquet whose row i describes image i with --caption-texts")
    rows = Catalog.load(build.catalog).total_rows
    return make_filter(condition, files, rows, build.cache.folder / "filters", progress=progress)


def _settings(root: str | Path | UPath | BuildRoot | Settings) -> Settings:
    """Those the build was made with."""
    if isinstance(root, Settings):
        return root
    build = BuildRoot.at(root)
    return load_settings(root=str(build.root), cache=str(build.cache.folder))
