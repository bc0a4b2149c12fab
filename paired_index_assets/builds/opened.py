"""`OpenBuild`: what a build holds, found from its settings. The one place that says which file stands for which input.

Assets, command line and server are handed one and ask it; nobody opens the same file twice on one walk.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.builds.following import DataSet, Describe, follow
from paired_index_assets.builds.indexed import catalog_of_set, listing_of_set
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.fetching.fetch import FetchRules, release
from paired_index_assets.fetching.obtain import Obtained, obtain
from paired_index_assets.fetching.sources import Politeness, parse_sources
from paired_index_assets.files.listing import is_there, list_files, several
from paired_index_assets.files.storage import as_path, atomic_file
from paired_index_assets.files.tables import read_parquet
from paired_index_assets.landing.appending import Appended, append_quiet
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import Listing, first_complete, list_folder
from paired_index_assets.progress import Progress
from paired_index_assets.readers.open import captions_of
from paired_index_assets.settings import LAION_2B, Settings
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.promotion import promoted_index

if TYPE_CHECKING:  # who encodes imports torch
    from paired_index_assets.shards.supply import Supply


class OpenBuild:
    """One look at a build: what was read once stays as it was read. Make another for another look (a run, a tick, a request for news)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.build_root

    @cached_property
    def images(self) -> EmbeddingSet:
        return EmbeddingSet.open(self.root.image_set, self.root.cache)

    @cached_property
    def captions(self) -> EmbeddingSet:
        return EmbeddingSet.open(self.root.caption_set, self.root.cache)

    @cached_property
    def pairs(self) -> tuple[EmbeddingSet, EmbeddingSet]:
        """Images and captions, row i of both a pair. Raises BadInput with both counts, widths or models if they cannot be pairs."""
        images, captions = self.images, self.captions
        for what, mine, theirs in (
            ("rows", len(images), len(captions)),
            ("dimensions", images.dimensions, captions.dimensions),
            ("model", images.model, captions.model),
        ):
            if mine != theirs:
                given, expected = self.settings.caption_features or captions.source, self.settings.image_features or images.source
                raise BadInput(f"{given}: {theirs} {what}, but {expected} has {mine}; row i of both must be a pair, from one model")
        return images, captions

    @property
    def normalized(self) -> list[str]:
        """Which of the two sets were divided by their norms when they were taken over."""
        return [made.modality for made in (self.images, self.captions) if made.normalized]

    @cached_property
    def caption_texts(self) -> list[str] | None:
        """The caption of every row, where they are known: of the input named in the settings, or from the metadata of the embeddings.

        Raises BadInput with both counts where there is not one a row.
        """
        rows = len(self.captions)
        if self.settings.caption_texts:
            texts = captions_of(self.settings.caption_texts)
            if len(texts) != rows:
                raise BadInput(f"{self.settings.caption_texts}: {len(texts)} captions for {rows} caption embeddings; expected one a row")
            return texts
        files = [part.metadata for part in self.captions.parts]
        if not files or any(file is None for file in files):
            return None
        texts = [text or "" for file in files if file is not None for text in read_parquet(file, ["caption"])["caption"].to_pylist()]
        if len(texts) != rows:
            raise DamagedArtifact(f"{files[0]}: {len(texts)} captions for {rows} caption embeddings; embed the captions again")
        return texts

    @cached_property
    def catalog(self) -> Catalog:
        """Raises MissingInput until `image_embeddings` has been materialised: it makes the catalog."""
        if not self.root.catalog.exists():
            raise MissingInput(f"{self.root.catalog}: no catalog yet; materialise image_embeddings first")
        return Catalog.load(self.root.catalog)

    @property
    def catalog_before(self) -> Catalog | None:
        """The catalog of the last build, None where there is none or, if it can be made again, a damaged one."""
        try:
            return Catalog.load(self.root.catalog)
        except MissingInput:
            return None
        except DamagedArtifact:
            if self.settings.landing:
                raise
            return None

    def data_set_of(self, catalog: Catalog, describe: Describe) -> DataSet:
        """What the ids of `catalog` mean."""
        return DataSet(catalog, self.listing_of(catalog), describe(catalog))

    @cached_property
    def promoted(self) -> TrainedIndex:
        """The trained index that the shards are built with."""
        return promoted_index(self.root)

    @cached_property
    def listing(self) -> Listing:
        return self.listing_of(self.catalog)

    def listing_of(self, catalog: Catalog) -> Listing:
        """What has landed on this machine; a file that is not complete is listed too, so that its build can say what is wrong with it."""
        landing, downloads = self._landed(), list_folder(self._downloads)
        return {**landing, **first_complete([landing, downloads], catalog)}

    @cached_property
    def available(self) -> Listing:
        """What has landed, here or at a source that can list its files: one request a source. A source that does not answer adds nothing."""
        return first_complete([self.listing, *self._listed.values()], self.catalog)

    @property
    def silent_sources(self) -> list[str]:
        """The sources that do not say what they have: no listing, or none with a catalogued file in it."""
        return [source for source, listing in self._listed.items() if not listing.keys() & self.catalog.by_name.keys()]

    @cached_property
    def _listed(self) -> dict[str, Listing]:
        return {source: _listing_at(source) for source in parse_sources(self.settings.sources)}

    @property
    def _downloads(self) -> UPath:
        return as_path(self.settings.downloads) if self.settings.downloads else self.root.downloads

    @cached_property
    def captions_landed(self) -> set[str]:
        """Names of caption features that lie in the landing folder: they are not for the index."""
        landing = as_path(self.settings.landing or "")

        def there(given: str | None) -> set[str]:
            files = [as_path(file.url) for spec in several(given or "") if is_there(spec) for file in list_files(spec)]
            return {file.name for file in files if file.parent == landing}

        return there(self.settings.caption_features) - there(self.settings.image_features)

    def _landed(self) -> Listing:
        """The files of the landing folder; without one those of the image set, and what lies beside them where a catalog was given."""
        if self.settings.landing:
            return list_folder(self.settings.landing)
        beside: Listing = {}
        for folder in dict.fromkeys(part.path.parent for part in self.images.parts) if self.settings.catalog else ():
            beside |= list_folder(folder)
        return beside | listing_of_set(self.images)

    def supply(self, progress: Progress) -> "Supply | None":
        """Where the files of a shard come from when they have not all landed; None where there is nothing but the landing folder.

        A file that was fetched is deleted once it is encoded, so that a budget of a few files serves a shard of forty.
        """
        settings = self.settings
        sources = parse_sources(settings.sources)
        if not sources and not settings.rebuild_from:
            return None
        budget = None if settings.download_budget_gb is None else int(settings.download_budget_gb * 1e9)

        def files_of(files: Sequence[CatalogFile]) -> Iterator[Obtained]:
            for obtained in obtain(
                files,
                self.listing,
                sources,
                self._downloads,
                rebuild_from=settings.rebuild_from,
                ahead=settings.parallel_downloads,
                rules=FetchRules(budget_bytes=budget),
                politeness=Politeness(settings.parallel_downloads),
                progress=progress,
            ):
                yield obtained
                if obtained.landed is not None:
                    release(obtained.landed.path)

        return files_of


