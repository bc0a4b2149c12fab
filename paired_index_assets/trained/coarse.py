"""The coarse quantizer: which lists a query looks in, by one level of centroids or by two.

One level is faiss's IndexFlatIP over the centroids. Two levels are an IndexIVFFlat over them: groups of some GROUP_MEMBERS lists, found by
k-means of the centroids, of which a query looks in `nprobe`; only the centroids in those are compared with it. Lists are filled by exact
assignment to the centroids in either case: the levels decide what a query sees, never where a vector is. So do places that captions
taught (the room `routing`), which may stand for those of centroids and groups.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from faiss.contrib.ivf_tools import add_preassigned

from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Float32, Int64

GROUP_ITERATIONS = 20
GROUP_MEMBERS = 32  # two blocks of the search's kernel; small groups are what a query can choose well among
MOST_GROUPS = 8  # times sqrt(nlist): a query is compared with each of them
GROUPS_PROBED = 1 / 2  # of all, where nobody measured how many it takes (contest.probing)


@dataclass(frozen=True)
class Groups:
    """centroids (groups, d) float32 of groups of lists, the group of each list (nlist,) int64, and how many a query looks in."""

    centroids: Float32
    of_list: Int64
    nprobe: int

    @property
    def dots(self) -> int:
        """Inner products a query takes, on the mean over groups."""
        return len(self.centroids) + round(len(self.of_list) * self.nprobe / len(self.centroids))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {"centroids": self.centroids, "of_list": self.of_list, "nprobe": np.array([self.nprobe], np.int64)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Groups:
        """Undo `arrays`. Raises KeyError for an array that is not there."""
        return cls(arrays["centroids"], arrays["of_list"], int(arrays["nprobe"][0]))


def group_lists(centroids: Float32, *, seed: int, probed: float = GROUPS_PROBED) -> Groups:
    """Groups of the lists of `centroids` (nlist, d), `probed` of them looked in; a power of two of them."""
    from paired_index_assets.clustering.kmeans import Training, train_kmeans  # brings torch, of which a search has no need
    from paired_index_assets.neighbors.exact import assign

    nlist = len(centroids)
    root = math.sqrt(nlist)
    count = 2 ** round(math.log2(max(root, min(nlist / GROUP_MEMBERS, MOST_GROUPS * root))))
    groups = train_kmeans(centroids, count, Training(GROUP_ITERATIONS, seed)).centroids
    return Groups(groups, assign(centroids, groups), max(1, math.ceil(probed * count)))


def quantizer_of(places: Float32, groups: Groups | None, group_places: Float32 | None) -> faiss.Index:
    """The faiss index over `places` (nlist, columns) of the lists: flat, or in `groups` whose own places are (groups, columns)."""
    columns = places.shape[1]
    flat = faiss.IndexFlatIP(columns)
    if groups is None or group_places is None:
        flat.add(np.ascontiguousarray(places))
        return flat
    if groups.of_list.shape != (len(places),) or not 0 <= groups.of_list.min() <= groups.of_list.max() < len(group_places):
        raise BadInput(f"groups of {groups.of_list.shape} lists; expected one below {len(group_places)} for each of {len(places)}")
    flat.add(np.ascontiguousarray(group_places))
    quantizer = faiss.IndexIVFFlat(flat, columns, len(group_places), faiss.METRIC_INNER_PRODUCT)
    quantizer.is_trained = True
    add_preassigned(quantizer, np.ascontiguousarray(places), groups.of_list)
    quantizer.nprobe = groups.nprobe
    return quantizer


def probe(quantizer: faiss.Index, queries: Float32, nprobe: int, *, widen: bool = True) -> tuple[Float32, Int64]:
    """Scores (nq, nprobe), descending, and lists, -1 where there are no more, for transformed `queries` (nq, columns).

    As many groups as the quantizer says, which is what a stock reader looks in; all of them for an `nprobe` above half the lists that
    those hold on average, so that asking for every list gives every list. Without `widen` only where every list is asked for.
    """
    quantizer = faiss.downcast_index(quantizer)
    parameters = None
    much = 2 * nprobe * quantizer.nlist > quantizer.nprobe * quantizer.ntotal if isinstance(quantizer, faiss.IndexIVF) else False
    if much and (widen or nprobe >= quantizer.ntotal):
        parameters = faiss.SearchParametersIVF(nprobe=quantizer.nlist)
    scores, lists = quantizer.search(np.ascontiguousarray(queries), min(nprobe, quantizer.ntotal), params=parameters)
    return scores, lists
