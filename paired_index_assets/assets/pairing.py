"""Which image each training caption is closest to: the table the paper's centroids are made from (arXiv 2402.04416, Algorithm 1)."""

import dagster as dg
import numpy as np
import pyarrow.compute as pc

from paired_index_assets.assets.embeddings import caption_embeddings, image_embeddings
from paired_index_assets.assets.facts import Stopwatch, column_schema, or_fail, path, rows_and_rate
from paired_index_assets.assets.inputs import aligned_sets, caption_texts, image_set
from paired_index_assets.assets.resources import ProgressLog, SettingsResource
from paired_index_assets.pairing.pairs import read_pairs, write_pairs
from paired_index_assets.quality.split import Split, split_by_concept
from paired_index_assets.rows import Selected

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
    images, captions = or_fail(lambda: aligned_sets(read))
    root = read.build_root
    image_valid = images.valid(progress=report)
    split = or_fail(
        lambda: split_by_concept(
            captions,
            images,
            texts=caption_texts(read),
            validation=read.validation_captions,
            test=read.test_captions,
            seed=read.seed,
            progress=report,
        )
    )
    split.save(root.split)
    summary = or_fail(
        lambda: write_pairs(
            root.pairs, Selected(captions, split.train), split.train, images, image_valid=image_valid, device=read.device, progress=report
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
            "path": path(root.pairs),
        },
    )


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
