"""Every index that could be used, measured on the same captions: lists x levels x routing x codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paired_index_assets.clustering.validation import Validation
from paired_index_assets.codes.codec import TrainedCodec
from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import assign, exact_neighbors
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.candidates import candidate_from
from paired_index_assets.quality.codes import CodeMeasurement, DecodedRows, measure_codes
from paired_index_assets.quality.intervals import Interval, difference_interval
from paired_index_assets.quality.recall import NPROBES, SHARES, Measurement, measure
from paired_index_assets.quality.truth import GroundTruth, ground_truth
from paired_index_assets.rows import Bool, Float32, Int64, Rows, Selected, UInt8
from paired_index_assets.trained.artifact import TrainedIndex

ENCODE_ROWS = 1 << 15
VALIDATION_NEIGHBORS = 10
EQUAL = 0.005  # recall that a coarse quantizer of fewer inner products, or one that nobody taught, may cost
JUDGED_IMAGES = 1_000_000  # images that candidates are measured on: recall at a share scanned hardly moves beyond, and all stays in memory


def fair_share(nlist: int) -> float:
    """The share of vectors scanned at which candidates are compared: 1 %, or eight lists where lists are so few that 1 % is less."""
    return min(1.0, max(0.01, 8 / nlist))


@dataclass(frozen=True)
class EvaluationData:
    """What every candidate of a build is measured on: images and captions (n, d) float16/32, aligned; valid (n,) which images may be
    found. `seed` draws samples of them; `device` and `progress` are of the searches.
    """

    images: Rows
    captions: Rows
    valid: Bool
    seed: int
    device: str | None = None
    progress: Progress = silent

    def image_ids(self) -> Int64:
        """Ascending ids of the images that are measured on: all valid ones, or a seeded sample of JUDGED_IMAGES."""
        ids = np.flatnonzero(self.valid)
        if len(ids) > JUDGED_IMAGES:
            ids = np.sort(np.random.default_rng(self.seed).choice(ids, JUDGED_IMAGES, replace=False))
        return ids.astype(np.int64)

    def queries(self, captions: Int64) -> Float32:
        """(m, d) float32, the captions with these row numbers."""
        return np.asarray(self.captions[captions], np.float32)


def validation_of(data: EvaluationData, held_out: Int64, share: float) -> Validation:
    """What centroids are judged by while they are trained: captions `held_out` and their ten best of the images candidates are judged on.

    held_out (m,) int64 row numbers of captions; `share` of the vectors may be scanned.
    """
    shown, queries = Selected(data.images, data.image_ids()), data.queries(held_out)
    best = exact_neighbors(queries, shown, min(VALIDATION_NEIGHBORS, len(shown)), device=data.device, progress=data.progress)[1]
    rows, places = np.unique(best, return_inverse=True)  # each image is read once, in order
    return Validation(queries, shown[rows].astype(np.float32)[places.reshape(best.shape)], scanned=share)


@dataclass
class Contest:
    """The images, queries and truth that all candidates share. Images are assigned once a set of centroids, encoded once a codec.

    images (n, d), every row valid; queries (nq, d) float32 with their `truth` among these images.
    """

    images: Rows
    queries: Float32
    truth: GroundTruth
    device: str | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.truth):
            raise BadInput(f"contest: {len(self.queries)} queries and the truth of {len(self.truth)}; expected the same captions")
        self._lists: dict[tuple[str, int], Int64] = {}
        self._codes: dict[tuple[str, str, str], UInt8] = {}

    @classmethod
    def of(cls, data: EvaluationData, captions: Int64) -> Contest:
        """The contest that the captions with these row numbers decide; their exact neighbors are found first."""
        shown, queries = Selected(data.images, data.image_ids()), data.queries(captions)
        truth = ground_truth(queries, shown, device=data.device, progress=data.progress)
        return cls(shown, queries, truth, data.device, data.progress)

    def lists_of(self, method: str, centroids: Float32) -> Int64:
        """(n,) the list of each image; one set of centroids a method and number of lists."""
        key = method, len(centroids)
        if key not in self._lists:
            self._lists[key] = assign(self.images, centroids, device=self.device)
        return self._lists[key]

    def measured(
        self, trained: TrainedIndex, *, nprobes: Sequence[int] = NPROBES, shares: Sequence[float] = SHARES, rerank: bool = False
    ) -> Measurement:
        """At `nprobes` and at `shares` of the vectors scanned; `rerank` as `quality.recall.measure` does it."""
        seconds = trained.evidence.get("build_seconds", 0.0)
        lists = self.lists_of(trained.method, trained.centroids)
        return measure(
            candidate_from(trained, lists, self._codes_of(trained.codec), build_seconds=seconds),
            self.queries,
            self.truth,
            nprobes=nprobes,
            shares=shares,
            rerank=rerank,
            progress=self.progress,
        )

    def codes_alone(self, codec: TrainedCodec) -> CodeMeasurement:
        """Every image scored by its code: the loss of the codes without that of the lists."""
        rows = DecodedRows(self._codes_of(codec), codec.decode, codec.d)
        return measure_codes(
            f"{codec.name} {codec.axes or codec.rounding}",
            rows,
            self.queries,
            self.truth,
            bytes_per_vector=codec.code_size,
            device=self.device,
        )

    def _codes_of(self, codec: TrainedCodec) -> UInt8:
        key = (codec.name, codec.rounding, codec.axes)
        if key not in self._codes:
            codes = np.empty((len(self.images), codec.code_size), np.uint8)
            for start in range(0, len(self.images), ENCODE_ROWS):
                codes[start : start + ENCODE_ROWS] = codec.encode(self.images[start : start + ENCODE_ROWS])
                self.progress("encoding to compare", min(start + ENCODE_ROWS, len(self.images)), len(self.images))
            self._codes[key] = codes
        return self._codes[key]


@dataclass(frozen=True)
class Verdict:
    """Which candidate the shards use, and by how much it beats the baseline: recall@k of the product at an equal share scanned."""

    winner: Measurement
    baseline: Measurement
    gain: Interval
    k: int
    share: float

    @property
    def regression(self) -> bool:
        """Worse than the baseline by more than the interval."""
        return self.gain.high < 0

    def __str__(self) -> str:
        if self.winner is self.baseline:
            return f"{self.winner.name} is the baseline and nothing that was tried beats it"
        return (
            f"{self.winner.name} finds {self.gain.mean:+.4f} recall@{self.k} ({self.gain.low:+.4f} to {self.gain.high:+.4f}) over "
            f"{self.baseline.name} at {self.share:.2%} of the vectors scanned, on {self.winner.scanned.shape[1]} validation captions"
        )


def choose(measurements: Sequence[Measurement], baseline: Measurement, *, share: float, seed: int, k: int = 10) -> Verdict:
    """Of the measurements within EQUAL of the best mean recall@k at `share` scanned those that compare a query with fewest centroids; of
    these, where there are any, those without learned routing; and of these the best (the first of equals), against `baseline` query by query.
    """
    means = {m.name: float(m.recall(k, share=share).mean()) for m in measurements}
    near = [m for m in measurements if means[m.name] >= max(means.values()) - EQUAL]
    simplest = min((m.coarse_dots, m.learned) for m in near)
    best = max((m for m in near if (m.coarse_dots, m.learned) == simplest), key=lambda m: means[m.name])
    return Verdict(best, baseline, difference_interval(best.recall(k, share=share), baseline.recall(k, share=share), seed=seed), k, share)
