"""What a sharded build will take: files, bytes, memory and floating-point operations, all by arithmetic."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from operator import mul

from paired_index_assets.clustering.kmeans import ITERATIONS, MAX_POINTS_PER_CENTROID
from paired_index_assets.contest.contestants import CODEC_CAPTIONS, CODEC_IMAGES, ROUTING_CAPTIONS
from paired_index_assets.contest.measuring import JUDGED_IMAGES
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.routing.training import EPOCHS

ID_BYTES = 8
LIST_NUMBER_BYTES = 4
FLOAT32_BYTES = 4
BUILD_RESERVE_BYTES = 2 << 30  # what a shard's assembly may take beside its codes
BITS_PER_DIMENSION = 4
PAIRS = 20_000_000  # captions, and the images they are matched with: the paper's
METHODS = 2  # of training: paired k-means, and image k-means to compare with
LEARNING = 6  # operations a caption, list and dimension that an epoch of learned routing takes
CODE_TRIALS = 135  # times encoding CODEC_IMAGES: what finding the codes took at d = 768, where encoding is nearly all of it
CODE_COPIES = 28, 6  # float32 copies of CODEC_IMAGES and CODEC_CAPTIONS that were held then: 6.7 and 9.2 GB, LAION rehearsed
TABLES = 7  # float32 tables of all lists while routing is learned


@dataclass(frozen=True)
class Plan:
    """Sizes in bytes; times come of a `scaling.scale` of it."""

    files: int
    shards: int
    rows: int
    dimensions: int
    nlist: int
    code_bytes: int  # one row's code
    missing_files: int
    missing_rows: int
    waiting_shards: int  # shards that need a missing file
    input_bytes: int
    fetch_files: int
    fetch_bytes: int
    largest_file_bytes: int
    segment_bytes: int
    shard_bytes: int
    packed_bytes: int  # the shards once more, as one file
    retrain_bytes: int  # while a new trained index builds its shards beside those that are served
    largest_shard_bytes: int
    train_memory_bytes: int
    build_memory_bytes: int  # for one shard at a time
    search_memory_bytes: int  # lists are mapped; the coarse quantizer is held once
    assign_flops: float  # 2 rows nlist d, the largest term by far
    pairs: int
    pairing_flops: float  # 2 pairs pairs d
    training_flops: float  # of every clustering: 2 iterations rows nlist d
    lesson_flops: float  # of what routing learns: the best images of its captions
    routing_flops: float  # LEARNING captions nlist d an epoch, of every clustering
    trial_rows: float  # as many rows encoded take as long as finding the codes

    @property
    def disk_bytes(self) -> int:
        """All that is on disk when the build is whole: input, segments, shards and the packed file."""
        return self.input_bytes + self.segment_bytes + self.shard_bytes + self.packed_bytes


def plan_build(
    catalog: Catalog,
    *,
    nlist: int,
    pairs: int = PAIRS,
    trained: Collection[int] = (),
    landed: Collection[str] = (),
) -> Plan:
    """For all shards of `catalog`. `pairs`: captions that train, each matched among as many images. `trained`: the numbers of lists that are
    trained, if there are others than `nlist`. `landed`: names of files that need no fetching. Codes take 4 bits a dimension.
    """
    d = catalog.dimensions
    code = -(-d * BITS_PER_DIMENSION // 8)
    sizes = {name: slices[0].bytes for name, slices in catalog.by_name.items()}
    missing = [file for file in catalog.missing if file.name not in landed]
    gone = {file.name for file in missing}
    to_fetch = [size for name, size in sizes.items() if name not in landed and name not in gone]
    spans = [catalog.shard_range(shard) for shard in range(catalog.shards)]
    widest = max(stop - first for first, stop in spans)
    quantizer = nlist * d * FLOAT32_BYTES
    per_row = code + ID_BYTES
    segments = catalog.total_rows * (code + LIST_NUMBER_BYTES)
    packed = catalog.total_rows * per_row + quantizer
    shards = packed + (catalog.shards - 1) * quantizer
    lists, taught = list(trained or [nlist]), min(pairs, ROUTING_CAPTIONS)
    coded = min(pairs, CODEC_IMAGES), min(pairs, CODEC_CAPTIONS)
    return Plan(
        files=len(sizes),
        shards=catalog.shards,
        rows=catalog.total_rows,
        dimensions=d,
        nlist=nlist,
        code_bytes=code,
        missing_files=len(missing),
        missing_rows=sum(file.rows for file in missing),
        waiting_shards=len({file.shard for file in missing}),
        input_bytes=sum(sizes.values()),
        fetch_files=len(to_fetch),
        fetch_bytes=sum(to_fetch),
        largest_file_bytes=max(sizes.values()),
        segment_bytes=segments,
        shard_bytes=shards,
        packed_bytes=packed,
        retrain_bytes=2 * shards + segments,
        largest_shard_bytes=widest * per_row + quantizer,
        train_memory_bytes=max(FLOAT32_BYTES * d * sum(map(mul, CODE_COPIES, coded)), TABLES * quantizer),
        build_memory_bytes=widest * per_row + quantizer + BUILD_RESERVE_BYTES,
        search_memory_bytes=quantizer,
        assign_flops=2.0 * catalog.total_rows * nlist * d,
        pairs=pairs,
        pairing_flops=2.0 * pairs * pairs * d,
        training_flops=sum(2.0 * METHODS * ITERATIONS * min(pairs, MAX_POINTS_PER_CENTROID * n) * n * d for n in lists),
        lesson_flops=2.0 * taught * min(pairs, JUDGED_IMAGES) * d,
        routing_flops=float(LEARNING * EPOCHS * METHODS * taught * sum(lists) * d),
        trial_rows=float(CODE_TRIALS * coded[0]),
    )
