"""Text search over very large sets of image embeddings: caption-space centroids, 4-bit codes, sharded faiss files.

The numeric rooms (`neighbors`, `clustering`, `codes`, `quality`, `shards`, `search`) are plain functions on arrays and
paths; `assets` wraps them for Dagster and `cli` for the terminal. docs/architecture.md is the map.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paired_index_assets.clustering.kmeans import Training as Training
    from paired_index_assets.clustering.kmeans import train_kmeans as train_kmeans
    from paired_index_assets.clustering.kmeans import train_paired_kmeans as train_paired_kmeans
    from paired_index_assets.neighbors.exact import exact_neighbors as exact_neighbors
    from paired_index_assets.search.sharded import ShardedIndex as ShardedIndex
    from paired_index_assets.serving.beside import filter_of as filter_of
    from paired_index_assets.serving.beside import originals_of as originals_of

# Loaded on first use: `exact_neighbors` must import where faiss is absent, and the command line must start fast.
_HOMES = {
    "exact_neighbors": "paired_index_assets.neighbors.exact",
    "train_paired_kmeans": "paired_index_assets.clustering.kmeans",
    "train_kmeans": "paired_index_assets.clustering.kmeans",
    "Training": "paired_index_assets.clustering.kmeans",
    "ShardedIndex": "paired_index_assets.search.sharded",
    "filter_of": "paired_index_assets.serving.beside",
    "originals_of": "paired_index_assets.serving.beside",
}
__all__ = ["ShardedIndex", "Training", "exact_neighbors", "filter_of", "originals_of", "train_kmeans", "train_paired_kmeans"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from paired_index_assets.extras import missing_extra

        try:
            return getattr(importlib.import_module(_HOMES[name]), name)
        except ImportError as error:
            raise missing_extra(error) or error from error
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
