"""Centroids in groups around heads: where a near one is found by looking at few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paired_index_assets.neighbors.exact import assign
from paired_index_assets.rows import Float32, Int64

HEADS_ROUNDS, HEADS_SAMPLE = 5, 16_384
SEED = 1234


@dataclass(frozen=True)
class Groups:
    """`order` (k,) centroid numbers group by group, `starts` (G + 1,), `heads` (G, d) float32.

    `found`: whether the groups are such as a near centroid is found by; else they only hold the centroids.
    """

    heads: torch.Tensor
    order: torch.Tensor
    starts: list[int]
    found: bool = True


def group_centroids(centroids: Float32, lists: Int64, heads: Float32, *, found: bool = True) -> Groups:
    """`lists` (k,): the head of each centroid."""
    order = np.argsort(lists, kind="stable").astype(np.int64)
    starts = np.searchsorted(lists[order], np.arange(len(heads) + 1))
    return Groups(torch.from_numpy(np.ascontiguousarray(heads, dtype=np.float32)), torch.from_numpy(order), starts.tolist(), found)


def grouped_by_heads(centroids: Float32) -> Groups:
    """About sqrt(k) / 2 groups by a short spherical k-means of the centroids."""
    k = len(centroids)
    rng = np.random.default_rng(SEED)
    sample = centroids[np.sort(rng.choice(k, min(k, HEADS_SAMPLE), replace=False))]
    heads = sample[rng.choice(len(sample), max(1, int(np.sqrt(k) / 2)), replace=False)]
    for _ in range(HEADS_ROUNDS):
        lists = assign(sample, heads)
        sums = np.zeros_like(heads, dtype=np.float64)
        np.add.at(sums, lists, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        heads = np.where(norms > 0, sums / np.maximum(norms, 1e-30), heads).astype(np.float32)
    return group_centroids(centroids, assign(centroids, heads), heads)


def ungrouped(centroids: Float32) -> Groups:
    """For rows whose list is known nearly: nothing has to be found in groups."""
    return group_centroids(centroids, np.zeros(len(centroids), np.int64), centroids[:1], found=False)
