"""`paired-index build`: the assets of the Dagster UI, materialised one after another in this process."""

import os
from typing import Annotated, Any

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.stopping import stop_if_asked
from paired_index_assets.cli.terminal import bars, say
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import several
from paired_index_assets.files.storage import as_path, is_local, require_writable
from paired_index_assets.settings import Settings, absolute, load_settings

INPUTS = ("images", "captions", "image_features", "caption_features", "caption_texts")
SAMPLE_PART_ROWS = 104  # 12,000 pairs in 116 files: two for each of the 58 shards


@takes_settings("Input and output", "Embeddings", "Training", "Shards", "Search", "Hardware")
def build(
    settings: Settings, sample: Annotated[bool, typer.Option("--sample", help="Build the 12,000 icons that ship with the project.")] = False
) -> None:
    """Build an index: embeddings, pairs, centroids, trained index, shards, manifest, recall report.

    Stopped at any point, the same command goes on from there. What is finished and unchanged is not built again.
    """
    settings = _resolved(settings, sample)
    require_writable(settings.build_root.root)
    # Every process of a run inherits the environment, and the shard partitions are read from it when the assets are imported.
    os.environ.update(settings.environment())
    from paired_index_assets.assets.in_process import build_all
    from paired_index_assets.assets.instance import instance_of

    def begin(asset: str) -> None:
        stop_if_asked()
        say(asset, "bold")

    with instance_of(settings) as instance, bars() as progress:
        build_all(settings, instance, progress, begin, lambda left: say(f"  {left}"))
    stop_if_asked()
    say("")
    say(f"Done. Files of the build: {settings.root}")


def _resolved(settings: Settings, sample: bool) -> Settings:
    """Local paths made absolute and found to exist, before anything slow starts."""
    chosen = settings.model_dump()
    if sample:
        from paired_index_assets.sample import sample_model, sample_pairs

        chosen |= {"images": str(sample_pairs()), "model": sample_model(), "pretrained": None, "part_rows": SAMPLE_PART_ROWS}
        chosen |= {"image_features": None, "caption_features": None}
    if not chosen["images"] and not chosen["image_features"]:
        raise BadInput("nothing to build from: give --images (pictures), or --image-features and --caption-features, or --sample")
    chosen["root"] = absolute(chosen["root"])
    for name in INPUTS:
        for given in several(chosen[name] or ""):
            if given and is_local(as_path(given)) and not any(mark in given for mark in "*?[{:") and not as_path(given).exists():
                raise MissingInput(f"--{name.replace('_', '-')} {given}: no such file or folder")
    if chosen["caption_texts"]:
        from paired_index_assets.readers.open import open_source

        open_source(chosen["caption_texts"], "captions")  # says what is wrong with it, before anything is embedded
    whole: dict[str, Any] = {name: "" if value is None else value for name, value in chosen.items()}  # unset is not what was remembered
    return load_settings(**whole)
