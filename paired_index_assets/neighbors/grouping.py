"""Centroids in groups around heads: where a near one is found by looking at few."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from paired_index_assets.neighbors.exact import assign
from paired_index_assets.rows import Float32, Int64

HEADS_ROUNDS, HEADS_SAMPLE = 5, 16_384
SUMMED_ROWS = 2_048  # at a time: they are widened to be added
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
        sums = _sums(sample, lists, len(heads))
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        heads = np.where(norms > 0, sums / np.maximum(norms, 1e-30), heads).astype(np.float32)
    return group_centroids(centroids, assign(centroids, heads), heads)


def _sums(rows: Float32, lists: Int64, count: int) -> npt.NDArray[np.float64]:
    """(count, d) the rows of each list added up, in their order."""
    sums = torch.zeros((count, rows.shape[1]), dtype=torch.float64)
    for start in range(0, len(rows), SUMMED_ROWS):
        some = slice(start, start + SUMMED_ROWS)
        sums.index_add_(0, torch.from_numpy(lists[some]), torch.from_numpy(rows[some]).double())
    return sums.numpy()


def ungrouped(centroids: Float32) -> Groups:
    """For rows whose list is known nearly: nothing has to be found in groups."""
    return group_centroids(centroids, np.zeros(len(centroids), np.int64), centroids[:1], found=False)
