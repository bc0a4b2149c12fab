"""Paired k-means: lists made by images, centroids made of captions (arXiv 2402.04416, Algorithm 1), and plain k-means beside it.

Start from nlist different images. Then, niter times: assign every image to the centroid with the largest inner product; set each
centroid to the mean of the *captions* whose image fell in its list; give an empty list half of a full one; normalise. Plain
k-means is the same loop with the images themselves in place of the captions.

The result depends on the inputs, the seed and the settings alone: assignments are exact, sums are float64 in the order of rows.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import torch
from upath import UPath

from paired_index_assets.clustering.clusters import Clustering, Iteration, history_arrays, history_of, packed, unpacked
from paired_index_assets.clustering.validation import Validation, coverage
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.storage import digest_of_parts, write_bytes
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.blocks import check_matrix, check_rows, check_same_width, float32_rows
from paired_index_assets.neighbors.fingerprint import fingerprint_of
from paired_index_assets.neighbors.workers import Workspace, workers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows, Selected

ITERATIONS = 10  # as in the paper and in faiss's IVF training
SEED = 1234  # faiss's ClusteringParameters.seed
MAX_POINTS_PER_CENTROID = 256  # faiss's ClusteringParameters.max_points_per_centroid
SPLIT = 1 / 1024  # faiss's EPS in Clustering.cpp: how far each half of a split list is moved, of its length
PIECE_MEMBERS = 16  # of a list, on average, added in float32: as exact as the centroids, which are float32
LEAST_PIECE, MOST_PIECE = 1024, 16_384  # rows


@dataclass(frozen=True)
class Training:
    """How centroids are trained. With a `validation` those of the iteration with the best coverage are kept, else the last. With a
    `checkpoint` (a file, written after every iteration) a killed run continues where it was, to the identical result; a checkpoint of
    other inputs or settings is not used. `device`: "cpu", "cuda", or None for a GPU where there is one.
    """

    niter: int = ITERATIONS
    seed: int = SEED
    max_points_per_centroid: int = MAX_POINTS_PER_CENTROID
    validation: Validation | None = None
    checkpoint: UPath | Path | None = None
    device: str | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        if self.niter < 1 or self.max_points_per_centroid < 1:
            found = f"{self.niter} and {self.max_points_per_centroid}"
            raise BadInput(f"niter and max_points_per_centroid: expected at least 1, found {found}")


USUAL = Training()


def train_paired_kmeans(images: Rows, captions: Rows, nlist: int, training: Training = USUAL) -> Clustering:
    """Centroids in caption space for lists of images.

    images, captions (n, d), float16 or float32: row i of both is a pair, images[i] the image that caption i was matched to (repeats
    are normal). If n > max_points_per_centroid * nlist, the same rows of both are taken. Cost: 2 niter n nlist d operations and niter
    passes over both matrices.

    Raises BadInput: shapes differ, fewer different images than nlist, NaN or infinity.
    """
    check_matrix(images, "images")
    check_matrix(captions, "captions")
    if len(images) != len(captions):
        raise BadInput(f"images and captions: expected pairs, row i of both; found {len(images)} images and {len(captions)} captions")
    check_same_width(images, "images", captions, "captions")
    return _train(images, captions, nlist, training)


def train_kmeans(images: Rows, nlist: int, training: Training = USUAL) -> Clustering:
    """Spherical k-means of images alone: the baseline. Arguments and errors as in train_paired_kmeans."""
    check_matrix(images, "images")
    return _train(images, images, nlist, training)


@dataclass(frozen=True)
class _State:
    """All that the next iteration needs besides the inputs."""

    centroids: Float32
    history: list[Iteration]
    best: Float32
    best_iteration: int


def _train(images: Rows, summed: Rows, nlist: int, training: Training) -> Clustering:
    if not 1 <= nlist <= len(images):
        raise BadInput(f"nlist: expected 1 .. {len(images)} (the rows of images), found {nlist}")
    niter, seed, most = training.niter, training.seed, training.max_points_per_centroid * nlist
    validation, checkpoint, device = training.validation, training.checkpoint, training.device
    run = _fingerprint(images, summed, nlist, training) if checkpoint else ""
    if len(images) > most:
        rows = _sample(len(images), most, seed)
        images, summed = Selected(images, rows), Selected(summed, rows)
    state = _resumed(checkpoint, run) if checkpoint else None
    if state is None:
        start = first_centroids(images, nlist, seed)
        state = _State(start, [], start, -1)
    assigner, lists = Assigner(("images", "centroids"), passes=niter - len(state.history)), None
    for number in range(len(state.history), niter + (validation is not None)):
        began = perf_counter()
        lists = assigner(images, state.centroids, before=lists, device=device)
        sizes = np.bincount(lists, minlength=nlist)
        if validation is not None and number:
            state = _judged(state, coverage(validation, state.centroids, sizes, device=device))
        if number == niter:
            break
        sums = segment_sums(summed, lists, nlist)
        centroids, split = updated_centroids(sums, sizes, state.centroids, seed + number)
        iteration = Iteration(
            objective=float(np.einsum("ij,ij", sums, state.centroids)) / len(summed),
            imbalance=nlist * float(np.square(sizes / len(images)).sum()),
            split=split,
            seconds=perf_counter() - began,
        )
        state = replace(state, centroids=centroids, history=[*state.history, iteration])
        if validation is None:
            state = replace(state, best=centroids, best_iteration=number)
        if checkpoint:
            _save(checkpoint, run, state)
        training.progress(
            "training", number + 1, niter, objective=iteration.objective, imbalance=iteration.imbalance, split=split,
            seconds=iteration.seconds,
        )  # fmt: skip
    return Clustering(state.best, state.history, state.best_iteration)


def first_centroids(images: Rows, nlist: int, seed: int) -> Float32:
    """nlist different images, drawn at random, as unit vectors (nlist, d) float32. Raises BadInput if there are fewer."""
    order = np.random.default_rng(seed).permutation(len(images))
    chosen: dict[bytes, npt.NDArray[np.float32]] = {}
    for start in range(0, len(order), nlist):
        rows = np.sort(order[start : start + nlist])
        for number, row in zip(rows, images[rows], strict=True):
            if not np.isfinite(row).all():
                raise BadInput(f"images: row {number} holds NaN or infinity; expected finite vectors; leave such rows out")
            if row.any():
                chosen.setdefault(row.tobytes(), np.asarray(row, dtype=np.float32))
            if len(chosen) == nlist:
                return _unit(np.stack(list(chosen.values())))
    raise BadInput(f"images: {len(chosen)} different vectors in {len(images)} rows, fewer than nlist = {nlist}; use a smaller nlist")


def segment_sums(rows: Rows, lists: Int64, nlist: int, name: str = "captions") -> npt.NDArray[np.float64]:
    """The sum of the rows of each list, (nlist, d) float64: the members of a list within one piece of rows are added in float32 and in the
    order of rows, the pieces in float64 and in order. So the sums do not depend on the number of threads.

    Raises BadInput for NaN or infinity.
    """
    sums = torch.zeros((nlist, rows.shape[1]), dtype=torch.float64)
    step = min(max(PIECE_MEMBERS * nlist, LEAST_PIECE), MOST_PIECE)

    spaces = threading.local()

    def of_piece(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        members = torch.from_numpy(lists[start : start + step])
        piece = float32_rows(rows, start, start + len(members), spaces.__dict__.setdefault("own", Workspace()))
        counts = torch.bincount(members, minlength=nlist)
        there = counts.nonzero()[:, 0]
        starts = (torch.cumsum(counts, 0) - counts)[there]
        return there, torch.nn.functional.embedding_bag(torch.argsort(members, stable=True), piece, starts, mode="sum")

    with workers() as pool:
        for there, part in pool.map(of_piece, range(0, len(rows), step)):
            sums.index_add_(0, there, part.double())
    if not bool(torch.isfinite(sums).all()):
        check_rows(rows, name)  # says which
    return sums.numpy()


def updated_centroids(sums: npt.NDArray[np.float64], sizes: Int64, old: Float32, seed: int) -> tuple[Float32, int]:
    """New unit centroids (nlist, d) of the sums (nlist, d) and sizes (nlist,) of lists, and how many were empty and got half of another;
    the `old` ones where all are empty."""
    norms = np.linalg.norm(sums, axis=1)
    empty = np.flatnonzero(norms == 0)  # no members, or members that cancel out
    centroids = np.divide(sums, norms[:, None], out=np.zeros_like(sums), where=norms[:, None] > 0)
    if len(empty) == len(sizes):
        return old, 0
    _split(centroids, np.where(norms > 0, sizes, 0), empty, np.random.default_rng(seed))
    return centroids.astype(np.float32), len(empty)


def _split(centroids: npt.NDArray[np.float64], sizes: Int64, empty: Int64, rng: np.random.Generator) -> None:
    """Give each empty list half of one drawn by size - 1, the two moved apart symmetrically (as faiss's split_clusters), in place.

    Each pair in a direction of its own: along one direction for all, as in faiss, the halves of two halves meet again, (1 + e)(1 - e) of
    where they were, and lists with the same centroid are what nobody asked for. That takes a large list that is drawn three times.
    """
    sizes = sizes.copy()
    for gap in empty:
        weights = np.cumsum(np.maximum(sizes - 1, 0)) if sizes.max() > 1 else np.cumsum(sizes)
        full = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
        apart = rng.standard_normal(centroids.shape[1:])
        apart *= SPLIT / np.linalg.norm(apart)
        centroids[gap] = centroids[full] + apart
        centroids[full] -= apart
        sizes[gap] = sizes[full] // 2
        sizes[full] -= sizes[gap]
        for half in (gap, full):
            centroids[half] /= np.linalg.norm(centroids[half])


def _judged(state: _State, recall: float) -> _State:
    """Write the recall of the current centroids to the iteration that made them, and keep them if they are the best."""
    earlier = [iteration.recall for iteration in state.history[:-1]]
    history = [*state.history[:-1], replace(state.history[-1], recall=recall)]
    if recall > max(earlier, default=-1.0):
        return replace(state, history=history, best=state.centroids, best_iteration=len(history) - 1)
    return replace(state, history=history)


def _sample(n: int, size: int, seed: int) -> Int64:
    """`size` of n row numbers, ascending: one draw, used for images and captions alike."""
    return np.sort(np.random.default_rng([seed, n]).choice(n, size, replace=False)).astype(np.int64)


def _fingerprint(images: Rows, summed: Rows, nlist: int, training: Training) -> str:
    parts = [fingerprint_of(images), fingerprint_of(summed) if summed is not images else "same"]
    parts += [str(value) for value in (nlist, training.niter, training.seed, training.max_points_per_centroid)]
    if (validation := training.validation) is not None:
        parts += [fingerprint_of(validation.captions), fingerprint_of(validation.images), str(validation.scanned)]
    return digest_of_parts(*parts)


def _save(checkpoint: UPath | Path, run: str, state: _State) -> None:
    arrays = history_arrays(state.history)
    content = packed(run=np.array(run), centroids=state.centroids, best=state.best, best_iteration=np.int64(state.best_iteration), **arrays)
    write_bytes(checkpoint, content)


def _resumed(checkpoint: UPath | Path, run: str) -> _State | None:
    """The state in `checkpoint`, or None where there is none, or one of another run."""
    try:
        arrays = unpacked(checkpoint)
        if str(arrays["run"]) != run:
            return None
        return _State(arrays["centroids"], history_of(arrays), arrays["best"], int(arrays["best_iteration"]))
    except (MissingInput, DamagedArtifact, KeyError):
        return None


def _unit(vectors: Float32) -> Float32:
    wide = vectors.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide, axis=1, keepdims=True), dtype=np.float32)
