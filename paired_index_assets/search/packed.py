"""The packed layout of a build: which file it is, whether it is current, how it is made. `packed.json` is written last and names the file.

Each content has a file of its own name, so that readers have the old pack or the new one, whole; the old file goes when the new one
counts (a reader that maps it keeps it). A layout made from the shards, never a second truth: where it is missing, older than the manifest
or damaged, the shards are searched.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace

import numpy as np
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput, OutOfDisk, PairedIndexError
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import digest_of, digest_of_parts, draft_of, is_local, nearest_folder, publish, read_json, write_json
from paired_index_assets.layout import BuildRoot, Generation
from paired_index_assets.progress import Progress, silent
from paired_index_assets.search.mapped import MappedLists, map_lists
from paired_index_assets.search.packing import check_pack, write_pack
from paired_index_assets.search.shardset import ServedIndex, map_shard, served_index
from paired_index_assets.search.unwanted import RemovedIds
from paired_index_assets.shards.assemble import Written
from paired_index_assets.shards.record import read_record
from paired_index_assets.shards.removals import removed_version

FORMAT = 1
AGAIN = "run `paired-index pack` again"
EVERY_ID = np.iinfo(np.int64).max


@dataclass(frozen=True)
class PackRecord:
    """What a pack was made from and what is in it."""

    file: str
    trained: str  # fingerprint of the trained index
    shards: dict[str, str]  # number -> sha256
    removed: str  # version of all removed ids, which are not in its lists
    rows: int
    bytes: int
    sha256: str
    format: int = FORMAT


def record_path(generation: Generation) -> UPath:
    return generation.packed / "packed.json"


def read_pack(generation: Generation) -> PackRecord | None:
    """None where nothing was packed. Raises DamagedArtifact."""
    place = record_path(generation)
    try:
        content = read_json(place)
    except MissingInput:
        return None
    except DamagedArtifact as error:
        raise DamagedArtifact(f"{place}: not the record of a pack; {AGAIN}") from error
    try:
        if content["format"] != FORMAT:
            raise DamagedArtifact(f"{place}: format {content['format']}, expected {FORMAT}; {AGAIN}")
        return PackRecord(**content)
    except (KeyError, TypeError) as error:
        raise DamagedArtifact(f"{place}: not the record of a pack ({error}); {AGAIN}") from error


def is_packed(served: ServedIndex) -> bool:
    """Whether there is a pack, of whatever shards."""
    return record_path(served.generation).exists()


def map_pack(build: BuildRoot, served: ServedIndex, *, verify: bool) -> MappedLists | None:
    """The lists of the pack, if it is of the shards that are recorded; None where there is none, or an older one.

    Raises DamagedArtifact or MissingInput where it should be current and cannot be read.
    """
    record, trained = read_pack(served.generation), served.trained
    if record is None or (record.trained, record.shards) != (trained.fingerprint, _sums(served)):
        return None
    file = served.generation.packed / record.file
    if not file.exists():
        raise MissingInput(f"{file}: no such file, but {record_path(served.generation).name} names it; {AGAIN}")
    local = build.cache.local(file, sha256=record.sha256)
    if local.path.stat().st_size != record.bytes or (verify and digest_of(local.path) != record.sha256):
        raise DamagedArtifact(f"{file}: not the file of {record.bytes} bytes that was packed; {AGAIN}")
    try:
        mapped = map_lists(local.path, trained.nlist, trained.codec.code_size)
    except DamagedArtifact as error:
        raise DamagedArtifact(f"{file}: not an index of {trained.nlist} lists that faiss would read; {AGAIN}") from error
    if (mapped.d, mapped.ntotal) != (trained.d, record.rows):
        found = f"{mapped.ntotal} vectors of width {mapped.d}"
        raise DamagedArtifact(f"{file}: expected {record.rows} vectors of width {trained.d}, found {found}; {AGAIN}")
    return replace(mapped, held=local)


def unfinished_shards(build: BuildRoot) -> list[int]:
    """The shards of the served generation that are not finished. Raises MissingInput before the first is."""
    return [int(number) for number, sha in _sums(served_index(build)).items() if not sha]


def pack(build: BuildRoot, *, progress: Progress = silent) -> tuple[PackRecord, bool]:
    """Pack the shards that are served, without what was taken down; the record, and whether there was anything to do.

    Raises as opening the shards does; OutOfDisk; Busy where another process is packing; DamagedArtifact if the result is not its shards'.
    """
    served = served_index(build)
    generation, trained, folder = served.generation, served.trained, served.generation.packed
    with only_writer(folder / ".pack.lock"):
        sums, removed = _sums(served), RemovedIds(build).ids
        version = removed_version(removed, 0, EVERY_ID)
        inputs = digest_of_parts(str(FORMAT), trained.fingerprint, version, *(f"{number} {sha}" for number, sha in sums.items()))
        name = f"knn.packed_{trained.codec.name}.{inputs[:16]}.index"
        before = _whole(generation)
        if before is not None and before.file == name:
            return before, False
        shards = [map_shard(shard, served, build.cache, verify=False) for shard in served.shards]
        _require_room(folder, sum(shard.content.nbytes for shard in shards))
        empty = trained.empty_index()
        with draft_of(folder / name) as draft:
            written = write_pack(draft, empty, shards, removed, progress=progress)
            progress("check", 0, 1)
            check_pack(draft, empty, shards, removed, written, served.catalog.total_rows if served.catalog else None)
            progress("check", 1, 1)
            publish(draft, folder / name)
        record = PackRecord(name, trained.fingerprint, sums, version, written.indexed, written.bytes, written.sha256)
        write_json(record_path(generation), asdict(record))
        kept = {name} if is_local(folder) or before is None else {name, before.file}  # on a store, readers may be copying the last one
        for older in folder.glob("knn.packed_*.index"):
            if older.name not in kept:
                older.unlink(missing_ok=True)
        return record, True


def verify_pack(build: BuildRoot) -> PackRecord | None:
    """Read the pack that is searched and hold it against its shards, as when it was made; None where none is searched.

    Raises DamagedArtifact; MissingInput where a file is gone.
    """
    served = served_index(build)
    mapped, record = map_pack(build, served, verify=False), read_pack(served.generation)
    if mapped is None or record is None:
        return None
    shards = [map_shard(shard, served, build.cache, verify=False) for shard in served.shards]
    removed = RemovedIds(build).ids
    since = record.removed != removed_version(removed, 0, EVERY_ID)
    written = Written(record.rows, record.bytes, record.sha256)
    total = served.catalog.total_rows if served.catalog else None
    check_pack(mapped.path, served.trained.empty_index(), shards, removed, written, total, still=since)
    return record


def _whole(generation: Generation) -> PackRecord | None:
    """The record of a pack whose file is there and what was written; a damaged one is made again."""
    try:
        record = read_pack(generation)
        if record is None or digest_of(generation.packed / record.file) != record.sha256:
            return None
    except (PairedIndexError, FileNotFoundError):
        return None
    return record


def _sums(served: ServedIndex) -> dict[str, str]:
    """The sha256 of each recorded shard by its number; empty of one that is not finished, or whose ids are not the catalog's."""
    sums = {}
    for place in served.shards:
        record = read_record(place)
        mine = record is not None and (served.catalog is None or record.is_of(served.catalog.files(place.number)))
        sums[str(place.number)] = record.sha256 if record is not None and mine else ""
    return sums


def _require_room(folder: UPath, needed: int) -> None:
    if is_local(folder):
        free = shutil.disk_usage(nearest_folder(folder)).free
        if needed > free:
            raise OutOfDisk(f"{folder}: expected {needed} bytes free for the pack, found {free}; free some or choose another disk")
