"""Pictures and captions as unit vectors in one space: row i of both is pair i."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import dagster as dg

from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.facts import Stopwatch, markdown_table, path, rows_and_rate
from paired_index_assets.assets.partitions import share_of
from paired_index_assets.embeddings.fates import Fates
from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import several
from paired_index_assets.files.storage import digest_of_parts
from paired_index_assets.progress import Progress
from paired_index_assets.readers.captions import OK
from paired_index_assets.settings import Settings
from paired_index_assets.shares import WHOLE, Share

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.embeddings.run import EmbedSummary
    from paired_index_assets.embeddings.sets import EmbeddingSet
    from paired_index_assets.readers.sample import ModalityName, Source

NOT_FINITE = "not finite or zero"
IN_WORDS = "not_used"  # the metadata that `paired-index build` prints
IN_PLACE = "used_where_they_lie"


INPUTS = ("images", "captions", "image_features", "caption_features")
ENCODING = ("model", "pretrained", "part_rows", "batch_size", "workers")
TAKING_OVER = ("normalize", "caption_texts")


@built_asset(*INPUTS, *ENCODING, group_name="embeddings", kinds={"torch", "numpy"}, code_version="1", pool="accelerator")
def embedding_parts(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """Pictures and captions through the model, part by part. With `parallel_runs` a partition is one run's share of the parts, for several
    GPUs or machines.

    A part that is there is left alone; what is missing when the sets are described is made then. Features that exist are no parts.
    """
    settings, watch = build.settings, Stopwatch()
    if settings.image_features:
        return dg.MaterializeResult(metadata={"parts": 0, IN_PLACE: "features are given"}, data_version=dg.DataVersion("features"))
    share = share_of(context, settings.parallel_runs)
    modalities: tuple[ModalityName, ...] = ("images", "captions")
    done = [_embed(modality, settings, progress, share) for modality in modalities]
    return dg.MaterializeResult(
        metadata={
            **rows_and_rate(sum(made.rows for made in done), watch.seconds),
            "parts": sum(made.parts for made in done),
            "parts_reused": sum(made.reused_parts for made in done),
            "bytes": sum(made.bytes for made in done),
        },
        data_version=dg.DataVersion(digest_of_parts(*(made.stamp for made in done))),
    )


@built_asset(
    *(*INPUTS, *ENCODING, *TAKING_OVER, "landing", "catalog", "allow_lost_takedowns"),
    group_name="embeddings",
    kinds={"torch", "numpy"},
    code_version="1",
    pool="accelerator",
    deps=[embedding_parts.key],
)
def image_embeddings(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """The pictures as float16 `.npy` parts, one row a picture, with a Parquet of keys and outcomes; and the catalog of what will be indexed.

    A picture that cannot be used keeps its row, zero, with the reason beside it: it is never paired and never found. Features that
    exist already are checked and used where they lie.
    """
    from paired_index_assets.builds.metadata import metadata_of
    from paired_index_assets.builds.opened import write_catalog

    watch = Stopwatch()
    fates = _make("images", build.settings, progress)
    catalog = write_catalog(build, partial(metadata_of, build.root, build.settings.caption_texts, landing=build.settings.landing))
    return dg.MaterializeResult(
        metadata={
            **_facts(build.images, fates, watch.seconds),
            "files_to_index": len(catalog),
            "rows_to_index": catalog.total_rows,
            "catalog": path(build.root.catalog),
        },
        data_version=dg.DataVersion(build.images.fingerprint),
    )


@built_asset(
    *(*INPUTS, *ENCODING, *TAKING_OVER),
    group_name="embeddings",
    kinds={"torch", "numpy"},
    code_version="1",
    pool="accelerator",
    deps=[embedding_parts.key],
)
def caption_embeddings(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """The captions as float16 `.npy` parts, one row a caption, in the order of the pictures.

    An empty or over-long caption keeps its row, zero, with the reason beside it: nothing is learned from it.
    """
    from paired_index_assets.builds.opened import check_caption_texts

    watch = Stopwatch()
    fates = _make("captions", build.settings, progress)
    check_caption_texts(build)
    return dg.MaterializeResult(
        metadata=_facts(build.captions, fates, watch.seconds), data_version=dg.DataVersion(build.captions.fingerprint)
    )


@built_check("max_bad_share", asset=image_embeddings.key, blocking=True)
def image_embeddings_are_usable(build: "OpenBuild") -> dg.AssetCheckResult:
    """Few pictures were refused, and every other row is a finite unit vector."""
    return _usable(build.images, build.settings)


@built_check("max_bad_share", asset=caption_embeddings.key, blocking=True)
def caption_embeddings_are_usable(build: "OpenBuild") -> dg.AssetCheckResult:
    """Few captions were refused, and every other row is a finite unit vector."""
    return _usable(build.captions, build.settings)


def _make(modality: "ModalityName", settings: Settings, progress: Progress) -> Fates:
    """Embed, or take over the features given; what became of their rows."""
    root = settings.build_root
    features = settings.image_features if modality == "images" else settings.caption_features
    if features is not None:
        from paired_index_assets.embeddings.features import adopt_features

        json_path, files = root.embedding_set(modality), several(features)
        made = adopt_features(json_path, files, modality=modality, normalize=settings.normalize, cache=root.cache, progress=progress)
        facts = _with_model_named(made, settings).facts(progress=progress)
        fates = Fates(Counter({OK: facts.rows - facts.invalid}))
        if facts.invalid:
            fates.outcomes[NOT_FINITE], fates.refused = facts.invalid, [f"row {facts.first_invalid}: {NOT_FINITE}"]
        return fates
    return _embed(modality, settings, progress).fates


def _embed(modality: "ModalityName", settings: Settings, progress: Progress, share: Share = WHOLE) -> "EmbedSummary":
    from paired_index_assets.embeddings.encoders import load_encoder
    from paired_index_assets.embeddings.run import embed_captions, embed_images
    from paired_index_assets.readers.open import PairedSource, open_source

    if settings.images is None:
        if settings.image_features:
            raise BadInput("nothing to embed: image_features are embeddings already; materialise image_embeddings and caption_embeddings")
        raise BadInput("nothing to embed: set images (pictures), or image_features and caption_features")
    pictures = open_source(settings.images, "images")
    source: Source = PairedSource(pictures, open_source(settings.captions, "captions")) if settings.captions else pictures
    encoder = load_encoder(settings.model, settings.pretrained, settings.device)
    sizes: dict[str, int] = {"part_rows": settings.part_rows, "batch_size": settings.batch_size}
    if modality == "images":
        return embed_images(source, encoder, settings.build_root, workers=settings.workers, share=share, progress=progress, **sizes)
    return embed_captions(source, encoder, settings.build_root, share=share, progress=progress, **sizes)


def _with_model_named(made: "EmbeddingSet", settings: Settings) -> "EmbeddingSet":
    """Features carry no model's name: they are taken to be of the model in the settings if their width is its width."""
    from paired_index_assets.embeddings.encoders import load_encoder
    from paired_index_assets.embeddings.sets import write_set

    encoder = load_encoder(settings.model, settings.pretrained, settings.device)
    if encoder.dimensions != made.dimensions:
        return made
    return write_set(made.source, made.parts, model=encoder.identity, modality=made.modality, cache=made.cache, normalized=made.normalized)


