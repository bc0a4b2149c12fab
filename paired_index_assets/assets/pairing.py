"""Which image each training caption is closest to: the table the paper's centroids are made from (arXiv 2402.04416, Algorithm 1)."""

from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.embeddings import caption_embeddings, image_embeddings
from paired_index_assets.assets.facts import Stopwatch, column_schema, failing_in_one_line, path, rows_and_rate
from paired_index_assets.assets.partitions import share_of
from paired_index_assets.assets.resources import ProgressLog, SettingsResource
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.pairing.pairs import Sides
    from paired_index_assets.pairing.split import Split

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
@failing_in_one_line()
def caption_image_pairs(
    context: dg.AssetExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]
) -> dg.MaterializeResult:
    """The nearest image of every training caption, exact; captions kept aside to choose by and to report on are not in it.

    One Parquet file a block of captions, each written once: a killed run goes on at the next block.
    """
    from paired_index_assets.files.storage import digest_of_parts
    from paired_index_assets.pairing.pairs import write_pairs

    build, report, watch = settings.open(), progress.of(context), Stopwatch()
    split, sides = _split_and_sides(build, report)
    split.save(build.root.split)
    summary = write_pairs(build.root.pairs, sides, device=build.settings.device, progress=report)
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
            "path": path(build.root.pairs),
        },
        data_version=dg.DataVersion(digest_of_parts(summary.content, split.content)),
    )


@dg.op(pool="accelerator", out=dg.Out(dg.Nothing))
@failing_in_one_line()
def pair_part(context: dg.OpExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]) -> None:
    """This run's share of the blocks of the pairs table; a block that is there is left alone."""
    from paired_index_assets.pairing.pairs import write_blocks

    build, report = settings.open(), progress.of(context)
    sides = _split_and_sides(build, report)[1]
    blocks = share_of(context.partition_key, build.settings).pieces(sides.blocks)
    written = write_blocks(build.root.pairs, blocks, sides, device=build.settings.device, progress=report)
    context.log.info(f"{written} of {len(blocks)} blocks written, the others were there")


def pair_in_parts() -> None:
    """Pairing shared out to several runs, one a partition: on several GPUs or machines, before `caption_image_pairs` is materialised.

    That finds the blocks that are there, makes those that are not, and says what the table holds.
    """
    pair_part()


def _split_and_sides(build: "OpenBuild", report: Progress) -> tuple["Split", "Sides"]:
    """Which captions train, and the two sides of their pairs."""
    from paired_index_assets.pairing.pairs import MatchedImages, Sides
    from paired_index_assets.pairing.split import split_by_concept
    from paired_index_assets.rows import Selected

    read, (images, captions) = build.settings, build.pairs
    split = split_by_concept(
        captions,
        images,
        texts=build.caption_texts,
        validation=read.validation_captions,
        test=read.test_captions,
        seed=read.seed,
        progress=report,
    )
    matched = MatchedImages.of(images, images.valid(progress=report))
    return split, Sides(Selected(captions, split.train), split.train, matched)


@dg.asset_check(asset=caption_image_pairs, blocking=True)
@failing_in_one_line()
def pairs_are_whole(settings: SettingsResource) -> dg.AssetCheckResult:
    """Every training caption has exactly one image, every id exists, every similarity is a number."""
    import numpy as np
    import pyarrow.compute as pc

    from paired_index_assets.pairing.pairs import read_pairs
    from paired_index_assets.pairing.split import Split

    build = settings.open()
    pairs, split = read_pairs(build.root.pairs), Split.load(build.root.split)
    images = len(build.images)
    same_captions = np.array_equal(np.sort(pairs["caption_id"].to_numpy()), split.train)
    known_images = pairs.num_rows > 0 and pc.min(pairs["image_id"]).as_py() >= 0 and pc.max(pairs["image_id"]).as_py() < images
    finite = pc.all(pc.is_finite(pairs["similarity"])).as_py()
    return dg.AssetCheckResult(
        passed=bool(same_captions and known_images and finite),
        metadata={"every_caption_once": bool(same_captions), "images_exist": bool(known_images), "similarities_finite": bool(finite)},
    )
