"""Ids that must not be returned: those of the takedown log, seen as soon as it is written, and those a caller adds."""

from __future__ import annotations

import os
import threading

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.files.stamp import stamp_of_local
from paired_index_assets.files.storage import is_local
from paired_index_assets.files.watched import Watched
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Int64
from paired_index_assets.shards.manifest import served_data_set
from paired_index_assets.shards.removals import log_stamp, read_removed


class RemovedIds:
    """The takedown log of a build; the file is looked at in each search (a remote one as `Watched` does) and read when it has changed."""

    def __init__(self, build: BuildRoot) -> None:
        self._build, self._log = build, Watched(build.removed, lambda: log_stamp(build))
        self._local = build.removed.path if is_local(build.removed) else None
        self._data_set = served_data_set(build)
        self._lock = threading.Lock()
        self._read: tuple[str, Int64] | None = None
        self._current()

    @property
    def ids(self) -> Int64:
        """(n,) ascending."""
        return self._current()

    def also(self, more: npt.ArrayLike | None = None) -> Int64:
        """Those and `more`, ascending. Raises BadInput if that is not a list of ids."""
        ids = self._current()
        if more is None:
            return ids
        given = np.asarray(more)
        if given.ndim != 1 or not (np.issubdtype(given.dtype, np.integer) or given.size == 0):
            raise BadInput(f"exclude: expected a list of ids, found shape {given.shape} of {given.dtype}")
        return np.union1d(ids, given.astype(np.int64))

    def _stamp(self) -> str:
        """Of the log. A path of its own for a local one: this is asked in each search, which takes some tens of microseconds in all."""
        if self._local is None:
            return self._log.stamp()
        try:
            return stamp_of_local(os.stat(self._local))
        except (FileNotFoundError, NotADirectoryError):
            return ""

    def _current(self) -> Int64:
        stamp = self._stamp()
        read = self._read
        if read is None or read[0] != stamp:
            with self._lock:
                ids = np.ascontiguousarray(read_removed(self._build, self._data_set))
                read = self._read = (stamp, ids)
        return read[1]
