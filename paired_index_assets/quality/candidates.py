"""What can be measured: an index as its lists, its order of probing, and its scores by stored codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import faiss
import numpy as np

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Float32, Int64, UInt8

ADD_ROWS = 1 << 16  # rows handed to faiss at once

Probe = Callable[[Float32, int], tuple[Float32, Int64]]
"""(queries (nq, d), nprobe) -> (coarse inner products (nq, nprobe), list numbers (nq, nprobe), best first; -1: no list)."""
Scan = Callable[[Float32, int, Int64, Float32], Int64]
"""(queries (nq, d), k, lists (nq, p), -1 where none, coarse (nq, p)) -> image ids (nq, k), best first; -1 where there are no more."""


@dataclass(frozen=True)
class Candidate:
    """An index to be measured: which images its lists hold, in which order it probes them, and how it scores what it probes.

    `list_of_image` (images,): -1 for an image in no list. `scan` None measures coverage only. `codec` names what is stored a vector,
    with the way it was rounded; `bytes_per_vector` its code, without the id.
    levels of the coarse quantizer, and `coarse_dots` the centroids it compares with a query (0: nlist); learned: captions taught which lists
    it probes; `nprobe` what the index asks for.
    """

    name: str
    method: str
    codec: str
    nlist: int
    list_of_image: Int64
    probe: Probe
    scan: Scan | None = None
    bytes_per_vector: int = 0
    build_seconds: float = 0.0
    levels: int = 1
    learned: bool = False
    coarse_dots: int = 0
    nprobe: int | None = None

    def list_sizes(self) -> Int64:
        return np.bincount(self.list_of_image[self.list_of_image >= 0], minlength=self.nlist).astype(np.int64)


class Codec(Protocol):
    """The part of `codes.codec.TrainedCodec` that names it."""

    @property
    def name(self) -> str: ...
    @property
    def rounding(self) -> str: ...
    @property
    def code_size(self) -> int: ...
    @property
    def axes(self) -> str: ...
    def transform_queries(self, queries: Float32, /) -> Float32: ...


class Trained(Protocol):
    """The part of `trained.artifact.TrainedIndex` that a measurement needs (that room imports this one)."""

    @property
    def method(self) -> str: ...
    @property
    def nlist(self) -> int: ...
    @property
    def codec(self) -> Codec: ...
    @property
    def levels(self) -> int: ...
    @property
    def learned(self) -> bool: ...
    @property
    def coarse_dots(self) -> int: ...
    @property
    def nprobe(self) -> int: ...
    def probe(self, queries: Float32, nprobe: int, /, *, widen: bool = True) -> tuple[Float32, Int64]: ...
    def empty_index(self) -> Any: ...


def candidate_from(
    trained: Trained, lists: Int64, codes: UInt8 | None, *, name: str | None = None, build_seconds: float = 0.0
) -> Candidate:
    """A trained index holding images that were encoded once: (lists (n,) int64, codes (n, code_size) uint8) of `trained.encode(images)`.

    Image i gets id i. List -1 leaves an image out. codes None measures coverage only.
    """
    codec = f"{trained.codec.name} {trained.codec.axes or trained.codec.rounding}"
    kind = f"{trained.nlist:,} lists{' in two levels' if trained.levels == 2 else ''}{', learned routing' if trained.learned else ''}"
    return Candidate(
        name=name or f"{trained.method}, {kind}, {codec}",
        method=trained.method,
        codec=codec,
        nlist=trained.nlist,
        list_of_image=lists,
        probe=partial(trained.probe, widen=False),  # the widest setting must not decide what the others look in
        scan=None if codes is None else faiss_scan(filled(ivf_of(trained.empty_index()), lists, codes), trained.codec.transform_queries),
        bytes_per_vector=trained.codec.code_size,
        build_seconds=build_seconds,
        levels=trained.levels,
        learned=trained.learned,
        coarse_dots=trained.coarse_dots,
        nprobe=trained.nprobe,
    )


def filled(index: Any, lists: Int64, codes: UInt8) -> Any:
    """A trained empty faiss IVF with codes put in lists, ids = row numbers; rows of list -1 are left out. Returns `index`."""
    if codes.shape != (len(lists), index.code_size) or lists.max(initial=-1) >= index.nlist:
        raise BadInput(
            f"codes {codes.shape} for {len(lists)} vectors in lists up to {lists.max(initial=-1)}; "
            f"expected ({len(lists)}, {index.code_size}) and lists below {index.nlist}"
        )
    number_bytes = index.coarse_code_size()
    for start in range(0, len(lists), ADD_ROWS):
        ids = start + np.flatnonzero(lists[start : start + ADD_ROWS] >= 0)
        numbers = lists[ids].astype("<i8")[:, None].view(np.uint8)[:, :number_bytes]
        index.add_sa_codes(np.hstack([numbers, codes[ids]]), ids)
    return index


def faiss_scan(index: Any, transform: Callable[[Float32], Float32] = np.asarray) -> Scan:
    """Scan with a faiss IVF over inner products whose ids are row numbers; `transform` of queries comes first."""

    def scan(queries: Float32, k: int, lists: Int64, coarse: Float32) -> Int64:
        queries, lists = np.ascontiguousarray(transform(queries), np.float32), np.ascontiguousarray(lists, np.int64)
        coarse = np.ascontiguousarray(coarse, np.float32)
        scores, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        parameters = faiss.SearchParametersIVF()  # not index.nprobe: another thread may be measuring with it
        parameters.nprobe = lists.shape[1]
        index.search_preassigned_c(
            len(queries),
            faiss.swig_ptr(queries),
            k,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(coarse),
            faiss.swig_ptr(scores),
            faiss.swig_ptr(ids),
            False,
            parameters,
        )
        return ids

    return scan
