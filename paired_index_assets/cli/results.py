"""Search results for a person, or for the next program."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.builds.metadata import metadata_of
from paired_index_assets.cli.terminal import bars, fail, say, table
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.streaming import blocks, stream_npz, stream_parquet
from paired_index_assets.serving.pictures import Pictures
from paired_index_assets.serving.results import answers, table_rows, write_html, write_json
from paired_index_assets.settings import Settings


def show(settings: Settings, queries: list[str], scores: Float32, ids: Int64, out: Path | None, *, missing: dict[int, str]) -> None:
    """A table on the terminal, or `out` in the format its suffix names; shards that were not searched are named on standard error."""
    _say_missing(missing)
    wanted = settings.images is not None and out is not None and out.suffix == ".html"
    indexed = Catalog.load(settings.build_root.catalog).total_rows
    pictures = Pictures.of(settings.images, indexed) if wanted and settings.images else None
    metadata = metadata_of(BuildRoot.at(settings.root), settings.caption_texts, landing=settings.landing)
    found = answers(queries, scores, ids, metadata=metadata, pictures=pictures)
    if out is not None:
        (write_html if out.suffix == ".html" else write_json)(out, found)
    else:
        for answer in found:
            rows = [[rank, f"{score:.4f}", row_id, caption] for rank, score, row_id, caption in table_rows(answer)]
            table(answer.query, ["", "score", "id", "caption"], rows)
    if out is not None:
        say(f"wrote {out}")


def stream(
    queries: npt.NDArray[Any], k: int, search: Callable[[Float32], tuple[Float32, Int64]], out: Path, *, missing: dict[int, str]
) -> None:
    """The answers to any number of queries as .npz or Parquet, block by block."""
    _say_missing(missing)
    if queries.ndim != 2:
        queries = np.atleast_2d(queries)
    with bars() as progress:
        answers = blocks(queries, k, search, progress=progress)
        if out.suffix == ".parquet":
            stream_parquet(out, answers)
        else:
            stream_npz(out, len(queries), k, answers)
    say(f"wrote {out}")


def _say_missing(missing: dict[int, str]) -> None:
    for shard, why in missing.items():
        fail(f"shard {shard} was not searched: {why}")
