"""The same pairs as a folder, as tars, as Parquet."""

from __future__ import annotations

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as the datasets library writes it


def pack_folder(folder, pairs):
    folder.mkdir(parents=True)
    for pair in pairs:
        (folder / f"{pair['key']}.png").write_bytes(pair["png"])
        (folder / f"{pair['key']}.txt").write_text(pair["caption"])
    return folder


def pack_tars(folder, pairs, per_tar):
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(pairs), per_tar)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for pair in pairs[start : start + per_tar]:
                facts = {"caption": pair["caption"], "url": f"https://example.org/{pair['key']}", "key": pair["key"], "width": 32}
                for suffix, content in (("png", pair["png"]), ("txt", pair["caption"].encode()), ("json", json.dumps(facts).encode())):
                    add(tar, f"{pair['key']}.{suffix}", content)
        (folder / f"{number:05d}_stats.json").write_text("{}")
        pq.write_table(pa.table({"key": [p["key"] for p in pairs[start : start + per_tar]]}), folder / f"{number:05d}.parquet")
    return folder


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def pack_parquet(folder, pairs, per_file, row_group):
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, len(pairs), per_file)):
        some = pairs[start : start + per_file]
        table = pa.table(
            {
                "key": [p["key"] for p in some],
                "image": pa.array([{"bytes": p["png"], "path": None} for p in some], PICTURE),
                "text": [p["caption"] for p in some],
                "license": [p["license"] for p in some],
            }
        )
        pq.write_table(table, folder / f"train-{number:05d}.parquet", row_group_size=row_group)
    return folder


def png(color=(200, 30, 40), size=(8, 8)):
    stream = io.BytesIO()
    Image.new("RGB", size, color).save(stream, "PNG")
    return stream.getvalue()
