"""What no build needs any more: generations that are neither served nor being made, and shards beyond the catalog.

Only what a record or a name of this project's own says is deleted; what else lies in a build's folders is somebody's, and is named
(`unexpected`). A generation goes when nobody reads it and nobody is building in it; locally who reads and who builds holds a lock, on an
object store it is left for `GRACE_SECONDS` after another was served.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import Busy
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import VERSION_LENGTH, is_local
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot, Generation
from paired_index_assets.shards.generations import EARLIER, FINGERPRINT, needed_shards, served_if_any
from paired_index_assets.shards.record import finished_shards, read_record, recorded_shards
from paired_index_assets.shards.segment import file_id_of

GRACE_SECONDS = 3600.0  # in which whoever began to read a generation in a bucket has its copy
GONE = ".gone."
SHARD_NAME = re.compile(r"knn\.paired_[^.]+\.index(\d+)")


def sweep(root: BuildRoot, promoted: str, catalog: Catalog, *, in_place: bool = False, quiet: bool = False) -> list[str]:
    """Delete the generations that are neither served nor of the trained index `promoted`, which is being made; of the served one, if it
    is another than that, the segments, for no shard of it is built any more; and of that the shards beyond the catalog.

    `in_place`: the served generation goes too if it is not the promoted one, so that both never need room at once; until the first
    shards of that are there, nothing is found. `quiet`: no shard is being built, so that segments of files beyond the catalog are of no
    file that was appended this moment, and go too. Returns what was deleted, one line each.
    """
    served, mine = served_if_any(root), root.generation(promoted)
    done = []
    for generation in generations(root):
        if generation == mine or (generation == served and not in_place):
            continue
        if _removed(root, generation):
            done.append(f"generation {generation.fingerprint}")
    if served is not None and served != mine and not in_place and served.segments.exists():
        with suppress(Busy), _alone(_builders(served)):
            _delete(served.segments)
            done.append(f"segments of generation {served.fingerprint}")
    done += _shards_beyond(mine, catalog)
    if quiet:
        done += _segments_beyond(mine, catalog)
    return done


def generations(root: BuildRoot) -> list[Generation]:
    """All there are, by fingerprint; folders of other names are nobody's generation."""
    folders = root.generations.iterdir() if root.generations.exists() else ()
    return sorted((Generation(folder) for folder in folders if FINGERPRINT.fullmatch(folder.name)), key=lambda one: one.fingerprint)


def unexpected(root: BuildRoot, promoted: str | None, catalog: Catalog) -> list[str]:
    """What lies in the folders of shards without being of this build's shards, one line each: nothing in an orderly build."""
    served = served_if_any(root)
    lines = []
    for generation in generations(root):
        if generation != served and generation.fingerprint != promoted:
            lines.append(f"{generation.folder}: neither served nor being made; it goes with the next build, when nobody reads it")
            continue
        beyond = [n for n in recorded_shards(generation) if n >= catalog.shards and generation.fingerprint == promoted]
        if beyond:
            lines.append(f"{generation.shards}: shards {', '.join(map(str, beyond))} are beyond the catalog; they go with the next build")
        lines += [f"{path}: not a shard of this build; move it elsewhere" for path in _strangers(generation)]
    if is_local(root.root) and (earlier := Path(root.root.path) / EARLIER).exists():
        lines.append(f"{earlier}: files that were in `shards` and that no build made; move them elsewhere")
    return lines


@dataclass(frozen=True)
class Progressing:
    """The generation that is being made beside the served one, and the shards it lacks until it is served."""

    generation: Generation
    finished: tuple[int, ...]
    lacking: tuple[int, ...]


def being_made(root: BuildRoot, promoted: str, catalog: Catalog) -> Progressing | None:
    """None where the promoted generation is the one that is served, or where none is served yet."""
    served, mine = served_if_any(root), root.generation(promoted)
    if served is None or served == mine:
        return None
    finished = finished_shards(mine)
    return Progressing(mine, tuple(finished), tuple(sorted(needed_shards(served, catalog) - set(finished))))


def bytes_of(generation: Generation) -> int:
    """What its files take on a disk or in a bucket."""
    if not generation.folder.exists():
        return 0
    return sum(int(path.stat().st_size) for path in generation.folder.glob("**/*") if path.is_file())


def _removed(root: BuildRoot, generation: Generation) -> bool:
    if is_local(root.root):
        gone = Path(generation.folder.path).with_name(f"{GONE}{generation.fingerprint}")
        shutil.rmtree(gone, ignore_errors=True)  # of a sweep that was killed
        try:
            with _alone([generation.reading, *_builders(generation)]):
                Path(generation.folder.path).rename(gone)  # in one step: what is half deleted is no generation
        except (Busy, FileNotFoundError):  # or another run was first
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True
    if root.served.exists() and time.time() - root.served.fs.modified(root.served.path).timestamp() < GRACE_SECONDS:
        return False
    _delete(generation.folder)
    return True


def _shards_beyond(generation: Generation, catalog: Catalog) -> Iterator[str]:
    for number in recorded_shards(generation):
        record = read_record(generation.shard("", number)) if number >= catalog.shards else None
        if record is None:
            continue
        place = generation.shard(record.codec, number)
        with suppress(Busy), only_writer(place.lock):
            for file in (place.file, *generation.shards.glob(f"{place.name}.{'?' * VERSION_LENGTH}")):
                file.unlink(missing_ok=True)
            for file in (place.failure, place.next_record, place.record):  # the record last: it is what names the others
                file.unlink(missing_ok=True)
            yield f"{place}"
        if is_local(place.lock):
            place.lock.unlink(missing_ok=True)


def _segments_beyond(generation: Generation, catalog: Catalog) -> Iterator[str]:
    wanted = {file.file_id for file in catalog}
    for segment in generation.segments.iterdir() if generation.segments.exists() else ():
        if (file_id := file_id_of(segment.name)) is not None and file_id not in wanted:
            segment.unlink(missing_ok=True)
            yield f"{segment}"


def _strangers(generation: Generation) -> Iterator[UPath]:
    """Files beside the shards that no record of this generation names."""
    recorded = set(recorded_shards(generation))
    for path in generation.shards.iterdir() if generation.shards.exists() else ():
        found = SHARD_NAME.match(path.name)
        if found is None or int(found[1]) not in recorded:
            yield path


def _builders(generation: Generation) -> list[UPath]:
    return list(generation.records.glob(".index*.lock")) if generation.records.exists() else []


@contextmanager
def _alone(locks: list[UPath]) -> Iterator[None]:
    """Raises Busy if somebody holds one of them."""
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(only_writer(lock))
        yield


def _delete(folder: UPath) -> None:
    with suppress(FileNotFoundError):  # another run was first
        folder.fs.rm(folder.path, recursive=True)
