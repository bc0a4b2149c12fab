"""`RoutingTable`: one row and one bias a list; lists are probed in descending order of ``weights @ query + bias``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.rows import Float32, Int64


@dataclass(frozen=True)
class RoutingTable:
    """Weights (nlist, d) and bias (nlist,), float32; temperature and list sizes are folded in."""

    weights: Float32
    bias: Float32

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or self.bias.shape != self.weights.shape[:1]:
            found = f"{self.weights.shape} and {self.bias.shape}"
            raise BadInput(f"routing table: expected weights (nlist, d) and bias (nlist,), found {found}")

    def probe(self, queries: Float32, nprobe: int) -> tuple[Float32, Int64]:
        """Scores (nq, nprobe), descending, and the lists to look in, for `queries` (nq, d), which should be unit vectors as in training."""
        nprobe = min(nprobe, len(self.bias))
        one = np.ones((len(queries), 1), np.float32)
        return exact_neighbors(np.hstack([queries, one]).astype(np.float32), self._extended, nprobe)

    @property
    def _extended(self) -> Float32:
        return np.hstack([self.weights, self.bias[:, None]])

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> RoutingTable:
        return cls(arrays["weights"], arrays["bias"])
