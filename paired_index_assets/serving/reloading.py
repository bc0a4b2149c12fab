"""A build that is followed while it is rebuilt: a search sees the old set whole or the new set whole.

When another generation is served, or a shard of the served one was finished, the new set is opened beside the old one, in a thread of
its own, and takes its place only when every shard is open; until then, and if it cannot be opened, the old set answers from files it
still has mapped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from paired_index_assets.errors import PairedIndexError
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.watched import Watched
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.shardset import ServedStamp

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 2.0  # after a set that could not be opened, most likely because a rebuild is under way

Opened = TypeVar("Opened")


class Reloading(Generic[Opened]):
    """What `opener` opens (it is given what is open already), opened again when `watched` changes. `problem` says why the last try failed, None if it did not."""

    def __init__(self, opener: Callable[[Opened | None], Opened], watched: Watched) -> None:
        self._opener, self._watched = opener, watched
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._opened = opener(None)
        self._not_before = 0.0
        self.problem: str | None = None
        self.reloads = 0

    def current(self) -> Opened:
        """The set to use for one request from start to end. Starts opening a newer one if there is one; never waits for it."""
        if self._look() != self._stamp and time.monotonic() >= self._not_before and self._lock.acquire(blocking=False):
            threading.Thread(target=self._reload, name="reload", daemon=True).start()
        return self._opened

    def refresh(self) -> None:
        """Open the newer set now, if there is one, and wait for it. Raises what the opener raises; the old set stays then."""
        with self._lock:
            if self._look(now=True) != self._stamp:
                self._open()

    def _reload(self) -> None:
        try:
            self._open()
        except (PairedIndexError, OSError) as error:
            LOG.warning("a newer set cannot be opened yet, the old one goes on: %s", error)
        finally:
            self._lock.release()

    def _open(self) -> None:
        stamp = self._look(now=True)
        try:
            self._opened = self._opener(self._opened)
        except (PairedIndexError, OSError) as error:
            self.problem, self._not_before = str(error), time.monotonic() + RETRY_SECONDS
            raise
        self._stamp, self.problem = stamp, None
        self.reloads += 1

    def _look(self, *, now: bool = False) -> str:
        return self._watched.stamp(now=now)


def watched(build: BuildRoot) -> Watched:
    """What changes when there may be something new to serve: shards, or the embeddings that their rows are described with."""
    served = ServedStamp(build)
    return Watched(build.root, lambda: f"{served()} {stamp_of(build.image_set)}")
