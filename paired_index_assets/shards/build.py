"""shard_index: the segments of a shard's files, put in lists.

1. a finished shard made of the same inputs is left alone;
2. a file whose segment still stands is not read again, every other is encoded once;
3. the segments are merged into one faiss file, which is read back and checked, and only then gets its name; then its record.

Killed at any moment, the next build finds the finished segments and goes on; the shard's bytes do not depend on where it was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from upath import UPath

from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import VERSION_LENGTH, digest_of_parts, draft_of, remove_older
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.contents import LandedContents
from paired_index_assets.landing.landed import LandedFile, Listing, list_folder
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64
from paired_index_assets.shards.accounting import account
from paired_index_assets.shards.assemble import SegmentRows, check_shard, rows_of_segment, write_shard
from paired_index_assets.shards.encode import ENCODE_ROWS
from paired_index_assets.shards.generations import keep_inputs, served_when_whole
from paired_index_assets.shards.record import (
    FileRecord,
    ShardRecord,
    finished_record,
    publish_shard,
    settle_records,
    shard_file,
    write_record,
)
from paired_index_assets.shards.removals import read_removed, removed_version
from paired_index_assets.shards.supply import Supply, landed_alone, segments_of
from paired_index_assets.shards.truth import TestCaptions
from paired_index_assets.shards.truths import IndexedFile, keep_truths
from paired_index_assets.trained.artifact import TrainedIndex

CHECK_SEED = 0  # of the rows that a written shard is compared with its sources by; checks and doctor take the build's own


@dataclass(frozen=True)
class ShardSummary:
    """What a build of one shard did and found."""

    shard: int
    path: UPath
    record: ShardRecord
    unchanged: bool  # the file was there and was not touched
    encoded: tuple[str, ...] = ()  # files read and encoded now; the other segments were there
    without_truth: tuple[str, ...] = ()  # files whose rows are gone and that have no truth of the test captions

    @property
    def left_out(self) -> dict[str, int]:
        """Rows in no list, by reason."""
        return {reason: sum(getattr(file, reason) for file in self.record.files) for reason in ("not_finite", "zero", "taken_down")}

    @property
    def lossy_files(self) -> tuple[str, ...]:
        return tuple(file.name for file in self.record.files if file.lossy)


def build_shard(
    root: BuildRoot,
    trained: TrainedIndex,
    catalog: Catalog,
    shard: int,
    landing: UPath | Path | str | Listing,
    *,
    removed: Int64 | None = None,
    supply: Supply | None = None,
    captions: TestCaptions | None = None,
    block_rows: int = ENCODE_ROWS,
    progress: Progress = silent,
) -> ShardSummary:
    """Build shard `shard` of the trained index's generation and its record, or leave it alone if nothing changed; serve the generation
    if it is whole with that.

    `landing` is a folder or what `landed.first_complete` chose from several; `removed` (n,) the ids to leave out, by default the
    takedown log's. `supply` is called with the files that have to be encoded and yields each in turn where it can be obtained (see
    landing.obtain; a file may be deleted once the next is asked for); by default they are what has landed. A file that is gone is not
    missed while its segment is there. `captions`: the truth of each file for them is kept too (shards.truth); one that is missing is made
    again while the file is there, and is never a reason to fetch it. Memory: one file's codes and two blocks while encoding, then three
    times the quantizer, 24 bytes a row and three times 16 MiB; never the shard's codes.

    Raises BadInput naming every bad file, after the segments of the good ones are saved; MissingInput naming the files that have not
    landed; Busy if another process builds this shard; OutOfDisk; DamagedArtifact if what was written does not read back.
    """
    place = root.generation(trained.fingerprint).shard(trained.codec.name, shard)
    files = catalog.files(shard)
    listing = landing if isinstance(landing, dict) else list_folder(landing)
    landed = [listing.get(file.name) for file in files]
    removed = read_removed(root, catalog.data_set) if removed is None else np.unique(removed)
    keep_inputs(root, trained, catalog)
    with served_when_whole(root, trained, catalog), only_writer(place.lock):
        place.failure.unlink(missing_ok=True)
        settle_records(place)
        done = finished_record(place)
        version = removed_version(removed, files[0].start_row, files[-1].stop_row)
        contents = LandedContents()
        if (
            done is not None
            and done.is_made_of(trained.fingerprint, version, files)
            and (same := _same_rows(done, files, landed, contents))
        ):
            if same != done:  # read again, or copied
                write_record(place, done := same)
            without = _keep_truths(root, captions, files, done.files, landed, removed)
            return ShardSummary(shard, shard_file(place, done), done, unchanged=True, without_truth=without)
        segments, encoded = segments_of(
            root,
            trained,
            place,
            files,
            landed,
            supply or landed_alone(listing),
            contents,
            captions=captions,
            block_rows=block_rows,
            progress=progress,
        )
        parts = [rows_of_segment(segment, file.start_row, removed) for segment, file in zip(segments, files, strict=True)]
        draft = ShardRecord(
            shard=shard,
            trained=trained.fingerprint,
            codec=trained.codec.name,
            method=trained.method,
            model=trained.model,
            removed=version,
            bytes=0,
            sha256="",
            files=tuple(_file_record(*three, contents) for three in zip(files, parts, landed, strict=True)),
        )
        without = _keep_truths(root, captions, files, draft.files, landed, removed)
        if done is not None and done.inputs == draft.inputs:  # files were touched, or copied again, with the same rows
            record = replace(draft, bytes=done.bytes, sha256=done.sha256)
            write_record(place, record)
            return ShardSummary(shard, shard_file(place, record), record, unchanged=True, encoded=encoded, without_truth=without)
        empty = trained.empty_index()
        with draft_of(place.draft) as temporary:
            written = write_shard(temporary, empty, parts, progress=progress)
            index = check_shard(temporary, empty, parts, str(place))
            account(index, trained, draft, files, landed, removed, name=str(place), seed=CHECK_SEED)
            del index
            record = replace(draft, bytes=written.bytes, sha256=written.sha256)
            publish_shard(temporary, place, record)
        if done is not None and (older := shard_file(place, done)) != shard_file(place, record):
            remove_older(place.generation.shards.glob(f"{place.name}.{'?' * VERSION_LENGTH}"), than=older)
        return ShardSummary(shard, shard_file(place, record), record, unchanged=False, encoded=encoded, without_truth=without)


def data_version(trained: str, landed: str, removed: str) -> str:
    """The version of a shard as a function of its inputs alone: trained fingerprint, landed.version_of, takedown.removed_version."""
    return digest_of_parts(trained, landed, removed)[:16]


def _keep_truths(
    root: BuildRoot,
    captions: TestCaptions | None,
    files: Sequence[CatalogFile],
    records: Sequence[FileRecord],
    landed: Sequence[LandedFile | None],
    removed: Int64,
) -> tuple[str, ...]:
    """The names of files that have no truth, after all that can be made were."""
    if captions is None:
        return ()
    indexed = [IndexedFile(*of) for of in zip(files, (record.content for record in records), landed, strict=True)]
    return tuple(without.file.name for without in keep_truths(root, captions, indexed, removed))


def _same_rows(
    done: ShardRecord, files: Sequence[CatalogFile], landed: Sequence[LandedFile | None], contents: LandedContents
) -> ShardRecord | None:
    """The record of the same shard with the stamps that its files have now, None where the rows of one are others."""
    mine = []
    for record, file, there in zip(done.files, files, landed, strict=True):
        if record.stands_for(file, there):
            mine.append(record)
        elif there is not None and record.lossy == there.lossy and contents.is_the_same(file, there, record.content):
            mine.append(replace(record, size=there.size, stamp=there.stamp))
        else:
            return None
    return replace(done, files=tuple(mine))


def _file_record(file: CatalogFile, part: SegmentRows, landed: LandedFile | None, contents: LandedContents) -> FileRecord:
    header, left = part.segment.header, part.segment.left_out()
    read = landed if landed is not None and landed.stamp != header.stamp and contents.is_the_same(file, landed, header.content) else header
    return FileRecord(
        file_id=file.file_id,
        name=file.name,
        offset=file.offset,
        start_row=file.start_row,
        rows=file.rows,
        indexed=len(part.rows),
        not_finite=left["not_finite"],
        zero=left["zero"],
        taken_down=header.kept - len(part.rows),
        lossy=header.lossy,
        size=read.size,
        stamp=read.stamp,
        content=header.content,
    )
