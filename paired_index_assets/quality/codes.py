"""The loss of the codes alone: every image scored by its code, no list left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.progress import Progress, silent
from paired_index_assets.quality.recall import KS, RERANK, Relevant
from paired_index_assets.quality.truth import GroundTruth
from paired_index_assets.rows import Float32, Int64, Rows, UInt8


@dataclass(frozen=True)
class CodeMeasurement:
    """(ks, queries) recall by codes alone, and of the exact order of the best RERANK x k by codes (None: not measured)."""

    codec: str
    bytes_per_vector: int
    ks: tuple[int, ...]
    recall: Float32
    reranked: Float32 | None = None

    def at(self, k: int) -> Float32:
        found: Float32 = self.recall[self.ks.index(k)]
        return found


class DecodedRows:
    """Codes (n, bytes) that read as the vectors they stand for; implements `Rows`."""

    def __init__(self, codes: UInt8, decode: Callable[[UInt8], Float32], d: int) -> None:
        self.codes, self.decode, self.shape, self.dtype = codes, decode, (len(codes), d), np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, key: slice | Int64) -> np.ndarray[Any, np.dtype[Any]]:
        return self.decode(np.ascontiguousarray(self.codes[key]))


def measure_codes(
    codec: str,
    decoded: Rows,
    queries: Float32,
    truth: GroundTruth,
    *,
    bytes_per_vector: int,
    ks: Sequence[int] = KS,
    rerank: bool = False,
    device: str | None = None,
    progress: Progress = silent,
) -> CodeMeasurement:
    """Recall of the exact neighbours among `decoded` (images, d): a GEMM over decoded blocks, an order faster than a scan of the codes.

    Right for every code whose score is the inner product with the decoded vector: scalar and product quantizers, residual or not.
    """
    ks = tuple(sorted(set(ks)))
    depth = min(len(decoded), ks[-1] * (RERANK if rerank else 1))
    returned = exact_neighbors(queries, decoded, depth, device=device, progress=progress)[1]
    relevant = Relevant(truth, slice(None), ks)
    again = relevant.recall_of_returned(returned, RERANK) if rerank else None
    return CodeMeasurement(codec, bytes_per_vector, ks, relevant.recall_of_returned(returned), again)
