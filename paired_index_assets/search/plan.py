"""What the kernel knows of an open build: one record of numbers and addresses.

A record and not a dozen arrays, because handing an array to compiled code costs a tenth of a microsecond, and one query takes some tens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.rows import Float32, UInt8
from paired_index_assets.search.blocks import QUAD, in_blocks
from paired_index_assets.search.dots import LANES
from paired_index_assets.search.mapped import MappedLists, at_address

PLAN = np.dtype(
    [
        (name, np.int64)
        for name in (
            "d",  # of queries
            "width",  # of coded vectors, after the transform
            "transform",  # float32 (width, d), 0 where there is none
            "offset",  # float32 (width,), 0 where there is none
            "nlist",
            "groups",  # of lists: the outer level of a two-level quantizer, 1 where there is only one level
            "group_probe",  # groups a query looks in
            "group_rows",  # float32 (groups, width), 0 where there is one
            "member_rows",  # int64 (groups,): where the centroids of a group are, float32 (size, width)
            "member_lists",  # int64 (groups,): which lists they are of, int64 (size,); 0: in order
            "member_sizes",  # int64 (groups,)
            "quick_rows",  # int64 (groups,): the centroids of a group in whole numbers, in `blocks`; 0: not made
            "quick_step",  # float64 (width,): of these numbers
            "quick_quads",  # a centroid
            "pieces",  # of a list: one a shard
            "starts",  # int64 (nlist, pieces): where the codes of a list are, its ids behind them
            "sizes",  # int64 (nlist, pieces): vectors
            "asked",  # int32 (nlist,): the moment at which each list was last asked of the disk, see `ahead`
            "code_size",
            "bits",  # of a level
            "stride",  # bytes of a plane of weights
            "step",  # float64 (width,): level c of a dimension decodes to first + c step
            "first",  # float64 (width,)
        )
    ]
)
BITS = {faiss.ScalarQuantizer.QT_4bit: 4, faiss.ScalarQuantizer.QT_6bit: 6, faiss.ScalarQuantizer.QT_8bit: 8}
QUICK_BYTES = 128 << 20  # of centroids in bytes: 131,072 of width 768 fit; beyond, the mapped float32 ones are read
ROWS_AT_ONCE = 4096


class Plan:
    """`record` (1,) of PLAN for an index file of faiss and the mapped lists of its shards; keeps alive what it points to."""

    def __init__(self, index: faiss.Index, shards: Sequence[MappedLists]) -> None:
        ivf = ivf_of(index)
        self.record, self._kept = np.zeros(1, PLAN), [index, ivf, *shards]
        self.nlist, self.bits = ivf.nlist, _bits(ivf)
        self._set(d=index.d, width=ivf.d, nlist=ivf.nlist, code_size=ivf.code_size, bits=self.bits)
        self._transform(index)
        self._coarse(faiss.downcast_index(ivf.quantizer))
        self._codes(ivf)
        self._lists(shards)

    def _set(self, **values: int) -> None:
        for name, value in values.items():
            self.record[name] = value

    def _array(self, array: npt.NDArray[Any]) -> int:
        """Its address; it is kept as long as this is."""
        self._kept.append(array)
        return int(array.ctypes.data)

    def _transform(self, index: faiss.Index) -> None:
        if not isinstance(index, faiss.IndexPreTransform):
            return
        if index.chain.size() != 1:
            raise DamagedArtifact(f"trained index: {index.chain.size()} transforms before its lists, expected one; train it again")
        linear = faiss.downcast_VectorTransform(index.chain.at(0))
        self._set(transform=self._array(faiss.vector_to_array(linear.A)))
        if linear.have_bias:
            self._set(offset=self._array(faiss.vector_to_array(linear.b)))

    def _coarse(self, quantizer: faiss.Index) -> None:
        self._kept.append(quantizer)
        if isinstance(quantizer, faiss.IndexFlat):
            rows, lists, sizes = [_address(quantizer.get_xb())], [0], [quantizer.ntotal]
            self._set(groups=1, group_probe=1)
        else:
            flat, members = faiss.downcast_index(quantizer.quantizer), quantizer.invlists
            self._kept.append(flat)
            sizes = [members.list_size(group) for group in range(quantizer.nlist)]
            rows = [_address(members.get_codes(group)) if sizes[group] else 0 for group in range(quantizer.nlist)]
            lists = [_address(members.get_ids(group)) if sizes[group] else 0 for group in range(quantizer.nlist)]
            self._set(groups=quantizer.nlist, group_probe=min(quantizer.nprobe, quantizer.nlist), group_rows=_address(flat.get_xb()))
        for name, values in (("member_rows", rows), ("member_lists", lists), ("member_sizes", sizes)):
            self._set(**{name: self._array(np.array(values, np.int64))})
        self._quick(rows, sizes)

    def _quick(self, rows: Sequence[int], sizes: Sequence[int]) -> None:
        """The centroids once more, in bytes: a quarter of what has to be read, where that is little memory."""
        width = int(self.record["width"][0])
        quads = -(-width // QUAD)
        if sum(sizes) * width > QUICK_BYTES:
            return
        centroids = [at_address(at, 4 * size * width).view(np.float32).reshape(size, width) for at, size in zip(rows, sizes, strict=True)]
        whole = [group for group in centroids if len(group)]
        low = np.min([group.min(0) for group in whole], axis=0).astype(np.float64)
        high = np.max([group.max(0) for group in whole], axis=0).astype(np.float64)
        step = np.maximum((high - low) / 255, np.finfo(np.float32).tiny)
        blocks = [in_blocks(_in_bytes(group, low, step)) for group in centroids]
        self._set(quick_rows=self._array(np.array([self._array(block) for block in blocks], np.int64)))
        self._set(quick_step=self._array(step), quick_quads=quads)

    def _codes(self, ivf: faiss.IndexIVFScalarQuantizer) -> None:
        low, width = faiss.vector_to_array(ivf.sq.trained).astype(np.float64).reshape(2, -1)
        step = width / ((1 << self.bits) - 1)  # as faiss decodes: low + (c + .5) / top * width
        planes_of = ivf.code_size if self.bits != 6 else ivf.d
        self._set(step=self._array(step), first=self._array(low + step / 2), stride=-(-planes_of // LANES) * LANES)

    def _lists(self, shards: Sequence[MappedLists]) -> None:
        starts = np.ascontiguousarray(np.stack([shard.starts for shard in shards], axis=1))
        sizes = np.ascontiguousarray(np.stack([shard.sizes for shard in shards], axis=1))
        self._set(pieces=len(shards), starts=self._array(starts), sizes=self._array(sizes))
        self._set(asked=self._array(np.zeros(self.nlist, np.int32)))


def _bits(ivf: faiss.IndexIVFScalarQuantizer) -> int:
    if not isinstance(ivf, faiss.IndexIVFScalarQuantizer) or ivf.sq.qtype not in BITS or ivf.by_residual:
        raise DamagedArtifact(
            f"trained index: a {type(ivf).__name__}, expected scalar codes of 4, 6 or 8 bits, not residual; train it again"
        )
    return BITS[ivf.sq.qtype]


def _address(pointer: Any) -> int:
    return int(pointer.this) if hasattr(pointer, "this") else int(pointer)


def _in_bytes(rows: Float32, low: npt.NDArray[Any], step: npt.NDArray[Any]) -> UInt8:
    """The nearest of 256 levels, `step` apart from `low` on, of each number."""
    levels = np.empty(rows.shape, np.uint8)
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        levels[some] = np.clip(np.rint((rows[some] - low) / step), 0, 255)
    return levels
