"""Files that are looked at while searches go on, to see whether they were replaced."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from upath import UPath

from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, is_local

LOOK_SECONDS = 2.0  # between two looks at a remote file: each is a request


class Watched:
    """The file at `path`, and its stamp, by `look`: at each time where it is local. A store that does not answer has not changed it."""

    def __init__(self, path: str | Path | UPath, look: Callable[[], str] | None = None) -> None:
        path = as_path(path)
        self._local = is_local(path)
        self._look = look or (lambda: stamp_of(path))
        self._stamp, self._looked = self._look(), time.monotonic()

    def stamp(self, *, now: bool = False) -> str:
        """What changes when the file is replaced, empty where there is none; `now` looks whenever the last look was."""
        if self._local:
            return self._look()
        if now or time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            try:
                self._stamp = self._look()
            except Exception:  # each file system has its own, and the next look is near
                return self._stamp
        return self._stamp
