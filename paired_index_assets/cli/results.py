"""Search results for a person, or for the next program."""

from pathlib import Path

from paired_index_assets.builds.metadata import metadata_of
from paired_index_assets.cli.terminal import fail, say, table
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.serving.pictures import Pictures
from paired_index_assets.serving.results import answers, table_rows, write_html, write_json, write_npz
from paired_index_assets.settings import Settings


def show(settings: Settings, queries: list[str], scores: Float32, ids: Int64, out: Path | None, *, missing: dict[int, str]) -> None:
    """A table on the terminal, or `out` in the format its suffix names; shards that were not searched are named on standard error."""
    for shard, why in missing.items():
        fail(f"shard {shard} was not searched: {why}")
    if out is not None and out.suffix == ".npz":
        write_npz(out, scores, ids)
    else:
        wanted = settings.images is not None and out is not None and out.suffix == ".html"
        indexed = Catalog.load(settings.build_root.catalog).total_rows
        pictures = Pictures.of(settings.images, indexed) if wanted and settings.images else None
        metadata = metadata_of(BuildRoot.at(settings.root), settings.caption_texts)
        found = answers(queries, scores, ids, metadata=metadata, pictures=pictures)
        if out is not None:
            (write_html if out.suffix == ".html" else write_json)(out, found)
        else:
            for answer in found:
                rows = [[rank, f"{score:.4f}", row_id, caption] for rank, score, row_id, caption in table_rows(answer)]
                table(answer.query, ["", "score", "id", "caption"], rows)
    if out is not None:
        say(f"wrote {out}")
