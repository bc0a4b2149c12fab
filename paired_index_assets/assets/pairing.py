"""Which image each training caption is closest to: the table the paper's centroids are made from (arXiv 2402.04416, Algorithm 1)."""

from dataclasses import dataclass

import dagster as dg
import numpy as np
import pyarrow.compute as pc

from paired_index_assets.assets.embeddings import caption_embeddings, image_embeddings
from paired_index_assets.assets.facts import Stopwatch, column_schema, or_fail, path, rows_and_rate
from paired_index_assets.assets.partitions import share_of, share_partitions
from paired_index_assets.assets.resources import ProgressLog, SettingsResource
from paired_index_assets.builds.opened import aligned_sets, caption_texts, image_set
from paired_index_assets.pairing.pairs import BLOCK_ROWS, MatchedImages, block_count, read_pairs, write_blocks, write_pairs
from paired_index_assets.pairing.split import Split, split_by_concept
from paired_index_assets.progress import Progress
from paired_index_assets.rows import Bool, Rows, Selected
from paired_index_assets.settings import Settings

COLUMNS = column_schema(
    {
        "caption_id": ("int64", "row of the caption in caption_embeddings"),
        "image_id": ("int64", "row of its nearest image in image_embeddings"),
        "similarity": ("float32", "their inner product"),
    }
)


@dg.asset(
    group_name="training",
    kinds={"parquet", "torch"},
    code_version="1",
    pool="accelerator",
    deps=[image_embeddings, caption_embeddings],
    metadata={"dagster/column_schema": COLUMNS},
)
def caption_image_pairs(
    context: dg.AssetExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]
) -> dg.MaterializeResult:
    """The nearest image of every training caption, exact; captions kept aside to choose by and to report on are not in it.

    One Parquet file a block of captions, each written once: a killed run goes on at the next block.
    """
    read, report, watch = settings.read(), progress.of(context), Stopwatch()
    sides = or_fail(lambda: _sides(read, report))
    split = sides.split
    split.save(read.build_root.split)
    summary = or_fail(
        lambda: write_pairs(
            read.build_root.pairs,
            sides.captions,
            split.train,
            sides.images,
            image_valid=sides.image_valid,
            device=read.device,
            progress=report,
        )
    )
    return dg.MaterializeResult(
        metadata={
            **rows_and_rate(summary.pairs, watch.seconds),
            "blocks": summary.blocks,
            "blocks_reused": summary.reused,
            "distinct_images": summary.images,
            "mean_similarity": summary.mean_similarity,
            "validation_captions": len(split.validation),
            "test_captions": len(split.test),
            "concepts": split.concepts,
            "path": path(read.build_root.pairs),
        },
    )


@dg.op(pool="accelerator", out=dg.Out(dg.Nothing))
def pair_part(context: dg.OpExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]) -> None:
    """This run's share of the blocks of the pairs table; a block that is there is left alone."""
    read, report = settings.read(), progress.of(context)
    sides = or_fail(lambda: _sides(read, report))
    blocks = share_of(context.partition_key, read).pieces(block_count(len(sides.captions), BLOCK_ROWS))
    matched = MatchedImages.of(sides.images, sides.image_valid)
    written = or_fail(
        lambda: write_blocks(read.build_root.pairs, blocks, sides.captions, sides.split.train, matched, device=read.device, progress=report)
    )
    context.log.info(f"{written} of {len(blocks)} blocks written, the others were there")


@dg.job(partitions_def=share_partitions)
def pair_in_parts() -> None:
    """Pairing shared out to several runs, one a partition: on several GPUs or machines, before `caption_image_pairs` is materialised.

    That finds the blocks that are there, makes those that are not, and says what the table holds.
    """
    pair_part()


@dataclass(frozen=True)
class _Sides:
    images: Rows
    image_valid: Bool
    captions: Rows  # those that train
    split: Split


def _sides(read: Settings, report: Progress) -> _Sides:
    images, captions = aligned_sets(read)
    split = split_by_concept(
        captions,
        images,
        texts=caption_texts(read),
        validation=read.validation_captions,
        test=read.test_captions,
        seed=read.seed,
        progress=report,
    )
    return _Sides(images, images.valid(progress=report), Selected(captions, split.train), split)


@dg.asset_check(asset=caption_image_pairs, blocking=True)
def pairs_are_whole(settings: SettingsResource) -> dg.AssetCheckResult:
    """Every training caption has exactly one image, every id exists, every similarity is a number."""
    read = settings.read()
    pairs, split = read_pairs(read.build_root.pairs), Split.load(read.build_root.split)
    images = len(image_set(read))
    same_captions = np.array_equal(np.sort(pairs["caption_id"].to_numpy()), split.train)
    known_images = pairs.num_rows > 0 and pc.min(pairs["image_id"]).as_py() >= 0 and pc.max(pairs["image_id"]).as_py() < images
    finite = pc.all(pc.is_finite(pairs["similarity"])).as_py()
    return dg.AssetCheckResult(
        passed=bool(same_captions and known_images and finite),
        metadata={"every_caption_once": bool(same_captions), "images_exist": bool(known_images), "similarities_finite": bool(finite)},
    )
