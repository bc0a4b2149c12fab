"""Where a file in a cache folder came from: a small JSON beside it. Only files with such a record may ever be deleted by us.

The record names the size and modification time of the file it speaks of, so that it says nothing about a file the user put there
later under the same name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from paired_index_assets.errors import PairedIndexError
from paired_index_assets.files.storage import read_json, write_json

_PREFIX, _SUFFIX = ".", ".origin.json"


@dataclass(frozen=True)
class Origin:
    source: str  # URL, or the index a lossy file was rebuilt from
    size: int
    mtime_ns: int
    lossy: bool = False


def origin_path(file: Path) -> Path:
    return file.with_name(f"{_PREFIX}{file.name}{_SUFFIX}")


def is_origin(name: str) -> bool:
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def name_of_origin(name: str) -> str:
    return name[len(_PREFIX) : -len(_SUFFIX)]


def record_origin(file: Path, finished: Path, source: str, *, lossy: bool = False) -> None:
    """Say that `file` is about to get the bytes of `finished` by a rename; the record is on disk before the file has its name."""
    facts = finished.stat()
    write_json(origin_path(file), asdict(Origin(source, facts.st_size, facts.st_mtime_ns, lossy)))


def read_origin(file: Path) -> Origin | None:
    """The origin of `file`, or None if it is not ours (no record, an unreadable one, or one of another file)."""
    try:
        origin = Origin(**read_json(origin_path(file)))
        facts = file.stat()
    except (OSError, PairedIndexError, TypeError):
        return None
    return origin if (origin.size, origin.mtime_ns) == (facts.st_size, facts.st_mtime_ns) else None


def origins_in(folder: Path) -> dict[str, Origin]:
    """Our own finished files in `folder` by name."""
    named = ((record.name[len(_PREFIX) : -len(_SUFFIX)], record) for record in folder.glob(f"{_PREFIX}*{_SUFFIX}"))
    return {name: origin for name, record in named if (origin := read_origin(record.with_name(name)))}
