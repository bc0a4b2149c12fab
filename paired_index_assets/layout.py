"""The name of every file under a build's root, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from upath import UPath

from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path, is_local, versioned


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

    @property
    def image_set(self) -> UPath:
        return self.embeddings / "images.json"

    @property
    def caption_set(self) -> UPath:
        return self.embeddings / "captions.json"

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

    def segments(self, fingerprint: str) -> UPath:
        return self.root / "segments" / fingerprint

    def truth(self, captions: str) -> UPath:
        """Exact neighbours of the test captions of that digest, a file each landed file; of no trained index."""
        return self.root / "truth" / captions

    @property
    def shards(self) -> UPath:
        return self.root / "shards"

    def shard(self, codec: str, number: int) -> UPath:
        """The shard's public name; on an object store the name of no file, but with `.json` of its record, which points to one."""
        return self.shards / f"knn.paired_{codec}.index{number}"

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
    def report(self) -> UPath:
        return self.root / "report"
