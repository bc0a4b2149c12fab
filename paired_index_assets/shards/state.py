"""What the disk says about the shards of a build: which are finished, which would be made otherwise now, which wait.

Nothing is remembered between calls, so nothing can be remembered wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import Listing, is_complete
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Int64
from paired_index_assets.shards.encode import kept_segment
from paired_index_assets.shards.record import finished_record, read_failure
from paired_index_assets.shards.removals import read_removed, removed_version


@dataclass(frozen=True)
class ShardState:
    """`current`: a build would leave it alone. `stale`: everything is there to build it. `waiting`: files have not landed."""

    shard: int
    state: Literal["current", "stale", "waiting"]
    why: str  # one line; empty for a current shard


def shard_states(
    root: BuildRoot, codec: str, trained: str, catalog: Catalog, listing: Listing, *, removed: Int64 | None = None
) -> list[ShardState]:
    """The state of every shard, for the trained index of fingerprint `trained` and files as listed (landed.list_folder)."""
    removed = read_removed(root, catalog.data_set) if removed is None else np.unique(removed)
    return [_state(root, codec, trained, catalog, listing, removed, shard) for shard in range(catalog.shards)]


def stale_shards(
    root: BuildRoot, codec: str, trained: str, catalog: Catalog, listing: Listing, *, removed: Int64 | None = None
) -> list[int]:
    """The shards a rebuild would make or change now, ascending; waiting ones are not among them."""
    states = shard_states(root, codec, trained, catalog, listing, removed=removed)
    return [state.shard for state in states if state.state == "stale"]


def _state(root: BuildRoot, codec: str, trained: str, catalog: Catalog, listing: Listing, removed: Int64, shard: int) -> ShardState:
    place, files = root.generation(trained).shard(codec, shard), catalog.files(shard)
    landed = [listing.get(file.name) for file in files]
    record = finished_record(place)
    version = removed_version(removed, files[0].start_row, files[-1].stop_row)
    if record is not None and record.stands_for(trained, version, files, landed):
        return ShardState(shard, "current", "")
    there = [
        kept_segment(root, trained, file, found) is not None or (found is not None and is_complete(found, catalog))
        for file, found in zip(files, landed, strict=True)
    ]
    missing = [file.name for file, ready in zip(files, there, strict=True) if not ready]
    if missing:
        return ShardState(shard, "waiting", f"{len(missing)} of {len(files)} files have not landed: {', '.join(missing)}")
    if record is None:
        faults = read_failure(place)
        return ShardState(shard, "stale", f"the last build failed: {'; '.join(faults.values())}" if faults else "not built yet")
    if record.removed != version:
        return ShardState(shard, "stale", "rows were taken down since it was built")
    mine = {file.file_id: file for file in record.files}
    changed = [f.name for f, found in zip(files, landed, strict=True) if f.file_id not in mine or not mine[f.file_id].stands_for(f, found)]
    return ShardState(shard, "stale", f"{len(changed)} files changed: {', '.join(changed)}" if changed else "files left the catalog")
