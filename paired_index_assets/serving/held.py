"""A file as it was when it was taken hold of, whatever becomes of its name afterwards."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import BinaryIO, cast

from upath import UPath

from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, is_local


class HeldFile:
    """One version of the file at `url`. A local one stays readable when it is replaced or deleted, a remote one is refused then.

    A local file is held by a descriptor and read through a stream: one that somebody cuts short in place is an error, and no dead
    process. Raises FileNotFoundError.
    """

    def __init__(self, url: str | Path | UPath) -> None:
        path = as_path(url)
        self.url, self._path = str(url), path
        self._descriptor = os.open(path.path, os.O_RDONLY) if is_local(path) else None
        if self._descriptor is not None:
            weakref.finalize(self, os.close, self._descriptor)
        self._stamp = stamp_of(path)
        if not self._stamp and self._descriptor is None:
            raise FileNotFoundError(self.url)

    @property
    def is_current(self) -> bool:
        """Whether the name still means this version."""
        return stamp_of(self._path) == self._stamp

    def open(self) -> BinaryIO:
        """A stream of its own, from the start. Raises FileNotFoundError for a remote file that was replaced."""
        if self._descriptor is not None:
            return open(f"/proc/self/fd/{self._descriptor}", "rb")
        if not self.is_current:
            raise FileNotFoundError(f"{self.url}: replaced since it was opened")
        return cast(BinaryIO, self._path.open("rb"))
