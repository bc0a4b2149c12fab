"""The segments of all files of a shard: those that exist, and the others made from wherever their files can be obtained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.fetching.obtain import Obtained
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.contents import LandedContents
from paired_index_assets.landing.landed import LandedFile, Listing
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.progress import Progress, silent
from paired_index_assets.shards.encode import ENCODE_ROWS, SegmentEncoder, kept_segment, segment_path
from paired_index_assets.shards.record import write_failure
from paired_index_assets.shards.segment import Segment, open_segment
from paired_index_assets.shards.truth import TestCaptions
from paired_index_assets.trained.artifact import TrainedIndex

Supply = Callable[[Sequence[CatalogFile]], Iterator[Obtained]]


def landed_alone(listing: Listing) -> Supply:
    """What has landed, complete or not, and nothing else."""
    return lambda files: (Obtained(file, listing.get(file.name)) for file in files)


def segments_of(
    root: BuildRoot,
    trained: TrainedIndex,
    shard: ShardPlace,
    files: Sequence[CatalogFile],
    landed: Sequence[LandedFile | None],
    supply: Supply,
    contents: LandedContents,
    *,
    captions: TestCaptions | None = None,
    block_rows: int = ENCODE_ROWS,
    progress: Progress = silent,
) -> tuple[list[Segment], tuple[str, ...]]:
    """A segment for every file, each byte of it checked, and the names of the files that were encoded for it.

    Segments that do not stand for their file, or whose bytes were altered, are made (again). Raises BadInput naming every bad file,
    MissingInput naming those that cannot be obtained, after all others are saved; both are also kept beside `shard`.
    """
    fingerprint = trained.fingerprint
    wanted = [file for file, there in zip(files, landed, strict=True) if kept_segment(root, fingerprint, file, there, contents) is None]
    encoded = _encode(root, trained, shard, wanted, files, supply, captions, block_rows, progress)
    segments: dict[int, Segment] = {}
    damaged = []
    for file in files:
        place = segment_path(root, fingerprint, file)
        try:
            segments[file.file_id] = open_segment(place, root.cache)
        except DamagedArtifact:
            place.unlink(missing_ok=True)
            damaged.append(file)
    encoded += _encode(root, trained, shard, damaged, files, supply, captions, block_rows, progress)
    segments |= {file.file_id: open_segment(segment_path(root, fingerprint, file), root.cache) for file in damaged}
    return [segments[file.file_id] for file in files], encoded


def _encode(
    root: BuildRoot,
    trained: TrainedIndex,
    shard: ShardPlace,
    wanted: Sequence[CatalogFile],
    files: Sequence[CatalogFile],
    supply: Supply,
    captions: TestCaptions | None,
    block_rows: int,
    progress: Progress,
) -> tuple[str, ...]:
    """Encode the wanted ones of a shard's files; returns their names."""
    if not wanted:
        return ()
    total = sum(file.rows for file in files)
    before = total - sum(file.rows for file in wanted)

    def of_the_shard(step: str, done: int, _: int, /, **facts: float | int | str) -> None:
        progress(step, before + done, total, **facts)

    encoder = SegmentEncoder(root, trained, captions=captions, block_rows=block_rows, progress=of_the_shard)
    missing: list[tuple[CatalogFile, str]] = []
    faults: list[tuple[CatalogFile, str]] = []
    for got in supply(wanted):
        if got.landed is None:
            missing.append((got.file, got.reason or "has not landed"))
        else:
            try:
                encoder.add(got.file, got.landed)
            except MissingInput:
                missing.append((got.file, "was there and is gone"))
            except BadInput as fault:
                faults.append((got.file, str(fault)))
        before += got.file.rows
        progress("encode", before, total, file=got.file.name)
    encoder.flush()
    if faults or missing:
        write_failure(shard, [*faults, *missing])
    waits = f"{shard}: waits for {len(missing)} files: " + "; ".join(f"{file.name} {why}" for file, why in missing)
    if faults:
        raise BadInput("\n".join([*(text for _, text in faults), *([waits] if missing else [])]))
    if missing:
        raise MissingInput(waits)
    return tuple(encoder.written)
