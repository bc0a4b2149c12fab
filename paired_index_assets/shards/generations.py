"""Which generation of shards is served, and when the next one takes its place.

A generation is all that was made with one trained index (`layout.Generation`). Locally `shards` is a relative link to the folder of the
one that is served, switched by one rename; on an object store `served.json` names it, replaced by one put. A new trained index builds
its shards beside the served ones, and is served once it has every shard that they have; a first one is served from its first shard on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.storage import is_local, publish_link, read_json, write_json
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot, Generation
from paired_index_assets.shards.record import finished_shards
from paired_index_assets.trained.artifact import TrainedIndex, files_of
from paired_index_assets.trained.promotion import read_promotion

EARLIER = "shards.before"  # where a folder goes that is in the place of the link
EARLIER_SHARD = re.compile(r"knn\.paired_[^.]+\.index\d+")
EARLIER_LEFTOVER = re.compile(r"\.?knn\.paired_[^.]+\.index\d+(\.lock|\.failed\.json|\.\d+\.[0-9a-f]+\.tmp)")
FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def served_generation(root: BuildRoot) -> Generation | None:
    """The generation that is served, None before the first shard is finished.

    Raises BadInput for a build of a release that had no generations, DamagedArtifact where the link or pointer is none.
    """
    fingerprint = _linked(root) if is_local(root.root) else _pointed(root.served)
    if fingerprint is None:
        return None
    generation = root.generation(fingerprint)
    return generation if generation.records.exists() else None


def served_if_any(root: BuildRoot) -> Generation | None:
    """For who writes: a link or pointer that is none, and the shards of an earlier release, are as nothing, and are replaced."""
    try:
        return served_generation(root)
    except (BadInput, DamagedArtifact):
        return None


def serve(root: BuildRoot, generation: Generation) -> None:
    """Let `generation` be the one that is served, in one step."""
    if not is_local(root.root):
        write_json(root.served, {"generation": generation.fingerprint})
        return
    link = Path(root.shards.path)
    if _is_folder(link):
        folder = link.with_name(EARLIER)
        link.rename(folder)
        publish_link(link, _target(generation))
        remove_earlier(folder, Path(generation.shards.path))
    else:
        publish_link(link, _target(generation))


def serve_when_whole(root: BuildRoot, trained: TrainedIndex, catalog: Catalog) -> bool:
    """Serve the generation of `trained` if it has the shards it needs for that (`needed_shards`); whether it is served now.

    Not if another one is promoted meanwhile, whose turn it is.
    """
    mine, served = root.generation(trained.fingerprint), served_if_any(root)
    if served == mine and not (is_local(root.root) and _is_folder(Path(root.shards.path))):
        return True
    if root.promoted.exists() and read_promotion(root).fingerprint != trained.fingerprint:
        return False
    finished = finished_shards(mine)
    if not finished or needed_shards(served, catalog) - set(finished):
        return False
    serve(root, mine)
    return True


def remove_earlier(folder: Path, generation: Path) -> None:
    """Delete from a folder of shards those that are in `generation` too, and those that a record beside them is of: an earlier release
    had them there. What else is in it stays."""
    for path in sorted(folder.iterdir()):
        twin, record = generation / path.name, path.with_name(f"{path.name}.json")
        copied = twin.is_file() and twin.stat().st_size == path.stat().st_size
        if copied or EARLIER_LEFTOVER.fullmatch(path.name) or (EARLIER_SHARD.fullmatch(path.name) and _is_earlier_record(record, path)):
            path.unlink()
            record.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_earlier_record(record: Path, shard: Path) -> bool:
    try:
        content = read_json(record)
        return bool(content["bytes"] == shard.stat().st_size and content["sha256"] and content["trained"])
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return False


@contextmanager
def served_when_whole(root: BuildRoot, trained: TrainedIndex, catalog: Catalog) -> Iterator[None]:
    """Where the block ends well, see whether the generation of `trained` is to be served now."""
    yield
    serve_when_whole(root, trained, catalog)


def needed_shards(served: Generation | None, catalog: Catalog) -> set[int]:
    """The shards of the catalog without which a next generation is not served: those with files that the served one finds rows of, or
    all, if it finds none of the catalog's. Shards that wait for files in both keep neither back."""
    found = {file.name for record in finished_shards(served).values() for file in record.files} if served else set()
    if not found:
        return set()
    return {file.shard for file in catalog if file.name in found} or set(range(catalog.shards))


def keep_inputs(root: BuildRoot, trained: TrainedIndex, catalog: Catalog) -> None:
    """Leave copies of the trained index and of the catalog with their generation: it is searched with them also when the build has
    others by now."""
    generation = root.generation(trained.fingerprint)
    if not all(file.exists() for file in files_of(generation.trained)):
        trained.save(generation.trained)
    try:
        same = Catalog.load(generation.catalog).table.equals(catalog.table, check_metadata=True)
    except (MissingInput, DamagedArtifact):
        same = False
    if not same:
        catalog.save(generation.catalog)


def trained_of(generation: Generation) -> TrainedIndex:
    """The trained index of a generation. Raises MissingInput, DamagedArtifact."""
    trained = TrainedIndex.load(generation.trained)
    if trained.fingerprint != generation.fingerprint:
        raise DamagedArtifact(
            f"{generation.trained}: its fingerprint is {trained.fingerprint}, its folder's name {generation.fingerprint}; "
            f"delete {generation.folder} and build again"
        )
    return trained


def _target(generation: Generation) -> Path:
    return Path("generations", generation.fingerprint, "shards")


def _is_folder(link: Path) -> bool:
    return link.is_dir() and not link.is_symlink()


def _linked(root: BuildRoot) -> str | None:
    link = Path(root.shards.path)
    try:
        target = Path(os.readlink(link))
    except FileNotFoundError:
        return None
    except OSError:
        return _copied(root, link)
    if target.parts[:1] != ("generations",) or target.parts[2:] != ("shards",) or not FINGERPRINT.fullmatch(target.parts[1]):
        raise DamagedArtifact(f"{link}: a link to {target}, expected generations/FINGERPRINT/shards; build again, which puts it right")
    return target.parts[1]


def _copied(root: BuildRoot, folder: Path) -> str | None:
    """The generation that a folder of shards is a copy of: that of a build whose copier followed links."""
    there = {(path.name, path.stat().st_size) for path in folder.iterdir()}
    alike = {}
    for generation in sorted(Path(root.generations.path).glob("*/shards")):
        alike[generation.parent.name] = len(there & {(path.name, path.stat().st_size) for path in generation.iterdir()})
    best = max(alike, key=lambda name: alike[name], default=None)
    if best is not None and alike[best]:
        return best
    if not there:
        return None
    raise BadInput(f"{folder}: shards of an earlier release, which had no generations; run `build` again to make new ones")


def _pointed(pointer: UPath) -> str | None:
    try:
        fingerprint = read_json(pointer)["generation"]
    except MissingInput:
        return None
    except (KeyError, TypeError) as error:
        raise DamagedArtifact(f"{pointer}: names no generation; build again, which writes a new one") from error
    if not isinstance(fingerprint, str) or not FINGERPRINT.fullmatch(fingerprint):
        raise DamagedArtifact(f"{pointer}: names {fingerprint!r}, expected a fingerprint; build again, which writes a new one")
    return fingerprint