def _facts(made: "EmbeddingSet", fates: Fates, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        **rows_and_rate(len(made), seconds),
        "dimensions": made.dimensions,
        "bytes": sum(part.path.stat().st_size for part in made.parts),
        "parts": len(made.parts),
        "model": made.model or "not named",
        "normalized_here": made.normalized,
        "refused": sum(fates.bad.values()),
        "skipped": fates.skipped.total(),
        "path": path(made.source),
    }
    if fates.bad:
        facts["refused_by_reason"] = markdown_table(["reason", "rows"], list(fates.bad.items()))
        facts["first_refused"] = "; ".join(fates.refused)
    if fates.skipped:
        facts["skipped_by_kind"] = markdown_table(["kind", "files or members"], fates.skipped.most_common())
        facts["first_skipped"] = "; ".join(fates.left)
    if words := fates.in_words():
        facts[IN_WORDS] = ". ".join(words)
    return facts


def _usable(made: "EmbeddingSet", settings: Settings) -> dg.AssetCheckResult:
    facts = made.facts()
    refused = facts.invalid + facts.off_norm
    share = refused / max(facts.rows, 1)
    finding = f"{refused} of {facts.rows} rows refused ({share:.2%}, at most {settings.max_bad_share:.2%}); norms {facts.norm_min:.4g} to {facts.norm_max:.4g}"
    if facts.off_norm:
        finding += f"; {facts.off_norm} are not of unit norm: normalise them (x / |x|), or set normalize to always"
    if (passed := share <= settings.max_bad_share) is False:
        from paired_index_assets.embeddings.metadata import fates_of

        finding = "; ".join([finding, *fates_of(made).in_words()])
    return dg.AssetCheckResult(
        passed=passed,
        description=finding,
        metadata={"refused_share": share, "norm_min": facts.norm_min, "norm_max": facts.norm_max},
    )
