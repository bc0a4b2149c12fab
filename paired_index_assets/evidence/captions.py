"""The captions that a build is reported on, as the build of a shard needs them."""

from __future__ import annotations

import io
from zipfile import BadZipFile

import numpy as np

from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import content_of, digest_of_parts, write_bytes
from paired_index_assets.pairing.split import Split
from paired_index_assets.shards.truth import TestCaptions, captions_to_judge


def captions_reported_on(build: OpenBuild) -> TestCaptions | None:
    """The captions that truth is kept for; None before the captions are paired, and where they are gone: no shard has to wait for them.

    Kept beside their truths as a small file, so that who builds one shard on a machine of its own does not fetch all captions.
    """
    root, settings = build.root, build.settings
    if not root.split.exists() or not root.caption_set.exists():
        return None
    rows = build.catalog.total_rows
    chosen_by = str(rows), str(settings.lists_for(rows)), str(settings.seed)
    made_from = digest_of_parts(stamp_of(root.split), stamp_of(root.caption_set), *chosen_by)
    try:
        with np.load(io.BytesIO(content_of(root.test_captions)), allow_pickle=False) as kept:
            if str(kept["made_from"]) == made_from:
                return TestCaptions(kept["vectors"])
    except (FileNotFoundError, BadInput, ValueError, KeyError, EOFError, OSError, BadZipFile):
        pass  # a copy: made again
    try:
        captions = _chosen(build, rows)
    except (MissingInput, DamagedArtifact):
        return None
    if captions is not None:
        content = io.BytesIO()
        np.savez(content, vectors=captions.vectors, made_from=made_from)
        write_bytes(root.test_captions, content.getvalue())
    return captions


def _chosen(build: OpenBuild, rows: int) -> TestCaptions | None:
    captions, settings = build.captions, build.settings
    test = Split.load(build.root.split).test
    test = captions_to_judge(test, rows, captions.dimensions, settings.lists_for(rows), seed=settings.seed)
    return TestCaptions(captions[test].astype(np.float32)) if len(test) else None
