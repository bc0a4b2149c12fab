"""Ids that must not be returned: those of the takedown log, seen as soon as it is written, and those a caller adds."""

from __future__ import annotations

import threading

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.files.watched import Watched
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Int64
from paired_index_assets.shards.takedown import log_stamp, read_removed


class RemovedIds:
    """The takedown log of a build as a faiss selector; the file is looked at in each search (a remote one as `Watched` does) and read when it
    has changed."""

    def __init__(self, build: BuildRoot) -> None:
        self._build, self._log = build, Watched(build.removed, lambda: log_stamp(build))
        self._lock = threading.Lock()
        self._read: tuple[str, Int64, faiss.IDSelector | None] | None = None
        self._current()

    @property
    def ids(self) -> Int64:
        """(n,) ascending."""
        return self._current()[0]

    def selector(self, also: npt.ArrayLike | None = None) -> faiss.IDSelector | None:
        """What lets every id through but those; None lets all through. Raises BadInput if `also` is not a list of ids."""
        ids, selector = self._current()
        if also is None:
            return selector
        more = np.asarray(also)
        if more.ndim != 1 or not (np.issubdtype(more.dtype, np.integer) or more.size == 0):
            raise BadInput(f"exclude: expected a list of ids, found shape {more.shape} of {more.dtype}")
        return _none_of(np.union1d(ids, more.astype(np.int64)))

    def _current(self) -> tuple[Int64, faiss.IDSelector | None]:
        stamp = self._log.stamp()
        read = self._read
        if read is None or read[0] != stamp:
            with self._lock:
                ids = read_removed(self._build)
                read = self._read = (stamp, ids, _none_of(ids))
        return read[1], read[2]


def _none_of(ids: Int64) -> faiss.IDSelector | None:
    return faiss.IDSelectorNot(faiss.IDSelectorBatch(np.ascontiguousarray(ids))) if len(ids) else None
