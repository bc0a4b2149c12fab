"""Which image each training caption is closest to: the table the paper's centroids are made from (arXiv 2402.04416, Algorithm 1)."""

import json
from typing import TYPE_CHECKING, Any

import dagster as dg

from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.embeddings import caption_embeddings, image_embeddings
from paired_index_assets.assets.facts import Stopwatch, column_schema, path, rows_and_rate
from paired_index_assets.assets.partitions import share_of
from paired_index_assets.files.storage import digest_of_parts
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

SPLIT = ("caption_texts", "validation_captions", "test_captions", "seed")


@built_asset(
    *SPLIT,
    group_name="training",
    kinds={"parquet", "torch"},
    code_version="1",
    pool="accelerator",
    deps=[image_embeddings.key, caption_embeddings.key],
)
def pair_blocks(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """The nearest image of every training caption, block by block. With `parallel_runs` a partition is one run's share of the blocks, for
    several GPUs or machines.

    A block that is there is left alone: a killed run goes on at the next. What is missing when the table is described is made then.
    """
    from paired_index_assets.pairing.pairs import write_blocks

    watch = Stopwatch()
    split, sides = _split_and_sides(build, progress)
    blocks = share_of(context, build.settings.parallel_runs).pieces(sides.blocks)
    written = write_blocks(build.root.pairs, blocks, sides, device=build.settings.device, progress=progress)
    return dg.MaterializeResult(
        metadata={"blocks": len(blocks), "blocks_reused": len(blocks) - written, "seconds": round(watch.seconds, 2)},
        # of what all blocks are made from: the same, whichever partitions a run has
        data_version=dg.DataVersion(digest_of_parts(sides.images.fingerprint, build.captions.fingerprint, split.content)),
    )


@built_asset(
    *SPLIT,
    group_name="training",
    kinds={"parquet", "torch"},
    code_version="1",
    pool="accelerator",
    deps=[image_embeddings.key, caption_embeddings.key, pair_blocks.key],
    metadata={"dagster/column_schema": COLUMNS},
)
def caption_image_pairs(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """The nearest image of every training caption, exact; captions kept aside to choose by and to report on are not in it.

    One Parquet file a block of captions, each written once: a killed run goes on at the next block.
    """
    from paired_index_assets.pairing.pairs import write_pairs

    watch = Stopwatch()
    split, sides = _split_and_sides(build, progress)
    summary = write_pairs(build.root.pairs, sides, device=build.settings.device, progress=progress)
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


def _split_and_sides(build: "OpenBuild", report: Progress) -> tuple["Split", "Sides"]:
    """Which captions train, and the two sides of their pairs. Fingerprints name both sets: only the first run reads them, to split them."""
    from paired_index_assets.pairing.pairs import MatchedImages, Sides
    from paired_index_assets.pairing.split import Split, split_by_concept
    from paired_index_assets.rows import Selected

    settings, root, (images, captions), texts = build.settings, build.root, build.pairs, build.caption_texts
    asked: dict[str, Any] = {"validation": settings.validation_captions, "test": settings.test_captions, "seed": settings.seed}
    made_from = digest_of_parts(images.fingerprint, captions.fingerprint, json.dumps(asked), *(texts or ()))
    split = Split.kept(root.split, made_from)
    if split is None:
        split = split_by_concept(captions, images, texts=texts, progress=report, **asked)
        split.save(root.split, made_from)
    matched = MatchedImages.of(images, images.valid(progress=report), fingerprint=images.fingerprint)
    return split, Sides(Selected(captions, split.train), split.train, matched)


@built_check(asset=caption_image_pairs.key, blocking=True)
def pairs_are_whole(build: "OpenBuild") -> dg.AssetCheckResult:
    """Every training caption has exactly one image, every id exists, every similarity is a number."""
    import numpy as np
    import pyarrow.compute as pc

    from paired_index_assets.pairing.pairs import read_pairs
    from paired_index_assets.pairing.split import Split

    pairs, split = read_pairs(build.root.pairs), Split.load(build.root.split)
    images = len(build.images)
    same_captions = np.array_equal(np.sort(pairs["caption_id"].to_numpy()), split.train)
    known_images = pairs.num_rows > 0 and pc.min(pairs["image_id"]).as_py() >= 0 and pc.max(pairs["image_id"]).as_py() < images
    finite = pc.all(pc.is_finite(pairs["similarity"])).as_py()
    expected = {
        f"each of the {len(split.train):,} training captions once": same_captions,
        f"ids of the {images:,} images": known_images,
        "finite similarities": finite,
    }
    lacking = ", ".join(what for what, there in expected.items() if not there)
    return dg.AssetCheckResult(
        passed=not lacking,
        description=f"{build.root.pairs}: expected {lacking}; materialise caption_image_pairs again"
        if lacking
        else f"{pairs.num_rows:,} pairs",
        metadata={"every_caption_once": bool(same_captions), "images_exist": bool(known_images), "similarities_finite": bool(finite)},
    )
