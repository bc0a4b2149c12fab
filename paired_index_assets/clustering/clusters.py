"""What training leaves behind: centroids, and the course of every iteration."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.storage import write_bytes
from paired_index_assets.files.tables import pack_arrays, read_arrays
from paired_index_assets.rows import Float32


@dataclass(frozen=True)
class Iteration:
    """One assignment and the update after it.

    objective: mean inner product of a caption (in plain k-means an image) with the centroid that its image was assigned to.
    imbalance: nlist * sum(size^2) / n^2 over the lists of that assignment, 1 when all are equal (faiss's imbalance_factor).
    split: lists that were empty and got half of another. seconds: of assignment and update.
    recall: share of the validation's true images found by the centroids *after* the update, NaN without a validation.
    """

    objective: float
    imbalance: float
    split: int
    seconds: float
    recall: float = float("nan")


@dataclass(frozen=True)
class Clustering:
    """Unit centroids (nlist, d) float32 of the best iteration (counted from 0), and the history of all."""

    centroids: Float32
    history: list[Iteration]
    best_iteration: int

    @property
    def faults(self) -> list[str]:
        """What keeps these centroids from making lists, in words: rows that are no unit vectors, rows that are equal to another."""
        nlist = len(self.centroids)
        off = int((~np.isclose(np.linalg.norm(self.centroids, axis=1), 1, atol=1e-4)).sum())
        equal = nlist - len(np.unique(self.centroids, axis=0))
        found = [(off, "are not unit vectors"), (equal, "are equal to another")]
        return [f"{count:,} of {nlist:,} centroids {what}" for count, what in found if count]

    def save(self, path: UPath | Path) -> None:
        write_bytes(path, packed(centroids=self.centroids, best_iteration=np.int64(self.best_iteration), **history_arrays(self.history)))

    @classmethod
    def load(cls, path: UPath | Path) -> Clustering:
        """Raises MissingInput if there is no such file, DamagedArtifact if it is not a saved clustering."""
        arrays = unpacked(path)
        try:
            return cls(arrays["centroids"], history_of(arrays), int(arrays["best_iteration"]))
        except KeyError as error:
            raise DamagedArtifact(f"{path}: holds no {error}; expected a saved clustering; delete it and train again") from error


def history_arrays(history: list[Iteration]) -> dict[str, npt.NDArray[np.float64]]:
    return {
        f"history_{field.name}": np.array([getattr(iteration, field.name) for iteration in history], dtype=np.float64)
        for field in fields(Iteration)
    }


def history_of(arrays: dict[str, npt.NDArray[Any]]) -> list[Iteration]:
    columns = {field.name: arrays[f"history_{field.name}"] for field in fields(Iteration)}
    return [
        Iteration(float(objective), float(imbalance), int(split), float(seconds), float(recall))
        for objective, imbalance, split, seconds, recall in zip(*columns.values(), strict=True)
    ]


def packed(**arrays: Any) -> bytes:
    """Arrays as the bytes of an .npz file."""
    return pack_arrays(arrays)


def unpacked(path: UPath | Path) -> dict[str, npt.NDArray[Any]]:
    """Raises MissingInput if there is no such file, DamagedArtifact if it is not an .npz of plain arrays."""
    try:
        return read_arrays(path, "delete it and train again")
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such file; train first") from error
