"""The name of every file under a build's root, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from upath import UPath

from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path, is_local, versioned


@dataclass(frozen=True)
class ShardPlace:
    """The files of shard `number` in one generation."""

    generation: Generation
    codec: str
    number: int

    @property
    def name(self) -> str:
        return f"knn.paired_{self.codec}.index{self.number}"

    @property
    def file(self) -> UPath:
        """The shard's public name; on an object store the name of no file, but the beginning of one a content (`versioned`)."""
        return self.generation.shards / self.name

    @property
    def draft(self) -> UPath:
        """Drafts of `file` lie beside this one: its own folder holds finished shards and nothing else."""
        return self.generation.folder / "drafts" / self.name

    @property
    def record(self) -> UPath:
        return self.generation.records / f"index{self.number}.json"

    @property
    def next_record(self) -> UPath:
        """The record of the shard that is about to replace `file`."""
        return self.generation.records / f"index{self.number}.next.json"

    @property
    def failure(self) -> UPath:
        return self.generation.records / f"index{self.number}.failed.json"

    @property
    def lock(self) -> UPath:
        return self.generation.records / f".index{self.number}.lock"

    def __str__(self) -> str:
        return str(self.file)


@dataclass(frozen=True)
class Generation:
    """All that was made with one trained index: `generations/{its fingerprint}`."""

    folder: UPath

    @property
    def fingerprint(self) -> str:
        return str(self.folder.name)

    @property
    def trained(self) -> UPath:
        """A copy of the trained index, which is searched with as long as these shards are."""
        return self.folder / "trained.index"

    @property
    def catalog(self) -> UPath:
        """A copy of the catalog that its shards are made of: their ids are the rows of this one."""
        return self.folder / "catalog.parquet"

    @property
    def shards(self) -> UPath:
        return self.folder / "shards"

    @property
    def records(self) -> UPath:
        return self.folder / "records"

    @property
    def segments(self) -> UPath:
        return self.folder / "segments"

    @property
    def packed(self) -> UPath:
        return self.folder / "packed"

    @property
    def reading(self) -> UPath:
        """The lock that readers share, locally."""
        return self.folder / ".reading.lock"

    def shard(self, codec: str, number: int) -> ShardPlace:
        return ShardPlace(self, codec, number)


@dataclass(frozen=True)
class BuildRoot:
    """Where one build keeps its files (docs/architecture.md lists them), and where copies of them go if that is not a local folder."""

    root: UPath
    cache: Cache = field(default_factory=Cache, compare=False)

    @classmethod
    def at(cls, url: str | Path | UPath | BuildRoot) -> BuildRoot:
        return url if isinstance(url, BuildRoot) else cls(as_path(url))

    @property
    def settings(self) -> UPath:
        return self.root / "settings.json"

    @property
    def embeddings(self) -> UPath:
        return self.root / "embeddings"

    def embedding_set(self, modality: str) -> UPath:
        """`modality`: images or captions."""
        return self.embeddings / f"{modality}.json"

    @property
    def image_set(self) -> UPath:
        return self.embedding_set("images")

    @property
    def caption_texts(self) -> UPath:
        """The captions of features, as a Parquet of rows, where they were given in another format."""
        return self.embeddings / "caption_texts.parquet"

    @property
    def caption_set(self) -> UPath:
        return self.embedding_set("captions")

    @property
    def metadata(self) -> UPath:
        return self.embeddings / "metadata"

    @property
    def catalog(self) -> UPath:
        return self.root / "catalog.parquet"

    @property
    def split(self) -> UPath:
        return self.root / "pairs" / "split.npz"

    @property
    def pairs(self) -> UPath:
        return self.root / "pairs"

    def clusters(self, method: str) -> UPath:
        return self.root / "clusters" / f"{method}.npz"

    @property
    def competing(self) -> UPath:
        """Which clusterings there are, and of which methods and levels."""
        return self.root / "clusters" / "competing.json"

    def checkpoint(self, method: str) -> UPath:
        return self.root / "clusters" / f"{method}.checkpoint.npz"

    @property
    def trained(self) -> UPath:
        return self.root / "trained"

    def trained_index(self, nlist: int, codec: str, method: str, fingerprint: str) -> UPath:
        """On an object store each content has its own name, and `promoted` points to one."""
        return versioned(self.trained / f"images.{nlist}.{codec}.{method}.index", fingerprint)

    @property
    def promoted(self) -> UPath:
        return self.trained / "promoted.json"

    @property
    def generations(self) -> UPath:
        return self.root / "generations"

    def generation(self, fingerprint: str) -> Generation:
        return Generation(self.generations / fingerprint)

    @property
    def test_captions(self) -> UPath:
        return self.root / "truth" / "captions.npz"

    def truth(self, captions: str) -> UPath:
        """Exact neighbours of the test captions of that digest, a file each landed file; of no trained index."""
        return self.root / "truth" / captions

    @property
    def shards(self) -> UPath:
        """The shards of the generation that is served: a link to its folder. On an object store there is `served` instead."""
        return self.root / "shards"

    @property
    def served(self) -> UPath:
        """On an object store, which generation is served."""
        return self.root / "served.json"

    @property
    def downloads(self) -> UPath:
        """A local folder in any case."""
        return (self.root if is_local(self.root) else as_path(self.cache.folder)) / "downloads"

    @property
    def manifest(self) -> UPath:
        return self.root / "manifest.parquet"

    @property
    def parquet_lengths(self) -> UPath:
        return self.root / "parquet_lengths_paired.list"

    @property
    def removed(self) -> UPath:
        return self.root / "takedown" / "removed.parquet"

    @property
    def removals(self) -> UPath:
        """How many entries that log has, so that a shorter one is noticed."""
        return self.root / "removals.json"

    @property
    def report(self) -> UPath:
        return self.root / "report"
