"""Small sets with what real ones have: clusters, a modality gap, images that repeat, an image in no list."""

from dataclasses import dataclass

import faiss
import numpy as np
from unit_vectors import unit

from paired_index_assets.quality.candidates import Candidate, faiss_scan
from paired_index_assets.quality.truth import GroundTruth, ground_truth


@dataclass(frozen=True)
class World:
    images: np.ndarray
    queries: np.ndarray
    centroids: np.ndarray
    lists: np.ndarray
    truth: GroundTruth

    @property
    def nlist(self) -> int:
        return len(self.centroids)

    def quantizer(self) -> faiss.IndexFlatIP:
        quantizer = faiss.IndexFlatIP(self.images.shape[1])
        quantizer.add(self.centroids)
        return quantizer

    def probe(self, queries: np.ndarray, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        return self.quantizer().search(np.ascontiguousarray(queries), nprobe)

    def filled(self, index: faiss.IndexIVF) -> faiss.IndexIVF:
        """`index` trained on the images, with each in its list."""
        inside = np.flatnonzero(self.lists >= 0)
        index.train(self.images[inside])
        vectors, lists = np.ascontiguousarray(self.images[inside]), np.ascontiguousarray(self.lists[inside])
        index.add_core(len(inside), faiss.swig_ptr(vectors), faiss.swig_ptr(inside), faiss.swig_ptr(lists))
        return index

    def scalar(self, kind: int = faiss.ScalarQuantizer.QT_4bit) -> faiss.IndexIVF:
        d = self.images.shape[1]
        return self.filled(faiss.IndexIVFScalarQuantizer(self.quantizer(), d, self.nlist, kind, faiss.METRIC_INNER_PRODUCT, False))

    def flat(self) -> faiss.IndexIVF:
        return self.filled(faiss.IndexIVFFlat(self.quantizer(), self.images.shape[1], self.nlist, faiss.METRIC_INNER_PRODUCT))

    def candidate(self, index: faiss.IndexIVF | None, name: str = "kmeans, centroids, QT_4bit faiss") -> Candidate:
        scan = None if index is None else faiss_scan(index)
        return Candidate(name, "kmeans", "QT_4bit faiss", self.nlist, self.lists, self.probe, scan, 16, 1.5)


def make_world(
    seed: int = 0, images: int = 1500, queries: int = 60, nlist: int = 24, d: int = 32, repeats: int = 40, left_out: int = 5
) -> World:
    rng = np.random.default_rng(seed)
    topics = rng.normal(size=(nlist, d))
    vectors = unit(topics[rng.integers(0, nlist, images)] + 0.7 * rng.normal(size=(images, d)))
    vectors[images - repeats :] = vectors[rng.integers(0, max(1, images // 50), repeats)]  # byte-equal images
    gap = 0.6 * rng.normal(size=d)
    asked = unit(vectors[rng.integers(0, images, queries)] + 0.15 * rng.normal(size=(queries, d)) + gap / np.linalg.norm(gap))
    centroids = unit(topics)
    lists = (vectors @ centroids.T).argmax(1).astype(np.int64)
    lists[:left_out] = -1
    return World(vectors, asked, centroids, lists, ground_truth(asked, vectors))
