"""What the assets read, found from the settings: one place that says which file stands for which input."""

from collections.abc import Iterator, Sequence

from upath import UPath

from paired_index_assets.builds.indexed import catalog_of_set, listing_of_set
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, MissingInput, PairedIndexError
from paired_index_assets.fetching.fetch import FetchRules, release
from paired_index_assets.fetching.obtain import Obtained, obtain
from paired_index_assets.fetching.sources import Politeness, parse_sources
from paired_index_assets.files.storage import as_path, read_parquet
from paired_index_assets.landing.appending import Appended, append_quiet
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import Listing, first_complete, list_folder
from paired_index_assets.progress import Progress
from paired_index_assets.settings import LAION_2B, Settings
from paired_index_assets.shards.supply import Supply


def image_set(settings: Settings) -> EmbeddingSet:
    return EmbeddingSet.open(settings.build_root.image_set, settings.build_root.cache)


def caption_set(settings: Settings) -> EmbeddingSet:
    return EmbeddingSet.open(settings.build_root.caption_set, settings.build_root.cache)


def aligned_sets(settings: Settings) -> tuple[EmbeddingSet, EmbeddingSet]:
    """Images and captions, row i of both a pair. Raises BadInput with both counts, widths or models if they can not be pairs."""
    images, captions = image_set(settings), caption_set(settings)
    for what, mine, theirs in (
        ("rows", len(images), len(captions)),
        ("dimensions", images.dimensions, captions.dimensions),
        ("model", images.model, captions.model),
    ):
        if mine != theirs:
            raise BadInput(
                f"{_named(settings.caption_features, captions)}: {theirs} {what}, but {_named(settings.image_features, images)} has {mine}; "
                "row i of both must be a pair, from one model"
            )
    return images, captions


def _named(features: str | None, made: EmbeddingSet) -> str:
    return features or str(made.source)


def write_catalog(settings: Settings) -> Catalog:
    """Make the build's catalog: the one given, a scan of the landing folder, or else the image set itself.

    That of a landing folder is made once, and what was appended to a given one stays: ids must not move.
    """
    root = settings.build_root
    if settings.catalog == LAION_2B:
        catalog = Catalog.laion2b()
    elif settings.catalog:
        catalog = Catalog.load(settings.catalog)
    elif settings.landing and root.catalog.exists():
        catalog = Catalog.load(root.catalog)
    elif settings.landing:
        catalog = Catalog.scan(settings.landing, shards=settings.shards)
    else:
        catalog = catalog_of_set(image_set(settings), settings.shards)
    if catalog.shards > settings.shards:
        raise BadInput(f"the catalog has {catalog.shards} shards, the settings {settings.shards}; set shards to {catalog.shards}")
    if settings.landing and root.catalog.exists() and (before := Catalog.load(root.catalog)).all_files[: len(catalog)] == catalog.all_files:
        return before
    catalog.save(root.catalog)
    return catalog


def append_landed(settings: Settings, unknown: dict[str, str]) -> Appended:
    """The build's catalog with the quiet files of a landing folder appended; `unknown` as for `append_quiet`.

    Only of a folder given as `landing`: where the embeddings of this build are indexed, parts that are being made are no news.
    Raises MissingInput as `catalog_of`.
    """
    catalog = catalog_of(settings)
    if not settings.landing:
        return Appended(catalog, [], {}, {})
    folder = as_path(settings.landing)
    found = append_quiet(catalog, folder, list_folder(folder), unknown)
    if found.added:
        found.catalog.save(settings.build_root.catalog)
    return found


def catalog_of(settings: Settings) -> Catalog:
    """Raises MissingInput until `image_embeddings` has been materialised: it makes the catalog."""
    if not settings.build_root.catalog.exists():
        raise MissingInput(f"{settings.build_root.catalog}: no catalog yet; materialise image_embeddings first")
    return Catalog.load(settings.build_root.catalog)


def listing_of(settings: Settings, catalog: Catalog) -> Listing:
    """What has landed on this machine; a file that is not complete is listed too, so that its build can say what is wrong with it."""
    landing, downloads = _landed(settings), list_folder(_downloads(settings))
    return {**landing, **first_complete([landing, downloads], catalog)}


def _landed(settings: Settings) -> Listing:
    """The files of the landing folder; without one those of the image set, and what lies beside them where a catalog was given."""
    if settings.landing:
        return list_folder(settings.landing)
    images = image_set(settings)
    beside: Listing = {}
    for folder in dict.fromkeys(part.path.parent for part in images.parts) if settings.catalog else ():
        beside |= list_folder(folder)
    return beside | listing_of_set(images)


def available(settings: Settings, catalog: Catalog) -> Listing:
    """What has landed, here or at a source that can list its files: one request a source. A source that does not answer adds nothing."""
    listings = [listing_of(settings, catalog)]
    for source in parse_sources(settings.sources):
        try:
            listings.append(list_folder(source))
        except (OSError, ValueError, PairedIndexError):  # whatever its file system says: the others still count
            continue
    return first_complete(listings, catalog)


def supply_of(settings: Settings, listing: Listing, progress: Progress) -> Supply | None:
    """Where the files of a shard come from when they have not all landed; None where there is nothing but the landing folder.

    A file that was fetched is deleted once it is encoded, so that a budget of a few files serves a shard of forty.
    """
    sources = parse_sources(settings.sources)
    if not sources and not settings.rebuild_from:
        return None
    budget = None if settings.download_budget_gb is None else int(settings.download_budget_gb * 1e9)

    def supply(files: Sequence[CatalogFile]) -> Iterator[Obtained]:
        for obtained in obtain(
            files,
            listing,
            sources,
            _downloads(settings),
            rebuild_from=settings.rebuild_from,
            ahead=settings.parallel_downloads,
            rules=FetchRules(budget_bytes=budget),
            politeness=Politeness(settings.parallel_downloads),
            progress=progress,
        ):
            yield obtained
            if obtained.landed is not None:
                release(obtained.landed.path)

    return supply


def _downloads(settings: Settings) -> UPath:
    return as_path(settings.downloads) if settings.downloads else settings.build_root.downloads


def caption_texts(settings: Settings) -> list[str] | None:
    """The caption of every row, where they are known: from the metadata of the embeddings, or the Parquet named in the settings."""
    files = [as_path(settings.caption_texts)] if settings.caption_texts else [part.metadata for part in caption_set(settings).parts]
    if not files or any(file is None for file in files):
        return None
    texts = [text or "" for file in files if file is not None for text in read_parquet(file, ["caption"])["caption"].to_pylist()]
    if len(texts) != (rows := len(caption_set(settings))):
        raise BadInput(f"{files[0]}: {len(texts)} captions for {rows} caption embeddings; expected one a row")
    return texts
