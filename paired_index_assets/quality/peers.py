"""Stock faiss codecs in the lists of a candidate, measured as it is measured: what a user would get without this project.

Those of about d/2 bytes a vector compete with 4-bit codes at equal memory; the others say what more bytes would bring.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.candidates import Candidate, Probe, Scan, faiss_scan
from paired_index_assets.quality.recall import Measurement, measure
from paired_index_assets.quality.truth import GroundTruth
from paired_index_assets.rows import Float32, Int64, Rows

TRAINING_ROWS = 65_536  # 256 a centroid of an 8-bit product quantizer, faiss's own limit; fewer rows train slower in faiss 1.15.1
ROTATION_ROUNDS = 10  # of faiss's 50, which take minutes on two cores
RABITQ_QUERY_BITS = 8  # scans 30 times faster than unquantized queries at the same recall (icons: .892 and .892)
ADD_ROWS = 1 << 15
NPROBES = (8,)
SHARES = (0.01,)
SEED = 1234  # faiss's own default


@dataclass(frozen=True)
class Lists:
    """The inverted lists of a candidate: unit centroids (nlist, d) and the list of each image (n,), -1 for none."""

    method: str
    centroids: Float32
    list_of_image: Int64


@dataclass(frozen=True)
class Stock:
    """An empty faiss IVF and the rotation of its vectors (None: as they are)."""

    index: Any
    rotation: Any = None


def _scalar(kind: int) -> Callable[[Lists, Float32], Stock]:
    def make(lists: Lists, training: Float32) -> Stock:
        nlist, d = lists.centroids.shape
        return Stock(faiss.IndexIVFScalarQuantizer(_quantizer(lists.centroids), d, nlist, kind, faiss.METRIC_INNER_PRODUCT, False))

    return make


def _product(lists: Lists, training: Float32) -> Stock:
    """d/2 sub-quantizers of 8 bits: the bytes of 4 bits a dimension. Not residual, as the scalar codes."""
    nlist, d = lists.centroids.shape
    index = faiss.IndexIVFPQ(_quantizer(lists.centroids), d, nlist, _subquantizers(d), 8, faiss.METRIC_INNER_PRODUCT)
    index.by_residual = False
    return Stock(index)


def _rotated_product(lists: Lists, training: Float32) -> Stock:
    """OPQ (Ge et al. 2013) before the product quantizer."""
    d = lists.centroids.shape[1]
    rotation = faiss.OPQMatrix(d, _subquantizers(d))
    rotation.niter = ROTATION_ROUNDS
    rotation.train(training)
    return Stock(_product(_rotated(lists, rotation), training).index, rotation)


def _rabitq(bits: int) -> Callable[[Lists, Float32], Stock]:
    """RaBitQ (Gao and Long 2024, 2025) on residuals, after the random rotation that it assumes; queries of 8 bits."""

    def make(lists: Lists, training: Float32) -> Stock:
        nlist, d = lists.centroids.shape
        rotation = faiss.RandomRotationMatrix(d, d)
        rotation.init(SEED)
        index = faiss.IndexIVFRaBitQ(_quantizer(_rotated(lists, rotation).centroids), d, nlist, faiss.METRIC_INNER_PRODUCT, True, bits)
        index.qb = RABITQ_QUERY_BITS
        return Stock(index, rotation)

    return make


PEERS: dict[str, Callable[[Lists, Float32], Stock]] = {
    "faiss QT_4bit": _scalar(faiss.ScalarQuantizer.QT_4bit),
    "faiss QT_6bit": _scalar(faiss.ScalarQuantizer.QT_6bit),
    "faiss QT_8bit": _scalar(faiss.ScalarQuantizer.QT_8bit),
    "faiss PQ, d/2 bytes": _product,
    "faiss OPQ+PQ, d/2 bytes": _rotated_product,
    "faiss RaBitQ 3-bit": _rabitq(3),
    "faiss RaBitQ 4-bit": _rabitq(4),
}


def peer_candidate(name: str, lists: Lists, images: Rows, *, probe: Probe | None = None, progress: Progress = silent) -> Candidate:
    """The stock codec `name` of PEERS trained on a sample of `images` (n, d) and filled with all that are in a list; ids = row numbers.

    probe: order of probing, with coarse scores that are inner products with the centroids; by the centroids themselves if None.
    Seeded. build_seconds: training and encoding. Raises BadInput for an unknown name or when lists and images do not fit.
    """
    if name not in PEERS:
        raise BadInput(f"peer {name!r} is unknown; there are {', '.join(PEERS)}")
    if lists.list_of_image.shape != (len(images),) or lists.centroids.shape[1] != images.shape[1]:
        raise BadInput(
            f"peer {name}: images {images.shape}, lists of {lists.list_of_image.shape} images, centroids {lists.centroids.shape}; "
            "expected a list for every image and one width"
        )
    started = time.perf_counter()
    inside = np.flatnonzero(lists.list_of_image >= 0)
    sample = np.sort(np.random.default_rng(SEED).choice(inside, min(TRAINING_ROWS, len(inside)), replace=False))
    training = np.asarray(images[sample], np.float32)
    stock = PEERS[name](lists, training)
    stock.index.train(_apply(stock, training))
    for start in range(0, len(inside), ADD_ROWS):
        ids = inside[start : start + ADD_ROWS]
        vectors = _apply(stock, np.asarray(images[ids], np.float32))
        numbers = np.ascontiguousarray(lists.list_of_image[ids])
        stock.index.add_core(len(ids), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(numbers))
        progress(f"encoding with {name}", start + len(ids), len(inside))
    return Candidate(
        name=f"{name}, lists of {lists.method}",
        method=lists.method,
        codec=name,
        nlist=len(lists.centroids),
        list_of_image=lists.list_of_image,
        probe=probe or _by_centroids(lists.centroids),
        scan=_scan(stock),
        bytes_per_vector=stock.index.code_size,
        build_seconds=time.perf_counter() - started,
    )


def measure_peers(
    lists: Lists,
    images: Rows,
    queries: Float32,
    truth: GroundTruth,
    *,
    names: Sequence[str] = tuple(PEERS),
    nprobes: Sequence[int] = NPROBES,
    shares: Sequence[float] = SHARES,
    exhaustive: bool = False,
    progress: Progress = silent,
) -> list[Measurement]:
    """Every peer in the same lists, by its codes and with the exact re-rank of the best 10 k. One index is in memory at a time.

    exhaustive: with every list probed as well (the codes alone), which costs as much as all else several times over.
    """
    return [
        measure(
            peer_candidate(name, lists, images, progress=progress),
            queries,
            truth,
            nprobes=nprobes,
            shares=shares,
            exhaustive=exhaustive,
            rerank=True,
            progress=progress,
        )
        for name in names
    ]


def _scan(stock: Stock) -> Scan:
    inner = faiss_scan(stock.index)
    return lambda queries, k, lists, coarse: inner(_apply(stock, queries), k, lists, coarse)


def _apply(stock: Stock, vectors: Float32) -> Float32:
    vectors = np.ascontiguousarray(vectors)
    rotated: Float32 = vectors if stock.rotation is None else stock.rotation.apply(vectors)
    return rotated


def _rotated(lists: Lists, rotation: Any) -> Lists:
    return Lists(lists.method, rotation.apply(np.ascontiguousarray(lists.centroids)), lists.list_of_image)


def _quantizer(centroids: Float32) -> Any:
    quantizer = faiss.IndexFlatIP(centroids.shape[1])
    quantizer.add(np.ascontiguousarray(centroids, np.float32))
    return quantizer


def _by_centroids(centroids: Float32) -> Probe:
    quantizer = _quantizer(centroids)

    def probe(queries: Float32, nprobe: int) -> tuple[Float32, Int64]:
        coarse, lists = quantizer.search(np.ascontiguousarray(queries, np.float32), nprobe)
        return coarse, lists

    return probe


def _subquantizers(d: int) -> int:
    """The number of sub-quantizers nearest below d/2 that divides d: as many bytes."""
    return next(m for m in range(max(1, d // 2), 0, -1) if d % m == 0)
