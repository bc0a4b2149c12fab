"""`manifest.parquet`: one row a catalogued file that is in a shard, or that kept one from being built.

The only module that names its columns.

Beside it `parquet_lengths_paired.list` for readers written for the paper's shards (github Chris210634/mudg, scripts/retrieve.py): a
tuple of three lists saved by torch, Parquet file names, their row counts, and index files, all relative to the build's root.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.storage import is_local, write_bytes
from paired_index_assets.files.tables import read_table, write_table
from paired_index_assets.landing.catalog import DATA_SET, Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.generations import served_if_any
from paired_index_assets.shards.record import finished_shards, read_failure, shard_file
from paired_index_assets.trained.artifact import TrainedIndex

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("file_id", pa.int32(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("start_row", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("indexed", pa.int64()),
        pa.field("left_out", pa.int64()),
        pa.field("not_finite", pa.int64()),
        pa.field("zero", pa.int64()),
        pa.field("taken_down", pa.int64()),
        pa.field("lossy", pa.bool_()),
        pa.field("file_bytes", pa.int64()),
        pa.field("file_content", pa.string()),
        pa.field("trained", pa.string()),
        pa.field("method", pa.string()),
        pa.field("model", pa.string()),
        pa.field("shard_file", pa.string()),
        pa.field("shard_sha256", pa.string()),
        pa.field("shard_bytes", pa.int64()),
        pa.field("problem", pa.string()),
    ]
)
MANIFEST_COLUMNS = {
    "shard": "number of the shard that the file belongs to",
    "file_id": "place of the file in the catalog",
    "name": "of the landed file",
    "offset": "first row of the slice inside the landed file",
    "start_row": "global id of its first row",
    "rows": "rows of the slice",
    "indexed": "rows that can be found; null while the file is in no finished shard",
    "left_out": "rows - indexed: the sum of not_finite, zero and taken_down",
    "not_finite": "rows left out because a value of them is NaN or infinite",
    "zero": "rows left out because all their values are zero",
    "taken_down": "rows left out because they were taken down",
    "lossy": "rebuilt from another index because the file itself is gone",
    "file_bytes": "bytes of the landed file",
    "file_content": "sha256 of the slice's rows",
    "trained": "fingerprint of the trained index that the shard was made with",
    "method": "which k-means trained it",
    "model": "identity of the encoder",
    "shard_file": "the shard's faiss file, relative to the root",
    "shard_sha256": "sha256 of that file",
    "shard_bytes": "bytes of that file",
    "problem": "why the shard's last build could not use this file, or waits for it; else null",
}
NORMALIZED = b"paired_index.normalized"  # which features this project divided by their norms, as "images, captions"


def write_manifest(root: BuildRoot, trained: TrainedIndex, catalog: Catalog, normalized: Sequence[str] = ()) -> pa.Table:
    """Collect the records of the served generation's finished shards into the manifest; returns it. What keeps others
    from being built is in it too.

    Also writes the list for mudg-style readers: every catalogued file in order, so that lengths add up to global ids. Its Parquet
    names are the landed names with `img_emb` read as `metadata`, as LAION names them.
    """
    rows, index_files = [], []
    made = root.generation(trained.fingerprint)
    served = served_if_any(root) or made
    finished = finished_shards(served)
    if served != made:  # it has ids of its own catalog, and nothing is built in it any more
        catalog = Catalog.load(served.catalog)
    for shard in range(catalog.shards):
        record, problems = finished.get(shard), read_failure(served.shard(trained.codec.name, shard))
        place = served.shard(record.codec if record else trained.codec.name, shard)
        done = {file.file_id: file for file in record.files} if record else {}
        name = _relative(root, shard_file(place, record)) if record else ""
        if record:
            index_files.append(f"{root.shards.name}/{place.name}" if is_local(root.root) else name)
        for file in catalog.files(shard):
            row = {name: getattr(file, name) for name in ("shard", "file_id", "name", "offset", "start_row", "rows")}
            if record and file.file_id in done:
                mine = done[file.file_id]
                row |= {name: getattr(mine, name) for name in ("start_row", "rows", "indexed", "not_finite", "zero", "taken_down", "lossy")}
                row |= {"left_out": mine.rows - mine.indexed, "file_bytes": mine.size, "file_content": mine.content}
                row |= {"trained": record.trained, "method": record.method, "model": record.model}
                row |= {"shard_file": name, "shard_sha256": record.sha256, "shard_bytes": record.bytes}
            if file.file_id in done or file.file_id in problems:
                rows.append(row | {"problem": problems.get(file.file_id)})
    facts = {DATA_SET: catalog.data_set.encode()}
    schema = MANIFEST_SCHEMA.with_metadata(facts | ({NORMALIZED: ", ".join(normalized).encode()} if normalized else {}))
    table = pa.Table.from_pylist(rows, schema=schema)
    write_table(root.manifest, table)
    _write_lengths(root, catalog, index_files)
    return table


def served_data_set(root: BuildRoot) -> str:
    """What the ids in the served shards mean, see Catalog.data_set; empty where none are."""
    served = served_if_any(root)
    return Catalog.load(served.catalog).data_set if served is not None and served.catalog.exists() else ""


def any_taken_down(root: BuildRoot) -> bool:
    """Whether a finished shard was made without rows that were taken down; False where no manifest says so."""
    try:
        return any(read_manifest(root)["taken_down"].to_pylist())
    except (MissingInput, DamagedArtifact):
        return False


def read_manifest(root: BuildRoot) -> pa.Table:
    """Raises MissingInput before the first build, DamagedArtifact for a file of another schema."""
    try:
        table = read_table(root.manifest, "materialise index_manifest again, which writes a new one")
    except FileNotFoundError as error:
        raise MissingInput(f"{root.manifest}: no manifest yet; build the shards first") from error
    if table.schema.names != MANIFEST_SCHEMA.names:
        raise DamagedArtifact(f"{root.manifest}: columns {table.schema.names}, expected {MANIFEST_SCHEMA.names}; build the manifest again")
    return table


def read_lengths(path: UPath | Path) -> tuple[list[str], list[int], list[str]]:
    """(Parquet file names, rows of each, index files) from a `parquet_lengths_paired.list`."""
    import torch

    with path.open("rb") as stream:
        names, lengths, indices = torch.load(stream, weights_only=True)
    return names, lengths, indices


def _write_lengths(root: BuildRoot, catalog: Catalog, index_files: list[str]) -> None:
    import torch

    names, lengths = [], []
    for name, slices in catalog.by_name.items():
        names.append(Path(name.replace("img_emb", "metadata")).with_suffix(".parquet").name)
        lengths.append(sum(file.rows for file in slices))
    stream = io.BytesIO()  # torch writes a file's name into the file, and this one's is temporary
    torch.save((names, lengths, index_files), stream)
    write_bytes(root.parquet_lengths, stream.getvalue())


def _relative(root: BuildRoot, path: UPath) -> str:
    return str(path.path).removeprefix(root.root.path).lstrip("/")
