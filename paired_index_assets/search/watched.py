"""Files that are looked at while searches go on, to see whether they were replaced."""

from __future__ import annotations

import time
from pathlib import Path

from upath import UPath

from paired_index_assets.storage import as_path, is_local, stamp_of

LOOK_SECONDS = 2.0  # between two looks at a remote file: each is a request


class Watched:
    """A file, and its stamp: looked at each time where it is local. A remote one whose store does not answer counts as unchanged."""

    def __init__(self, path: str | Path | UPath) -> None:
        self._path = as_path(path)
        self._local = is_local(self._path)
        self._stamp = stamp_of(self._path)
        self._looked = time.monotonic()

    def stamp(self, *, now: bool = False) -> str:
        """What changes when the file is replaced, empty where there is none; `now` looks whenever the last look was."""
        if self._local:
            return stamp_of(self._path)
        if now or time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._stamp = stamp_of(self._path)
            except Exception:  # each file system has its own, and the next look is near
                return self._stamp
        return self._stamp