def check_caption_texts(build: OpenBuild) -> None:
    """Read the captions given for features, if there are any, and keep those that are in no Parquet as one: servers read by row.

    Raises BadInput where there is not one a row: before pictures are embedded and pairs are made.
    """
    if not build.settings.caption_texts or build.caption_texts is None:
        return
    if {file.suffix for file in list_files(build.settings.caption_texts)} != {".parquet"}:
        with atomic_file(build.root.caption_texts) as temporary:
            pq.write_table(pa.table({"caption": pa.array(build.caption_texts, pa.string())}), temporary)


def write_catalog(build: OpenBuild, describe: Describe) -> Catalog:
    """Make the build's catalog: the one given, a scan of the landing folder, or else the image set itself.

    That of a landing folder is made once, and what was appended to a given one stays: ids must not move. Where rows moved nevertheless, those
    that were taken down are found again (builds/following.py), also by what `describe` finds in the metadata of the rows.
    """
    settings, root, before = build.settings, build.root, build.catalog_before
    if settings.catalog == LAION_2B:
        catalog = Catalog.laion2b()
    elif settings.catalog:
        catalog = Catalog.load(settings.catalog)
    elif settings.landing and before is not None:
        catalog = before
    elif settings.landing:
        names = [name for name in list_folder(settings.landing) if name.endswith(".npy") and name not in build.captions_landed]
        catalog = Catalog.scan(settings.landing, shards=settings.shards, names=names or "*.npy")
    else:
        catalog = catalog_of_set(build.images, settings.shards)
    if catalog.shards > settings.shards:
        raise BadInput(f"the catalog has {catalog.shards} shards, the settings {settings.shards}; set shards to {catalog.shards}")
    if settings.landing and before is not None and before.all_files[: len(catalog)] == catalog.all_files:
        catalog = before
    named = follow(root, catalog, before, lambda: build.data_set_of(catalog, describe), allow_lost=settings.allow_lost_takedowns)
    if before is None or not before.table.equals(named.table, check_metadata=True):
        named.save(root.catalog)
    return named


def append_landed(build: OpenBuild, unknown: dict[str, str]) -> Appended:
    """The build's catalog with the quiet files of a landing folder appended; `unknown` as for `append_quiet`.

    Only of a folder given as `landing`: where the embeddings of this build are indexed, parts that are being made are no news.
    Raises MissingInput as `OpenBuild.catalog`.
    """
    if not build.settings.landing:
        return Appended(build.catalog, [], {}, {})
    folder = as_path(build.settings.landing)
    listing = {name: landed for name, landed in list_folder(folder).items() if name not in build.captions_landed}
    found = append_quiet(build.catalog, folder, listing, unknown)
    if found.added:
        found.catalog.save(build.root.catalog)
    return found


def _listing_at(source: str) -> Listing:
    try:
        return list_folder(source)
    except Exception:  # each file system has its own errors, and the other sources still count
        return {}
