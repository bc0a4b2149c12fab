"""Files arrive: `python -m laion_rehearsal.landing ORDER.json` is the download, a process of its own that may be killed like any other.

A file grows under its own name, as `wget` leaves it; started again, the download leaves finished files alone. Order, cuts and versions
are in ORDER.json: the plan's fields, and [name, version, share of the bytes to write] a file.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from laion_rehearsal.geometry import Float16
from laion_rehearsal.plan import Plan
from paired_index_assets.files.storage import write_json
from paired_index_assets.landing.catalog import CatalogFile

PIECE = 1 << 20


def rows_of(plan: Plan, file: CatalogFile, version: int = 0) -> Float16:
    """(rows, d) what the landed file holds, unusable rows and all."""
    rows = plan.geometry.images(file.file_id, file.rows, version=version)
    bad = plan.mischief.unusable_rows(file)
    if bad:
        rows[bad["zero"]] = 0
        rows[bad["not_finite"], 5] = np.nan
    return rows


def npy(rows: Float16) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, rows, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def land(plan: Plan, file: CatalogFile, version: int = 0, share: float = 1.0) -> None:
    """Write the file into the landing folder piece by piece, up to a share of it, and its metadata beside the folder."""
    plan.landing.mkdir(parents=True, exist_ok=True)
    target = plan.landing / file.name
    content = npy(rows_of(plan, file, version))
    if len(content) != file.bytes:
        raise SystemExit(f"{target}: made {len(content)} bytes; the catalog expects {file.bytes}")
    if version:  # arrives under its name in one step: what is replaced is never half there
        target = target.with_name(f".{file.name}.arriving")
    with target.open("wb") as stream:
        stop = int(len(content) * share)
        for start in range(0, stop, PIECE):
            stream.write(content[start : min(start + PIECE, stop)])
            stream.flush()
    if version:
        target.replace(plan.landing / file.name)
    write_metadata(plan, file)


def write_metadata(plan: Plan, file: CatalogFile) -> None:
    """metadata_NNNN.parquet with LAION's columns; a row's url and md5 follow from its global id."""
    path = plan.metadata / file.name.replace("img_emb", "metadata").replace(".npy", ".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = range(file.start_row, file.stop_row)
    columns = {
        "image_path": [f"made/{number}.jpg" for number in ids],
        "caption": [f"made caption {number}" for number in ids],
        "NSFW": ["UNLIKELY"] * file.rows,
        "similarity": np.full(file.rows, 0.3),
        "LICENSE": ["?"] * file.rows,
        "url": [url_of(number) for number in ids],
        "key": [f"{number:012d}" for number in ids],
        "status": ["success"] * file.rows,
        **{name: np.full(file.rows, 512) for name in ("width", "height", "original_width", "original_height")},
        "exif": ["{}"] * file.rows,
        "md5": [md5_of(number) for number in ids],
    }
    pq.write_table(pa.table(columns), path)


def url_of(row: int) -> str:
    return f"https://made.invalid/{row}.jpg"


def md5_of(row: int) -> str:
    return hashlib.md5(url_of(row).encode(), usedforsecurity=False).hexdigest()


def write_sample(plan: Plan) -> int:
    """sample/img_emb and sample/text_emb: whole files to train on; returns their pairs."""
    rows = 0
    for file in plan.sampled():
        for folder, made in (("img_emb", plan.geometry.images), ("text_emb", plan.geometry.captions)):
            path = plan.sample / folder / file.name.replace("img_emb", folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(npy(made(file.file_id, file.rows)))
        rows += file.rows
    return rows


def write_order(plan: Plan, name: str, files: Iterable[tuple[CatalogFile, int, float]]) -> Path:
    path = plan.work / f"{name}.order.json"
    fields = {"work": str(plan.work), "share": plan.share, "seed": plan.seed, "files": plan.files}
    write_json(path, {"plan": fields, "order": [[file.file_id, version, share] for file, version, share in files]})
    return path


def main(order: Path) -> None:
    asked = json.loads(order.read_text())
    fields = asked["plan"]
    plan = Plan(Path(fields["work"]), fields["share"], fields["seed"], fields["files"])
    files = plan.catalog.all_files
    for file_id, version, share in asked["order"]:
        target = plan.landing / files[file_id].name
        if version or not target.exists() or target.stat().st_size != int(files[file_id].bytes * share):
            land(plan, files[file_id], version, share)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
