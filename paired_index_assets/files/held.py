"""A file as it was when it was taken hold of, whatever becomes of its name afterwards."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import BinaryIO

from upath import UPath

from paired_index_assets.files.stamp import stamp_of, stamp_of_local
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
        self.stamp = stamp_of(path) if self._descriptor is None else stamp_of_local(os.fstat(self._descriptor))
        if not self.stamp:
            raise FileNotFoundError(self.url)

    @property
    def is_current(self) -> bool:
        """Whether the name still means this version."""
        return stamp_of(self._path) == self.stamp

    def open(self) -> BinaryIO:
        """A stream of its own, from the start. Raises FileNotFoundError for a remote file that was replaced."""
        if self._descriptor is not None:
            return open(f"/proc/self/fd/{self._descriptor}", "rb")
        if not self.is_current:
            raise FileNotFoundError(f"{self.url}: replaced since it was opened")
        return self._path.open("rb")
