"""Whether a landed file that looks new is new: the sha256 of its rows decides, before anything is encoded again.

A stamp tells that a file may be another one. A copied build (other inodes, other times), a touched file and a file that was fetched
again look changed and are not.
"""

from __future__ import annotations

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile, digest_of_rows


class LandedContents:
    """Reads each file once, however often it is asked for."""

    def __init__(self) -> None:
        self._digests: dict[tuple[int, str], str | None] = {}

    def is_the_same(self, file: CatalogFile, landed: LandedFile, content: str) -> bool:
        """Whether the rows that `file` names have the sha256 `content`; False for a file that is not what the catalog says, or gone."""
        key = (file.file_id, landed.stamp)
        if key not in self._digests:
            try:
                self._digests[key] = digest_of_rows(file, landed.path) if landed.size == file.bytes else None
            except (BadInput, MissingInput):
                self._digests[key] = None
        return self._digests[key] == content
